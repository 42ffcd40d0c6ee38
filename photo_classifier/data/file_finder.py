"""Finds the files that a table names."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from photo_classifier.data.image_files import is_image_name, nfc, subfolders
from photo_classifier.runtime.errors import UserError
from photo_classifier.runtime.text import pluralize

MAX_FOLDERS = 20  # with more subfolders, misplaced files are not searched for in them


class FileFinder:
    """Finds the files that a table names, from folder listings instead of one look-up per file.

    A path is relative to `root`. Names match in any Unicode form and, where that is not ambiguous, regardless
    of case and without the ending. A missing file is searched for by the last parts of its path, in case
    its folder was moved, and in the subfolders of `root`; `n_near` counts files found this way.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = str(root)
        self.n_near, self.example = 0, ""
        self._folders: dict[str, _Names] = {}
        self._below: list[str] | None = None

    def __call__(self, path: str) -> str | None:
        """Returns the path of the file on this disk, or None.

        Raises:
            UserError: two files match.
        """
        for written in (path.strip(), path.strip().replace("\\", "/")):  # a Windows path, or a backslash in a name
            folder, name = os.path.split(os.path.join(self.root, written))
            if found := self._names(folder).find(nfc(name)):
                return found
        parts = [part for part in written.split("/") if part not in ("", ".")]
        if not parts or (len(parts) > 1 and self._names(folder).is_there):
            return None  # its folder exists, but the file does not
        found = self._near(parts)
        self.n_near += found is not None
        self.example = self.example or (f"{path} as {found}" if found else "")
        return found

    def _near(self, parts: Sequence[str]) -> str | None:
        """Searches below `root` for the longest ending of the path, then in the subfolders of `root`."""
        for n in range(1, len(parts)):
            if found := self._names(os.path.join(self.root, *parts[n:-1])).find(nfc(parts[-1])):
                return found
        folders = [os.path.join(folder, *parts[:-1]) for folder in self._subfolders()]
        hits = [hit for folder in folders if (hit := self._names(folder).find(nfc(parts[-1])))]
        if len({os.path.realpath(hit) for hit in hits}) > 1:  # two links to one file are the same file
            raise UserError(f"{'/'.join(parts)!r} could be {hits[0]} or {hits[-1]}; write its folder too")
        return hits[0] if hits else None

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

    def _subfolders(self) -> list[str]:
        if self._below is None:
            below = list(subfolders(self.root).values())
            self._below = below if len(below) <= MAX_FOLDERS else []
        return self._below

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
