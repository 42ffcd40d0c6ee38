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


@dataclass(frozen=True, slots=True)  # a set may have millions
class Sample:
    """One image. `key` names it in every random draw, the same on every machine.

    Images of one `group` (a plant, a patient, a module) stay together in one split. `reason` says why it cannot
    be read, where that is known before it is tried.
    """

    path: str
    label: str | None = None
    key: str = ""
    group: str = ""
    reason: str = ""


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


Units = dict[str, list[list[Sample]]]  # groups of samples that stay together, by split or by class
TOLERANCE = 0.03  # of a class's images, by which a split with groups may differ from its share


def stratified_split(samples: Sequence[Sample], ratios: Mapping[str, float], seed: int) -> Parts:
    """Cuts every class by the ratios, in an order that depends on the seed and the keys alone.

    Because each image draws its own place, a photo that is added later moves no other across by more
    than the rounding of the ratio: yesterday's test images do not become today's training images.
    A group draws one place for all its images, among the groups with the same commonest class, and is
    moved only where that brings a class nearer to its shares that is off by more than `TOLERANCE`.

    Raises:
        UserError: a class has too few images for every split to get one.
    """
    shares = {name: ratio / sum(ratios.values()) for name, ratio in ratios.items() if ratio > 0}
    parts: Units = {name: [] for name in shares}
    for label, units in _strata(samples, seed).items():
        if len(units) < len(shares) and not units[0][0].group:
            raise UserError(
                f"the class {label!r} has {count_of(len(units), 'image')}, too few for {' + '.join(shares)}; "
                "add images, or set --test_ratio 0"
            )
        ends = _ends([len(unit) for unit in units], list(shares.values()))
        for name, start, end in zip(shares, [0, *ends], ends, strict=False):
            parts[name] += units[start:end]
    if any(sample.group for sample in samples):
        _even_out(parts, shares)
        _bring_every_class_to_training(parts, seed)
    flat = {name: [sample for unit in units for sample in unit] for name, units in parts.items()}
    return {name: sorted(part, key=lambda sample: (sample.label, sample.key)) for name, part in flat.items()}


def _strata(samples: Sequence[Sample], seed: int) -> Units:
    """Groups (an image without one is its own) by their commonest class, each in the order of its draws."""
    units: dict[tuple[str, str], list[Sample]] = {}
    for sample in samples:
        units.setdefault(("group", sample.group) if sample.group else ("", sample.key), []).append(sample)
    strata: Units = {}
    for unit in sorted(units.values(), key=lambda unit: _place(unit[0], seed)):
        strata.setdefault(_commonest(unit), []).append(unit)
    return dict(sorted(strata.items()))


def _commonest(unit: Sequence[Sample]) -> str:
    if len(unit) == 1:
        return unit[0].label
    counts = Counter(sample.label for sample in unit)
    return min(counts, key=lambda label: (-counts[label], label))


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


def _even_out(parts: Units, shares: Mapping[str, float]) -> None:
    """Moves groups, one by one, while a class is off its shares and a move brings all classes nearer to theirs.

    Only what must is moved, so that a set that grows keeps its splits; no class leaves a split by it.
    """
    balance, done = _Balance(parts, shares), set()
    while label := balance.worst(done):
        gain, place, there = balance.best_move(label)
        if gain > 1e-9:
            balance.move(place, there)
        else:
            done.add(label)
    for name in parts:
        parts[name] = [unit for unit, where in zip(balance.units, balance.where, strict=True) if where == name]


class _Balance:
    """How many images of each class are in each split, as groups move."""

    def __init__(self, parts: Units, shares: Mapping[str, float]) -> None:
        self.shares = shares
        self.units = [unit for units in parts.values() for unit in units]
        self.where = [name for name, units in parts.items() for _ in units]
        # sorted, because sums of floats depend on their order
        self.labels = [Counter(sorted(sample.label for sample in unit)) for unit in self.units]
        self.counts: dict[str, Counter[str]] = {name: Counter() for name in parts}
        self.by_label: dict[str, list[int]] = {}
        for place, (labels, name) in enumerate(zip(self.labels, self.where, strict=True)):
            self.counts[name].update(labels)
            for label in labels if self.units[place][0].group else ():
                self.by_label.setdefault(label, []).append(place)
        self.totals = sum(self.counts.values(), Counter())

    def off(self, name: str, label: str) -> float:
        """The share of a class that a split has too much."""
        return self.counts[name][label] / self.totals[label] - self.shares[name]

    def worst(self, done: set[str]) -> str | None:
        """The class that is farthest off its shares, if it is by more than the tolerance."""
        off = {label: max(abs(self.off(name, label)) for name in self.counts) for label in self.by_label.keys() - done}
        label = max(sorted(off), key=off.__getitem__, default=None)
        return label if label is not None and off[label] > TOLERANCE else None

    def best_move(self, label: str) -> tuple[float, int, str]:
        """The gain, the place and the new split of the group with images of the class that gains most."""
        moves = ((self._gain(place, name), place, name) for place in self.by_label[label] for name in self.counts)
        return max(moves, key=lambda move: move[0])

    def _gain(self, place: int, there: str) -> float:
        """By how much the sum of the squared differences falls."""
        here, labels = self.where[place], self.labels[place]
        if here == there or any(self.counts[here][label] == n for label, n in labels.items()):
            return 0.0
        parts = {label: n / self.totals[label] for label, n in labels.items()}
        return sum(2 * d * (self.off(here, label) - self.off(there, label) - d) for label, d in parts.items())

    def move(self, place: int, there: str) -> None:
        """Takes a group to another split."""
        self.counts[self.where[place]].subtract(self.labels[place])
        self.counts[there].update(self.labels[place])
        self.where[place] = there


def _bring_every_class_to_training(parts: Units, seed: int) -> None:
    """Moves a group where a class would be in other splits alone."""
    others = [name for name in parts if name != "train"]
    labels = {name: {sample.label for unit in units for sample in unit} for name, units in parts.items()}
    missing = set().union(*labels.values()) - labels["train"]
    while missing:
        candidates = [(name, unit) for name in others for unit in parts[name] if missing & {s.label for s in unit}]
        name, unit = min(candidates, key=lambda candidate: _place(candidate[1][0], seed))
        parts[name].remove(unit)
        parts["train"].append(unit)
        missing -= {sample.label for sample in unit}


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
