"""Samples, and how they are cut into training, validation and test images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from utils import UserError, seed_for

SPLIT_FOLDERS = {
    "train": ("train", "training", "training_set"),
    "valid": ("val", "valid", "validation"),
    "test": ("test", "testing", "test_set"),
}


@dataclass(frozen=True)
class Sample:
    """One image. `key` names it in every random draw, the same on every machine."""

    path: str
    label: str | None = None
    key: str = ""


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

    def by_name(self) -> dict[str, list[Sample]]:
        """The splits that hold images, by name."""
        return {name: part for name in SPLIT_FOLDERS if (part := getattr(self, name))}

    @property
    def held_out(self) -> str:
        """The split that the last line of training speaks of, and predict takes by default."""
        return "test" if self.test else "valid"


Parts = dict[str, list[Sample]]


def stratified_split(samples: list[Sample], ratios: Mapping[str, float], seed: int) -> Parts:
    """Cuts every class by the ratios, in an order that depends on the seed and the keys alone.

    Because each image draws its own place, a photo that is added later moves no other across by more
    than the rounding of the ratio: yesterday's test images do not become today's training images.

    Raises:
        UserError: a class has too few images for every split to get one.
    """
    total, names = sum(ratios.values()), [name for name, ratio in ratios.items() if ratio > 0]
    parts: Parts = {name: [] for name in names}
    by_label: dict[str, list[Sample]] = {}
    for sample in samples:
        by_label.setdefault(sample.label, []).append(sample)
    for label, members in by_label.items():
        count = len(members)
        if count < len(names):
            raise UserError(
                f"the class {label!r} has {count} image(s), too few for {' + '.join(names)}; "
                "add images, or set --test_ratio 0"
            )
        members.sort(key=lambda sample: (seed_for(seed, "split", sample.key), sample.key))
        start, share = 0, 0.0
        for place, name in enumerate(names):
            share += ratios[name] / total
            # every split gets at least one image, and leaves one for each that follows
            end = min(max(round(count * share), start + 1), count - (len(names) - place - 1))
            parts[name] += members[start:end]
            start = end
    return {name: sorted(part, key=lambda sample: (sample.label, sample.key)) for name, part in parts.items()}
