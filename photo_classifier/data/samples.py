"""Labelled samples and their splits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


def split_title(name: str) -> str:
    """What a split is called where people read of it."""
    return {"valid": "validation"}.get(name, name)


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
