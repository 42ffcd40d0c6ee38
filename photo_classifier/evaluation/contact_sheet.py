"""Contact sheets: photos side by side, each above a caption."""

from __future__ import annotations

import re
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
MOST_LINES = 2  # that a line of a caption is broken into


@dataclass(frozen=True)
class Tile:
    """One picture of a sheet, its caption, and the colour of its frame if it has one."""

    image: Image.Image
    caption: str
    frame: str | None = None


def contact_sheet(tiles: Sequence[Tile], n_columns: int, side: int = SIDE, title: str = "") -> Image.Image:
    """Draws tiles in rows, each fitted into `side` x `side` pixels above its caption; small images are enlarged."""
    font = font_for("".join([title, *(tile.caption for tile in tiles)]))
    captions = [_wrapped(tile.caption, font, side) for tile in tiles]
    width, height = side + 2 * GAP, side + 2 * GAP + max(map(len, captions), default=1) * LINE
    n_columns = max(1, min(n_columns, len(tiles)))
    heading = _wrapped(title, font, n_columns * width - 4 * GAP) if title else []
    top = len(heading) * LINE + 2 * GAP if title else 0
    sheet = Image.new("RGB", (n_columns * width, top + -(-len(tiles) // n_columns) * height), "white")
    for row, line in enumerate(heading):
        ImageDraw.Draw(sheet).text((2 * GAP, 2 * GAP + row * LINE), line, "black", font)
    for n, (tile, lines) in enumerate(zip(tiles, captions, strict=True)):
        _draw_tile(sheet, tile, lines, (n % n_columns * width, top + n // n_columns * height), side, font)
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


def _draw_tile(
    sheet: Image.Image,
    tile: Tile,
    lines: Sequence[str],
    corner: tuple[int, int],
    side: int,
    font: ImageFont.FreeTypeFont,
) -> None:
    draw, (left, top) = ImageDraw.Draw(sheet), corner
    resampling = Image.Resampling.NEAREST if max(tile.image.size) < side else Image.Resampling.BOX
    image = ImageOps.contain(tile.image, (side, side), resampling)
    x, y = left + (side + 2 * GAP - image.width) // 2, top + GAP + (side - image.height) // 2
    sheet.paste(image, (x, y))
    if tile.frame:
        draw.rectangle((x - 3, y - 3, x + image.width + 2, y + image.height + 2), outline=tile.frame, width=3)
    for row, line in enumerate(lines):
        position = (left + side // 2 + GAP, top + side + 2 * GAP + row * LINE)
        draw.text(position, line, "black", font, anchor="ma")


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Returns the lines of a text, each broken into at most `MOST_LINES` that are `width` pixels wide or less."""
    found = []
    for line in text.split("\n"):
        if font.getlength(whole := readable(line, font)) <= width:
            found.append(whole)
            continue
        parts = [""]
        for word in re.findall(r"[^ _-]*[ _-]?", line):
            longer = parts[-1] + word
            if len(parts) < MOST_LINES and parts[-1] and font.getlength(readable(longer.strip(), font)) > width:
                parts.append(word)
            else:
                parts[-1] = longer
        found += [_fitting(part.strip(), font, width) for part in parts]
    return found


def _fitting(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Makes the text readable in the font and cuts it with an ellipsis if it is wider than `width` pixels.

    A probability at its end, `83 %` with a space that does not break, stays.
    """
    text, end = re.fullmatch(r"(.*?)( (?:over |under )?\d+\N{NO-BREAK SPACE}%,?)?", text, re.S).groups("")
    text, end = readable(text, font), readable(end, font)
    if font.getlength(text + end) <= width:
        return text + end
    while text and font.getlength(f"{text}...{end}") > width:
        text = text[:-1]
    return f"{text}...{end}"
