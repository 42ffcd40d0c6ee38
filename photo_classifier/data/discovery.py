"""Data -> labelled samples: in splits for training, one by one for prediction."""

from __future__ import annotations

import contextlib
import gc
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from photo_classifier.data.archives import is_archive_name, unpack_once
from photo_classifier.data.file_finder import FileFinder
from photo_classifier.data.image_files import Listing, others_text, subfolders, walk_images
from photo_classifier.data.layouts import (
    EXPECTED,
    ClassFolder,
    FolderReader,
    LayoutReader,
    TableReader,
    detect_layout,
    explain_undetected,
    tables_in,
)
from photo_classifier.data.samples import SPLIT_FOLDERS, Parts, Sample, Splits
from photo_classifier.data.split_files import read_splits
from photo_classifier.data.splitting import crossing_groups, stratified_split
from photo_classifier.data.tables import USUAL, Columns, Table, is_table_name
from photo_classifier.runtime.console import say
from photo_classifier.runtime.errors import UserError, did_you_mean_path
from photo_classifier.runtime.text import pluralize

# --- for training -----------------------------------------------------------------------------


@contextlib.contextmanager
def without_garbage_collection() -> Iterator[None]:
    """Inside, Python does not look for unused circles: among names there are none, and it would look at all of them
    again and again as they become more.
    """
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
) -> Splits:
    """Recognises the layout of a data set and returns its samples in splits.

    Args:
        root: a folder, an archive of one, or a table.
        ratios: the shares of `train`, `valid` and `test`, used where the data has no such split.
        labels: a table of paths, relative to `root` or else to itself, and labels.
        columns: the names of its columns, where they are not the usual ones.
        splits: a `splits.csv` that says which image is where.

    Raises:
        UserError: what was found is not what a classifier can be trained on.
    """
    parts, layout, name, notes, others = {}, "images", str(splits), [], {}
    if root is not None or labels is not None:
        layout, reader = open_data(root, labels, columns)
        root, name, (parts, notes) = reader.root, reader.name, _read(reader, columns)
        others = dict(sorted(reader.others.items()))
    if splits:
        known = [sample for part in parts.values() for sample in part] or None
        parts, told = read_splits(splits, known, root or "")
        layout, notes = f"{layout} split as in {splits}", notes + told
    class_names = _class_names(parts, name)
    filled = parts if "valid" in parts else _with_missing_splits(parts, ratios, seed)
    notes += _group_notes(filled) + _absent_notes(filled, class_names)
    made = tuple(split for split in filled if split not in parts)
    three = [filled.get(split, []) for split in SPLIT_FOLDERS]
    return Splits(layout, name, class_names, *three, made=made, passed_over=others, notes=tuple(notes))


def open_data(root: str | Path | None, labels: str | Path | None, columns: Columns) -> tuple[str, LayoutReader]:
    """The name of the layout and what reads it; an archive is unpacked.

    Raises:
        UserError: there is no such folder or file, or no layout was recognised.
    """
    if root is not None and os.path.isfile(root) and is_table_name(root) and labels is None:
        root, labels = None, root
    if root is not None:
        root = _folder(root)
    if labels is not None:
        table = Table(labels, columns)
        table.require("path", "label")
        folder = root or os.path.dirname(labels) or "."
        return f"a table of paths and labels ({table.description()})", TableReader({"": table}, folder, is_whole=bool(root))
    found = detect_layout(root, columns)
    if not found:
        raise UserError(explain_undetected(root, columns))
    name, reader = found
    if isinstance(reader, TableReader):
        name += f" ({', '.join(table.description() for table in reader.tables.values())})"
    return name, reader


def _folder(root: str | Path) -> str:
    """The data folder itself, or that into which an archive was unpacked."""
    if os.path.isfile(root) and is_archive_name(root):
        return str(unpack_once(root))
    if not os.path.isdir(root):
        what = "is a file, but no archive and no table" if os.path.exists(root) else "does not exist"
        hint = did_you_mean_path(root)
        raise UserError(f"the data folder {root} {what}{hint}; {EXPECTED}, or a .zip, .tar.gz or .csv file")
    return str(Path(root))


def _read(reader: LayoutReader, columns: Columns) -> tuple[Parts, list[str]]:
    """The samples by split, those to be cut as `train`, and notes on what is no sample."""
    parts: Parts = {}
    for split, sample in reader.samples():
        parts.setdefault(split or "train", []).append(sample)
    n_samples = sum(map(len, parts.values()))
    if len(reader.missing) == n_samples:
        example = f", for example {reader.missing[0]}" if reader.missing else ""
        raise UserError(
            f"{reader.name}: none of its images is in {reader.root}{example}; give their folder by --data_dir"
        )
    notes = []
    if reader.missing:
        n_missing = pluralize(len(reader.missing), "image")
        notes.append(f"not there, though the table lists them: {n_missing} (for example {reader.missing[0]})")
    if reader.left_out:
        folders = Counter(os.path.dirname(path) for path in reader.left_out)
        shown = ", ".join(f"{folder} {count}" for folder, count in folders.most_common(5))
        notes.append(f"left out {pluralize(len(reader.left_out), 'image')} whose class is not told ({shown})")
    if isinstance(reader, TableReader):
        notes += reader.find.notes()
    else:
        notes += [
            f"{table.file} was not read, the names tell the classes; --labels {table.file} takes it"
            for table in tables_in(Listing(reader.root), columns)
        ]
    return parts, notes


