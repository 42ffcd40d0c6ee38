"""Lists the files in a folder: which are images and which are skipped, in the same order on every machine."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from photo_classifier.data.file_kinds import ending_of, is_image_name, passed_over
from photo_classifier.runtime.errors import UserError
from photo_classifier.runtime.text import pluralize

# What systems keep beside the user's files: of macOS and Windows, then of network disks (Synology, QNAP), of ext4 and
# of Python. Their thumbnails and deleted photos would be trained on.
SYSTEM = frozenset(
    "thumbs.db,ehthumbs.db,desktop.ini,icon\r,__macosx,$recycle.bin,recycler,recycled,system volume information,"
    "network trash folder,temporary items,found.000,#recycle,#snapshot,@eadir,@recycle,@recently-snapshot,"
    "@synoresource,@tmp,lost+found,__pycache__".split(",")
)


def nfc(name: str) -> str:
    """Returns the name in Unicode NFC: macOS writes Korean names decomposed, and they must still match."""
    return unicodedata.normalize("NFC", name)


def is_visible(name: str) -> bool:
    """Returns whether a name is the user's own: neither hidden nor created by the operating system."""
    return not name.startswith(".") and name.lower() not in SYSTEM


class Listing:
    """The contents of a folder: `folders` maps NFC names to paths, sorted; `files` are names, unsorted.

    Raises:
        UserError: it cannot be read, or the names of two folders differ only in their Unicode form.
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
        """Returns the names of files with the ending of an image."""
        return filter(is_image_name, self.files)


def subfolders(folder: str | Path) -> dict[str, str]:
    """Returns the visible folders in `folder`: NFC name -> path, sorted by name."""
    return Listing(folder).folders


def holds_images(folder: str | Path) -> bool:
    """Returns whether the folder itself contains an image; stops reading names at the first one."""
    return any(is_image_name(entry.name) and is_visible(entry.name) and not _is_dir(entry) for entry in _scan(folder))


def has_images(folder: str | Path) -> bool:
    """Returns whether there is an image anywhere below `folder`."""
    pending, seen = [str(folder)], set()
    while pending:
        current = pending.pop()
        if holds_images(current):
            return True
        real = os.path.realpath(current)
        pending += [] if real in seen else subfolders(current).values()
        seen.add(real)
    return False


def walk_images(
    folder: str | Path, others: Counter[str] | None = None, unread: dict[str, str] | None = None
) -> Iterator[str]:
    """Yields every file below `folder` that has the ending of an image, sorted by name.

    Args:
        others: counts the other files, by ending, and the hidden and system folders, by their name and a slash.
        unread: collects the folders that cannot be read and the files that may hold a photo but are passed over, with
            the reasons; their own paths are yielded too.

    Raises:
        UserError: a folder cannot be read and `unread` is None.
    """
    for paths in _walk(folder, unread, others):
        if unread is not None:
            unread |= passed_over([path for path in paths if path not in unread])
        for path in paths:
            if is_image_name(path) or path in (unread or ()):
                yield path
            elif others is not None:
                others[ending_of(path) or "no ending"] += 1


def _walk(folder: str | Path, locked: dict[str, str] | None, others: Counter[str] | None) -> Iterator[list[str]]:
    """Yields the visible files of each folder below `folder`, sorted by name; follows links, but not in circles.

    A folder that cannot be read goes into `locked` with the reason, and its own path is yielded instead.
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
            yield [current]
            continue
        visible = [(entry, _is_dir(entry)) for entry in entries if is_visible(entry.name)]
        if others is not None and len(visible) < len(entries):
            others.update(f"{entry.name}/" for entry in entries if not is_visible(entry.name) and _is_dir(entry))
        pending.extend((entry.path, above | {real}) for entry, is_dir in reversed(visible) if is_dir)
        yield [entry.path for entry, is_dir in visible if not is_dir]


def what_is_in(folder: str | Path) -> str:
    """Returns `contains no images`, with the files that are there instead and why photos among them are not read."""
    others, unread = Counter(), {}
    for _ in walk_images(folder, others, unread):
        pass
    kinds = Counter(ending_of(path) or "files without ending" for path in unread)
    reasons = {ending_of(path) or "files without ending": reason for path, reason in unread.items()}
    found = [f"{n} {kind} ({reasons[kind]})" for kind, n in kinds.most_common(5)]
    found += [f"{n} {kind}" for kind, n in others.most_common(5)]
    return f"contains no images{' that are read, but ' + ', '.join(found) if found else ''}"


def others_text(others: Mapping[str, int]) -> str:
    """Returns `skipped 3 files without an image ending (.txt 2, .yaml 1); not looked into: @eaDir (24 folders)`."""
    kinds = {ending: n for ending, n in sorted(others.items()) if not ending.endswith("/")}
    folders = [f"{name[:-1]} ({pluralize(n, 'folder')})" for name, n in sorted(others.items()) if name.endswith("/")]
    files = f"skipped {pluralize(sum(kinds.values()), 'file')} without an image ending "
    files += f"({', '.join(f'{ending} {n}' for ending, n in kinds.items())})"
    return "; ".join([files] * bool(kinds) + [f"not looked into: {', '.join(folders)}"] * bool(folders))


def _scan(folder: str | Path) -> Iterator[os.DirEntry]:
    try:
        yield from os.scandir(folder)
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror}") from error


def _is_dir(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: reading it will report the error
        return False


MAX_PIXELS = 200_000_000  # 600 MB as RGB: larger than any camera's photo, smaller than a decompression bomb
