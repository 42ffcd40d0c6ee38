"""Finds the files that a table names."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote

from photo_classifier.data.image_files import is_image_name, nfc, subfolders, walk_images
from photo_classifier.runtime.errors import UserError
from photo_classifier.runtime.text import pluralize

HASH = re.compile(r"^[0-9a-f]{8}-")


def _spellings(path: str) -> Iterator[str]:
    """Yields a path as written, as Windows writes it, and as a labelling tool puts it into an address."""
    yield path
    yield path.replace("\\", "/")  # unless the backslash is part of a name
    if "?" in path or "://" in path:
        before, _, query = path.partition("?")
        yield unquote(query.removeprefix("d=") if query.startswith("d=") else before)
    if "%" in path:
        yield unquote(path)


def _key(path: str) -> tuple[str, str]:
    """Returns the name of a file as names are compared, and that without its ending."""
    name = nfc(os.path.basename(path)).casefold()
    return name, os.path.splitext(name)[0]


class FileFinder:
    """Finds the files that a table names, from folder listings instead of one look-up per file.

    A path is relative to `root`. Names match in any Unicode form and, where that is not ambiguous, regardless
    of case and without the ending. A missing file is searched for at any depth below `root`, or below its own folder
    if that exists, by the longest ending of its path; `n_near` counts files found this way.

    Args:
        root: the folder that paths are relative to.
        is_deep: also searches below it, which takes long in a folder that is not made for images.
    """

    def __init__(self, root: str | Path, is_deep: bool = True) -> None:
        self.root, self.is_deep = str(root), is_deep
        self.n_near, self.example = 0, ""
        self._folders: dict[str, _Names] = {}

    def __call__(self, path: str) -> str | None:
        """Returns the path of the file on this disk, or None.

        Raises:
            UserError: two files match.
        """
        spellings = list(dict.fromkeys(_spellings(path.strip())))
        for written in spellings:
            folder, name = os.path.split(os.path.join(self.root, written))
            if name and (found := self._names(folder).find(nfc(name))):
                return found
        found = next((found for written in spellings if (found := self._elsewhere(written))), None)
        if found and os.path.normpath(path) != found:  # which a path from the working folder is
            self.n_near += 1
            self.example = self.example or f"{path} as {found}"
        return found

    def _elsewhere(self, written: str) -> str | None:
        parts = [nfc(part).casefold() for part in written.split("/") if part not in ("", ".")]
        if not parts:
            return None
        folder = os.path.normpath(os.path.join(self.root, os.path.dirname(written)))
        is_there = len(parts) > 1 and self._names(folder).is_there
        hits = [hit for hit in self._named(parts) if not is_there or hit.startswith(os.path.join(folder, ""))]
        alike = {hit: self._likeness(hit, parts) for hit in hits}
        best = [hit for hit in hits if alike[hit] == max(alike.values())]
        if len({os.path.realpath(hit) for hit in best}) > 1:  # two links to one file are the same file
            what = "ending" if os.path.dirname(best[0]) == os.path.dirname(best[-1]) else "folder"
            raise UserError(f"{written!r} could be {best[0]} or {best[-1]}; write its {what} too")
        return best[0] if best else None

    def _named(self, parts: list[str]) -> list[str]:
        """Returns the images below the root with the name of a path; labelling tools put a hash before it."""
        for name in (parts[-1], HASH.sub("", parts[-1])):
            exact = [hit for hit in self._by_stem.get(os.path.splitext(name)[0], ()) if _key(hit)[0] == name]
            if hits := exact or ([] if is_image_name(name) else self._by_stem.get(name, [])):
                return hits
        return self._by_number.get(parts[-1].lstrip("0"), []) if parts[-1].isdigit() else []

    @cached_property
    def _by_number(self) -> dict[str, list[str]]:
        """The images whose name is a number, without its leading zeros, which Excel drops."""
        found: dict[str, list[str]] = {}
        for stem, hits in self._by_stem.items():
            if stem.isdigit():
                found.setdefault(stem.lstrip("0"), []).extend(hits)
        return found

    def _likeness(self, hit: str, parts: list[str]) -> tuple[int, bool]:
        """Returns how many folders of a file are those of the path, and whether these are all that it has."""
        folders = nfc(os.path.relpath(hit, self.root)).casefold().split(os.sep)[:-1]
        pairs = zip(reversed(folders), reversed(parts[:-1]), strict=False)
        n_alike = next((n for n, (here, there) in enumerate(pairs) if here != there), min(len(folders), len(parts) - 1))
        return n_alike, n_alike == len(folders)

    @cached_property
    def _by_stem(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for path in walk_images(self.root, unread={}) if self.is_deep else ():
            path = os.path.normpath(path)
            found.setdefault(_key(path)[1], []).append(path)
        return found

    def find_unambiguous(self, path: str) -> str | None:
        """Returns the path of the file, or None if it does not exist or two files match."""
        with contextlib.suppress(UserError):
            return self(path)

    def notes(self) -> list[str]:
        """Returns what to report about files that were found elsewhere."""
        found = (
            f"not where the table says, but found nearby: {pluralize(self.n_near, 'file')} (for example {self.example})"
        )
        return [found] if self.n_near else []

    def _names(self, folder: str) -> _Names:
        if folder not in self._folders:
            self._folders[folder] = _Names(self._real(os.path.normpath(folder)))
        return self._folders[folder]

    def _real(self, folder: str) -> str:
        """Returns the folder as it is spelled on this disk: macOS uses another Unicode form."""
        parent, name = os.path.split(folder)
        if not name or os.path.isdir(folder):
            return folder
        parent = self._real(parent)
        here = subfolders(parent or ".") if os.path.isdir(parent or ".") else {}
        return os.path.join(parent, os.path.basename(here.get(nfc(name), name)))


class _Names:
    """The files of one folder, by exact name, and regardless of case and ending."""

    def __init__(self, folder: str) -> None:
        self.folder = folder if folder != "." else ""
        self.is_there = os.path.isdir(folder)
        try:
            names = sorted(entry.name for entry in os.scandir(folder or ".") if not entry.is_dir())
            self.exact = {nfc(name): name for name in names}
        except (OSError, ValueError):  # a path in a table may contain NUL
            self.exact = {}
        self._loose: dict[str, str] | None = None

    def find(self, name: str) -> str | None:
        """Returns the path of the file with this NFC name, or None."""
        found = self.exact.get(name) or self.loose().get(name.casefold() + ("" if is_image_name(name) else "."))
        return os.path.join(self.folder, found) if found else None

    def loose(self) -> dict[str, str]:
        """Returns the images by lower-case name, with and without ending; an ambiguous name maps to an empty string."""
        if self._loose is None:
            self._loose = {}
            for name in filter(is_image_name, self.exact):
                for key in {name.casefold(), name.rpartition(".")[0].casefold() + "."}:
                    self._loose[key] = "" if key in self._loose else self.exact[name]
        return self._loose
