"""The epoch loop: both phases, the scheduler, the best weights, each epoch recorded."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import nn
from torch.utils.data import DataLoader

from data_loader import Batch
from utils import UserError, pick, progress, seed_for

# --- tables -----------------------------------------------------------------------------------

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": lambda parameters, lr, momentum, decay, fused: torch.optim.Adam(
        parameters, lr, weight_decay=decay, fused=fused
    ),
    "adamw": lambda parameters, lr, momentum, decay, fused: torch.optim.AdamW(
        parameters, lr, weight_decay=decay, fused=fused
    ),
    "sgd": lambda parameters, lr, momentum, decay, fused: torch.optim.SGD(
        parameters, lr, momentum, weight_decay=decay, fused=fused
    ),
}


def make_optimizer(
    name: str, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.9, weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """The optimizer of that name over those parameters that train.

    Raises:
        UserError: there is no such optimizer.
    """
    make = OPTIMIZERS[pick("--optimizer", name, OPTIMIZERS)]
    trained = [p for p in parameters if p.requires_grad]
    # one pass over the weights in place of a dozen: a third of a step of ResNet-34 on small images
    fused = trained[0].device.type in ("cpu", "cuda")
    return make(trained, lr, momentum, weight_decay, fused)


SCHEDULERS: dict[str, Callable[..., torch.optim.lr_scheduler.LRScheduler]] = {
    "step": lambda optimizer, step_size, gamma: torch.optim.lr_scheduler.StepLR(optimizer, step_size, gamma),
    "none": lambda optimizer, step_size, gamma: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0),
}


def make_scheduler(
    name: str, optimizer: torch.optim.Optimizer, step_size: int, gamma: float
) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning-rate schedule of that name; it moves once an epoch.

    Raises:
        UserError: there is no such schedule.
    """
    return SCHEDULERS[pick("--scheduler", name, SCHEDULERS)](optimizer, step_size, gamma)


# --- results ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class PhaseResult:
    """One pass over a split. `loss` is the mean cross entropy in nats; images/s is of the whole pass."""

    loss: float
    correct: int
    n_images: int
    seconds: float

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
    """Both phases of one epoch; `epoch` counts from 0."""

    epoch: int
    train: PhaseResult
    valid: PhaseResult
    lr: float


class Recorder(Protocol):
    """Where an epoch leaves its traces; `run.Run` is the real one."""

    def log(self, result: EpochResult, is_best: bool) -> None:
        """Takes over one epoch's numbers."""

    def save_best(self, result: EpochResult) -> None:
        """Keeps the weights of the best epoch so far."""

    def skip(self, bad: list[tuple[int, str]], split: str) -> None:
        """Takes note of images that could not be read."""


# --- the loop ---------------------------------------------------------------------------------


class Trainer:
    """Trains what requires a gradient and keeps the epoch with the best validation accuracy.

    Args:
        model: images (or stored features) in, fp32 logits (n, classes) out.
        evaluate_batch: the same for evaluation: the engine over that model.
        refresh: tells the engine that the weights have changed.
        dtype: what convolutions compute in; weights stay in fp32.
        seed: dropout and mixing of step `s` are drawn from `(seed, s)`.
        mix: mixes a batch's images and its labels, which are then shares of classes.
        label_smoothing: of the loss in training; that of evaluation is plain cross entropy.
    """

    def __init__(
        self,
        model: nn.Module,
        evaluate_batch: Callable[[torch.Tensor], torch.Tensor],
        refresh: Callable[[], None],
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        mix: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]] | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        self.model = model
        self.evaluate_batch = evaluate_batch
        self.refresh = refresh
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.device = device
        self.dtype = dtype
        self.seed = seed
        self.mix = mix
        self.label_smoothing = label_smoothing
        self.step = 0
        self.best: EpochResult | None = None
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
            lr = self.optimizer.param_groups[-1]["lr"]
            train = self.train_one_epoch(train_loader, run, epoch, n_epochs)
            valid = self.evaluate(valid_loader, run)
            result = EpochResult(epoch, train, valid, lr)
            is_best = self.is_best(result)
            if is_best:
                self.best = result
                run.save_best(result)
            run.log(result, is_best)
            self.scheduler.step()
            if early_stop and epoch - self.best.epoch >= early_stop:
                break
        return self.best

    def is_best(self, result: EpochResult) -> bool:
        """Whether the epoch beats all before it; ties keep the earlier one."""
        return self.best is None or result.valid.accuracy > self.best.valid.accuracy

    def train_one_epoch(self, loader: DataLoader, run: Recorder, epoch: int, n_epochs: int) -> PhaseResult:
        """One pass over the training split with a step a batch."""
        self.model.train()
        loader.batch_sampler.epoch = epoch
        return self._run(loader, self._train_step, run, f"epoch {epoch + 1}/{n_epochs}", "train")

    def evaluate(self, loader: DataLoader, run: Recorder, split: str = "valid") -> PhaseResult:
        """One pass over the split of that name, with the present weights."""
        self.refresh()
        return self._run(loader, self._evaluate_step, run, split, split)

    def _run(self, loader: DataLoader, step: Callable, run: Recorder, title: str, split: str) -> PhaseResult:
        start = time.perf_counter()
        # summed on the device and read once: a .item() a batch would make a GPU wait for each
        loss_sum = torch.zeros((), dtype=torch.float64 if self.device.type != "mps" else torch.float32)
        loss_sum, correct, n_images = loss_sum.to(self.device), torch.zeros((), device=self.device), 0
        for batch in progress(loader, desc=title, unit="batch"):
            if batch.bad:
                run.skip(batch.bad, split)
            if len(batch.labels):
                labels = batch.labels.to(self.device, non_blocking=True)
                logits, loss = step(batch, labels)
                loss_sum += loss.detach() * len(labels)
                correct += (logits.argmax(1) == labels).sum()
                n_images += len(labels)
        if not n_images:
            raise UserError(f"no image of the {split} split could be read; see skipped.csv in the run folder")
        seconds = time.perf_counter() - start
        mean_loss = loss_sum.item() / n_images
        return PhaseResult(mean_loss, round(correct.item()), n_images, seconds)

    def _train_step(self, batch: Batch, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(seed_for(self.seed, "step", self.step))
        images, targets = batch.images.to(self.device, non_blocking=True), labels
        if self.mix:
            images, targets = self.mix(images, labels)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits = self._forward(images)
        loss = nn.functional.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
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
