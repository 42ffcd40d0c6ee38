"""The names in a folder: which files are images, which are passed over, in an order that is the same everywhere."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from utils import UserError

IMAGE_ENDINGS = frozenset(
    ".jpg .jpeg .jpe .jfif .png .apng .bmp .gif .tif .tiff .webp .avif .ppm .pgm .pbm .jp2 .ico .tga".split()
)
PASSED_OVER = frozenset({"thumbs.db", "desktop.ini", "__macosx"})


def nfc(name: str) -> str:
    """Unicode NFC: macOS writes Korean names decomposed, and they must match all the same."""
    return unicodedata.normalize("NFC", name)


def is_image_name(name: str) -> bool:
    """Whether the ending of a file name is that of an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_ENDINGS


def subfolders(folder: str | Path) -> dict[str, str]:
    """The visible folders below `folder`: NFC name -> path, sorted by name.

    Raises:
        UserError: two folders have the same name but for its Unicode form.
    """
    found: dict[str, str] = {}
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror}") from error
    for entry in entries:
        if _is_dir(entry) and is_visible(entry.name):
            if nfc(entry.name) in found:
                raise UserError(f"{folder} has two folders named {nfc(entry.name)!r}; rename or merge them")
            found[nfc(entry.name)] = os.path.join(folder, entry.name)
    return dict(sorted(found.items()))


def walk_images(folder: str | Path) -> Iterator[str]:
    """Every file below `folder` that is an image by its ending, sorted by name."""
    return (path for path in walk_files(folder) if is_image_name(path))


def count_others(folder: str | Path) -> dict[str, int]:
    """Visible files below `folder` that are no images by their ending: ending -> count."""
    others = (path for path in walk_files(folder) if not is_image_name(path))
    return dict(sorted(Counter(os.path.splitext(path)[1].lower() or "no ending" for path in others).items()))


def others_text(others: Mapping[str, int]) -> str:
    """`passed over 3 files that are no images by their ending (.heic 2, .txt 1)`."""
    kinds = ", ".join(f"{ending} {count}" for ending, count in others.items())
    return f"passed over {sum(others.values())} files that are no images by their ending ({kinds})"


def walk_files(folder: str | Path) -> Iterator[str]:
    """Every visible file below `folder`, sorted by name; links are followed, but not in circles."""
    pending: list[tuple[str, frozenset[str]]] = [(str(folder), frozenset())]
    while pending:
        current, above = pending.pop()
        real = os.path.realpath(current)
        if real in above:
            continue
        try:
            entries = sorted(os.scandir(current), key=lambda entry: nfc(entry.name))
        except OSError as error:
            raise UserError(f"cannot read the folder {current}: {error.strerror}") from error
        visible = [(entry, _is_dir(entry)) for entry in entries if is_visible(entry.name)]
        pending.extend((entry.path, above | {real}) for entry, is_dir in reversed(visible) if is_dir)
        yield from (entry.path for entry, is_dir in visible if not is_dir)


def file_names(folder: str | Path) -> list[str]:
    """The names of the visible files that lie in a folder itself, sorted."""
    try:
        entries = [entry for entry in os.scandir(folder) if is_visible(entry.name)]
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror}") from error
    return sorted(entry.name for entry in entries if not _is_dir(entry))


def image_names(folder: str | Path) -> list[str]:
    """Those of them that are images by their ending."""
    return [name for name in file_names(folder) if is_image_name(name)]


def _is_dir(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself: reading it will tell
        return False


def is_visible(name: str) -> bool:
    """Whether a name is the user's own: neither hidden nor left behind by a system."""
    return not name.startswith(".") and name.lower() not in PASSED_OVER
