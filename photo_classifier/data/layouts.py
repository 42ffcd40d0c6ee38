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
    """Recognises `train/` [+ `val/`] [+ `test/`] with class folders or files named after their class."""
    folders = splits_in(here)
    places = {split: _contents(folder, split) for split, folder in folders.items()}
    if not places.get("train") or (len(folders) < 2 < len(here.folders) and not _has_classes(places["train"])):
        return None
    for split, folder in folders.items():
        if not places[split] and split != "test":
            raise UserError(f"the {split} folder {folder} {NO_CLASSES}; {EXPECTED}")
    return FolderReader(here.root, [place for found in places.values() for place in found])


def _has_classes(places: Sequence[ClassFolder]) -> bool:
    """Returns whether a folder `train` beside other folders is a split rather than a class of trains."""
    return len(places) > 1 or (places[0].label is None and len(flat_classes(Listing(places[0].folder))) > 1)


NO_CLASSES = "contains no class folders with images; add them or remove it"


def splits_in(here: Listing) -> dict[str, str]:
    """Returns split -> folder; for `training_set/training_set` it is the inner folder.

    Raises:
        UserError: two folders have names of the same split.
    """
    found: dict[str, str] = {}
    for name, path in here.folders.items():
        split = split_of(name)
        if split in found:
            raise UserError(f"{found[split]} and {path} are both the {split} split; merge them or remove one")
        if split:
            inner = only_folder(Listing(path))
            found[split] = inner if inner and split_of(os.path.basename(inner)) == split else path
    return {split: found[split] for split in SPLIT_FOLDERS if split in found}


def _contents(folder: str, split: str) -> list[ClassFolder]:
    """Returns the class folders in a folder, or the folder itself if its files are named after their class."""
    here = Listing(folder)
    if any(has_images(path) for path in here.folders.values()):
        return [ClassFolder(path, split, name) for name, path in here.folders.items()]
    return [ClassFolder(folder, split, None)] if flat_classes(here) else []


# names of folders that are not classes if there is a table: train_images, test, images_part_1
CONTAINER = re.compile(r"(^|[\W_])(train|test|val|valid|images?|imgs?|photos?|pictures?|data)($|[\W_\d])", re.I)


def _class_folders(here: Listing, columns: Columns) -> LayoutReader | None:
    """Recognises class folders without splits."""
    full = [name for name, path in here.folders.items() if has_images(path)]
    deep = [path for path in here.folders.values() if not holds_images(path)]
    is_above = len(splits_in(here)) > 1 or any("train" in splits_in(Listing(path)) for path in deep)
    if len(full) < 2 or is_above or (all(map(CONTAINER.search, full)) and tables_in(here, columns)):
        return None
    return FolderReader(here.root, [ClassFolder(path, "", name) for name, path in here.folders.items()])


def _flat_files(here: Listing, columns: Columns) -> LayoutReader | None:
    """Recognises files named after their class in one folder."""
    return FolderReader(here.root, [ClassFolder(here.root, "", None)]) if len(flat_classes(here)) > 1 else None


def _table(here: Listing, columns: Columns) -> LayoutReader | None:
    """Recognises a table of paths and labels beside or above its images, or one for each split."""
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


TABLE_NAMES = ("labels", "train", "train_labels", "metadata")  # the preferred names if there are several tables


def tables_in(here: Listing, columns: Columns) -> list[Table]:
    """Returns the tables in a folder that have a path column and a label column.

    Raises:
        UserError: the only table lacks a column that was named.
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
    """Returns the name of the layout and its reader, or None; looks through folders that contain only one folder.

    Args:
        columns: if one is named, the labels must be in a table.

    Raises:
        UserError: the layout is clear, but it has a mistake.
    """
    here = Listing(root)
    for name, look in LAYOUTS.items():
        if (look is _table or not columns.first_flag()) and (reader := look(here, columns)):
            return name, reader
    inner = only_folder(here)
    return detect_layout(inner, columns, depth - 1) if inner and depth else None


def only_folder(here: Listing) -> str | None:
    """Returns the only subfolder of a folder that has no images itself, as is common in archives."""
    inner = list(here.folders.values())
    return inner[0] if len(inner) == 1 and next(here.images(), None) is None else None
