"""What `--input` stands for: files, folders, patterns and names on stdin in any mix, one sample after another."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterator, Sequence

from photo_classifier.data.discovery import samples_at
from photo_classifier.data.image_files import nfc
from photo_classifier.data.samples import Sample
from photo_classifier.data.tables import USUAL, Columns
from photo_classifier.runtime.errors import UserError, did_you_mean_path

STDIN = "-"
CONSOLE = "oem" if sys.platform == "win32" else "utf-8"  # what `dir /b` writes into a pipe


def input_samples(inputs: Sequence[str], class_names: Sequence[str], columns: Columns = USUAL) -> Iterator[Sample]:
    """All that the inputs stand for, in their order, listed only as far as it is asked for.

    An input that is not there still gives a sample, and so a row that says so.

    Raises:
        UserError: not one of the inputs is there.
    """
    if inputs and not any(_is_there(name) for name in inputs):
        hint = did_you_mean_path(inputs[0])
        raise UserError(f"--input {inputs[0]} does not exist{hint}; give files, folders or patterns, or - for stdin")
    return (sample for name in inputs for sample in _samples_of(name, class_names, columns))


def _is_there(name: str) -> bool:
    return name == STDIN or os.path.lexists(name) or next(glob.iglob(name, recursive=True), None) is not None


def _samples_of(name: str, class_names: Sequence[str], columns: Columns) -> Iterator[Sample]:
    if name == STDIN:
        return (Sample(line) for line in stdin_names())
    # a file may be called a[1].jpg: what is there is no pattern
    found = [name] if os.path.lexists(name) else sorted(glob.glob(name, recursive=True), key=nfc)
    if not found:
        return iter([Sample(name)])
    return (sample for path in found for sample in samples_at(path, class_names, columns))


def stdin_names() -> Iterator[str]:
    """The lines of stdin, without their ends and the mark before the first; empty ones are passed over."""
    for n, line in enumerate(sys.stdin.buffer):
        name = line.removesuffix(b"\n").removesuffix(b"\r")
        if name := _decoded(name if n else name.removeprefix(b"\xef\xbb\xbf")):
            yield name


def _decoded(name: bytes) -> str:
    try:
        return os.fsdecode(name)
    except UnicodeDecodeError:  # on Windows alone: UTF-8 is tried there first
        return name.decode(CONSOLE, "replace")
