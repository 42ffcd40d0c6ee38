"""Recognises how a data folder is laid out: where its labels and splits come from."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence

from photo_classifier.data.image_files import Listing, has_images, holds_images, what_is_in
from photo_classifier.data.layout_readers import (
    EXPECTED,
    ClassFolder,
    FolderReader,
    LayoutReader,
    flat_classes,
)
from photo_classifier.data.samples import SPLIT_FOLDERS, split_of
from photo_classifier.data.table_columns import USUAL, Columns
from photo_classifier.data.table_files import NOT_READ, SURE, is_table_name
from photo_classifier.data.table_reader import TableReader
from photo_classifier.data.tables import Table
from photo_classifier.runtime.errors import UserError


def _split_folders(here: Listing, columns: Columns) -> LayoutReader | None:
    """Recognises `train/` [+ `val/`] [+ `test/`] with class folders or files named after their class."""
    folders = splits_in(here)
    places = {split: _contents(folder, split, here) for split, folder in folders.items()}
    if not places.get("train") or (len(folders) < 2 < len(here.folders) and not _has_classes(places["train"])):
        return None
    for split, folder in folders.items():
        if not places[split] and split != "test":
            raise UserError(f"the {split} folder {folder} {without_classes(folder)}; {EXPECTED}")
    return FolderReader(here.root, [place for found in places.values() for place in found])


def _has_classes(places: Sequence[ClassFolder]) -> bool:
    """Returns whether a folder `train` beside other folders is a split rather than a class of trains."""
    return len(places) > 1 or (places[0].label is None and len(flat_classes(Listing(places[0].folder))) > 1)


def without_classes(folder: str) -> str:
    """Returns what a folder lacks to be a split, with the files that are there instead."""
    lacks = "contains no class folders with images" if has_images(folder) else what_is_in(folder)
    return f"{lacks}; add them or remove it"


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


def _contents(folder: str, split: str, above: Listing) -> list[ClassFolder]:
    """Returns the class folders in a folder, or the folder itself if its files are named after their class."""
    here = Listing(folder)
    full = [name for name, path in here.folders.items() if has_images(path)]
    if full:
        places = [ClassFolder(path, split, name) for name, path in here.folders.items()]
        return [] if are_containers(full, here, above) else places
    return [ClassFolder(folder, split, None)] if flat_classes(here) else []


# names of folders that are never classes: images_001, masks
GENERIC = re.compile(
    r"(images?|imgs?|photos?|pictures?|pics?|data|jpe?gimages|files?|annotations?|labels?|masks?|"
    r"segmentation(class|object)?|ground_?truth|gt)([\W_]*\d+)?",
    re.I,
)
# and of folders that are not if there is a table: train_images, test, images_part_1
CONTAINER = re.compile(r"(^|[\W_])(train|test|val|valid|images?|imgs?|photos?|pictures?|data)($|[\W_\d])", re.I)


def are_containers(names: Sequence[str], *places: Listing) -> bool:
    """Returns whether folders divide the photos of a set rather than name their classes.

    Folders such as `part1` and `part2` do if there is a table in one of the places; `0a` and `1007` if it is usable.
    """
    stems = {re.sub(r"\d+", "", name) for name in names}
    is_counted = len(stems) == 1 < len(names) and re.search(r"[^\W_]", *stems)
    if all(map(GENERIC.fullmatch, names)):
        return True
    if is_counted or all(map(CONTAINER.search, names)):
        return any(map(_has_table, places))
    return all(map(SHARD.fullmatch, names)) and any(find_tables(here, USUAL) for here in places)


SHARD = re.compile(r"[0-9a-f]{1,3}|\d+", re.I)


def _has_table(here: Listing) -> bool:
    """Returns whether there is a table, even one that cannot be read."""
    return any(name.lower().endswith((*SURE, *NOT_READ)) for name in here.files) or bool(find_tables(here, USUAL))


def _class_folders(here: Listing, columns: Columns) -> LayoutReader | None:
    """Recognises class folders without splits."""
    full = [name for name, path in here.folders.items() if has_images(path)]
    deep = [path for path in here.folders.values() if not holds_images(path)]
    is_above = len(splits_in(here)) > 1 or any("train" in splits_in(Listing(path)) for path in deep)
    if len(full) < 2 or is_above or are_containers(full, here):
        return None
    return FolderReader(here.root, [ClassFolder(path, "", name) for name, path in here.folders.items()])


def _flat_files(here: Listing, columns: Columns) -> LayoutReader | None:
    """Recognises files named after their class in one folder."""
    return FolderReader(here.root, [ClassFolder(here.root, "", None)]) if len(flat_classes(here)) > 1 else None


def _table(here: Listing, columns: Columns) -> LayoutReader | None:
    """Recognises a table of paths and labels beside or above its images, or one for each split."""
    tables = {os.path.splitext(os.path.basename(table.file))[0].lower(): table for table in find_tables(here, columns)}
    exact_last = sorted(tables, key=lambda name: split_of(name) is not None)
    by_split = {split: tables[name] for name in exact_last if (split := _split_in_name(name))}
    if "train" in by_split and len(by_split) > 1:
        return TableReader(_in_order(by_split), here.root, is_whole=True)
    named = [tables[name] for name in TABLE_NAMES if name in tables] or list(tables.values())
    if len(named) > 1:
        names = ", ".join(table.file for table in named)
        raise UserError(
            f"{here.root} has {len(named)} tables of paths and labels ({names}); choose one with --labels FILE"
        )
    return TableReader({"": named[0]}, here.root, is_whole=True) if named else None


def _tables_of_splits(here: Listing, columns: Columns) -> LayoutReader | None:
    """Recognises `train/` [+ `val/`] [+ `test/`] that each hold a table of their images."""
    found = {split: find_tables(Listing(folder), columns) for split, folder in splits_in(here).items()}
    tables = {split: some[0] for split, some in found.items() if len(some) == 1}
    if "train" not in tables:
        return None
    return TableReader(_in_order(tables), here.root, is_whole=True, is_beside=True)


def _table_names(here: Listing) -> list[str]:
    """Returns the files that may be the table of a folder; of many, as one for each image, those of usual names."""
    names = [name for name in sorted(here.files) if is_table_name(name) and _is_small(os.path.join(here.root, name))]
    if len(names) <= MAX_TABLES:
        return names
    stems = {name: os.path.splitext(name)[0].lower() for name in names}
    return [name for name, stem in stems.items() if stem in TABLE_NAMES or _split_in_name(stem)][:MAX_TABLES]


MAX_TABLES = 50
MAX_UNSURE = 1 << 26  # bytes of a file that may be something else than a table, such as JSON


def _is_small(path: str) -> bool:
    return path.lower().endswith(SURE) or not os.path.exists(path) or os.path.getsize(path) <= MAX_UNSURE


def _in_order(tables: dict[str, Table]) -> dict[str, Table]:
    return {split: tables[split] for split in SPLIT_FOLDERS if split in tables}


def _split_in_name(name: str) -> str | None:
    """Returns the split that a table is for: `val` and `val_labels` for valid; None if it names none or several."""
    splits = {split_of(word) for word in (name, *re.split(r"[\W_]+", name))} - {None}
    return splits.pop() if len(splits) == 1 else None


TABLE_NAMES = ("labels", "train", "train_labels", "metadata")  # the preferred names if there are several tables


def find_tables(here: Listing, columns: Columns, faults: dict[str, str] | None = None) -> list[Table]:
    """Returns the tables in a folder that have a path column and a label column.

    Args:
        faults: collects the files that look like tables but are not used, with the reasons.

    Raises:
        UserError: the only table lacks a column that was named.
    """
    tables, names = [], _table_names(here)
    for name in names:
        table, is_sure = None, name.lower().endswith(SURE)
        try:
            table = Table(os.path.join(here.root, name), columns)
            table.require("path", "label")
        except UserError as error:  # of something else, or broken
            if columns.first_flag() and len(names) == 1:
                raise
            if faults is not None and (is_sure or (table and table.lists_images())):
                faults[name] = str(error)
            continue
        if not table.is_result() and (is_sure or table.lists_images()):
            tables.append(table)
    return tables


LAYOUTS: dict[str, Callable[[Listing, Columns], LayoutReader | None]] = {
    "split folders": _split_folders,
    "class folders": _class_folders,
    "files named after their class": _flat_files,
    "a table of paths and labels": _table,
    "a table of paths and labels in each split folder": _tables_of_splits,
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
        if (look in (_table, _tables_of_splits) or not columns.first_flag()) and (reader := look(here, columns)):
            return name, reader
    inner = only_folder(here)
    return detect_layout(inner, columns, depth - 1) if inner and depth else None


def only_folder(here: Listing) -> str | None:
    """Returns the only subfolder of a folder that has no images itself, as is common in archives."""
    inner = list(here.folders.values())
    return inner[0] if len(inner) == 1 and next(here.images(), None) is None else None
