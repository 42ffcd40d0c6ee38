"""Data layouts: how folders, names and tables tell the label and the split of an image."""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from photo_classifier.data.archives import is_archive_name
from photo_classifier.data.file_finder import FileFinder
from photo_classifier.data.image_files import Listing, has_images, holds_images, nfc, subfolders, walk_images
from photo_classifier.data.samples import SPLIT_FOLDERS, Sample, split_of
from photo_classifier.data.tables import USUAL, Columns, Row, Table, is_table_name
from photo_classifier.runtime.errors import UserError
from photo_classifier.runtime.text import pluralize

EXPECTED = (
    "expected DIR/train/CLASS/*.jpg with DIR/val/CLASS/*.jpg, or DIR/CLASS/*.jpg, or DIR/CLASS.1.jpg, "
    "or DIR/labels.csv, for two classes or more"
)


class LayoutReader(Protocol):
    """What knows the labels of a layout.

    `name` is what the user knows the data by. When the samples were read, `others` counts the files that are
    no images by their ending, `left_out` lists images without a label and `missing` what is named but not there.
    """

    root: str
    name: str
    others: Counter[str]
    left_out: list[str]
    missing: list[str]

    def samples(self) -> Iterator[tuple[str, Sample]]:
        """Every labelled image with its split, which is empty where it is to be cut."""

    def labels(self) -> set[str]:
        """All labels, by a look at folders and tables alone."""

    def label_of(self, path: str) -> str | None:
        """The label of an image below the folder."""


def sample_key(path: str, root: str) -> str:
    """The path below the data folder, with `/` and in NFC, so that it is the same everywhere."""
    return nfc(path[len(root) :].lstrip(os.sep)).replace(os.sep, "/")


# --- labels by folders and by names -----------------------------------------------------------


class ClassFolder(NamedTuple):
    """A folder with images of one class, or (without a label) with files that are named after theirs."""

    folder: str
    split: str
    label: str | None


class FolderReader:
    """Images whose label is the name of their folder, or the beginning of their own: a `LayoutReader`."""

    def __init__(self, root: str, places: Sequence[ClassFolder]) -> None:
        self.root, self.name, self.places = root, root, places
        self.others: Counter[str] = Counter()
        self.left_out: list[str] = []
        self.missing: list[str] = []
        self._by_folder: dict[str, ClassFolder | None] = {place.folder: place for place in places}

    def samples(self) -> Iterator[tuple[str, Sample]]:
        """In the order of the names, with one walk over the folder.

        Raises:
            UserError: a class folder has no images.
        """
        used = set()
        for path in walk_images(self.root, self.others):
            place = self._place_of(os.path.dirname(path))
            if place is None:
                self.left_out.append(path)
            else:
                used.add(place)
                label = place.label if place.label is not None else flat_class(path)
                yield place.split, Sample(path, label, sample_key(path, self.root))
        if empty := [place.folder for place in self.places if place not in used]:
            raise UserError(f"{empty[0]} was taken for a class, but it holds no images; fill or remove it; {EXPECTED}")

    def labels(self) -> set[str]:
        """The names of the class folders, and the classes that files are named after."""
        named = {place.label for place in self.places if place.label is not None}
        return named.union(*(flat_classes(Listing(place.folder)) for place in self.places if place.label is None))

    def label_of(self, path: str) -> str | None:
        """By the nearest folder that is a place."""
        place = self._place_of(os.path.dirname(path))
        return None if place is None else place.label if place.label is not None else flat_class(path)

    def _place_of(self, folder: str) -> ClassFolder | None:
        if folder not in self._by_folder:
            above = self._place_of(os.path.dirname(folder)) if len(folder) > len(self.root) else None
            # files that are named after their class lie in their folder itself
            self._by_folder[folder] = above if above and above.label is not None else None
        return self._by_folder[folder]


# a number after a number, as in `at 10.20.30`, is a time of day
FLAT_NAME = re.compile(r"([^.]+|.*[^\d.])\.\d+", re.DOTALL)


def flat_class(path: str) -> str | None:
    """The class that a file is named after: `cat` for `cat.12.jpg`."""
    match = FLAT_NAME.fullmatch(os.path.splitext(nfc(os.path.basename(path)))[0])
    return match[1] if match else None


def flat_classes(here: Listing) -> set[str]:
    """The classes that the images of a folder are named after; none where one is named otherwise."""
    classes: set[str] = set()
    for name in here.images():
        if (found := flat_class(name)) is None:
            return set()
        classes.add(found)
    return classes


# --- labels by a table ------------------------------------------------------------------------


