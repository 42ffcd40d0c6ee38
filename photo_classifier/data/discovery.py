"""Loads a data set for training: labelled samples in splits."""

from __future__ import annotations

import contextlib
import gc
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from photo_classifier.data.archives import is_archive_name, unpack_once
from photo_classifier.data.corrections import corrections
from photo_classifier.data.image_files import Listing
from photo_classifier.data.label_cells import joined_names_note
from photo_classifier.data.layout_hints import explain_undetected
from photo_classifier.data.layout_readers import EXPECTED, ClassFolder, LayoutReader
from photo_classifier.data.layouts import detect_layout, find_tables
from photo_classifier.data.rare_classes import refuse_small_classes, without_rare_classes
from photo_classifier.data.samples import SPLIT_FOLDERS, Parts, Splits, split_title
from photo_classifier.data.split_files import read_splits
from photo_classifier.data.splitting import crossing_groups, stratified_split
from photo_classifier.data.table_columns import USUAL, Columns
from photo_classifier.data.table_files import is_table_name
from photo_classifier.data.table_reader import TableReader
from photo_classifier.data.tables import Table
from photo_classifier.runtime.errors import UserError, did_you_mean_path
from photo_classifier.runtime.text import pluralize


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Pauses garbage collection: it would visit millions of samples again and again and find no cycles."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@without_garbage_collection()
def load_splits(
    root: str | Path | None,
    ratios: Mapping[str, float],
    seed: int,
    labels: str | Path | None = None,
    columns: Columns = USUAL,
    splits: str | Path | None = None,
    min_images: int | None = None,
    train_new: bool = False,
    settle: Callable[[Parts], tuple[Parts, list[str]]] | None = None,
) -> Splits:
    """Recognises the layout of a data set and returns its samples in splits.

    Args:
        root: a folder, an archive of one, or a table.
        ratios: the shares of `train`, `valid` and `test`, for the splits that the data lacks.
        labels: a table of paths, relative to `root` or else to itself, and labels.
        columns: the names of its columns, if they are not the usual ones.
        splits: a `splits.csv` that assigns images to splits.
        min_images: leaves out the classes with fewer images to train on, and keeps those that have more even if they
            are too few for every split; None refuses these.
        train_new: trains on the images that `splits` does not list, unless the data itself holds them out.
        settle: what is done to the samples before they are divided; returns them and notes.

    Raises:
        UserError: no classifier can be trained on this data.
    """
    parts, layout, name, notes, others, unread, empty = {}, "images", str(splits), [], {}, {}, []
    advice = EXPECTED
    if root is not None or labels is not None:
        layout, reader = open_data(root, labels, columns)
        root, name, (parts, notes) = reader.root, reader.name, _read(reader, columns)
        others, unread, empty = dict(sorted(reader.others.items())), reader.unread, reader.empty
        advice = reader.advice
    if splits:
        known = [sample for part in parts.values() for sample in part] or None
        parts, split_notes = read_splits(splits, known, root or "", parts.get("train", []) if train_new else [])
        layout, notes = f"{layout} split as in {splits}", notes + split_notes
    if settle:
        parts, settle_notes = settle(parts)
        notes += settle_notes
    parts, rare_notes = _without_rare_classes(parts, empty, ratios, min_images)
    notes += rare_notes
    class_names = _class_names(parts, name, advice)
    unread = {path: reason for path, reason in unread.items() if reader.label_of(path) in class_names}
    filled = _with_missing_splits(parts, ratios, seed)
    notes += _group_notes(filled) + _absent_notes(filled, class_names) + joined_names_note(class_names)
    made = tuple(split for split in filled if split not in parts)
    three = [filled.get(split, []) for split in SPLIT_FOLDERS]
    return Splits(layout, name, class_names, *three, made=made, passed_over=others, unread=unread, notes=tuple(notes))


def _without_rare_classes(
    parts: Parts, empty: Sequence[ClassFolder], ratios: Mapping[str, float], min_images: int | None
) -> tuple[Parts, list[str]]:
    """Returns the images of the classes that are large enough, and notes on the others; None refuses small classes."""
    if min_images is not None:
        return without_rare_classes(parts, empty, min_images)
    refuse_small_classes(parts, empty, [split for split, share in _splits_to_make(parts, ratios).items() if share])
    return parts, []


def open_data(root: str | Path | None, labels: str | Path | None, columns: Columns) -> tuple[str, LayoutReader]:
    """Returns the name of the layout and its reader; unpacks an archive.

    Raises:
        UserError: the folder or file does not exist, or no layout was recognised.
    """
    if root is not None and os.path.isfile(root) and is_table_name(root) and labels is None:
        root, labels = None, root
    if root is not None:
        root = _folder(root)
    if labels is not None:
        table = Table(labels, columns)
        table.require("path", "label")
        folder = root or os.path.dirname(labels) or "."
        return f"a table of paths and labels ({table.description()})", TableReader(
            {"": table}, folder, is_whole=bool(root)
        )
    found = detect_layout(root, columns)
    if not found:
        raise UserError(explain_undetected(root, columns))
    name, reader = found
    if isinstance(reader, TableReader):
        name += f" ({', '.join(dict.fromkeys(table.description() for table in reader.tables.values()))})"
    return name, reader


