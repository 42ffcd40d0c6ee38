"""Reads splits that were written by an earlier run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from photo_classifier.data.file_finder import FileFinder
from photo_classifier.data.image_files import nfc
from photo_classifier.data.samples import Parts, Sample, split_of
from photo_classifier.data.tables import Row, Table
from photo_classifier.runtime.errors import UserError
from photo_classifier.runtime.text import pluralize


def read_splits(
    file: str | Path, known: Sequence[Sample] | None = None, root: str | Path = ""
) -> tuple[Parts, list[str]]:
    """Returns the splits in a `splits.csv` (path, label, split), in its order, and notes on what does not match.

    Args:
        file: the table, or the run folder that holds it.
        known: the images of the data below `root`. Rows are matched by path, else by the longest ending of the
            path, so that a folder may have moved. If None, paths are relative to the working folder or to
            the folder of the file.

    Raises:
        UserError: the table does not exist, a line is wrong, or none of its images exists.
    """
    table = _table_of_splits(file)
    find = _Known(known) if known is not None else _OnDisk(table.file)
    parts: Parts = {}
    lines: dict[str, int] = {}
    missing, relabelled = [], []
    for row in table.rows():
        split, sample = _split_in(row, table.file), find(row)
        if sample is None:
            missing.append(row.path)
            sample = Sample(os.path.join(root, _relative(row.path)), row.label, _relative(row.path), row.group)
        if sample.key in lines:
            where = f"line {lines[sample.key]} and in line {row.line}"
            raise UserError(f"--splits {table.file}: {row.path!r} is in {where}; remove one")
        lines[sample.key] = row.line
        relabelled += [row.path] if sample.label != row.label else []
        parts.setdefault(split, []).append(sample)
    if len(missing) == len(lines):
        where, hint = (
            (f" in {root}", "") if known is not None else ("", "; give the folder of the photos with --data_dir")
        )
        raise UserError(f"--splits {table.file}: none of its images exists{where}{hint}")
    left_out = [sample.path for sample in known or () if sample.key not in lines]
    notes = _notes(table.file, missing, left_out, relabelled)
    return parts if known is not None else _with_short_keys(parts), notes


def _notes(file: str, missing: list[str], left_out: list[str], relabelled: list[str]) -> list[str]:
    paths_by_text = {
        f"listed in {file} but missing": missing,
        f"left out because {file} does not list them": left_out,
        f"labelled as in the data, not as in {file}": relabelled,
    }
    return [
        f"{text}: {pluralize(len(paths), 'image')} (for example {paths[0]})"
        for text, paths in paths_by_text.items()
        if paths
    ]


def _table_of_splits(file: str | Path) -> Table:
    file = os.path.join(file, "splits.csv") if os.path.isdir(file) else file
    if not os.path.exists(file):
        raise UserError(f"--splits {file} does not exist; give the splits.csv of a run, or the run's folder")
    table = Table(file)
    if None in (table.path, table.label, table.split):
        raise UserError(f"--splits {table.file} has the columns {', '.join(table.header)}; expected path, label, split")
    return table


def _split_in(row: Row, file: str) -> str:
    split = split_of(row.split)
    if not split or not row.path or not row.label:
        wrong = "an empty cell" if split else f"the split {row.split!r}"
        raise UserError(f"--splits {file}: line {row.line} has {wrong}; expected path, label and train, valid or test")
    return split


def _relative(path: str) -> str:
    return nfc(os.path.splitdrive(path)[1]).replace("\\", "/").lstrip("/")


def _with_short_keys(parts: Parts) -> Parts:
    """Shortens keys to the part below the common folder, as reading the folder itself would."""
    folders = [os.path.dirname(sample.key) for part in parts.values() for sample in part]
    n = len(os.path.join(os.path.commonpath(folders), "")) if all(folders) else 0
    return {name: [replace(sample, key=sample.key[n:]) for sample in part] for name, part in parts.items()}


class _Known:
    """Finds the sample of a row among the samples of the data."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.by_path = {sample.path: sample for sample in samples}
        self.by_key = {sample.key: sample for sample in samples}

    def __call__(self, row: Row) -> Sample | None:
        if row.path in self.by_path:
            return self.by_path[row.path]
        parts = _relative(row.path).split("/")
        tails = ("/".join(parts[n:]) for n in range(len(parts)))
        return next((self.by_key[tail] for tail in tails if tail in self.by_key), None)


class _OnDisk:
    """Finds the file of a row on disk."""

    def __init__(self, file: str) -> None:
        self.finders = [FileFinder(".", is_deep=False), FileFinder(os.path.dirname(file) or ".")]

    def __call__(self, row: Row) -> Sample | None:
        found = next((path for find in self.finders if (path := find(row.path))), None)
        return Sample(found, row.label, _relative(row.path), row.group) if found else None