class TableReader:
    """Images that a table lists with their labels: a `LayoutReader`.

    Args:
        tables: by split; the split of `""` is told by a column, or is to be cut.
        root: what the paths are relative to.
        is_whole: all images below `root` are looked at, so that those that no line names are told.
    """

    def __init__(self, tables: Mapping[str, Table], root: str, is_whole: bool = False) -> None:
        self.tables, self.root, self.is_whole = tables, root, is_whole
        self.name = root if is_whole else next(iter(tables.values())).file
        self.others: Counter[str] = Counter()
        self.left_out: list[str] = []
        self.missing: list[str] = []
        self.find = FileFinder(root)
        self._labels: dict[str, str] | None = None

    def samples(self) -> Iterator[tuple[str, Sample]]:
        """In the order of the table.

        Raises:
            UserError: an empty cell, or a path twice.
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
                    raise UserError(f"{row.path!r} stands in {seen[path]} and in {here}; remove one")
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
        """What stands in the column of labels."""
        return {row.label for table in self.tables.values() if table.label for row in table.rows() if row.label}

    def label_of(self, path: str) -> str | None:
        """By the line that names this file."""
        if self._labels is None:
            rows = (row for table in self.tables.values() for row in table.rows())
            found = ((self.find.sure(row.path), row.label) for row in rows)
            self._labels = {path: label for path, label in found if path and label}
        return self._labels.get(os.path.normpath(path))


def _has_splits(table: Table) -> bool:
    """Whether the column `split` names splits; one with the numbers of folds, for example, is none."""
    if not table.split:
        return False
    wrong = next((row for row in table.rows() if not split_of(row.split)), None)
    if wrong and any(split_of(row.split) for row in table.rows()):
        where = f"line {wrong.line} of {table.file}"
        raise UserError(f"{where} has the split {wrong.split!r}; expected train, valid or test")
    return wrong is None


# --- recognising ------------------------------------------------------------------------------


def _split_folders(here: Listing, columns: Columns) -> LayoutReader | None:
    """`train/` [+ `val/`] [+ `test/`] of class folders, or of files that are named after their class."""
    folders = splits_in(here)
    places = {split: _contents(folder, split) for split, folder in folders.items()}
    if not places.get("train") or (len(folders) < 2 < len(here.folders) and not _has_classes(places["train"])):
        return None
    for split, folder in folders.items():
        if not places[split] and split != "test":
            raise UserError(f"the {split} folder {folder} {NO_CLASSES}; {EXPECTED}")
    return FolderReader(here.root, [place for found in places.values() for place in found])


def _has_classes(places: Sequence[ClassFolder]) -> bool:
    """Whether a folder `train` beside other folders is more than the class of railways."""
    return len(places) > 1 or (places[0].label is None and len(flat_classes(Listing(places[0].folder))) > 1)


NO_CLASSES = "holds no class folders with images; put them there, or remove it"


def splits_in(here: Listing) -> dict[str, str]:
    """Split -> its folder; a folder `training_set` that holds nothing but `training_set` is the inner one.

    Raises:
        UserError: two folders are for one split.
    """
    found: dict[str, str] = {}
    for name, path in here.folders.items():
        split = split_of(name)
        if split in found:
            raise UserError(f"{found[split]} and {path} are both for the {split} split; remove or merge one")
        if split:
            inner = _only_folder(Listing(path))
            found[split] = inner if inner and split_of(os.path.basename(inner)) == split else path
    return {split: found[split] for split in SPLIT_FOLDERS if split in found}


def _contents(folder: str, split: str) -> list[ClassFolder]:
    """The class folders of a folder, or itself where its files are named after their class."""
    here = Listing(folder)
    if any(has_images(path) for path in here.folders.values()):
        return [ClassFolder(path, split, name) for name, path in here.folders.items()]
    return [ClassFolder(folder, split, None)] if flat_classes(here) else []


# names of folders that are no classes where there is a table: train_images, test, images_part_1
CONTAINER = re.compile(r"(^|[\W_])(train|test|val|valid|images?|imgs?|photos?|pictures?|data)($|[\W_\d])", re.I)


def _class_folders(here: Listing, columns: Columns) -> LayoutReader | None:
    """Class folders only."""
    full = [name for name, path in here.folders.items() if has_images(path)]
    deep = [path for path in here.folders.values() if not holds_images(path)]
    is_above = len(splits_in(here)) > 1 or any("train" in splits_in(Listing(path)) for path in deep)
    if len(full) < 2 or is_above or (all(map(CONTAINER.search, full)) and tables_in(here, columns)):
        return None
    return FolderReader(here.root, [ClassFolder(path, "", name) for name, path in here.folders.items()])


def _flat_files(here: Listing, columns: Columns) -> LayoutReader | None:
    """Files that are named after their class, in one folder."""
    return FolderReader(here.root, [ClassFolder(here.root, "", None)]) if len(flat_classes(here)) > 1 else None


def _table(here: Listing, columns: Columns) -> LayoutReader | None:
    """A table of paths and labels beside or above its images, or one for each split."""
    root = here.root
    tables = {os.path.splitext(os.path.basename(table.file))[0].lower(): table for table in tables_in(here, columns)}
    by_split = {split_of(name): table for name, table in tables.items() if split_of(name)}
    if "train" in by_split and len(by_split) > 1:
        return TableReader(
            {split: by_split[split] for split in SPLIT_FOLDERS if split in by_split}, root, is_whole=True
        )
    named = [tables[name] for name in TABLE_NAMES if name in tables] or list(tables.values())
    if len(named) > 1:
        names = ", ".join(table.file for table in named)
        raise UserError(f"{root} has {len(named)} tables of paths and labels ({names}); choose one with --labels FILE")
    return TableReader({"": named[0]}, root, is_whole=True) if named else None


TABLE_NAMES = ("labels", "train", "train_labels", "metadata")  # among several it is one of these


def tables_in(here: Listing, columns: Columns) -> list[Table]:
    """The tables in a folder that have a column of paths and one of labels.

    Raises:
        UserError: there is but one table, and it lacks a column that was named.
    """
    tables, names = [], _table_names(here)
    for name in names:
        try:
            table = Table(os.path.join(here.root, name), columns)
            table.require("path", "label")
        except UserError:  # a table of something else
            if columns.first_flag() and len(names) == 1:
                raise
            continue
        tables.append(table)
    return tables


def _table_names(here: Listing) -> list[str]:
    return sorted(filter(is_table_name, here.files))


LAYOUTS: dict[str, Callable[[Listing, Columns], LayoutReader | None]] = {
    "split folders": _split_folders,
    "class folders": _class_folders,
    "files named after their class": _flat_files,
    "a table of paths and labels": _table,
}


def detect_layout(root: str, columns: Columns = USUAL, depth: int = 8) -> tuple[str, LayoutReader] | None:
    """The layout of a folder and what reads it; a folder in which there is nothing but another is that other.

    Args:
        columns: where one is named, the labels must be in a table.

    Raises:
        UserError: the layout is clear, but something in it is wrong.
    """
    here = Listing(root)
    for name, look in LAYOUTS.items():
        if (look is _table or not columns.first_flag()) and (reader := look(here, columns)):
            return name, reader
    inner = _only_folder(here)
    return detect_layout(inner, columns, depth - 1) if inner and depth else None


def _only_folder(here: Listing) -> str | None:
    """The one folder in a folder that holds no images itself, as archives often have it."""
    inner = list(here.folders.values())
    return inner[0] if len(inner) == 1 and next(here.images(), None) is None else None


# --- explaining -------------------------------------------------------------------------------


def explain_undetected(root: str, columns: Columns = USUAL) -> str:
    """Why no layout was recognised in a folder, and what to do."""
    here = Listing(root)
    while (inner := _only_folder(here)) and ((below := Listing(inner)).folders or _table_names(below)):
        here = below
    root = here.root
    if columns.first_flag():
        return f"{root} has no table of paths and labels for {columns.first_flag()}; name it with --labels FILE"
    if hint := _table_hint(here):
        return f"{root} has no class folders; {hint}"
    wrong = _what_is_wrong(here)
    return wrong if ";" in wrong else f"{wrong}{did_you_mean_below(here)}; {EXPECTED}"


def _table_hint(here: Listing) -> str:
    for name in _table_names(here):
        with contextlib.suppress(UserError):
            names = ", ".join(Table(os.path.join(here.root, name)).header)
            return f"its table {name} has the columns {names}; name two of them with --path_column and --label_column"
    return ""


def _what_is_wrong(here: Listing) -> str:
    root, folders = here.root, splits_in(here)
    if not has_images(root):
        packed = next((os.path.join(root, name) for name in sorted(filter(is_archive_name, here.files))), None)
        return f"{root} holds no images{f' but an archive; give it by --data_dir {packed}' if packed else ''}"
    if "train" in folders:
        return f"the train folder {folders['train']} {NO_CLASSES}"
    if len(folders) > 1:
        return f"{root} has the splits {' and '.join(folders)} but no train folder"
    for path in here.folders.values():
        if below := ", ".join(splits_in(Listing(path))):
            return f"{path} was taken for a class, but it holds folders for {below}"
    classes = [name for name, path in here.folders.items() if has_images(path)]
    return f"{root} has one class only ({classes[0]!r})" if classes else _what_is_wrong_with_names(here)


def _what_is_wrong_with_names(here: Listing) -> str:
    names = sorted(here.images())
    named = [name for name in names if flat_class(name)]
    other = next((name for name in names if not flat_class(name)), None)
    if not named:
        return f"{here.root} holds {pluralize(len(names), 'image')} but no class folders"
    if other:
        named_like = f"{len(named)} of {len(names)} images in {here.root} are named like {named[0]}"
        return f"{named_like}, but {other} is not; rename it or move it away"
    return f"{here.root} has one class only ({flat_class(named[0])!r})"


def did_you_mean_below(here: Listing) -> str:
    """The folder one or two levels below that has `train` in it, as a hint."""
    for path in here.folders.values():
        for candidate in (path, *subfolders(path).values()):
            if "train" in splits_in(Listing(candidate)):
                return f"; did you mean --data_dir {candidate}?"
    return ""
