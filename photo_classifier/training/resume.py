"""Continues a stopped run: which flags may change, in which folder, and the trainer's state."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from photo_classifier.config import TrainConfig, checkpoint_name
from photo_classifier.data.samples import Splits
from photo_classifier.models import tensor_files
from photo_classifier.models.state_dicts import check_fit
from photo_classifier.runtime.console import say, warn
from photo_classifier.runtime.distributed import broadcast_from_main
from photo_classifier.runtime.errors import UserError
from photo_classifier.runtime.files import file_state
from photo_classifier.runtime.flags import check_values
from photo_classifier.runtime.signals import resource_hint
from photo_classifier.runtime.text import pluralize
from photo_classifier.training.optimization import Recipe
from photo_classifier.training.results import EpochResult
from photo_classifier.training.run_state import LAST, RunImages, StoppedRun

# Flags that may change on --resume, and why; any other change would change the result and is an error.
MAY_CHANGE = {
    "n_epochs": "it may grow, and the first epochs stay the same",
    "n_workers": "no draw depends on who makes it",
    "max_bad": "it only stops a run",
    "feature_cache": "what is missing there is computed again",
    "gpu_id": "another device of the same kind",
    "save_every": "a save changes nothing",
    "verbose": "output changes nothing",
}


# --- flags ------------------------------------------------------------------------------------


def merge_flags(stopped: StoppedRun, given: Mapping[str, object]) -> TrainConfig:
    """Returns the flags of the run, with those that were given again.

    Raises:
        UserError: one of them would change the result, or the stored flags are not valid.
    """
    path, config = stopped.folder / LAST, stopped.state.config
    if unknown := config.keys() - {item.name for item in fields(TrainConfig)}:
        raise UserError(f"{path} has the unknown flag {min(unknown)}, from a newer version; update the tool")
    check_values(TrainConfig, config, path)
    old = TrainConfig(**config)
    for name, value in given.items():
        if name not in ("resume", *MAY_CHANGE) and not _is_same(name, value, getattr(old, name), stopped):
            raise UserError(
                f"--{name} {_text(value)} would change the result of the run, which has {_text(getattr(old, name))}; "
                f"leave it out, or start a new run (--resume takes {', '.join('--' + name for name in MAY_CHANGE)})"
            )
    _check_epochs(old, given.get("n_epochs", old.n_epochs))
    new = {name: value for name, value in given.items() if name in MAY_CHANGE}
    return replace(old, **new, resume=None, run_dir=str(given["resume"]))


def _is_same(name: str, value: object, old: object, stopped: StoppedRun) -> bool:
    if name == "run_dir":
        return os.path.realpath(str(value)) == os.path.realpath(stopped.folder)
    return value == old


def _text(value: object) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _check_epochs(old: TrainConfig, n_epochs: int) -> None:
    if n_epochs != old.n_epochs and old.scheduler == "cosine":
        raise UserError(
            f"--n_epochs {n_epochs}: the run was planned for {old.n_epochs}, and under --scheduler cosine the learning "
            "rate of every epoch depends on that number; leave it out, or start a new run"
        )
    if n_epochs < old.n_epochs:
        raise UserError(f"--n_epochs {n_epochs} is less than the {old.n_epochs} of the run; it may only grow")


# --- the folder and its images ----------------------------------------------------------------


def enter_working_folder(stopped: StoppedRun, config: TrainConfig, given: Mapping[str, object]) -> TrainConfig:
    """Changes to the folder that the run was started in, as its flags hold paths relative to that.

    A run folder that was moved here from elsewhere stays here, and keeps its features here.

    Raises:
        UserError: the run would write its checkpoint outside of this folder, and nobody here has named that place.
    """
    cwd = stopped.state.cwd
    if stopped.is_where_it_was and os.path.isdir(cwd):
        if os.path.realpath(cwd) != os.path.realpath(os.curdir):
            say(f"the run was started in {cwd} and continues there")
            config = replace(config, run_dir=os.path.abspath(config.run_dir))
            os.chdir(cwd)
        return config
    if "model_fn" not in given and not _is_below_here(checkpoint_name(config)):
        raise UserError(
            f"{stopped.folder} was moved here, and its run writes to {checkpoint_name(config)}; if that is right, "
            "repeat it as --model_fn"
        )
    if "feature_cache" not in given and not _is_below_here(config.feature_cache):
        config = replace(config, feature_cache=TrainConfig.feature_cache)
    return config


def _is_below_here(path: str) -> bool:
    here, there = Path(os.path.realpath(os.curdir)), Path(os.path.realpath(path))
    return there.is_relative_to(here)


def warn_of_changes(images: RunImages, load_data: Callable[[], Splits]) -> None:
    """Warns of images that are missing or have changed since the run began.

    Args:
        load_data: reads the data again, which unpacks an archive or makes a known data set once more.
    """
    missing, changed = changed_files(images)
    if missing:
        with contextlib.suppress(UserError):
            load_data()
            missing, changed = changed_files(images)
    if missing:
        n_missing = pluralize(len(missing), "image")
        warn(f"missing since the run began: {n_missing} ({missing[0]}), which changes the result")
    if changed:
        n_changed = pluralize(len(changed), "image")
        warn(f"modified since the run began: {n_changed} ({changed[0]}); new content changes the result")


def changed_files(images: RunImages) -> tuple[list[str], list[str]]:
    """Returns the paths of images that are missing, and of those that are no longer the same file."""
    missing, changed = [], []
    for name, part in images.splits.by_name().items():
        for sample, before in zip(part, images.files.get(name, []), strict=False):
            now = file_state(sample.path)
            if now is None and before is not None:
                missing.append(sample.path)
            elif now != (before and tuple(before)):
                changed.append(sample.path)
    return missing, changed


# --- the trainer's state ----------------------------------------------------------------------


class ResumableTrainer(Protocol):
    """What `trainer.Trainer` has that a resume puts back."""

    model: nn.Module
    recipe: Recipe
    scaler: torch.amp.GradScaler
    best: EpochResult | None

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from where `state_dict` was taken."""


