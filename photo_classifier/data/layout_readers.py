"""Readers of the layouts: they yield the labelled images of a folder or a table."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from photo_classifier.data.file_finder import FileFinder
from photo_classifier.data.image_files import Listing, nfc, walk_images
from photo_classifier.data.samples import Sample, split_of
from photo_classifier.data.tables import Row, Table, is_table_name
from photo_classifier.runtime.errors import UserError

EXPECTED = (
    "expected DIR/train/CLASS/*.jpg with DIR/val/CLASS/*.jpg, or DIR/CLASS/*.jpg, or DIR/CLASS.1.jpg, "
    "or DIR/labels.csv, with two or more classes"
)


class LayoutReader(Protocol):
    """Reads the labelled images of one layout.

    `name` is what the user calls the data. After `samples` has run, `others` counts the files that are not
    images, by ending, `left_out` lists images without a label, `missing` lists images that do not exist, and `empty`
    lists class folders without images.
    """

    root: str
    name: str
    others: Counter[str]
    left_out: list[str]
    missing: list[str]
    empty: list[ClassFolder]

    def samples(self) -> Iterator[tuple[str, Sample]]:
        """Yields every labelled image with its split, which is empty if the data names none."""

    def labels(self) -> set[str]:
        """Returns all labels, using only folder names and tables."""

    def label_of(self, path: str) -> str | None:
        """Returns the label of an image below the folder, or None."""


def sample_key(path: str, root: str) -> str:
    """Returns the path relative to the data folder, with `/` and in NFC: the same on every machine."""
    return nfc(path[len(root) :].lstrip(os.sep)).replace(os.sep, "/")


class ClassFolder(NamedTuple):
    """A folder with images of one class, or (without a label) with files named after their class."""

    folder: str
    split: str
    label: str | None


class FolderReader:
    """A `LayoutReader` for images whose label is the name of their folder or the start of their own name."""

    def __init__(self, root: str, places: Sequence[ClassFolder]) -> None:
        self.root, self.name, self.places = root, root, places
        self.others: Counter[str] = Counter()
        self.left_out: list[str] = []
        self.missing: list[str] = []
        self.empty: list[ClassFolder] = []
        self._by_folder: dict[str, ClassFolder | None] = {place.folder: place for place in places}

    def samples(self) -> Iterator[tuple[str, Sample]]:
        """Yields the images sorted by name, in one walk over the folder."""
        used = set()
        for path in walk_images(self.root, self.others):
            place = self._class_folder_of(os.path.dirname(path))
            if place is None:
                self.left_out.append(path)
            else:
                used.add(place)
                label = place.label if place.label is not None else flat_class(path)
                yield place.split, Sample(path, label, sample_key(path, self.root))
        self.empty = [place for place in self.places if place not in used]

    def labels(self) -> set[str]:
        """Returns the names of the class folders and the classes that files are named after."""
        named = {place.label for place in self.places if place.label is not None}
        return named.union(*(flat_classes(Listing(place.folder)) for place in self.places if place.label is None))

    def label_of(self, path: str) -> str | None:
        """Returns the label of the nearest class folder above the image."""
        place = self._class_folder_of(os.path.dirname(path))
        return None if place is None else place.label if place.label is not None else flat_class(path)

    def _class_folder_of(self, folder: str) -> ClassFolder | None:
        if folder not in self._by_folder:
            above = self._class_folder_of(os.path.dirname(folder)) if len(folder) > len(self.root) else None
            # files named after their class are directly in their folder
            self._by_folder[folder] = above if above and above.label is not None else None
        return self._by_folder[folder]


# a number after a number is a time of day, as in `at 10.20.30`
FLAT_NAME = re.compile(r"([^.]+|.*[^\d.])\.\d+", re.DOTALL)


def flat_class(path: str) -> str | None:
    """Returns the class that a file is named after: `cat` for `cat.12.jpg`, or None."""
    match = FLAT_NAME.fullmatch(os.path.splitext(nfc(os.path.basename(path)))[0])
    return match[1] if match else None


def flat_classes(here: Listing) -> set[str]:
    """Returns the classes that the images of a folder are named after; none if any image is named differently."""
    classes: set[str] = set()
    for name in here.images():
        if (found := flat_class(name)) is None:
            return set()
        classes.add(found)
    return classes


class TableReader:
    """A `LayoutReader` for images that a table lists with their labels.

    Args:
        tables: one per split; for `""` a column may name the splits.
        root: the folder that the paths are relative to.
        is_whole: also reports the images below `root` that no line lists.
    """

    def __init__(self, tables: Mapping[str, Table], root: str, is_whole: bool = False) -> None:
        self.tables, self.root, self.is_whole = tables, root, is_whole
        self.name = root if is_whole else next(iter(tables.values())).file
        self.others: Counter[str] = Counter()
        self.left_out: list[str] = []
        self.missing: list[str] = []
        self.empty: list[ClassFolder] = []
        self.find = FileFinder(root)
        self._labels: dict[str, str] | None = None

    def samples(self) -> Iterator[tuple[str, Sample]]:
        """Yields the images in the order of the table.

        Raises:
            UserError: a cell is empty, or a path is listed twice.
        """
        seen: dict[str, str] = {}
        for split, table in self.tables.items():
            has_splits = not split and _has_splits(table)
            for row in table.rows():
                here = f"line {row.line} of {table.file}"
                if not row.path.strip() or not row.label:
                    what = table.label if row.path.strip() else table.path
                    raise UserError(f"{here} has no {what}; fill it in, or remove the line")
                found = self.find(row.path)
                path = found or os.path.normpath(os.path.join(self.root, row.path))
                if path in seen:
                    raise UserError(f"{row.path!r} is in {seen[path]} and in {here}; remove one")
                seen[path] = here
                self.missing += [] if found else [row.path]
                yield (split_of(row.split) if has_splits else split), self._sample(path, row)
        if self.is_whole:
            self._count_the_rest(seen)

    def _sample(self, path: str, row: Row) -> Sample:
        below = os.path.normpath(self.root) if self.root != "." else ""
        is_below = path.startswith(os.path.join(below, "")) if below else not (os.path.isabs(path) or path[:2] == "..")
        key = sample_key(path, below) if is_below else nfc(row.path).replace("\\", "/")
        return Sample(path, row.label, key, row.group)

    def _count_the_rest(self, seen: Mapping[str, str]) -> None:
        others: Counter[str] = Counter()
        self.left_out += [path for path in walk_images(self.root, others) if os.path.normpath(path) not in seen]
        self.others += Counter({ending: n for ending, n in others.items() if not is_table_name(ending)})

    def labels(self) -> set[str]:
        """Returns the values of the label column."""
        return {row.label for table in self.tables.values() if table.label for row in table.rows() if row.label}

    def label_of(self, path: str) -> str | None:
        """Returns the label in the line that lists this file, or None."""
        if self._labels is None:
            rows = (row for table in self.tables.values() for row in table.rows())
            found = ((self.find.find_unambiguous(row.path), row.label) for row in rows)
            self._labels = {path: label for path, label in found if path and label}
        return self._labels.get(os.path.normpath(path))


def _has_splits(table: Table) -> bool:
    """Returns whether the column `split` names splits, rather than fold numbers, for example."""
    if not table.split:
        return False
    wrong = next((row for row in table.rows() if not split_of(row.split)), None)
    if wrong and any(split_of(row.split) for row in table.rows()):
        where = f"line {wrong.line} of {table.file}"
        raise UserError(f"{where} has the split {wrong.split!r}; expected train, valid or test")
    return wrong is None
