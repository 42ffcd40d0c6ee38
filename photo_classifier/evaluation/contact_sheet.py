"""Contact sheets: photos side by side, each above a caption."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TypeVar

import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

from photo_classifier.evaluation.fonts import TEXT_SIZE, font_for, readable
from photo_classifier.runtime.device import n_cores

Item, Result = TypeVar("Item"), TypeVar("Result")

SIDE = 144  # pixels of a photo
GAP = 4  # pixels around a photo
LINE = TEXT_SIZE + 4


@dataclass(frozen=True)
class Tile:
    """One picture of a sheet, its caption, and the colour of its frame if it has one."""

    image: Image.Image
    caption: str
    frame: str | None = None


def contact_sheet(tiles: Sequence[Tile], n_columns: int, side: int = SIDE) -> Image.Image:
    """Draws tiles in rows, each fitted into `side` x `side` pixels above its caption; small images are enlarged."""
    font = font_for("".join(tile.caption for tile in tiles))
    n_lines = max((tile.caption.count("\n") + 1 for tile in tiles), default=1)
    width, height = side + 2 * GAP, side + 2 * GAP + n_lines * LINE
    n_columns = max(1, min(n_columns, len(tiles)))
    sheet = Image.new("RGB", (n_columns * width, -(-len(tiles) // n_columns) * height), "white")
    for n, tile in enumerate(tiles):
        _draw_tile(sheet, tile, n % n_columns * width, n // n_columns * height, side, font)
    return sheet


def map_until(function: Callable[[Item], Result], items: Sequence[Item], seconds: float | None = None) -> list:
    """Calls the function in threads, as decoding releases the GIL; returns pairs of item and result, in order.

    Items that have not been started within `seconds` are left out.
    """
    with ThreadPoolExecutor(n_cores()) as pool:
        futures = [pool.submit(function, item) for item in items]
        wait(futures, seconds)
        for future in futures:
            future.cancel()
    return [(item, done.result()) for item, done in zip(items, futures, strict=True) if not done.cancelled()]


def picture_of(pixels: torch.Tensor) -> Image.Image:
    """Converts uint8 (3, height, width) to a Pillow image."""
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def _draw_tile(sheet: Image.Image, tile: Tile, left: int, top: int, side: int, font: ImageFont.FreeTypeFont) -> None:
    draw = ImageDraw.Draw(sheet)
    resampling = Image.Resampling.NEAREST if max(tile.image.size) < side else Image.Resampling.BOX
    image = ImageOps.contain(tile.image, (side, side), resampling)
    x, y = left + (side + 2 * GAP - image.width) // 2, top + GAP + (side - image.height) // 2
    sheet.paste(image, (x, y))
    if tile.frame:
        draw.rectangle((x - 3, y - 3, x + image.width + 2, y + image.height + 2), outline=tile.frame, width=3)
    for row, line in enumerate(tile.caption.split("\n")):
        position = (left + side // 2 + GAP, top + side + 2 * GAP + row * LINE)
        draw.text(position, _fitting(line, font, side), "black", font, anchor="ma")


def _fitting(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Makes the text readable in the font and cuts it with an ellipsis if it is wider than `width` pixels."""
    text = readable(text, font)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."
