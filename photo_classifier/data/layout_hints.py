"""Explains why no layout was recognised in a folder, and what to do about it."""

from __future__ import annotations

import contextlib
import os
import shlex

from photo_classifier.data.archives import is_archive_name
from photo_classifier.data.detection_sets import find_annotations
from photo_classifier.data.file_finder import FileFinder
from photo_classifier.data.image_files import Listing, ending_of, has_images, holds_images, subfolders, what_is_in
from photo_classifier.data.json_tables import FORM
from photo_classifier.data.layout_readers import EXPECTED, flat_class
from photo_classifier.data.layouts import (
    GENERIC,
    are_containers,
    detect_layout,
    find_tables,
    only_folder,
    splits_in,
    without_classes,
)
from photo_classifier.data.table_columns import USUAL, Columns
from photo_classifier.data.table_files import LISTS, NOT_READ, SURE, is_table_name
from photo_classifier.data.tables import ONE_LABEL
from photo_classifier.runtime.errors import UserError
from photo_classifier.runtime.text import pluralize

MAX_NEARBY = 1 << 24  # bytes of a table in another folder
MAX_BESIDE = 20  # folders


def explain_undetected(root: str, columns: Columns = USUAL) -> str:
    """Returns why no layout was recognised in a folder, and what to do."""
    here, given = Listing(root), root
    while (inner := only_folder(here)) and ((below := Listing(inner)).folders or any(map(is_table_name, below.files))):
        here = below
    root = here.root
    if found := find_annotations(given):
        return (
            f"{root} is a set for object detection: {found} marks parts of images, and {ONE_LABEL}; cut the objects "
            "out into a folder per class, or list the images in a table path,label"
        )
    tables = _table_hints(here, columns)
    if columns.first_flag():
        seen = f" ({tables})" if tables else ""
        return f"{root} has no table of paths and labels for {columns.first_flag()}{seen}; name it with --labels FILE"
    wrong = _what_is_wrong(here)
    if tables:
        return f"{wrong}; {tables}"
    return wrong if ";" in wrong else f"{wrong}{_did_you_mean_below(here)}; {EXPECTED}"


def _table_hints(here: Listing, columns: Columns) -> str:
    """Returns why each file that is or may be a table is not used, and how it could be."""
    faults: dict[str, str] = {}
    with contextlib.suppress(UserError):
        find_tables(here, columns, faults)
    found = [faults[name] for name in sorted(faults)]
    found += [f"{name}: save it as .xlsx or .csv" for name in sorted(here.files) if ending_of(name) in NOT_READ]
    unsure = sorted(name for name in here.files if is_table_name(name) and not name.lower().endswith(SURE))
    if unsure := [name for name in unsure if name not in faults]:
        form = "such as lines of `a.jpg cat`" if unsure[0].lower().endswith(LISTS) else f"such as {FORM}"
        found.append(f"{', '.join(unsure[:3])}: not a list of images and labels, {form}")
    return "; ".join(found + ([] if faults else _tables_nearby(here)))


def _tables_nearby(here: Listing) -> list[str]:
    """Returns how to use the tables in the folders above, beside and below whose first line names an image here."""
    found, find, above = [], FileFinder(here.root), os.path.dirname(os.path.abspath(here.root))
    beside = [folder for folder in subfolders(above).values() if not holds_images(folder)][:MAX_BESIDE]
    for folder in (above, *beside, *here.folders.values()):
        with contextlib.suppress(UserError, OSError):
            near = Listing(folder)
            near.files = [name for name in near.files if os.path.getsize(os.path.join(folder, name)) < MAX_NEARBY]
            firsts = [(table.file, next(table.rows(), None)) for table in find_tables(near, USUAL)]
            found += [file for file, row in firsts if row and find.find_unambiguous(row.path)]
    return [f"for the labels in {file} add --labels {shlex.quote(file)}" for file in found[:3]]


def _what_is_wrong(here: Listing) -> str:
    root, folders = here.root, splits_in(here)
    if not has_images(root):
        packed = next((os.path.join(root, name) for name in sorted(filter(is_archive_name, here.files))), None)
        return f"{root} contains no images but an archive; use --data_dir {packed}" if packed else _nothing(root)
    if "train" in folders:
        return f"the train folder {folders['train']} {without_classes(folders['train'])}"
    if len(folders) > 1:
        return f"{root} has the splits {' and '.join(folders)} but no train folder"
    for path in here.folders.values():
        if below := ", ".join(splits_in(Listing(path))):
            return f"{path} looks like a class but contains the split folders {below}"
    classes = [name for name, path in here.folders.items() if has_images(path)]
    if len(classes) > 1 and are_containers(classes, here):
        advice = "rename them" if all(map(GENERIC.fullmatch, classes)) else "move the tables away"
        shown = ", ".join(classes[:3])
        return f"{root} has no class folders: {shown} seem to be parts of the set; if they are classes, {advice}"
    if not classes:
        return _what_is_wrong_with_names(here)
    others = [f"{path} {what_is_in(path)}" for name, path in here.folders.items() if name not in classes]
    return f"{root} has only one class ({classes[0]!r}){', as ' + ', '.join(others[:3]) if others else ''}"


def _nothing(root: str) -> str:
    return f"{root} {what_is_in(root).replace(';', ',')}"


def _what_is_wrong_with_names(here: Listing) -> str:
    names = sorted(here.images())
    named = [name for name in names if flat_class(name)]
    other = next((name for name in names if not flat_class(name)), None)
    if not named:
        return f"{here.root} contains {pluralize(len(names), 'image')} but no class folders"
    if other:
        named_like = f"{len(named)} of {len(names)} images in {here.root} are named like {named[0]}"
        return f"{named_like}, but {other} is not; rename it or move it away"
    return f"{here.root} has only one class ({flat_class(named[0])!r})"


def _did_you_mean_below(here: Listing) -> str:
    """Returns a hint at a folder one or two levels below that is a data set with splits."""
    for path in here.folders.values():
        for candidate in (path, *subfolders(path).values()):
            with contextlib.suppress(UserError):
                if "train" in splits_in(Listing(candidate)) and detect_layout(candidate):
                    return f"; did you mean --data_dir {candidate}?"
    return ""
