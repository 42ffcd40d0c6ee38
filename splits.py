"""Samples, and how they are cut into training, validation and test images."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path

from listing import nfc
from tables import Finder, Row, Table
from utils import UserError, count_of, seed_for

SPLIT_FOLDERS = {
    "train": ("train", "training", "training_set"),
    "valid": ("val", "valid", "validation", "validation_set", "val_set"),
    "test": ("test", "testing", "test_set"),
}


@dataclass(frozen=True)
class Sample:
    """One image. `key` names it in every random draw, the same on every machine.

    Images of one `group` (a plant, a patient, a module) stay together in one split.
    """

    path: str
    label: str | None = None
    key: str = ""
    group: str = ""


@dataclass(frozen=True)
class Splits:
    """Samples by split, and the class names in the order of the training folders."""

    layout: str
    root: str
    class_names: list[str]
    train: list[Sample] = field(repr=False)
    valid: list[Sample] = field(repr=False)
    test: list[Sample] = field(repr=False)
    made: tuple[str, ...] = ()  # the splits that were cut from the training images here
    passed_over: Mapping[str, int] = field(default_factory=dict)  # files without an image's ending, by ending
    notes: tuple[str, ...] = ()  # what else the user should know of how they were found

    def by_name(self) -> dict[str, list[Sample]]:
        """The splits that hold images, by name."""
        return {name: part for name in SPLIT_FOLDERS if (part := getattr(self, name))}

    @property
    def held_out(self) -> str:
        """The split that the last line of training speaks of, and predict takes by default."""
        return "test" if self.test else "valid"


Parts = dict[str, list[Sample]]


def split_of(name: str) -> str | None:
    """The split that a folder or a cell of that name means."""
    return next((split for split, names in SPLIT_FOLDERS.items() if name.lower() in names), None)


# --- cutting ----------------------------------------------------------------------------------


def stratified_split(samples: Sequence[Sample], ratios: Mapping[str, float], seed: int) -> Parts:
    """Cuts every class by the ratios, in an order that depends on the seed and the keys alone.

    Because each image draws its own place, a photo that is added later moves no other across by more
    than the rounding of the ratio: yesterday's test images do not become today's training images.
    A group draws one place for all its images, among the groups with the same rarest class.

    Raises:
        UserError: a class has too few images for every split to get one.
    """
    names = [name for name, ratio in ratios.items() if ratio > 0]
    shares = [ratios[name] / sum(ratios.values()) for name in names]
    parts: Parts = {name: [] for name in names}
    for label, units in _strata(samples, seed).items():
        if len(units) < len(names) and not units[0][0].group:
            raise UserError(
                f"the class {label!r} has {len(units)} image(s), too few for {' + '.join(names)}; "
                "add images, or set --test_ratio 0"
            )
        ends = _ends([len(unit) for unit in units], shares)
        for name, start, end in zip(names, [0, *ends], ends, strict=False):
            parts[name] += [sample for unit in units[start:end] for sample in unit]
    _bring_every_class_to_training(parts, seed)
    return {name: sorted(part, key=lambda sample: (sample.label, sample.key)) for name, part in parts.items()}


def _strata(samples: Sequence[Sample], seed: int) -> dict[str, list[list[Sample]]]:
    """Groups (an image without one is its own) by their rarest class, each in the order of its draws."""
    units: dict[tuple[str, str], list[Sample]] = {}
    for sample in samples:
        units.setdefault(("group", sample.group) if sample.group else ("", sample.key), []).append(sample)
    n_images = Counter(sample.label for sample in samples)
    strata: dict[str, list[list[Sample]]] = {}
    for name in sorted(units, key=lambda name: _place(units[name][0], seed)):
        labels = {sample.label for sample in units[name]}
        rarest = min(labels, key=lambda label: (n_images[label], label)) if len(labels) > 1 else labels.pop()
        strata.setdefault(rarest, []).append(units[name])
    return dict(sorted(strata.items()))


def _place(sample: Sample, seed: int) -> tuple[int, str]:
    address = ("group", sample.group) if sample.group else (sample.key,)
    return seed_for(seed, "split", *address), address[-1]


def _ends(sizes: Sequence[int], shares: Sequence[float]) -> list[int]:
    """Where to cut a row of units so that the parts' sizes come nearest to the shares.

    Every part gets a unit and leaves one for each that follows; the first ones do where units are too few.
    """
    middles = [end - size / 2 for end, size in zip(accumulate(sizes), sizes, strict=True)]
    ends, start = [], 0
    for n_after, share in zip(range(len(shares) - 1, -1, -1), accumulate(shares), strict=True):
        nearest = bisect_left(middles, sum(sizes) * share)
        most = max(len(sizes) - n_after, min(start + 1, len(sizes)))
        start = min(max(nearest, start + 1), most)
        ends.append(start)
    return ends


def _bring_every_class_to_training(parts: Parts, seed: int) -> None:
    """Moves a group where a class would be in other splits alone; images without groups never need it."""
    others = {name: part for name, part in parts.items() if name != "train"}
    missing = {s.label for part in others.values() for s in part} - {s.label for s in parts["train"]}
    while missing:
        candidates = [s for part in others.values() for s in part if s.label in missing]
        group = min(candidates, key=lambda sample: _place(sample, seed)).group
        for name, part in others.items():
            parts["train"] += [s for s in part if s.group == group]
            parts[name] = others[name] = [s for s in part if s.group != group]
        missing -= {s.label for s in parts["train"]}


def crossing_groups(parts: Mapping[str, Sequence[Sample]]) -> list[str]:
    """The groups that stand in more than one split."""
    seen: dict[str, set[str]] = {}
    for name, part in parts.items():
        for sample in part:
            seen.setdefault(sample.group, set()).add(name)
    return sorted(group for group, names in seen.items() if group and len(names) > 1)


# --- a split that was made before -------------------------------------------------------------


def read_splits(
    file: str | Path, known: Sequence[Sample] | None = None, root: str | Path = ""
) -> tuple[Parts, list[str]]:
    """The splits that a `splits.csv` (path, label, split) lists, in its order, and notes on what does not fit.

    Args:
        file: the table, or the run folder that holds it.
        known: the images of the data below `root`. The rows are matched to them as they are written, else by
            the longest end of their path, so that a folder may have moved. Without them the paths are looked
            for from the working folder and from that of the file.

    Raises:
        UserError: no such table, a line that is wrong, or none of its images is there.
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
            raise UserError(f"--splits {table.file}: {row.path!r} stands in {where}; remove one")
        lines[sample.key] = row.line
        relabelled += [row.path] if sample.label != row.label else []
        parts.setdefault(split, []).append(sample)
    if len(missing) == len(lines):
        where, hint = (
            (f" in {root}", "") if known is not None else ("", "; give the folder of the photos by --data_dir")
        )
        raise UserError(f"--splits {table.file}: none of its images is there{where}{hint}")
    told = {
        "not there, though {file} lists them": missing,
        "left out, as {file} does not list them": [s.path for s in known or () if s.key not in lines],
        "labelled as in the data, which is otherwise than in {file}": relabelled,
    }
    notes = [
        f"{text.format(file=table.file)}: {count_of(len(paths), 'image')} (for example {paths[0]})"
        for text, paths in told.items()
        if paths
    ]
    return parts if known is not None else _with_short_keys(parts), notes


def _table_of_splits(file: str | Path) -> Table:
    file = os.path.join(file, "splits.csv") if os.path.isdir(file) else file
    if not os.path.exists(file):
        raise UserError(f"--splits {file} is not there; give the splits.csv of a run, or the run's folder")
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
    """Keys below the folder that all have in common, as its layout would give them."""
    folders = [os.path.dirname(sample.key) for part in parts.values() for sample in part]
    n = len(os.path.join(os.path.commonpath(folders), "")) if all(folders) else 0
    return {name: [replace(sample, key=sample.key[n:]) for sample in part] for name, part in parts.items()}


class _Known:
    """Finds the sample of a row among those of the data."""

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
    """Finds the file of a row on the disk."""

    def __init__(self, file: str) -> None:
        self.finders = [Finder("."), Finder(os.path.dirname(file) or ".")]

    def __call__(self, row: Row) -> Sample | None:
        found = next((path for find in self.finders if (path := find(row.path))), None)
        return Sample(found, row.label, _relative(row.path), row.group) if found else None