def _class_names(parts: Parts, root: str | Path) -> list[str]:
    if "train" not in parts:
        raise UserError(f"{root} has no images for training; {EXPECTED}")
    class_names = sorted({sample.label for sample in parts["train"]})
    for split, samples in parts.items():
        labels = {sample.label for sample in samples}
        if unknown := sorted(labels - set(class_names)):
            lacking = ", ".join(sorted(set(class_names) - labels))
            raise UserError(
                f"the {split} split has classes that training lacks: {', '.join(unknown)}"
                f"{f' (and it lacks {lacking})' if lacking else ''}; "
                f"training has {', '.join(class_names)}: rename or remove those folders or labels"
            )
    if len(class_names) < 2:
        raise UserError(f"{root} has one class only ({class_names[0]!r}); {EXPECTED}")
    return class_names


def _with_missing_splits(parts: Parts, ratios: Mapping[str, float], seed: int) -> Parts:
    """Makes the splits that the layout does not bring, out of its training images."""
    wanted = {name: ratios[name] for name in SPLIT_FOLDERS if name not in parts or name == "train"}
    cut = stratified_split(parts["train"], wanted, seed)
    if not cut["valid"]:
        raise UserError(
            "every class has one group only, and a group stays in one split; add images of other groups, "
            "or give validation images of their own"
        )
    return parts | {name: part for name, part in cut.items() if part}


def _group_notes(parts: Parts) -> list[str]:
    n_groups = len({sample.group for part in parts.values() for sample in part if sample.group})
    if crossing := crossing_groups(parts):
        return [f"{len(crossing)} of {n_groups} groups stand in more than one split (for example {crossing[0]})"]
    return [f"kept {pluralize(n_groups, 'group')} together, each in one split"] if n_groups else []


def _absent_notes(parts: Parts, class_names: list[str]) -> list[str]:
    """Classes that a split has no images of: nothing is measured there."""
    notes = []
    for split, samples in parts.items():
        if absent := sorted(set(class_names) - {sample.label for sample in samples}):
            notes.append(f"the {split} split has no images of {', '.join(absent)}")
    return notes


# --- for prediction ---------------------------------------------------------------------------


def samples_at(path: str, class_names: Sequence[str], columns: Columns = USUAL) -> Iterator[Sample]:
    """What one input of prediction stands for, one by one.

    A folder or an archive stands for its images in sorted order, in any layout; a table for its lines; any
    other file for itself. Labels are known where all that the layout or the table gives are class names.
    A folder that cannot be read, and a line that can mean two files, are samples with the reason.

    Raises:
        UserError: the path does not exist, or the archive or the table cannot be read.
    """
    if os.path.isdir(path):
        yield from _in_folder(os.path.normpath(path), class_names, columns)
    elif not os.path.lexists(path):
        raise UserError(f"--input {path} does not exist; give files or folders that do")
    elif is_archive_name(path):
        yield from _in_folder(str(unpack_once(path)), class_names, columns)
    elif is_table_name(path):
        yield from _in_table(path, class_names, columns)
    else:
        yield Sample(path)


def _in_folder(folder: str, class_names: Sequence[str], columns: Columns) -> Iterator[Sample]:
    label_of, is_empty = _label_of(folder, class_names, columns), True
    others, locked = Counter(), {}
    for path in walk_images(folder, others, locked):
        is_empty = False
        yield Sample(path, label_of(path), reason=locked.pop(path, ""))
    if is_empty:
        say(f"{folder}: a folder without images")
    if others := {ending: n for ending, n in others.items() if not is_table_name(ending)}:
        say(f"{folder}: {others_text(others)}")


def _label_of(folder: str, class_names: Sequence[str], columns: Columns) -> Callable:
    """What tells the label of an image of the folder, where it has a layout whose labels are all class names."""
    try:
        reader = _reader_of(folder, class_names, columns)
        labels = reader.labels() if reader else set(subfolders(folder))
    except UserError as error:  # the images are there all the same
        say(f"{folder}: no labels are taken from it; {error}")
        return lambda path: None
    unknown = sorted(labels - set(class_names))
    if reader and labels and not unknown:
        return reader.label_of
    if unknown:
        found = f"its folders or labels are not all class names ({', '.join(unknown[:3])})"
        say(f"{folder}: {found}, so they are not taken as labels")
    return lambda path: None


def _reader_of(folder: str, class_names: Sequence[str], columns: Columns) -> LayoutReader | None:
    children = subfolders(folder)
    if children and set(children) <= set(class_names):  # also one class alone
        return FolderReader(folder, [ClassFolder(path, "", name) for name, path in children.items()])
    try:
        return found[1] if (found := detect_layout(folder, columns)) else None
    except UserError:  # no data set to train on is still a folder of photos
        return None


def _in_table(file: str, class_names: Sequence[str], columns: Columns) -> Iterator[Sample]:
    table = Table(file, columns)
    table.require("path")
    root = os.path.dirname(file) or "."
    find, known, unknown = FileFinder(root), set(class_names), Counter()
    for row in table.rows():
        path, reason = None, ""
        try:
            path = find(row.path)
        except UserError as error:
            reason = str(error)
        path = path or os.path.normpath(os.path.join(root, row.path))
        yield Sample(path, row.label if row.label in known else None, reason=reason)
        if row.label and row.label not in known:
            unknown[row.label] += 1
    if unknown:
        names = ", ".join(name for name, _ in unknown.most_common(3))
        say(f"{file}: without {pluralize(unknown.total(), 'label')} that no class has for a name ({names})")
    for note in find.notes():
        say(f"{file}: {note}")
