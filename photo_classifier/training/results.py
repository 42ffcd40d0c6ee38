"""What an epoch comes to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from photo_classifier.runtime.errors import UserError


@dataclass(frozen=True)
class Outputs:
    """What a pass gave, on the CPU: logits, fp32 (n, classes); labels and places in the split, int64 (n,)."""

    logits: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor


@dataclass(frozen=True)
class PhaseResult:
    """One pass over a split. `seconds` and images/s are of the whole pass.

    `loss` is a mean over the images, in nats: of plain cross entropy in evaluation, of the recipe's loss in training,
    which may weigh classes, smooth labels and mix images. `correct` counts the images whose own class was found, mixed
    or not. `macro_f1` is the mean of the classes' F1. `outputs` are those of an evaluation; a pass of training, or one
    that was read from a file, has none.
    """

    loss: float
    correct: int
    n_images: int
    seconds: float
    macro_f1: float = math.nan
    outputs: Outputs | None = field(default=None, repr=False, compare=False)

    @property
    def accuracy(self) -> float:
        """The share of images whose class was found."""
        return self.correct / self.n_images if self.n_images else math.nan

    @property
    def images_per_second(self) -> float:
        """Images of this pass over its time on the clock."""
        return self.n_images / self.seconds if self.seconds else math.nan


@dataclass(frozen=True)
class EpochResult:
    """Both phases of one epoch; `epoch` counts from 0, `rates` are the learning rates that it ended with."""

    epoch: int
    train: PhaseResult
    valid: PhaseResult
    rates: Mapping[str, float]


class Diverged(UserError):
    """A loss is no finite number; nothing of such a state is ever saved."""
