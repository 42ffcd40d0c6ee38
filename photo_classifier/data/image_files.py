"""The names in a folder: which files are images, which are passed over, in an order that is the same everywhere."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from photo_classifier.runtime.errors import UserError
from photo_classifier.runtime.text import pluralize

IMAGE_ENDINGS = frozenset(
    ".jpg .jpeg .jpe .jfif .png .apng .bmp .gif .tif .tiff .webp .avif .ppm .pgm .pbm .jp2 .ico .tga".split()
)
PASSED_OVER = frozenset({"thumbs.db", "desktop.ini", "__macosx"})


def nfc(name: str) -> str:
    """Unicode NFC: macOS writes Korean names decomposed, and they must match all the same."""
    return unicodedata.normalize("NFC", name)


def ending_of(name: str) -> str:
    """The ending of a file name or path in lower case, with its point; empty where it has none."""
    return os.path.splitext(name)[1].lower()


def is_image_name(name: str) -> bool:
    """Whether the ending of a file name is that of an image."""
    return ending_of(name) in IMAGE_ENDINGS


def is_visible(name: str) -> bool:
    """Whether a name is the user's own: neither hidden nor left behind by a system."""
    return not name.startswith(".") and name.lower() not in PASSED_OVER


class Listing:
    """One look at a folder: `folders` maps NFC names to paths, sorted, and `files` are names, in no order.

    Raises:
        UserError: it cannot be read, or two folders have the same name but for its Unicode form.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = str(root)
        self.files: list[str] = []
        found: dict[str, str] = {}
        for entry in _scan(root):
            if not is_visible(entry.name):
                continue
            if not _is_dir(entry):
                self.files.append(entry.name)
                continue
            name = nfc(entry.name)
            if name in found:
                raise UserError(f"{root} has two folders named {name!r}; rename or merge them")
            found[name] = os.path.join(root, entry.name)
        self.folders = dict(sorted(found.items()))

    def images(self) -> Iterator[str]:
        """The names of files that are images by their ending."""
        return filter(is_image_name, self.files)


def subfolders(folder: str | Path) -> dict[str, str]:
    """The visible folders below `folder`: NFC name -> path, sorted by name."""
    return Listing(folder).folders


def holds_images(folder: str | Path) -> bool:
    """Whether an image lies in a folder itself, at the price of the names before the first one."""
    return any(is_image_name(entry.name) and is_visible(entry.name) and not _is_dir(entry) for entry in _scan(folder))


def has_images(folder: str | Path) -> bool:
    """Whether there is an image anywhere below `folder`."""
    pending, seen = [str(folder)], set()
    while pending:
        current = pending.pop()
        if holds_images(current):
            return True
        real = os.path.realpath(current)
        pending += [] if real in seen else subfolders(current).values()
        seen.add(real)
    return False


def walk_files(folder: str | Path, locked: dict[str, str] | None = None) -> Iterator[str]:
    """Every visible file below `folder`, sorted by name; links are followed, but not in circles.

    Args:
        locked: takes the folders that cannot be read and the reasons; their own paths are then given in their place.

    Raises:
        UserError: a folder cannot be read, and there is no `locked`.
    """
    pending: list[tuple[str, frozenset[str]]] = [(str(folder), frozenset())]
    while pending:
        current, above = pending.pop()
        real = os.path.realpath(current)
        if real in above:
            continue
        try:
            entries = sorted(_scan(current), key=lambda entry: nfc(entry.name))
        except UserError as error:
            if locked is None:
                raise
            locked[current] = str(error)
            yield current
            continue
        visible = [(entry, _is_dir(entry)) for entry in entries if is_visible(entry.name)]
        pending.extend((entry.path, above | {real}) for entry, is_dir in reversed(visible) if is_dir)
        yield from (entry.path for entry, is_dir in visible if not is_dir)


def walk_images(
    folder: str | Path, others: Counter[str] | None = None, locked: dict[str, str] | None = None
) -> Iterator[str]:
    """Every file below `folder` that is an image by its ending, sorted by name.

    Args:
        others: counts the files that are none, by their ending.
        locked: as `walk_files` has it.
    """
    for path in walk_files(folder, locked):
        if is_image_name(path) or path in (locked or ()):
            yield path
        elif others is not None:
            others[ending_of(path) or "no ending"] += 1


def others_text(others: Mapping[str, int]) -> str:
    """`passed over 3 files, by their ending no images (.heic 2, .txt 1)`."""
    kinds = ", ".join(f"{ending} {count}" for ending, count in sorted(others.items()))
    return f"passed over {pluralize(sum(others.values()), 'file')}, by their ending no images ({kinds})"


def _scan(folder: str | Path) -> Iterator[os.DirEntry]:
    try:
        yield from os.scandir(folder)
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror}") from error


def _is_dir(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself: reading it will tell
        return False


MAX_PIXELS = 200_000_000  # 600 MB as RGB: larger than any camera's photo, smaller than a decompression bomb
