"""Divides samples into training, validation and test images."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate

from photo_classifier.data.samples import Parts, Sample
from photo_classifier.runtime.seeding import derive_seed

Units = dict[str, list[list[Sample]]]  # groups of samples that stay together, by split or by class
TOLERANCE = 0.03  # by how much of a class a split with groups may differ from its share


def stratified_split(samples: Sequence[Sample], ratios: Mapping[str, float], seed: int) -> Parts:
    """Divides every class by the ratios, in an order that depends only on the seed and the keys.

    Each image draws its position independently, so adding photos moves others between splits only by the
    rounding of the ratio: yesterday's test images do not become today's training images. A group draws
    one position for all its images, among the groups with the same most common class. It is moved only if
    a class is off its shares by more than `TOLERANCE` and the move brings it closer.
    A class with fewer images or groups than there are splits goes to the first ones.
    """
    shares = {name: ratio / sum(ratios.values()) for name, ratio in ratios.items() if ratio > 0}
    parts: Units = {name: [] for name in shares}
    for units in _strata(samples, seed).values():
        ends = _ends([len(unit) for unit in units], list(shares.values()))
        for name, start, end in zip(shares, [0, *ends], ends, strict=False):
            parts[name] += units[start:end]
    if any(sample.group for sample in samples):
        _even_out(parts, shares)
        _bring_every_class_to_training(parts, seed)
    flat = {name: [sample for unit in units for sample in unit] for name, units in parts.items()}
    return {name: sorted(part, key=lambda sample: (sample.label, sample.key)) for name, part in flat.items()}


def _strata(samples: Sequence[Sample], seed: int) -> Units:
    """Returns the groups by their most common class, in drawn order; an image without a group forms its own."""
    units: dict[tuple[str, str], list[Sample]] = {}
    for sample in samples:
        units.setdefault(("group", sample.group) if sample.group else ("", sample.key), []).append(sample)
    strata: Units = {}
    for unit in sorted(units.values(), key=lambda unit: _draw(unit[0], seed)):
        strata.setdefault(_most_common_label(unit), []).append(unit)
    return dict(sorted(strata.items()))


def _most_common_label(unit: Sequence[Sample]) -> str:
    if len(unit) == 1:
        return unit[0].label
    counts = Counter(sample.label for sample in unit)
    return min(counts, key=lambda label: (-counts[label], label))


def _draw(sample: Sample, seed: int) -> tuple[int, str]:
    address = ("group", sample.group) if sample.group else (sample.key,)
    return derive_seed(seed, "split", *address), address[-1]


def _ends(sizes: Sequence[int], shares: Sequence[float]) -> list[int]:
    """Returns where to cut a sequence of units so that the sizes of the parts come closest to the shares.

    Every part gets a unit and leaves one for each later part; if there are too few, the first parts get them.
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
    """Moves groups, one by one, while a class is off its shares and a move brings the classes closer to theirs.

    As few groups as possible are moved, so that a growing set keeps its splits; no class vanishes from a split.
    """
    balance, done = _Balance(parts, shares), set()
    while label := balance.worst(done):
        gain, index, target = balance.best_move(label)
        if gain > 1e-9:
            balance.move(index, target)
        else:
            done.add(label)
    for name in parts:
        parts[name] = [unit for unit, where in zip(balance.units, balance.where, strict=True) if where == name]


class _Balance:
    """Counts the images of each class in each split while groups move."""

    def __init__(self, parts: Units, shares: Mapping[str, float]) -> None:
        self.shares = shares
        self.units = [unit for units in parts.values() for unit in units]
        self.where = [name for name, units in parts.items() for _ in units]
        # sorted, because sums of floats depend on the order
        self.labels = [Counter(sorted(sample.label for sample in unit)) for unit in self.units]
        self.counts: dict[str, Counter[str]] = {name: Counter() for name in parts}
        self.by_label: dict[str, list[int]] = {}
        for index, (labels, name) in enumerate(zip(self.labels, self.where, strict=True)):
            self.counts[name].update(labels)
            for label in labels if self.units[index][0].group else ():
                self.by_label.setdefault(label, []).append(index)
        self.totals = sum(self.counts.values(), Counter())

    def off(self, name: str, label: str) -> float:
        """Returns by how much a split exceeds its share of a class."""
        return self.counts[name][label] / self.totals[label] - self.shares[name]

    def worst(self, done: set[str]) -> str | None:
        """Returns the class that is farthest off its shares, if by more than the tolerance."""
        off = {label: max(abs(self.off(name, label)) for name in self.counts) for label in self.by_label.keys() - done}
        label = max(sorted(off), key=off.__getitem__, default=None)
        return label if label is not None and off[label] > TOLERANCE else None

    def best_move(self, label: str) -> tuple[float, int, str]:
        """Returns the gain, the group index and the new split of the best move of a group with images of the class."""
        moves = ((self._gain(index, name), index, name) for index in self.by_label[label] for name in self.counts)
        return max(moves, key=lambda move: move[0])

    def _gain(self, index: int, target: str) -> float:
        """Returns by how much the sum of squared differences falls."""
        here, labels = self.where[index], self.labels[index]
        if here == target or any(self.counts[here][label] == n for label, n in labels.items()):
            return 0.0
        parts = {label: n / self.totals[label] for label, n in labels.items()}
        return sum(2 * d * (self.off(here, label) - self.off(target, label) - d) for label, d in parts.items())

    def move(self, index: int, target: str) -> None:
        """Moves a group to another split."""
        self.counts[self.where[index]].subtract(self.labels[index])
        self.counts[target].update(self.labels[index])
        self.where[index] = target


def _bring_every_class_to_training(parts: Units, seed: int) -> None:
    """Moves a group for each class that would otherwise be missing from training."""
    others = [name for name in parts if name != "train"]
    labels = {name: {sample.label for unit in units for sample in unit} for name, units in parts.items()}
    missing = set().union(*labels.values()) - labels["train"]
    while missing:
        candidates = [(name, unit) for name in others for unit in parts[name] if missing & {s.label for s in unit}]
        name, unit = min(candidates, key=lambda candidate: _draw(candidate[1][0], seed))
        parts[name].remove(unit)
        parts["train"].append(unit)
        missing -= {sample.label for sample in unit}


def crossing_groups(parts: Mapping[str, Sequence[Sample]]) -> list[dict[str, Sample]]:
    """Returns a photo of each split that a group is in, for the groups that are in more than one."""
    seen: dict[str, dict[str, Sample]] = {}
    for name, part in parts.items():
        for sample in part:
            seen.setdefault(sample.group, {}).setdefault(name, sample)
    return [seen[group] for group in sorted(seen) if group and len(seen[group]) > 1]