def _folder(root: str | Path) -> str:
    """Returns the data folder itself, or the folder of an unpacked archive."""
    if os.path.isfile(root) and is_archive_name(root):
        return str(unpack_once(root))
    if not os.path.isdir(root):
        what = "is a file, but neither an archive nor a table" if os.path.exists(root) else "does not exist"
        hint = "" if os.path.exists(root) else did_you_mean_path(root)
        tables = "a table such as labels.csv or labels.xlsx, or a .zip or .tar.gz of these"
        raise UserError(f"the data folder {root} {what}{hint}; {EXPECTED}, or {tables}")
    return str(Path(root))


def _read(reader: LayoutReader, columns: Columns) -> tuple[Parts, list[str]]:
    """Returns the samples by split (`train` if the data names none) and notes on what was left out."""
    parts: Parts = {}
    for split, sample in reader.samples():
        parts.setdefault(split or "train", []).append(sample)
    n_samples = sum(map(len, parts.values()))
    if len(reader.missing) == n_samples:
        example = f", for example {reader.missing[0]}" if reader.missing else ""
        raise UserError(
            f"{reader.name}: none of its images is in {reader.root}{example}; give their folder with --data_dir, or "
            "the right column with --path_column"
        )
    notes = []
    if reader.missing:
        n_missing = pluralize(len(reader.missing), "image")
        notes.append(f"listed in the table but missing: {n_missing} (for example {reader.missing[0]})")
    if reader.left_out:
        folders = Counter(os.path.dirname(path) for path in reader.left_out)
        shown = ", ".join(f"{folder} {count}" for folder, count in folders.most_common(5))
        notes.append(f"left out {pluralize(len(reader.left_out), 'image')} without a class ({shown})")
    notes += reader.notes()
    if isinstance(reader, TableReader):
        notes += [note for table in reader.tables.values() for note in corrections(table)]
    else:
        notes += _unused_tables(reader.root, columns)
    return parts, notes


def _unused_tables(root: str, columns: Columns) -> list[str]:
    faults: dict[str, str] = {}
    unused = [table.file for table in find_tables(Listing(root), columns, faults)]
    why = "was not used, as folder or file names give the classes"
    return [f"{file} {why}; to use it: --labels {file}" for file in unused] + [
        f"{os.path.join(root, name)} {why}, and it could not be used as a table: {fault}"
        for name, fault in faults.items()
    ]


def _class_names(parts: Parts, root: str | Path, advice: str) -> list[str]:
    if "train" not in parts:
        raise UserError(f"{root} has no images for training; {EXPECTED}")
    class_names = sorted({sample.label for sample in parts["train"]})
    wrong = []
    for split, samples in parts.items():
        labels = {sample.label for sample in samples}
        if unknown := sorted(labels - set(class_names)):
            lacking = ", ".join(sorted(set(class_names) - labels))
            lacks = f" (and it lacks {lacking})" if lacking else ""
            wrong.append(f"the {split} split has classes that the training split lacks: {', '.join(unknown)}{lacks}")
    if wrong:
        leave_out = ", or leave these classes out (--min_images 1)" if len(class_names) > 1 else ""
        raise UserError(
            f"{'; '.join(wrong)}; training has {', '.join(class_names)}: rename or remove those folders or labels"
            f"{leave_out}"
        )
    if len(class_names) < 2:
        raise UserError(f"{root} has only one class ({class_names[0]!r}); {advice}")
    return class_names


def _splits_to_make(parts: Parts, ratios: Mapping[str, float]) -> dict[str, float]:
    """Returns the shares of the splits that the training images are to be divided into, if they are."""
    if "valid" in parts:
        return {}
    return {name: ratios[name] for name in SPLIT_FOLDERS if name not in parts or name == "train"}


def _with_missing_splits(parts: Parts, ratios: Mapping[str, float], seed: int) -> Parts:
    """Takes the splits that the layout lacks from its training images, unless it has validation images."""
    if not (wanted := _splits_to_make(parts, ratios)):
        return parts
    cut = stratified_split(parts["train"], wanted, seed)
    if not cut["valid"]:
        raise UserError(
            "every class has only one image or group, and a group stays in one split; add images (of other groups), "
            "or provide separate validation images"
        )
    return parts | {name: part for name, part in cut.items() if part}


def _group_notes(parts: Parts) -> list[str]:
    n_groups = len({sample.group for part in parts.values() for sample in part if sample.group})
    if crossing := crossing_groups(parts):
        (one, first), (other, second), *_ = max(crossing, key=lambda group: "train" in group).items()
        return [
            f"the splits divide {len(crossing)} of {n_groups} groups of photos, so the accuracy may look too good (for "
            f"example {first.path} is in {split_title(one)}, and {second.path} of the same group in "
            f"{split_title(other)})"
        ]
    return [f"kept {pluralize(n_groups, 'group')} together, each in one split"] if n_groups else []


def _absent_notes(parts: Parts, class_names: list[str]) -> list[str]:
    """Returns a note for each split that has no images of some class, which cannot be evaluated there."""
    notes = []
    for split, samples in parts.items():
        if absent := sorted(set(class_names) - {sample.label for sample in samples}):
            notes.append(f"the {split} split has no images of {', '.join(absent)}")
    return notes
