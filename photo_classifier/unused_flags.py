"""Flags that were given but do nothing in this run, and what they would need."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from photo_classifier.config import ExportConfig, OptimizationFlags, PredictConfig, TrainConfig
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
        return c.n_epochs >= needed.get(c.scheduler, 0)

    @property
    def stores_features(self) -> bool:
        """Whether the features of a frozen backbone are kept."""
        return self.is_frozen and self.config.views > 0 and not self.config.cutmix

    @property
    def reads_table(self) -> bool:
        """Whether the labels come from a table."""
        return "table" in self.splits.layout


class Row(NamedTuple):
    """When a flag acts, and what is said if it does not; `{c.NAME}` in the text is another flag's value."""

    flag: str
    acts: Callable[[Any], bool]
    text: str


SHORT = "has no effect: in {c.n_epochs} epochs the learning rate never drops; raise --n_epochs"
NO_TABLE = "has no effect: the labels do not come from a table; give it with --labels"
HAS_SPLITS = "has no effect: the data is in splits already"
NO_NORM = "has no effect: {c.model_name} has no batch norm"
ONE_IMAGE = "has no effect on batches of one image; give a larger --batch_size"

SOLVED = "has no effect with --head logistic, which solves the head without epochs"
EPOCHS_ALONE = ("accumulate", "mixup", "cutmix", "dropout", *inspect.get_annotations(OptimizationFlags))

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
        "accumulate",
        lambda t: t.config.accumulate <= t.config.batch_size,
        "is more than the --batch_size of {c.batch_size}: a pass takes one image at least",
    ),
    Row("mixup", lambda t: t.config.batch_size > 1 or not t.config.mixup, ONE_IMAGE),
    Row("cutmix", lambda t: t.config.batch_size > 1 or not t.config.cutmix, ONE_IMAGE),
    Row("freeze_bn", lambda t: t.has_batch_norm, NO_NORM),
    Row("freeze_bn", lambda t: not t.config.freeze, "has no effect with --freeze, which freezes batch norm too"),
    Row("sync_bn", lambda t: t.has_batch_norm, NO_NORM),
    Row("sync_bn", lambda t: not (t.is_frozen or t.config.freeze_bn), "has no effect: all batch norm is frozen"),
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
        lambda t: t.config.warmup_epochs <= t.config.n_epochs,
        "is longer than the run: the learning rate never reaches --lr; give at most the --n_epochs of {c.n_epochs}",
    ),
    Row(
        "early_stop",
        lambda t: t.config.early_stop + 1 < t.config.n_epochs,
        "has no effect: a run of {c.n_epochs} epochs ends before; give a lower number, or raise --n_epochs",
    ),
    Row("views", lambda t: t.is_frozen, "has no effect: the backbone trains; it needs --freeze"),
    Row("views", lambda t: not t.config.cutmix, "has no effect with --cutmix, which needs new pictures in every epoch"),
    Row(
        "views",
        lambda t: t.config.augment != "none" or not t.config.views,
        "has no effect with --augment none, whose views are all the same",
    ),
    Row(
        "feature_cache",
        lambda t: t.stores_features,
        "has no effect: features are kept with --freeze, --views above 0 and no --cutmix",
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
PREDICTION: Sequence[Row] = (
    Row("path_column", lambda p: p.reads_table, NO_TABLE_INPUT),
    Row("label_column", lambda p: p.reads_table, NO_TABLE_INPUT),
)

HUB = "has no effect with --to hub_folder"
EXPORT: Sequence[Row] = (
    *PREDICTION,
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
            warn(f"--{row.flag}{shown} {row.text.format(c=situation.config)}")
