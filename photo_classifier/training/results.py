"""What an epoch comes to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from photo_classifier.runtime.errors import UserError


@dataclass(frozen=True)
class Outputs:
    """What a pass returned, on the CPU: logits, fp32 (n, classes); labels and indices in the split, int64 (n,)."""

    logits: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor


@dataclass(frozen=True)
class PhaseResult:
    """One pass over a split. `seconds` and images/s are of the whole pass.

    `loss` is a mean over the images, in nats: of plain cross entropy in evaluation, of the training loss in training,
    which may weigh classes, smooth labels and mix images. `correct` counts the images whose own class was predicted,
    mixed or not. `macro_f1` is the mean of the classes' F1. Only an evaluation has `outputs`; a training pass, or one
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
        """The share of images whose class was predicted."""
        return self.correct / self.n_images if self.n_images else math.nan

    @property
    def images_per_second(self) -> float:
        """The images of this pass divided by its wall-clock time."""
        return self.n_images / self.seconds if self.seconds else math.nan

    def metrics(self) -> dict[str, float | int]:
        """Returns what the checkpoint keeps of a pass, as plain values."""
        return {"loss": self.loss, "accuracy": self.accuracy, "correct": self.correct, "n_images": self.n_images}


Results = dict[str, PhaseResult]  # by split


@dataclass(frozen=True)
class EpochResult:
    """Both phases of one epoch; `epoch` counts from 0, `rates` are the learning rates that it ended with."""

    epoch: int
    train: PhaseResult
    valid: PhaseResult
    rates: Mapping[str, float]

    def state_dict(self) -> dict:
        """Returns the numbers as plain values."""
        phases = {
            name: {key: value for key, value in vars(phase).items() if isinstance(value, (int, float))}
            for name, phase in (("train", self.train), ("valid", self.valid))
        }
        return {"epoch": self.epoch, **phases, "rates": dict(self.rates)}

    @classmethod
    def from_state_dict(cls, state: Mapping) -> EpochResult:
        """Returns the result that `state_dict` was taken of, without outputs."""
        return cls(state["epoch"], PhaseResult(**state["train"]), PhaseResult(**state["valid"]), state["rates"])


class Diverged(UserError):
    """A loss or a weight is not a finite number; such a state is never saved."""
