"""Fonts for the text in pictures: class names may be in any script."""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from pathlib import Path

from PIL import ImageFont

# matplotlib reports that it builds a font cache, or that it cannot write to a folder, which is of no use here
logging.getLogger("matplotlib").setLevel(logging.ERROR)

TEXT_SIZE = 13  # pixels
# Fonts with letters that Pillow's own font lacks, Korean ones first. Any other installed font comes after these.
PREFERRED = ("nanumgothic", "malgun", "applesdgothic", "notosanscjk", "notosanskr", "nanum", "dejavusans", "arial")


def font_for(text: str) -> ImageFont.FreeTypeFont:
    """Returns the font with the most letters of the text; Pillow's own font wins ties."""
    return _font_for("".join(sorted({c for c in text if not c.isspace()})))


def readable(text: str, font: ImageFont.FreeTypeFont) -> str:
    """Escapes line breaks and letters that the font lacks."""
    text = text.replace("\N{NO-BREAK SPACE}", " ")
    missing = {c for c in text if not c.isprintable() or not _has(font, c)}
    return "".join(c.encode("unicode_escape").decode() if c in missing else c for c in text)


def missing_glyphs(text: str) -> str:
    """Returns the letters of the text that no installed font has, each once."""
    font = font_for(text)
    return "".join(sorted({c for c in text if c.isprintable() and not _has(font, c)}))


@functools.lru_cache
def _font_for(letters: str) -> ImageFont.FreeTypeFont:
    best = _loaded("")
    n_best = sum(_has(best, c) for c in letters)
    for path in _installed_fonts() if n_best < len(letters) else ():
        try:
            font = _loaded(path)
            n_letters = sum(_has(font, c) for c in letters)
        except (OSError, ValueError):  # a broken font, or one with bitmaps only
            continue
        if n_letters > n_best:
            best, n_best = font, n_letters
        if n_best == len(letters):
            break
    return best


@functools.lru_cache
def _loaded(path: str) -> ImageFont.FreeTypeFont:
    """Returns the font in a file, or Pillow's own; always the same object, by which `_has` remembers its letters."""
    return ImageFont.truetype(path, TEXT_SIZE) if path else ImageFont.load_default(TEXT_SIZE)


@functools.lru_cache(4096)
def _has(font: ImageFont.FreeTypeFont, letter: str) -> bool:
    """Returns whether the font draws the letter differently from a character that no font has."""
    return letter.isspace() or bytes(font.getmask(letter)) != bytes(font.getmask("\U0010fffe"))


def _installed_fonts() -> Iterator[str]:
    """Yields the paths of the fonts on this system, preferred ones first."""
    from matplotlib.font_manager import findSystemFonts

    def rank(path: str) -> tuple[int, str, str]:
        name = Path(path).stem.lower().replace("-", "")
        return next((n for n, start in enumerate(PREFERRED) if name.startswith(start)), len(PREFERRED)), name, path

    return iter(sorted(findSystemFonts(), key=rank))
