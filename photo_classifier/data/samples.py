"""Labelled samples and their splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace


def split_title(name: str) -> str:
    """Returns the name of a split for messages."""
    return {"valid": "validation"}.get(name, name)


def straddles(one: str, other: str) -> bool:
    """Whether one of two photos is trained on while the other is held out, by the names of their splits or folds."""
    apart = {split_title(one), split_title(other)}
    return len(apart) == 2 and apart != {"validation", "test"} and not apart & {"", "dropped"}


SPLIT_FOLDERS = {
    "train": ("train", "training", "training_set", "train_set", "trainset", "train_data", "training_data"),
    "valid": (
        *("val", "valid", "validate", "validation", "dev", "eval", "evaluation", "development", "valset", "validset"),
        *("val_set", "valid_set", "validation_set", "dev_set", "eval_set", "val_data", "validation_data", "publictest"),
    ),
    "test": ("test", "testing", "test_set", "testset", "test_data", "testing_set", "testing_data", "privatetest"),
}


@dataclass(frozen=True, slots=True)  # data sets may have millions
class Sample:
    """One image. `key` identifies it in every random draw and is the same on every machine.

    Images of one `group` (a plant, a patient, a module) stay together in one split. `reason` says why it cannot
    be read, if that is known in advance.
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
    made: tuple[str, ...] = ()  # the splits that were taken from the training images here
    passed_over: Mapping[str, int] = field(default_factory=dict)  # number of files that are not images, by ending
    unread: Mapping[str, str] = field(default_factory=dict)  # reasons, by path, for photos of other formats in a class
    notes: tuple[str, ...] = ()  # what else the user should know
    near_duplicates: tuple = ()  # rows to list in the run folder, where something was done about them

    def by_name(self) -> dict[str, list[Sample]]:
        """Returns the splits that hold images, by name."""
        return {name: samples for name in SPLIT_FOLDERS if (samples := getattr(self, name))}

    def pooled(self) -> Splits:
        """Returns the splits of a run by folds: all images that are not test train, and validate by folds."""
        pool = sorted([*self.train, *self.valid], key=lambda sample: (sample.label, sample.key))
        return replace(self, train=pool, valid=pool)

    @property
    def is_pooled(self) -> bool:
        """Whether these are the splits of a run by folds."""
        return self.valid is self.train

    def training_counts(self) -> list[int]:
        """Returns the number of training images of each class."""
        counts = Counter(sample.label for sample in self.train)
        return [counts[name] for name in self.class_names]

    def counts_by_class(self) -> dict[str, int]:
        """Returns the number of training images by class."""
        return dict(zip(self.class_names, self.training_counts(), strict=True))

    def title(self, name: str) -> str:
        """Returns the name of a split for messages; what validates by folds is `out-of-fold`."""
        return "out-of-fold" if self.is_pooled and name == "valid" else split_title(name)

    @property
    def held_out(self) -> str:
        """The split that the last line of training reports on and predict.py uses by default."""
        return "test" if self.test else "valid"


Parts = dict[str, list[Sample]]


def split_of(name: str) -> str | None:
    """Returns the split that a folder or table cell of this name stands for, or None."""
    name = name.strip().lower().replace("-", "_").replace(" ", "_")
    return next((split for split, names in SPLIT_FOLDERS.items() if name in names), None)
