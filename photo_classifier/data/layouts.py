"""Recognises how a data folder is laid out: where its labels and splits come from."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence

from photo_classifier.data.image_files import Listing, has_images, holds_images
from photo_classifier.data.layout_readers import (
    EXPECTED,
    ClassFolder,
    FolderReader,
    LayoutReader,
    TableReader,
    flat_classes,
)
from photo_classifier.data.samples import SPLIT_FOLDERS, split_of
from photo_classifier.data.tables import USUAL, Columns, Table, is_table_name
from photo_classifier.runtime.errors import UserError


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
            inner = only_folder(Listing(path))
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
    tables, names = [], table_names(here)
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


def table_names(here: Listing) -> list[str]:
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
    inner = only_folder(here)
    return detect_layout(inner, columns, depth - 1) if inner and depth else None


def only_folder(here: Listing) -> str | None:
    """The one folder in a folder that holds no images itself, as archives often have it."""
    inner = list(here.folders.values())
    return inner[0] if len(inner) == 1 and next(here.images(), None) is None else None
