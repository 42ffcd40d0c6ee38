"""Readers of the layouts: they yield the labelled images of a folder or a table."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

from photo_classifier.data.image_files import Listing, ending_of, nfc, walk_images
from photo_classifier.data.samples import Sample
from photo_classifier.runtime.errors import UserError

EXPECTED = (
    "expected DIR/train/CLASS/*.jpg with DIR/val/CLASS/*.jpg, or DIR/CLASS/*.jpg, or DIR/CLASS.1.jpg, "
    "or DIR/labels.csv, with two or more classes"
)


class LayoutReader(Protocol):
    """Reads the labelled images of one layout.

    `name` is what the user calls the data. After `samples` has run, `others` counts the files that are not
    images, by ending, `left_out` lists images without a label, `missing` lists images that do not exist, `empty` lists
    class folders without images, and `unread` gives the reasons for files of a class that may hold a photo but are
    not read.
    """

    root: str
    name: str
    others: Counter[str]
    left_out: list[str]
    missing: list[str]
    empty: list[ClassFolder]
    unread: dict[str, str]

    def samples(self) -> Iterator[tuple[str, Sample]]:
        """Yields every labelled image with its split, which is empty if the data names none."""

    def labels(self) -> set[str]:
        """Returns all labels, using only folder names and tables."""

    def label_of(self, path: str) -> str | None:
        """Returns the label of an image below the folder, or None."""

    def notes(self) -> list[str]:
        """Returns what the user should know of how the data was read."""


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
        self.unread: dict[str, str] = {}
        self._by_folder: dict[str, ClassFolder | None] = {place.folder: place for place in places}

    def samples(self) -> Iterator[tuple[str, Sample]]:
        """Yields the images sorted by name, in one walk over the folder.

        Raises:
            UserError: a folder cannot be read.
        """
        used, found = set(), {}
        for path in walk_images(self.root, self.others, found):
            place = self._class_folder_of(os.path.dirname(path))
            if path in found:
                self._pass_over(path, found.pop(path), place)
            elif place is None:
                self.left_out.append(path)
            else:
                used.add(place)
                label = place.label if place.label is not None else flat_class(path)
                yield place.split, Sample(path, label, sample_key(path, self.root))
        self.empty = [place for place in self.places if place not in used]

    def _pass_over(self, path: str, reason: str, place: ClassFolder | None) -> None:
        if os.path.isdir(path):  # and may hold any number of images
            raise UserError(reason)
        if place is None:
            self.others[ending_of(path) or "no ending"] += 1
        else:
            self.unread[path] = reason

    def labels(self) -> set[str]:
        """Returns the names of the class folders and the classes that files are named after."""
        named = {place.label for place in self.places if place.label is not None}
        return named.union(*(flat_classes(Listing(place.folder)) for place in self.places if place.label is None))

    def label_of(self, path: str) -> str | None:
        """Returns the label of the nearest class folder above the image."""
        place = self._class_folder_of(os.path.dirname(path))
        return None if place is None else place.label if place.label is not None else flat_class(path)

    def notes(self) -> list[str]:
        """Returns nothing: names of folders and files leave nothing to guess."""
        return []

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
