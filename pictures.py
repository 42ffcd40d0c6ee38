"""Pictures of pictures: photos side by side, each with a line of text."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

from utils import n_cores

Item, Made = TypeVar("Item"), TypeVar("Made")

GAP = 4  # pixels around a tile
TEXT_SIZE = 13  # pixels
LINE = TEXT_SIZE + 4


@dataclass(frozen=True)
class Tile:
    """A picture of a sheet: what it shows, the lines below it, and the colour of a frame if it has one."""

    image: Image.Image
    caption: str
    frame: str | None = None


def in_time(make: Callable[[Item], Made], items: Sequence[Item], seconds: float | None = None) -> list:
    """Pairs of an item and what `make` gives for it, in their order: by threads, as decoding lets others run.

    Args:
        seconds: items that are not begun by then are left out.
    """
    with ThreadPoolExecutor(n_cores()) as pool:
        futures = [pool.submit(make, item) for item in items]
        wait(futures, seconds)
        for future in futures:
            future.cancel()
    return [(item, done.result()) for item, done in zip(items, futures, strict=True) if not done.cancelled()]


def picture_of(pixels: torch.Tensor) -> Image.Image:
    """uint8 (3, height, width) -> the same as a picture."""
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def contact_sheet(tiles: Sequence[Tile], n_columns: int, side: int = 144) -> Image.Image:
    """Tiles in rows, each within `side` x `side` pixels over its caption; small images are enlarged."""
    font = font_for("".join(tile.caption for tile in tiles))
    n_lines = max((tile.caption.count("\n") + 1 for tile in tiles), default=1)
    width, height = side + 2 * GAP, side + 2 * GAP + n_lines * LINE
    n_columns = max(1, min(n_columns, len(tiles)))
    sheet = Image.new("RGB", (n_columns * width, -(-len(tiles) // n_columns) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for n, tile in enumerate(tiles):
        left, top = n % n_columns * width, n // n_columns * height
        how = Image.Resampling.NEAREST if max(tile.image.size) < side else Image.Resampling.BOX
        shown = ImageOps.contain(tile.image, (side, side), how)
        x, y = left + (width - shown.width) // 2, top + GAP + (side - shown.height) // 2
        sheet.paste(shown, (x, y))
        if tile.frame:
            box = (x - 3, y - 3, x + shown.width + 2, y + shown.height + 2)
            draw.rectangle(box, outline=tile.frame, width=3)
        for row, line in enumerate(tile.caption.split("\n")):
            place = (left + width // 2, top + side + 2 * GAP + row * LINE)
            draw.text(place, _fitting(line, font, side), "black", font, anchor="ma")
    return sheet


def _fitting(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text, cut with an ellipsis where it is wider than that many pixels; what the font lacks is escaped."""
    text = readable(text, font)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}...") > width:
        text = text[:-1]
    return f"{text}..."


def readable(text: str, font: ImageFont.FreeTypeFont) -> str:
    """The text, with an escape in place of each letter that the font lacks, and of line ends."""
    missing = {c for c in text if not c.isprintable() or not _has(font, c)}
    return "".join(c.encode("unicode_escape").decode() if c in missing else c for c in text)


def undrawn(text: str) -> str:
    """The letters of the text for which no font is installed, each once."""
    font = font_for(text)
    return "".join(sorted({c for c in text if c.isprintable() and not _has(font, c)}))


# --- fonts ------------------------------------------------------------------------------------

# Those that have what Pillow's own font lacks, Korean first; then whatever else is installed.
PREFERRED = ("nanumgothic", "malgun", "applesdgothic", "notosanscjk", "notosanskr", "nanum", "dejavusans", "arial")


def font_for(text: str) -> ImageFont.FreeTypeFont:
    """A font that has the letters of the text, else the one that has most of them: Pillow's own if it can."""
    return _font_for("".join(sorted({c for c in text if not c.isspace()})))


@functools.lru_cache
def _font_for(letters: str) -> ImageFont.FreeTypeFont:
    best = ImageFont.load_default(TEXT_SIZE)
    n_best = sum(_has(best, c) for c in letters)
    for path in _installed_fonts() if n_best < len(letters) else ():
        try:
            font = ImageFont.truetype(path, TEXT_SIZE)
            n_found = sum(_has(font, c) for c in letters)
        except (OSError, ValueError):  # a broken font, or one of bitmaps alone
            continue
        if n_found > n_best:
            best, n_best = font, n_found
        if n_best == len(letters):
            break
    return best


def _has(font: ImageFont.FreeTypeFont, letter: str) -> bool:
    """Whether the font draws anything else for the letter than for one that no font has."""
    return letter.isspace() or bytes(font.getmask(letter)) != bytes(font.getmask("\U0010fffe"))


def _installed_fonts() -> Iterator[str]:
    home = Path.home()
    folders = {
        "win32": [Path(os.environ.get("WINDIR", "C:/Windows")) / "Fonts"],
        "darwin": [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library/Fonts"],
    }.get(sys.platform, [Path("/usr/share/fonts"), Path("/usr/local/share/fonts"), home / ".local/share/fonts"])
    found = [
        path for folder in folders for path in folder.rglob("*") if path.suffix.lower() in (".ttf", ".ttc", ".otf")
    ]

    def rank(path: Path) -> tuple[int, str]:
        name = path.stem.lower().replace("-", "")
        return next((n for n, start in enumerate(PREFERRED) if name.startswith(start)), len(PREFERRED)), name

    return (str(path) for path in sorted(found, key=rank))
