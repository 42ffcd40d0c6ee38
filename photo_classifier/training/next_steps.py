"""What to do after a run: up to three steps, chosen by what was measured, each with its command."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

from photo_classifier.config import TrainConfig, checkpoint_name, n_folds, n_views
from photo_classifier.data.corrections import is_label_check
from photo_classifier.evaluation.learning_curve import NO_HELP, UNTOLD, rare_class
from photo_classifier.flag_rules import known_set_defaults
from photo_classifier.runtime.text import pluralize
from photo_classifier.training.run_folder import resume_command, train_command
from photo_classifier.unused_flags import EPOCHS_ALONE

MOST = 3
FAR_ABOVE = 0.1  # of training accuracy over that of held-out photos
STILL_FALLING = 0.97  # the lowest validation loss of the last quarter, as a share of that before it
WIDE = 0.1  # of the interval of an accuracy
GOOD = 0.98  # an accuracy that other recipes rarely better
OFFLINE = "efficientnet_lite0"  # its weights are installed, others are fetched
# what belongs to a backbone that trains
OF_BACKBONE = ("freeze_until", "freeze_bn", "unfreeze_after", "sync_bn", "backbone_lr", "lr")
OF_SCHEDULE = ("step_size", "gamma", "patience", "warmup_epochs", "early_stop")  # made for another number of epochs
HEAD_EPOCHS, ALL_EPOCHS = 3, 5  # measured: see docs/training.md
BACKWARD = 3.0  # a training step of all layers against computing features of as many images


@dataclass(frozen=True)
class Measured:
    """What a run has measured.

    Args:
        folder: of the run.
        root: the folder of the data.
        suspects: a line on labels that look wrong; empty if none does.
        losses: of validation, by epoch; none for a solved head.
        train_accuracy: of the kept epoch.
        report: of the split with the most held-out photos; in a run by folds these are all that are not test.
        training_counts: photos by class.
        stores_features: whether the epochs trained on stored features of a wholly frozen backbone.
        has_linear_head: whether the head could be solved.
        seconds_per_view: what a photo took in the frozen backbone, if that is known.
        more_photos: whether more photos help, if that was measured.
    """

    folder: Path
    root: str
    suspects: str
    losses: Sequence[float]
    train_accuracy: float
    report: Mapping
    training_counts: Mapping[str, int]
    stores_features: bool = False
    has_linear_head: bool = False
    seconds_per_view: float | None = None
    more_photos: str = ""

    @property
    def accuracy(self) -> float:
        """Of the held-out photos."""
        return self.report["accuracy"]

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of that accuracy."""
        return tuple(self.report["accuracy_interval_95"])


class Step(NamedTuple):
    """An advice: the flags that change, where None leaves one out.

    `name` is added to that of the checkpoint, so that the present one stays; without a name the run is continued.
    """

    text: str
    changes: Mapping[str, object]
    name: str = ""


def next_steps(config: TrainConfig, given: Mapping[str, object], measured: Measured) -> list[dict[str, str]]:
    """Returns up to three steps as `text` and `command`, the most promising first; none that was already taken.

    Args:
        given: the flags as the user typed them.
    """
    found = [step for advise in ADVICE if (step := advise(config, measured))]
    return [{"text": step.text, "command": _command(config, given, step, measured.folder)} for step in found[:MOST]]


def _command(config: TrainConfig, given: Mapping[str, object], step: Step, folder: Path) -> str:
    if not step.name:
        return resume_command(folder, *(word for name, value in step.changes.items() for word in (f"--{name}", value)))
    if "resume" in given:  # the flags of the run are in its config alone
        given = {f.name: value for f in fields(config) if (value := getattr(config, f.name)) != f.default}
    stem, ending = os.path.splitext(checkpoint_name(config))
    own = {"run_dir": None, "resume": None, "dry_run": None, "model_fn": f"{stem}_{step.name}{ending}"}
    # the defaults of a known set go with its name
    defaults = known_set_defaults(dict(given)) if "dataset_name" in step.changes else {}
    flags = {**defaults, **given, **own, **step.changes}
    flags = {f.name: flags.get(f.name) for f in fields(TrainConfig) if f.metadata}
    pairs = ((f"--{name}", value) for name, value in flags.items() if value is not None and value is not False)
    return train_command(*(word for pair in pairs for word in pair if word is not True))


# --- when each is given, in this order ----------------------------------------------------------


def check_labels(config: TrainConfig, measured: Measured) -> Step | None:
    """Labels look wrong, and the run is not one with the table of an earlier check."""
    if not measured.suspects or is_label_check(config.labels or config.data_dir or ""):
        return None
    # the table has columns and splits of its own, and paths that start here
    columns = dict.fromkeys(("path_column", "label_column", "group_column", "split_column", "splits", "new_photos"))
    root = config.data_dir or (measured.root if config.dataset_name else os.curdir)
    changes = {**columns, "dataset_name": None, "data_dir": root, "labels": measured.folder / "suspects.csv"}
    return Step(measured.suspects, changes, "corrected")


