"""The epoch loop: both phases, the schedule, the best weights, each epoch recorded."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from data_loader import Batch
from recipe import Recipe
from report import macro_f1
from utils import UserError, pick, progress, seed_for

# --- results ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outputs:
    """What a pass gave, on the CPU: logits, fp32 (n, classes); labels and places in the split, int64 (n,)."""

    logits: torch.Tensor
    labels: torch.Tensor
    indices: torch.Tensor


@dataclass(frozen=True)
class PhaseResult:
    """One pass over a split. `loss` is the mean cross entropy in nats; images/s is of the whole pass.

    `macro_f1` is the mean of the classes' F1. `outputs` are those of an evaluation; a pass of training, or one
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


def count_pairs(labels: torch.Tensor, predicted: torch.Tensor, n_classes: int) -> torch.Tensor:
    """Images by (true class, predicted class): two int64 (n,) -> fp32 (classes, classes), on their device.

    fp32 counts exactly up to 2^24, every device adds it, and the order of the additions does not matter.
    """
    pairs, ones = labels * n_classes + predicted, torch.ones(len(labels), device=labels.device)
    return ones.new_zeros(n_classes * n_classes).index_add_(0, pairs, ones).view(n_classes, n_classes)


def margins(confusion: torch.Tensor) -> tuple[np.ndarray, ...]:
    """Images of each class, images called so, and both, from a confusion matrix (classes, classes)."""
    sums = (confusion.sum(1), confusion.sum(0), confusion.diagonal())
    return tuple(part.cpu().numpy().astype(np.int64) for part in sums)


# What an epoch is chosen by: of its validation, the more the better.
MONITORS: dict[str, Callable[[PhaseResult], float]] = {
    "accuracy": lambda valid: valid.accuracy,
    "loss": lambda valid: -valid.loss,
    "macro_f1": lambda valid: valid.macro_f1,
}


class Recorder(Protocol):
    """Where an epoch leaves its traces; `run.Run` is the real one."""

    def log(self, result: EpochResult, is_best: bool) -> None:
        """Takes over one epoch's numbers."""

    def save_best(self, result: EpochResult) -> None:
        """Keeps the weights of the best epoch so far."""

    def skip(self, bad: list[tuple[int, str]], split: str) -> None:
        """Takes note of images that could not be read."""

    def note(self, text: str) -> None:
        """A line for the console."""


# --- the loop ---------------------------------------------------------------------------------


