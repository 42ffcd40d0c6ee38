"""Samples, and how they are cut into training, validation and test images."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate

from photo_classifier.data.samples import Parts, Sample
from photo_classifier.runtime.errors import UserError
from photo_classifier.runtime.seeding import derive_seed
from photo_classifier.runtime.text import pluralize

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
                f"the class {label!r} has {pluralize(len(units), 'image')}, too few for {' + '.join(shares)}; "
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
    return derive_seed(seed, "split", *address), address[-1]


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
