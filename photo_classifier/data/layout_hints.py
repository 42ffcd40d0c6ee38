"""Explains why no layout was recognised in a folder, and what to do about it."""

from __future__ import annotations

import contextlib
import os

from photo_classifier.data.archives import is_archive_name
from photo_classifier.data.image_files import Listing, has_images, subfolders
from photo_classifier.data.layout_readers import EXPECTED, flat_class
from photo_classifier.data.layouts import NO_CLASSES, only_folder, splits_in, table_names
from photo_classifier.data.tables import USUAL, Columns, Table
from photo_classifier.runtime.errors import UserError
from photo_classifier.runtime.text import pluralize


def explain_undetected(root: str, columns: Columns = USUAL) -> str:
    """Returns why no layout was recognised in a folder, and what to do."""
    here = Listing(root)
    while (inner := only_folder(here)) and ((below := Listing(inner)).folders or table_names(below)):
        here = below
    root = here.root
    if columns.first_flag():
        return f"{root} has no table of paths and labels for {columns.first_flag()}; name it with --labels FILE"
    if hint := _table_hint(here):
        return f"{root} has no class folders; {hint}"
    wrong = _what_is_wrong(here)
    return wrong if ";" in wrong else f"{wrong}{_did_you_mean_below(here)}; {EXPECTED}"


def _table_hint(here: Listing) -> str:
    for name in table_names(here):
        with contextlib.suppress(UserError):
            names = ", ".join(Table(os.path.join(here.root, name)).header)
            return f"its table {name} has the columns {names}; name two of them with --path_column and --label_column"
    return ""


def _what_is_wrong(here: Listing) -> str:
    root, folders = here.root, splits_in(here)
    if not has_images(root):
        packed = next((os.path.join(root, name) for name in sorted(filter(is_archive_name, here.files))), None)
        return f"{root} contains no images{f' but an archive; use --data_dir {packed}' if packed else ''}"
    if "train" in folders:
        return f"the train folder {folders['train']} {NO_CLASSES}"
    if len(folders) > 1:
        return f"{root} has the splits {' and '.join(folders)} but no train folder"
    for path in here.folders.values():
        if below := ", ".join(splits_in(Listing(path))):
            return f"{path} looks like a class but contains the split folders {below}"
    classes = [name for name, path in here.folders.items() if has_images(path)]
    return f"{root} has only one class ({classes[0]!r})" if classes else _what_is_wrong_with_names(here)


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
    """Returns a hint at a folder one or two levels below that contains `train`."""
    for path in here.folders.values():
        for candidate in (path, *subfolders(path).values()):
            if "train" in splits_in(Listing(candidate)):
                return f"; did you mean --data_dir {candidate}?"
    return ""