def start_from_pretrained(config: TrainConfig, measured: Measured) -> Step | None:
    """The network began with random weights."""
    if config.use_pretrained or config.weights or measured.accuracy >= GOOD:
        return None
    changes = dict.fromkeys((*OF_BACKBONE, "image_size", "resize"))
    changes |= {"model_name": OFFLINE, "use_pretrained": True, "freeze": True}
    return Step("the network began with random weights; pretrained ones need fewer photos", changes, "pretrained")


def train_longer(config: TrainConfig, measured: Measured) -> Step | None:
    """The validation loss was still falling in the last quarter of the epochs."""
    losses, n = measured.losses, len(measured.losses)
    last = max(1, n // 4)
    if n < 2 or n < config.n_epochs or min(losses[-last:]) > STILL_FALLING * min(losses[:-last]):
        return None
    # a cosine schedule is planned for a number of epochs
    name = "longer" if config.scheduler == "cosine" else ""
    return Step("validation is still improving", {"n_epochs": 2 * n}, name)


def learn_less_by_heart(config: TrainConfig, measured: Measured) -> Step | None:
    """Training accuracy is far above that of validation."""
    _, high = measured.interval
    if measured.train_accuracy <= max(high, measured.accuracy + FAR_ABOVE):
        return None
    if not config.freeze and (config.use_pretrained or config.weights):
        what, changes, name = "--freeze", {**dict.fromkeys(OF_BACKBONE), "freeze": True}, "frozen"
    elif config.augment in ("none", "basic") and (n_views(config) != 1 or config.head != "logistic"):
        what, changes, name = "--augment trivial", {"augment": "trivial"}, "augmented"
    elif not config.dropout and config.head != "logistic":
        what, changes, name = "--dropout 0.3", {"dropout": 0.3}, "dropout"
    else:
        return None
    text = (
        f"training accuracy {measured.train_accuracy:.2f} is far above the {measured.accuracy:.2f} of held-out photos"
    )
    return Step(f"{text}; {_more_photos(measured)}try {what}", changes, name)


def _more_photos(measured: Measured) -> str:
    """Returns what the learning curve says of more photos, so that no advice contradicts it."""
    said = measured.more_photos
    if said.startswith(NO_HELP):
        return ""
    return f"{'more photos may help' if not said or said.startswith(UNTOLD) else said}, or "


def weigh_rare_class(config: TrainConfig, measured: Measured) -> Step | None:
    """A class with few photos is recognised much less often than the others."""
    row, counts = rare_class(measured.report, measured.training_counts), measured.training_counts
    if not row or config.class_weights != "none":
        return None
    name, n = row["name"], row["support"]
    found = f"{round(row['recall'] * n)} of {n} were recognised"
    text = f"{name} has only {pluralize(counts[name], 'training photo')}, and {found}"
    return Step(f"{text}; add photos of it, or let rare classes count more", {"class_weights": "balanced"}, "balanced")


def test_by_folds(config: TrainConfig, measured: Measured) -> Step | None:
    """So few photos are held out that the accuracy is known only roughly, and folds would test on all of them."""
    low, high = measured.interval
    if high - low <= WIDE or n_folds(config) or not measured.stores_features or config.unfreeze_after:
        return None
    n = pluralize(measured.report["n_images"], "held-out photo")
    text = f"with only {n}, the accuracy may be anywhere between {low:.2f} and {high:.2f}; folds test on more photos"
    return Step(text, {"folds": 5}, "folds")


def fine_tune(config: TrainConfig, measured: Measured) -> Step | None:
    """Only the head of a pretrained network was trained, and photos are still mistaken."""
    is_pretrained = config.use_pretrained or config.weights
    if not (is_pretrained and config.freeze and not config.unfreeze_after) or measured.accuracy >= GOOD:
        return None
    changes = dict.fromkeys(("head", "folds", "views", "lr", "engine", *OF_SCHEDULE))
    changes |= {"unfreeze_after": HEAD_EPOCHS, "n_epochs": HEAD_EPOCHS + ALL_EPOCHS}
    about = ""
    if measured.seconds_per_view:
        n_train, n_held_out = sum(measured.training_counts.values()), measured.report["n_images"]
        seconds = measured.seconds_per_view * ALL_EPOCHS * (BACKWARD * n_train + n_held_out)
        about = f" (about {pluralize(max(1, round(seconds / 60)), 'minute')})"
    return Step(f"try fine-tuning{about}", changes, "finetuned")


def solve_head(config: TrainConfig, measured: Measured) -> Step | None:
    """A linear head was trained for some epochs on stored features, and photos are still mistaken."""
    if not (measured.stores_features and measured.has_linear_head) or config.head != "epochs":
        return None
    if measured.accuracy >= GOOD or config.head_hidden or config.unfreeze_after:
        return None
    changes = dict.fromkeys((*EPOCHS_ALONE, "head_hidden"))
    return Step("solve the head exactly, which takes seconds", {**changes, "head": "logistic"}, "solved")


ADVICE: Sequence[Callable[[TrainConfig, Measured], Step | None]] = (
    check_labels,
    start_from_pretrained,
    train_longer,
    learn_less_by_heart,
    weigh_rare_class,
    test_by_folds,
    fine_tune,
    solve_head,
)
