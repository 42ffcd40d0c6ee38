"""Reads splits that were written by an earlier run."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from photo_classifier.data.file_finder import FileFinder
from photo_classifier.data.image_files import nfc
from photo_classifier.data.new_photos import find_moved, trainable
from photo_classifier.data.samples import Parts, Sample, split_of
from photo_classifier.data.tables import Row, Table
from photo_classifier.runtime.errors import UserError
from photo_classifier.runtime.text import pluralize

Match = tuple[Row, str, Sample | None]  # a line, its split and its image


def read_splits(
    file: str | Path, known: Sequence[Sample] | None = None, root: str | Path = "", new: Sequence[Sample] = ()
) -> tuple[Parts, list[str]]:
    """Returns the splits in a `splits.csv` (path, label, split), in its order, and notes on what does not match.

    Args:
        file: the table, or the run folder that holds it.
        known: the images of the data below `root`. Rows are matched by path, else by the longest ending of the
            path, so that a folder may have moved. If None, paths are relative to the working folder or to
            the folder of the file.
        new: those of them that train if no row lists them.

    Raises:
        UserError: the table does not exist, a line is wrong, or none of its images exists.
    """
    table = _table_of_splits(file)
    matches = _matches(table, _Known(known) if known is not None else _OnDisk(table.file))
    moved = find_moved(table.file, [row.path for row, _, sample in matches if not sample], _unlisted(matches, known))
    matches = [(row, split, sample or moved.get(row.path)) for row, split, sample in matches]
    if not any(sample for *_, sample in matches):
        where = "; give the folder of the photos with --data_dir" if known is None else f" in {root}"
        raise UserError(f"--splits {table.file}: none of its images exists{where}")
    unlisted, may_train = _unlisted(matches, known), set(new)
    held_out = [sample for _, split, sample in matches if sample and split != "train"]
    added, leaks = trainable([sample for sample in unlisted if sample in may_train], held_out)
    parts, vanished = _parts_of(matches, added, root)
    notes = _counts(table.file, matches, unlisted, added) + _examples(
        {
            f"listed in {table.file} but missing": [row.path for row, _, sample in matches if not sample],
            "moved or renamed since, and kept in their splits": list(moved),
            f"left out because {table.file} does not list them": _left_out(unlisted, added, leaks),
            **leaks,
            f"labelled as in the data, not as in {table.file}": _relabelled(matches),
        }
    )
    notes += [f"classes without a photo now: {', '.join(vanished)}"] * bool(vanished)
    return parts if known is not None else _with_short_keys(parts), notes


def _matches(table: Table, find: Callable[[Row], Sample | None]) -> list[Match]:
    matches, lines = [], {}
    for row in table.rows():
        split, sample = _split_in(row, table.file), find(row)
        if sample and row.group and not sample.group:
            sample = replace(sample, group=row.group)
        key = sample.key if sample else _relative(row.path)
        if key in lines:
            where = f"line {lines[key]} and in line {row.line}"
            raise UserError(f"--splits {table.file}: {row.path!r} is in {where}; remove one")
        lines[key] = row.line
        matches.append((row, split, sample))
    return matches


def _unlisted(matches: Sequence[Match], known: Sequence[Sample] | None) -> list[Sample]:
    listed = {sample.key for *_, sample in matches if sample}
    return [sample for sample in known or () if sample.key not in listed]


def _parts_of(matches: Sequence[Match], added: Sequence[Sample], root: str | Path) -> tuple[Parts, list[str]]:
    """Returns the images by split, and the classes of which none is left.

    A missing image of another class stays: like an unreadable one it is listed in the run folder and limited in number.
    """
    labels = {sample.label for *_, sample in matches if sample} | {sample.label for sample in added}
    parts: Parts = {}
    for row, split, sample in matches:
        if sample or row.label in labels:
            path = _relative(row.path)
            missing = Sample(os.path.join(root, path), row.label, path, row.group)
            parts.setdefault(split, []).append(sample or missing)
    if added:
        parts.setdefault("train", []).extend(added)
    return parts, sorted({row.label for row, _, sample in matches if not sample} - labels)


def _relabelled(matches: Sequence[Match]) -> list[str]:
    return [row.path for row, _, sample in matches if sample and sample.label != row.label]


def _counts(file: str, matches: Sequence[Match], unlisted: Sequence[Sample], added: Sequence[Sample]) -> list[str]:
    """Returns how many images were kept, are new and are gone, if these are not simply all."""
    gone = [split for _, split, sample in matches if not sample]
    if not gone and not unlisted:
        return []
    n_kept, n_lost = pluralize(len(matches) - len(gone), "image"), len(gone) - gone.count("train")
    counts = f"{file}: {n_kept} kept in their splits, {len(unlisted)} new ({len(added)} train), {len(gone)} gone"
    hint = f"{n_lost} of those that are gone were in validation or test; if one was renamed, it is new, and trains now"
    return [counts, *[hint] * bool(added and n_lost)]


def _left_out(unlisted: Sequence[Sample], added: Sequence[Sample], leaks: Mapping[str, Sequence[str]]) -> list[str]:
    """Returns the paths of the images that do not train for no other reason than that they are new."""
    others = {sample.path for sample in added}.union(*leaks.values())
    return [sample.path for sample in unlisted if sample.path not in others]


def _examples(paths_by_text: Mapping[str, Sequence[str]]) -> list[str]:
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
