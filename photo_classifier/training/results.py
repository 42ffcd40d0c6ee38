"""The sums of a pass over a split, and what an epoch comes to."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch

from photo_classifier.evaluation.metrics import class_counts, confusion_matrix, macro_f1
from photo_classifier.runtime import launcher
from photo_classifier.runtime.distributed import all_reduce, all_reduce_max
from photo_classifier.runtime.errors import UserError
from photo_classifier.runtime.limits import memory_that_ran_out
from photo_classifier.runtime.plain_values import Finite


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
    which may weigh classes, smooth labels and mix images. `correct` counts the images whose class was predicted; of a
    mixed image, the share of that class. `macro_f1` is the mean of the classes' F1. Only an evaluation has `outputs`;
    a training pass, or one that was read from a file, has none.
    """

    loss: Finite
    correct: int | float
    n_images: int
    seconds: Finite
    macro_f1: Finite = math.nan
    outputs: Outputs | None = field(default=None, repr=False, compare=False)

    @property
    def accuracy(self) -> float:
        """The share of images whose class was predicted, where mixed images count by their shares."""
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
    rates: Mapping[str, Finite]

    def state_dict(self) -> dict:
        """Returns the numbers as plain values."""
        phases = {
            name: {key: value for key, value in vars(phase).items() if isinstance(value, (int, float))}
            for name, phase in (("train", self.train), ("valid", self.valid))
        }
        return {"epoch": self.epoch, **phases, "rates": dict(self.rates)}


@dataclass(frozen=True)
class FinalResults:
    """What the weights of the last and of the best epoch come to on the held-out splits; they may be the same."""

    last: EpochResult
    best: EpochResult
    last_results: Results
    results: Results  # of the best, which are saved


class Diverged(UserError):
    """A loss or a weight is not a finite number; such a state is never saved."""


class StepTooLarge(RuntimeError):
    """Memory ran out in a step of training, which smaller passes avoid; the text is that of the error before."""


@contextlib.contextmanager
def explain_memory_of_step() -> Iterator[None]:
    """Raises `StepTooLarge` if memory runs out inside the block, which is a step of training."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not memory_that_ran_out(error):
            raise
        raise StepTooLarge(str(error) or "out of memory") from error


class RunningMetrics:
    """Adds up a pass over a split, or over this process's share of it; the sums stay on the device.

    They are read once at the end: an `.item()` per batch would make a GPU wait each time.

    Args:
        state: what `state_dict` returned, to go on from there.
    """

    def __init__(self, device: torch.device, state: Mapping | None = None) -> None:
        state = state or {}
        dtype = torch.float64 if device.type != "mps" else torch.float32
        self.loss = torch.as_tensor(state.get("loss", 0.0), dtype=dtype, device=device)
        self.confusion = torch.as_tensor(state.get("confusion", 0.0), dtype=torch.float32, device=device)
        # what mixed images count more or less than whole ones of their own class
        self.mixed = torch.as_tensor(state.get("mixed", 0.0), dtype=dtype, device=device)
        # a sum that is not finite stays so, hence this counts the steps before the first that spoils it
        self.n_finite = torch.as_tensor(state.get("n_finite", 0), dtype=torch.int64, device=device)
        self.n_steps: int = state.get("n_steps", 0)
        self.n_batches: int = state.get("n_batches", 0)
        self.seconds: float = state.get("seconds", 0.0)

    def add(
        self, labels: torch.Tensor, logits: torch.Tensor, loss: torch.Tensor, shares: torch.Tensor | None = None
    ) -> None:
        """Adds a batch: labels, int64 (n,), logits, (n, classes), its summed loss, and mixed images' shares of classes.

        The shares are fp32 (n, classes).
        """
        self.loss = self.loss + loss.detach()
        if len(labels):
            predicted = logits.argmax(1)
            self.confusion = self.confusion + confusion_matrix(labels, predicted, logits.shape[1])
            if shares is not None:
                counted = shares.gather(1, predicted[:, None]).sum() - (predicted == labels).sum()
                self.mixed = self.mixed + counted
        self.n_finite = self.n_finite + self.loss.isfinite()
        self.n_steps += 1

    def all_reduced(self) -> RunningMetrics:
        """Returns the sums of the whole split; every process has to call it."""
        if launcher.world_size() == 1:
            return self
        n_classes = all_reduce_max(len(self.confusion) if self.confusion.dim() else 0)[0]
        whole = RunningMetrics(self.loss.device, vars(self))
        whole.loss, whole.mixed = all_reduce(self.loss), all_reduce(self.mixed)
        whole.confusion = all_reduce(self.confusion.new_zeros(n_classes, n_classes) + self.confusion)
        whole.n_finite = all_reduce(self.n_finite, "MIN")
        return whole

    def keep_on_main(self) -> None:
        """Clears the sums on all processes but the main one: those read from a file are of the whole split."""
        if not launcher.is_main():
            for name in ("loss", "mixed", "confusion"):
                setattr(self, name, torch.zeros_like(getattr(self, name)))

    def state_dict(self) -> dict:
        """Returns plain values and tensors on the CPU."""
        tensors = {name: getattr(self, name).cpu().clone() for name in ("loss", "mixed", "confusion", "n_finite")}
        return {**tensors, "n_steps": self.n_steps, "n_batches": self.n_batches, "seconds": self.seconds}

    def check(self, what: str) -> None:
        """Raises `Diverged`, which names the first step, if a loss was not finite."""
        n_finite = int(self.n_finite.item())
        if n_finite < self.n_steps:
            raise Diverged(f"the {what} is {self.loss.item():g} from step {n_finite + 1} on")

    def result(self, split: str) -> PhaseResult:
        """Returns the means of the pass; raises UserError if no image could be read."""
        if not self.confusion.sum():
            raise UserError(f"no image of the {split} split could be read; see skipped.csv in the run folder")
        counts = class_counts(self.confusion)
        mean_loss = self.loss.item() / counts.n_images
        mixed = self.mixed.item()
        correct = counts.n_correct + mixed if mixed else counts.n_correct
        return PhaseResult(mean_loss, correct, counts.n_images, self.seconds, macro_f1(*counts))
