"""Lists the images to predict from any mix of files, folders, patterns and names on stdin."""

from __future__ import annotations

import glob
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from photo_classifier.data.archives import is_archive_name, unpack_once
from photo_classifier.data.file_finder import FileFinder
from photo_classifier.data.image_files import is_visible, nfc, others_text, subfolders, walk_images
from photo_classifier.data.label_cells import has_several
from photo_classifier.data.layout_readers import ClassFolder, FolderReader, LayoutReader
from photo_classifier.data.layouts import detect_layout
from photo_classifier.data.samples import Sample
from photo_classifier.data.table_columns import USUAL, Columns
from photo_classifier.data.table_files import SURE, is_table_name
from photo_classifier.data.tables import ONE_LABEL, Table
from photo_classifier.runtime.console import say
from photo_classifier.runtime.errors import UserError, did_you_mean_path
from photo_classifier.runtime.text import pluralize

STDIN = "-"
CONSOLE = "oem" if sys.platform == "win32" else "utf-8"  # what `dir /b` writes into a pipe


def input_samples(inputs: Sequence[str], class_names: Sequence[str], columns: Columns = USUAL) -> Iterator[Sample]:
    """Yields the samples of all inputs in order, listing folders lazily.

    An input that does not exist still yields a sample, so that the result has a row for it.

    Raises:
        UserError: none of the inputs exists.
    """
    if inputs and not any(_is_there(name) for name in inputs):
        hint = did_you_mean_path(inputs[0])
        raise UserError(f"--input {inputs[0]} does not exist{hint}; give files, folders or patterns, or - for stdin")
    return (sample for name in inputs for sample in _samples_of(name, class_names, columns))


def no_images(inputs: Sequence[str]) -> UserError:
    """Returns the error that says that the inputs hold no images."""
    return UserError(f"--input {' '.join(inputs)}: no images were found; give photos, or folders of photos")


def _is_there(name: str) -> bool:
    return name == STDIN or os.path.lexists(name) or next(glob.iglob(name, recursive=True), None) is not None


def _samples_of(name: str, class_names: Sequence[str], columns: Columns) -> Iterator[Sample]:
    if name == STDIN:
        return (Sample(line) for line in stdin_names())
    # a file may be called a[1].jpg: an existing file is not a pattern
    found = [name] if os.path.lexists(name) else _matches(name)
    if not found:
        return iter([Sample(name)])
    return (sample for path in found for sample in samples_at(path, class_names, columns))


def _matches(pattern: str) -> list[str]:
    """Returns what a pattern finds, except in folders of the system that it does not name."""
    found = sorted(glob.glob(pattern, recursive=True), key=nfc)
    return [path for path in found if all(is_visible(part) or part in pattern for part in Path(path).parts)]


def samples_at(path: str, class_names: Sequence[str], columns: Columns = USUAL) -> Iterator[Sample]:
    """Yields the samples of one input.

    A folder or an archive, in any layout, yields its images in sorted order, a table its lines, any other
    file itself. Samples have labels if all labels of the layout or table are class names.
    A folder that cannot be read and a line that matches two files become samples with a reason.

    Raises:
        UserError: the path does not exist, or the archive or the table cannot be read.
    """
    if os.path.isdir(path):
        yield from _in_folder(os.path.normpath(path), class_names, columns)
    elif not os.path.lexists(path):
        raise UserError(f"--input {path} does not exist; give existing files or folders")
    elif is_archive_name(path):
        yield from _in_folder(str(unpack_once(path)), class_names, columns)
    elif is_table_name(path):
        yield from _in_table(path, class_names, columns)
    else:
        yield Sample(path)


def _in_folder(folder: str, class_names: Sequence[str], columns: Columns) -> Iterator[Sample]:
    label_of, is_empty = _label_of(folder, class_names, columns), True
    others, unread = Counter(), {}
    for path in walk_images(folder, others, unread):
        is_empty = False
        yield Sample(path, label_of(path), reason=unread.pop(path, ""))
    if is_empty:
        say(f"{folder}: contains no images")
    if others := {ending: n for ending, n in others.items() if ending not in SURE}:
        say(f"{folder}: {others_text(others)}")


def _label_of(folder: str, class_names: Sequence[str], columns: Columns) -> Callable:
    """Returns a function from path to label; it always returns None unless all labels are class names."""
    try:
        reader = _reader_of(folder, class_names, columns)
        labels = reader.labels() if reader else set(subfolders(folder))
    except UserError as error:  # its images can still be predicted
        say(f"{folder}: its labels are not used; {error}")
        return lambda path: None
    unknown = sorted(labels - set(class_names))
    if reader and labels and not unknown:
        return reader.label_of
    if unknown:
        found = f"its folder names or labels are not all class names ({', '.join(unknown[:3])})"
        say(f"{folder}: {found}, so they are not used as labels")
    return lambda path: None


def _reader_of(folder: str, class_names: Sequence[str], columns: Columns) -> LayoutReader | None:
    children = subfolders(folder)
    if children and set(children) <= set(class_names):  # even a single class
        return FolderReader(folder, [ClassFolder(path, "", name) for name, path in children.items()])
    try:
        return found[1] if (found := detect_layout(folder, columns)) else None
    except UserError:  # photos can be predicted even if a classifier could not be trained on them
        return None


def _in_table(file: str, class_names: Sequence[str], columns: Columns) -> Iterator[Sample]:
    table = Table(file, columns)
    table.require("path")
    root = os.path.dirname(file) or "."
    find, known, unknown, faults = FileFinder(root), set(class_names), Counter(), Counter()
    for row in table.rows():
        path, reason = None, "" if row.path else f"line {row.line} of {file} has no {table.path}"
        try:
            path = find(row.path) if row.path else None
        except UserError as error:
            reason = str(error)
        path = path or os.path.normpath(os.path.join(root, row.path))
        names = (row.label, f"{row.label}.0")  # older checkpoints have numbers as they were written
        label = next((name for name in names if name in known), None)
        yield Sample(path, label, reason=reason)
        unknown[row.label] += bool(row.label and not row.fault) and label is None
        faults[row.fault] += has_several(row.fault)
    if unknown := +unknown:
        names = ", ".join(name for name, _ in unknown.most_common(3))
        say(f"{file}: ignored {pluralize(unknown.total(), 'label')} without a matching class ({names})")
    if faults := +faults:
        example = faults.most_common(1)[0][0]
        say(f"{file}: ignored the labels of {pluralize(faults.total(), 'line')}, one {example}; {ONE_LABEL}")
    for note in table.notes() + find.notes():
        say(note if note.startswith(file) else f"{file}: {note}")


def stdin_names() -> Iterator[str]:
    """Yields the lines of stdin without line ends and byte order mark; skips empty ones."""
    for n, line in enumerate(sys.stdin.buffer):
        name = line.removesuffix(b"\n").removesuffix(b"\r")
        if name := _decoded(name if n else name.removeprefix(b"\xef\xbb\xbf")):
            yield name


def _decoded(name: bytes) -> str:
    try:
        return os.fsdecode(name)
    except UnicodeDecodeError:  # only on Windows, where UTF-8 is tried first
        return name.decode(CONSOLE, "replace")