class Trainer:
    """Trains what requires a gradient and keeps the epoch with the best validation.

    Args:
        model: images (or stored features) in, fp32 logits (n, classes) out.
        evaluate_batch: the same for evaluation: the engine over that model.
        refresh: tells the engine that the weights have changed.
        recipe: how the weights learn; evaluation's loss is plain cross entropy.
        dtype: what convolutions compute in; weights stay in fp32.
        seed: dropout and mixing of step `s` are drawn from `(seed, s)`.
        monitor: what the best epoch is chosen by, a row of `MONITORS`.

    Raises:
        UserError: there is no such monitor.
    """

    def __init__(
        self,
        model: nn.Module,
        evaluate_batch: Callable[[torch.Tensor], torch.Tensor],
        refresh: Callable[[], None],
        recipe: Recipe,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        monitor: str = "accuracy",
    ) -> None:
        self.model = model
        self.evaluate_batch = evaluate_batch
        self.refresh = refresh
        self.recipe = recipe
        self.device = device
        self.dtype = dtype
        self.seed = seed
        self.monitor = MONITORS[pick("--monitor", monitor, MONITORS)]
        self.step = 0
        self.best: EpochResult | None = None
        self.last: EpochResult | None = None
        # fp16 has too few exponents for small gradients; elsewhere the scaler does nothing
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)

    def fit(
        self,
        train_loader: DataLoader,
        valid_loader: DataLoader,
        run: Recorder,
        n_epochs: int,
        early_stop: int | None = None,
    ) -> EpochResult:
        """Runs the epochs and returns the best one.

        Args:
            early_stop: end after this many epochs without a better one.
        """
        for epoch in range(n_epochs):
            train = self.train_one_epoch(train_loader, run, epoch, n_epochs)
            valid = self.evaluate(valid_loader, run)
            result = EpochResult(epoch, train, valid, self.recipe.schedule.rates)
            self.last, is_best = result, self.is_best(result)
            if is_best:
                self.best = result
                run.save_best(result)
            run.log(result, is_best)
            if text := self.recipe.schedule.after_epoch(valid.loss):
                run.note(text)
            if early_stop and epoch - self.best.epoch >= early_stop:
                break
        return self.best

    def is_best(self, result: EpochResult) -> bool:
        """Whether the epoch beats all before it; ties keep the earlier one."""
        return self.best is None or self._score(result) > self._score(self.best)

    def _score(self, result: EpochResult) -> float:
        score = self.monitor(result.valid)
        return -math.inf if math.isnan(score) else score  # so that any number beats a loss that is none

    def train_one_epoch(self, loader: DataLoader, run: Recorder, epoch: int, n_epochs: int) -> PhaseResult:
        """One pass over the training split with a step a batch."""
        self.model.train()
        loader.batch_sampler.epoch = epoch
        return self._run(loader, self._train_step, run, f"epoch {epoch + 1}/{n_epochs}", "train")

    def evaluate(self, loader: DataLoader, run: Recorder, split: str = "valid") -> PhaseResult:
        """One pass over the split of that name, with the present weights."""
        self.refresh()
        kept: list[tuple[torch.Tensor, ...]] = []
        result = self._run(loader, self._evaluate_step, run, split, split, kept)
        outputs = Outputs(*(torch.cat(parts).cpu() for parts in zip(*kept, strict=True)))
        return replace(result, outputs=outputs)

    def _run(
        self, loader: DataLoader, step: Callable, run: Recorder, title: str, split: str, kept: list | None = None
    ) -> PhaseResult:
        start = time.perf_counter()
        # summed on the device and read once: a .item() a batch would make a GPU wait for each
        loss_sum = torch.zeros((), dtype=torch.float64 if self.device.type != "mps" else torch.float32)
        loss_sum, confusion = loss_sum.to(self.device), torch.zeros((), device=self.device)
        for batch in progress(loader, desc=title, unit="batch"):
            if batch.bad:
                run.skip(batch.bad, split)
            if len(batch.labels):
                labels = batch.labels.to(self.device, non_blocking=True)
                logits, loss = step(batch, labels)
                loss_sum += loss.detach() * len(labels)
                confusion = confusion + count_pairs(labels, logits.argmax(1), logits.shape[1])
                if kept is not None:
                    kept.append((logits, labels, batch.indices))
        n_images = round(confusion.sum().item())
        if not n_images:
            raise UserError(f"no image of the {split} split could be read; see skipped.csv in the run folder")
        seconds = time.perf_counter() - start
        correct = round(confusion.trace().item())
        return PhaseResult(loss_sum.item() / n_images, correct, n_images, seconds, macro_f1(*margins(confusion)))

    def _train_step(self, batch: Batch, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(seed_for(self.seed, "step", self.step))
        images, targets = batch.images.to(self.device, non_blocking=True), labels
        if self.recipe.mix:
            images, targets = self.recipe.mix(images, labels)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits = self._forward(images)
        loss = self.recipe.loss(logits, targets)
        self.recipe.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.recipe.optimizer)
        self.scaler.update()
        self.recipe.schedule.after_step()
        self.step += 1
        return logits, loss

    def _forward(self, images: torch.Tensor) -> torch.Tensor:
        try:
            return self.model(images)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise UserError(
                "batch norm cannot train on a batch of one image of this size; give a larger --batch_size or "
                "--image_size, or freeze it with --freeze_bn"
            ) from error

    def _evaluate_step(self, batch: Batch, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = self.evaluate_batch(batch.images)
        return logits, nn.functional.cross_entropy(logits, labels)
