"""Pictures of pictures: photos side by side, each with a line of text."""

from __future__ import annotations

import functools
import heapq
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps

from photo_classifier.data.decoding import BadImage, decode
from photo_classifier.prediction.results import Prediction
from photo_classifier.runtime.device import n_cores
from photo_classifier.runtime.seeding import derive_seed

if TYPE_CHECKING:
    import torch


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


def map_until(make: Callable[[Item], Made], items: Sequence[Item], seconds: float | None = None) -> list:
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


def missing_glyphs(text: str) -> str:
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


N_SHEET = 48  # photos of a contact sheet


SIDE = 144  # pixels of a photo


def mistakes_sheet(
    report: Mapping, open_photo: Callable[[str], torch.Tensor], seconds: float | None = None
) -> Image.Image | None:
    """The most confident mistakes: photos with prediction, label and probability; None where there is none.

    Args:
        seconds: to spend; the clock cuts off the least confident ones.
    """

    def tile(about: Mapping) -> Tile:
        caption = _caption(about["predict"], about["probability"], about["label"])
        return _tile(about["file_dir"], caption, None, open_photo)

    tiles = [tile for _, tile in map_until(tile, report["mistakes"], seconds)]
    return contact_sheet(tiles, 6, SIDE) if tiles else None


def _caption(predict: str, probability: float, label: str = "") -> str:
    lines = [f"{probability:.2f} {predict}", *([f"is {label}"] if label else [])]
    return "\n".join(" ".join(line.split()) for line in lines)


def _tile(path: str, caption: str, frame: str | None, open_photo: Callable[[str], torch.Tensor]) -> Tile:
    try:
        picture = picture_of(open_photo(path))
        if max(picture.size) > SIDE:  # as the sheet would do it: many photos at once fill the memory
            picture = ImageOps.contain(picture, (SIDE, SIDE), Image.Resampling.BOX)
    except BadImage:  # it has gone since
        picture = Image.new("RGB", (SIDE, SIDE), "lightgrey")
    return Tile(picture, caption, frame)


def photo_opener(max_pixels: int, bit_depth: int) -> Callable[[str], torch.Tensor]:
    """What decodes a photo for a sheet, small: uint8 (3, height, width)."""
    return lambda path: decode(path, SIDE, max_pixels, bit_depth)


class ContactSheet:
    """Chooses the photos of a contact sheet from a stream: at most `N_SHEET`, each with the same chance."""

    def __init__(self) -> None:
        self.n_seen = 0
        self._chosen: list[tuple] = []  # a heap of (-draw, place, path, predict, probability, label if that is another)

    def add_predictions(self, predictions: Sequence[Prediction]) -> None:
        """Looks at those that were read."""
        for p in predictions:
            if p.status == "ok":
                draw = -derive_seed("sheet", self.n_seen)
                is_wrong = p.predict == p.top[0][0] != p.label  # not answered is not wrong
                label = p.label if is_wrong else ""
                entry = (draw, self.n_seen, p.file_dir, p.predict, p.probability, label)
                (heapq.heappush if len(self._chosen) < N_SHEET else heapq.heappushpop)(self._chosen, entry)
                self.n_seen += 1

    def state(self) -> dict:
        """As plain values."""
        return {"n_seen": self.n_seen, "chosen": self._chosen}

    def restore(self, state: Mapping) -> None:
        """Takes over what `state` gave."""
        self.n_seen, self._chosen = state["n_seen"], [tuple(entry) for entry in state["chosen"]]

    def text(self, path: str) -> str:
        """`result.png: 48 of 2000 photos`."""
        n = len(self._chosen)
        return f"{path}: {n} of {self.n_seen} photos" if n else "none: no photo could be read"

    def draw(self, open_photo: Callable[[str], torch.Tensor]) -> Image.Image | None:
        """The sheet, in the order of the predictions; what is known to be wrong is framed in red."""

        def tile(entry: tuple) -> Tile:
            _, _, path, predict, probability, label = entry
            return _tile(path, _caption(predict, probability, label), "red" if label else None, open_photo)

        tiles = [tile for _, tile in map_until(tile, sorted(self._chosen, key=lambda entry: entry[1]))]
        return contact_sheet(tiles, 8, SIDE) if tiles else None
