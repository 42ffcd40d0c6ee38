"""Puts the state of a stopped run back into the trainer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import nn

from photo_classifier.models import tensor_files
from photo_classifier.models.state_dicts import check_fit
from photo_classifier.runtime.console import warn
from photo_classifier.runtime.distributed import broadcast_from_main
from photo_classifier.runtime.errors import UserError
from photo_classifier.runtime.limits import resource_hint
from photo_classifier.training.optimization import Recipe
from photo_classifier.training.results import EpochResult, RunningMetrics
from photo_classifier.training.run_files import LAST
from photo_classifier.training.run_state import StoppedRun


class ResumableTrainer(Protocol):
    """What `trainer.Trainer` has that a resume puts back."""

    model: nn.Module
    recipe: Recipe
    scaler: torch.amp.GradScaler
    best: EpochResult | None

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from where `state_dict` was taken."""


def decays_all(stopped: StoppedRun) -> bool:
    """Returns whether weight decay acts on norms and biases too in a stopped run, as it did in earlier versions."""
    if stopped.is_new:
        return False
    groups = stopped.trainer["optimizer"].get("param_groups")
    return isinstance(groups, list) and all(isinstance(group, dict) and group.get("weight_decay") for group in groups)


def restore_training_state(
    stopped: StoppedRun, trainer: ResumableTrainer, checkpoint: str, device: str, dtype: str
) -> None:
    """Puts the state of a stopped run into the trainer, which computes on that device and in that dtype.

    Raises UserError if it does not fit, or the best weights so far are not in the file `checkpoint` any more.
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
    own_sums = RunningMetrics(torch.device("cpu")).state_dict()
    parts = {"schedule": trainer.recipe.schedule.state_dict(), "scaler": trainer.scaler.state_dict()}
    same_kind = _is_alike(state["optimizer"]["param_groups"], optimizer.state_dict()["param_groups"])
    if not (same_kind and all(_is_alike(state[name], own) for name, own in parts.items())):
        raise ValueError("the optimizer or its schedule is of another kind")
    if sums.keys() - own_sums.keys() or not _is_alike(sums, own_sums):
        raise ValueError("the sums of the epoch are of another kind")
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