def restore_training_state(
    stopped: StoppedRun, trainer: ResumableTrainer, checkpoint: str, device: str, dtype: str
) -> None:
    """Puts the state of a stopped run into the trainer.

    Args:
        checkpoint: the file of the best weights.
        device, dtype: what the trainer computes on and in.

    Raises:
        UserError: it does not fit, or the best weights so far have another name now.
    """
    state = stopped.state
    if (state.device, state.dtype) != (device, dtype):
        pairs = ((state.dtype, state.device), (dtype, device))
        before, now = (f"{kind.removeprefix('torch.')} on {where}" for kind, where in pairs)
        warn(f"the run computed in {before} and continues in {now}, which changes the result a little")
    check_fit(trainer.model.state_dict(), stopped.trainer["model"], stopped.folder / LAST)
    try:
        _check_state(stopped.trainer, trainer, len(stopped.images.splits.class_names))
        trainer.load_state_dict(stopped.trainer)
    except (KeyError, ValueError, TypeError, RuntimeError, AttributeError, IndexError) as error:
        if resource_hint(error):
            raise
        raise UserError(f"{stopped.folder / LAST} does not fit the run ({error}); start a new run") from error
    if trainer.best and not broadcast_from_main(lambda: tensor_files.is_of_run(checkpoint, state.run_id)):
        _forget_best(trainer, checkpoint, state.run_id)


def _forget_best(trainer: ResumableTrainer, checkpoint: str, run_id: str) -> None:
    lost = f"the best weights so far (epoch {trainer.best.epoch + 1}) were in {checkpoint}, which has been replaced"
    if broadcast_from_main(lambda: tensor_files.is_of_run(f"{checkpoint}.prev", run_id)):
        raise UserError(f"{lost}: they are in {checkpoint}.prev; restore both file names, then continue")
    warn(f"{lost}; the best epoch is chosen from those to come")
    trainer.best = None


def _check_state(state: Mapping, trainer: ResumableTrainer, n_classes: int) -> None:
    """Raises an error of `restore_training_state` where values have other types or shapes than the trainer's own."""
    optimizer, sums = trainer.recipe.optimizer, state["sums"] or {}
    parts = {"schedule": trainer.recipe.schedule.state_dict(), "scaler": trainer.scaler.state_dict()}
    same_kind = _is_alike(state["optimizer"]["param_groups"], optimizer.state_dict()["param_groups"])
    if not (same_kind and all(_is_alike(state[name], own) for name, own in parts.items())):
        raise ValueError("the optimizer or its schedule is of another kind")
    shapes = [parameter.shape for group in optimizer.param_groups for parameter in group["params"]]
    memory = [(value, shapes[n]) for n, slots in state["optimizer"]["state"].items() for value in slots.values()]
    memory += [(value, (n_classes, n_classes) if name == "confusion" else ()) for name, value in sums.items()]
    if any(torch.is_tensor(value) and value.shape not in ((), shape) for value, shape in memory):
        raise ValueError("the optimizer's memory, or a sum of the epoch, has another shape")


def _is_alike(value: object, own: object) -> bool:
    """Returns whether plain values have the types of others; keys that only one has are left to their reader."""
    if isinstance(own, dict):
        return isinstance(value, dict) and all(_is_alike(value[key], own[key]) for key in own.keys() & value.keys())
    if isinstance(own, (list, tuple)):
        return isinstance(value, type(own)) and len(value) == len(own) and all(map(_is_alike, value, own))
    numbers = {int, float}
    return own is None or type(value) is type(own) or {type(value), type(own)} == numbers
