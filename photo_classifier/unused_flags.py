"""Flags that were given but do nothing in this run, and what they would need."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from photo_classifier.config import ExportConfig, OptimizationFlags, PredictConfig, TrainConfig, n_folds, n_views, parts
from photo_classifier.data.samples import Splits
from photo_classifier.data.table_files import is_table_name
from photo_classifier.runtime.console import warn


@dataclass(frozen=True)
class Training:
    """What decides which flags of a training act; `is_frozen` means the whole backbone."""

    config: TrainConfig
    splits: Splits
    is_frozen: bool
    has_batch_norm: bool
    n_processes: int = 1

    @property
    def drops(self) -> bool:
        """Whether the run is long enough for its schedule to lower the learning rate."""
        c = self.config
        needed = {"step": c.step_size + 1, "plateau": c.patience + 3, "cosine": 2}
        return self.longest >= needed.get(c.scheduler, 0)

    @property
    def longest(self) -> int:
        """The epochs of a schedule: of the longer part of a run that trains its head first."""
        return max(map(len, parts(self.config)))

    @property
    def shortest(self) -> int:
        """The epochs of the shorter part."""
        return min(map(len, parts(self.config)))

    @property
    def n_head_epochs(self) -> int:
        """The epochs that train the head alone, if any do."""
        return len(parts(self.config)[0])

    @property
    def n_steps(self) -> int:
        """The steps of an epoch."""
        return -(-len(self.used.train) // self.config.batch_size)

    @property
    def used(self) -> Splits:
        """The splits as the run uses them: folds pool what is not test."""
        return self.splits.pooled() if n_folds(self.config) else self.splits

    @property
    def most_views(self) -> int:
        """The most views of a photo that the epochs can take where something is stored."""
        return self.longest if self.config.freeze_until else self.n_head_epochs

    @property
    def begins_frozen(self) -> bool:
        """Whether the head trains alone, for some epochs at least."""
        return self.is_frozen or bool(self.config.unfreeze_after)

    @property
    def stores_features(self) -> bool:
        """Whether the outputs of frozen layers are kept."""
        return self.has_frozen_layers and n_views(self.config) > 0 and not self.config.cutmix

    @property
    def has_frozen_layers(self) -> bool:
        """Whether a part of the network is computed once for all epochs, or for the first ones."""
        return self.begins_frozen or bool(self.config.freeze_until)

    @property
    def reads_table(self) -> bool:
        """Whether the labels come from a table."""
        return "table" in self.splits.layout


class Row(NamedTuple):
    """When a flag acts, and what is said if it does not; `{c.NAME}` in the text is another flag's value.

    `{t.NAME}` is what else decides.
    """

    flag: str
    acts: Callable[[Any], bool]
    text: str


SHORT = "has no effect: in {t.longest} epochs the learning rate never drops; raise --n_epochs"
NO_TABLE = "has no effect: the labels do not come from a table; give it with --labels"
HAS_SPLITS = "has no effect: the data is in splits already"
NO_NORM = "has no effect: {c.model_name} has no batch norm"
ONE_IMAGE = "has no effect on batches of one image; give a larger --batch_size"

SOLVED = "has no effect with --head logistic, which solves the head without epochs"
EPOCHS_ALONE = ("accumulate", "mixup", "cutmix", "dropout", "save_every", *inspect.get_annotations(OptimizationFlags))

# The first row of a flag that does not hold is shown.
TRAINING: Sequence[Row] = (
    *(Row(name, lambda t: t.config.head != "logistic", SOLVED) for name in EPOCHS_ALONE if name != "title"),
    Row("path_column", lambda t: t.reads_table, NO_TABLE),
    Row("label_column", lambda t: t.reads_table, NO_TABLE),
    Row("group_column", lambda t: t.reads_table, NO_TABLE),
    Row("split_column", lambda t: t.reads_table, NO_TABLE),
    Row("weights_key", lambda t: t.config.weights, "has no effect without --weights"),
    Row("new_photos", lambda t: t.config.splits, "has no effect without --splits"),
    Row("train_ratio", lambda t: t.splits.made, HAS_SPLITS),
    Row("valid_ratio", lambda t: "valid" in t.splits.made, HAS_SPLITS),
    Row("test_ratio", lambda t: "test" in t.splits.made or (t.splits.made and not t.config.test_ratio), HAS_SPLITS),
    Row(
        "near_duplicates",
        lambda t: t.config.near_duplicates != "warn" or (t.is_frozen and t.stores_features),
        "has no effect: photos are compared at the end of a run with --freeze and stored features; give group or drop",
    ),
    Row(
        "near_duplicates",
        lambda t: t.config.near_duplicates != "group" or t.splits.made or n_folds(t.config),
        "has no effect: the data is in splits already; give drop, or --folds",
    ),
    Row(
        "accumulate",
        lambda t: t.config.accumulate <= t.config.batch_size,
        "is more than the --batch_size of {c.batch_size}: a pass takes one image at least",
    ),
    Row(
        "split_column",
        lambda t: not t.config.splits or t.config.new_photos == "train",
        "has no effect with --splits, which says where each image is",
    ),
    Row(
        "class_weights",
        lambda t: t.config.class_weights == "none" or len(set(t.used.training_counts())) > 1,
        "has no effect: all classes have equally many training images",
    ),
    Row(
        "augment",
        lambda t: t.config.head != "logistic" or n_views(t.config) > 1,
        "has no effect with --head logistic and --views 1, which is each image as it is predicted; raise --views",
    ),
    Row("mixup", lambda t: t.config.batch_size > 1 or not t.config.mixup, ONE_IMAGE),
    Row("cutmix", lambda t: t.config.batch_size > 1 or not t.config.cutmix, ONE_IMAGE),
    Row("freeze_bn", lambda t: t.has_batch_norm, NO_NORM),
    Row(
        "unfreeze_after",
        lambda t: not t.is_frozen,
        "has no effect: --freeze_until {c.freeze_until} keeps the whole backbone frozen; give an earlier layer",
    ),
    Row("freeze_bn", lambda t: not (t.is_frozen or t.config.freeze), "has no effect: all batch norm is frozen"),
    Row("sync_bn", lambda t: t.has_batch_norm, NO_NORM),
    Row("sync_bn", lambda t: not (t.begins_frozen or t.config.freeze_bn), "has no effect: all batch norm is frozen"),
    Row("sync_bn", lambda t: t.n_processes > 1, "has no effect in one process; start several with torchrun"),
    Row(
        "backbone_lr",
        lambda t: not t.is_frozen,
        "has no effect: the whole backbone is frozen; leave out --freeze, or freeze a part with --freeze_until LAYER",
    ),
    Row(
        "momentum",
        lambda t: t.config.optimizer == "sgd",
        "has no effect with --optimizer {c.optimizer}; it needs --optimizer sgd",
    ),
    Row("scheduler", lambda t: t.drops, SHORT),
    Row(
        "step_size",
        lambda t: t.config.scheduler == "step",
        "has no effect with --scheduler {c.scheduler}; it needs --scheduler step",
    ),
    Row("step_size", lambda t: t.drops, SHORT),
    Row(
        "gamma",
        lambda t: t.config.scheduler in ("step", "plateau"),
        "has no effect with --scheduler {c.scheduler}; it needs --scheduler step or plateau",
    ),
    Row("gamma", lambda t: t.drops, SHORT),
    Row(
        "patience",
        lambda t: t.config.scheduler == "plateau",
        "has no effect with --scheduler {c.scheduler}; it needs --scheduler plateau, and what ends a run without "
        "progress is --early_stop N",
    ),
    Row("patience", lambda t: t.drops, SHORT),
    Row(
        "warmup_epochs",
        lambda t: t.config.warmup_epochs <= t.shortest,
        "is longer than the {t.shortest} epochs there are, so the learning rate never reaches --lr; give at most that",
    ),
    Row(
        "warmup_epochs",
        lambda t: not t.config.warmup_epochs or round(t.config.warmup_epochs * t.n_steps) > 1,
        "has no effect: it ends with the first of the {t.n_steps} steps of an epoch; give a larger number",
    ),
    Row("monitor", lambda t: t.config.n_epochs > 1, "has no effect: a single epoch leaves no choice; raise --n_epochs"),
    Row(
        "early_stop",
        lambda t: t.config.early_stop + (t.config.unfreeze_after or 1) < t.config.n_epochs,
        "has no effect: a run of {c.n_epochs} epochs ends before; give a lower number, or raise --n_epochs",
    ),
    Row(
        "views",
        lambda t: t.has_frozen_layers,
        "has no effect: the backbone trains; it needs --freeze or --freeze_until LAYER",
    ),
    Row("views", lambda t: not t.config.cutmix, "has no effect with --cutmix, which needs new pictures in every epoch"),
    Row(
        "views",
        lambda t: t.config.augment != "none" or not n_views(t.config),
        "has no effect with --augment none, whose views are all the same",
    ),
    Row(
        "views",
        lambda t: t.config.head == "logistic" or n_views(t.config) <= t.most_views,
        "is more than the {t.most_views} epochs that take one view each; the others have no effect",
    ),
    Row(
        "feature_cache",
        lambda t: t.stores_features,
        "has no effect: features are kept with --freeze or --freeze_until, --views above 0 and no --cutmix",
    ),
)


@dataclass(frozen=True)
class Predicting:
    """What decides which flags of a prediction, or of the proof of an export, act."""

    config: PredictConfig | ExportConfig

    @property
    def reads_table(self) -> bool:
        """Whether an input is a table."""
        return any(map(is_table_name, self.config.input))


NO_TABLE_INPUT = "has no effect: no table is among the inputs; give one with --input"
INPUT: Sequence[Row] = (
    Row("path_column", lambda p: p.reads_table, NO_TABLE_INPUT),
    Row("label_column", lambda p: p.reads_table, NO_TABLE_INPUT),
)
PREDICTION: Sequence[Row] = (
    *INPUT,
    Row("false_alarm", lambda p: p.config.unknown, "has no effect without --unknown"),
)

HUB = "has no effect with --to hub_folder"
EXPORT: Sequence[Row] = (
    *INPUT,
    Row("int8", lambda e: e.config.to == "onnx", HUB),
    Row("min_probability", lambda e: e.config.to == "onnx", HUB),
    Row(
        "splits",
        lambda e: e.config.int8 or e.config.to == "hub_folder",
        "has no effect: training photos are used by --int8 and --to hub_folder",
    ),
)


def warn_of_unused_flags(rows: Sequence[Row], given: Mapping[str, object], situation: Training | Predicting) -> None:
    """Warns once of each flag that was given and does nothing."""
    told = set()
    for row in rows:
        if row.flag in given and row.flag not in told and not row.acts(situation):
            told.add(row.flag)
            value = getattr(situation.config, row.flag)
            shown = "" if value is True else f" {value:g}" if isinstance(value, float) else f" {value}"
            warn(f"--{row.flag}{shown} {row.text.format(c=situation.config, t=situation)}")
