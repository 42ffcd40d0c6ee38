"""The epoch loop: both phases, the schedule, the best weights, each epoch recorded."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Protocol

import torch
from torch import nn
from torch.utils.data import DataLoader

from photo_classifier.data.batches import Batch
from photo_classifier.evaluation.metrics import class_counts, confusion_matrix, macro_f1
from photo_classifier.runtime import distributed, launcher
from photo_classifier.runtime.console import progress
from photo_classifier.runtime.device import to_device
from photo_classifier.runtime.errors import UserError, choose
from photo_classifier.runtime.seeding import derive_seed
from photo_classifier.training.optimization import Recipe
from photo_classifier.training.results import Diverged, EpochResult, Outputs, PhaseResult

# --- results ----------------------------------------------------------------------------------


# What an epoch is chosen by: of its validation, the more the better.
MONITORS: dict[str, Callable[[PhaseResult], float]] = {
    "accuracy": lambda valid: valid.accuracy,
    "loss": lambda valid: -valid.loss,
    "macro_f1": lambda valid: valid.macro_f1,
}


class RunningMetrics:
    """The running sums of a pass over a split, or over a rank's slices of it; they stay on the device.

    They are read once at its end: a `.item()` a batch would make a GPU wait for each.

    Args:
        state: what `state_dict` gave, to go on from there.
    """

    def __init__(self, device: torch.device, state: Mapping | None = None) -> None:
        state = state or {}
        dtype = torch.float64 if device.type != "mps" else torch.float32
        self.loss = torch.as_tensor(state.get("loss", 0.0), dtype=dtype, device=device)
        self.confusion = torch.as_tensor(state.get("confusion", 0.0), dtype=torch.float32, device=device)
        # a sum that is no number stays none, so this counts the steps before the first that spoils it
        self.n_finite = torch.as_tensor(state.get("n_finite", 0), dtype=torch.int64, device=device)
        self.n_steps: int = state.get("n_steps", 0)
        self.n_batches: int = state.get("n_batches", 0)
        self.seconds: float = state.get("seconds", 0.0)

    def add(self, labels: torch.Tensor, logits: torch.Tensor, loss: torch.Tensor) -> None:
        """Adds a batch: labels, int64 (n,), logits, (n, classes), and its summed loss."""
        self.loss = self.loss + loss.detach()
        if len(labels):
            self.confusion = self.confusion + confusion_matrix(labels, logits.argmax(1), logits.shape[1])
        self.n_finite = self.n_finite + self.loss.isfinite()
        self.n_steps += 1

    def all_reduced(self) -> RunningMetrics:
        """The sums of the whole split; every rank has to ask."""
        if launcher.world_size() == 1:
            return self
        n_classes = distributed.all_reduce_max(len(self.confusion) if self.confusion.dim() else 0)[0]
        whole = RunningMetrics(self.loss.device, vars(self))
        whole.loss = distributed.all_reduce(self.loss)
        whole.confusion = distributed.all_reduce(self.confusion.new_zeros(n_classes, n_classes) + self.confusion)
        whole.n_finite = distributed.all_reduce(self.n_finite, "MIN")
        return whole

    def only_on_main(self) -> None:
        """Sums of the whole split, which were read from a file, belong to one rank."""
        if not launcher.is_main():
            self.loss, self.confusion = torch.zeros_like(self.loss), torch.zeros_like(self.confusion)

    def state_dict(self) -> dict:
        """Plain values and tensors on the CPU."""
        tensors = {name: getattr(self, name).cpu().clone() for name in ("loss", "confusion", "n_finite")}
        return {**tensors, "n_steps": self.n_steps, "n_batches": self.n_batches, "seconds": self.seconds}

    def check(self, what: str) -> None:
        """Raises `Diverged`, which names the first step, if a loss was no finite number."""
        n_finite = int(self.n_finite.item())
        if n_finite < self.n_steps:
            raise Diverged(f"the {what} is {self.loss.item():g} from step {n_finite + 1} on")

    def result(self, split: str) -> PhaseResult:
        """The means of the pass."""
        n_images = round(self.confusion.sum().item())
        if not n_images:
            raise UserError(f"no image of the {split} split could be read; see skipped.csv in the run folder")
        correct = round(self.confusion.trace().item())
        mean_loss, f1 = self.loss.item() / n_images, macro_f1(*class_counts(self.confusion))
        return PhaseResult(mean_loss, correct, n_images, self.seconds, f1)


class Recorder(Protocol):
    """Where an epoch leaves its traces; `run.Run` is the real one."""

    def log(self, result: EpochResult, is_best: bool) -> None:
        """Takes over one epoch's numbers."""

    def log_rates(self, rates: Mapping[str, float], step: int) -> None:
        """Takes over the learning rates after that many epochs."""

    def save_best(self, result: EpochResult) -> None:
        """Keeps the weights of the best epoch so far."""

    def skip(self, bad: list[tuple[int, str]], split: str) -> None:
        """Takes note of images that could not be read."""

    def note(self, text: str) -> None:
        """A line for the console."""

    def save_last(self, state: dict) -> None:
        """Keeps what is needed to go on after this epoch."""

    def between_steps(self, state: Callable[[], dict] | None) -> None:
        """Called after every batch: may keep the state, where there is one to go on from, and may raise to stop."""


# --- the loop ---------------------------------------------------------------------------------


class Trainer:
    """Trains what requires a gradient and keeps the epoch with the best validation.

    Args:
        model: images (or stored features) in, fp32 logits (n, classes) out.
        evaluate_batch: the same for evaluation: the engine over that model.
        refresh: tells the engine that the weights have changed.
        recipe: how the weights learn; evaluation's loss is plain cross entropy.
        device: where the model is; batches are brought there.
        dtype: what convolutions compute in; weights stay in fp32.
        seed: dropout and mixing of step `s` are drawn from `(seed, s)`.
        monitor: what the best epoch is chosen by, a row of `MONITORS`.
        sync_bn: batch norm that trains normalises over the batches of all ranks (GPUs only), not over its own slices.

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
        sync_bn: bool = False,
    ) -> None:
        self.model = model
        self.parallel = distributed.wrap_ddp(model, device, sync_bn)
        self.evaluate_batch = evaluate_batch
        self.refresh = refresh
        self.recipe = recipe
        self.device = device
        self.dtype = dtype
        self.seed = seed
        self.monitor = MONITORS[choose("--monitor", monitor, MONITORS)]
        self.step, self.epoch = 0, 0
        self.sums: RunningMetrics | None = None  # of the epoch that is under way
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
            n_epochs: of the whole run, those before a resume among them.
            early_stop: end after this many epochs without a better one.

        Raises:
            Diverged: a loss or a weight is no finite number; what was saved before stays.
            UserError: no image of a split could be read, batch norm cannot train on a batch this small, or what was
                saved knows no best epoch and no epoch is left to train.
            Exception: whatever `run` raises, to stop for example.
        """
        if not self.step and self.recipe.schedule.warmup:  # the ends of the epochs alone would not show it
            run.log_rates(self.recipe.schedule.rates, 0)
        while self.epoch < n_epochs and not self.has_stalled(early_stop):
            train = self.train_one_epoch(train_loader, run, n_epochs)
            valid = self.evaluate(valid_loader, run)
            result = EpochResult(self.epoch, train, valid, self.recipe.schedule.rates)
            self.last, is_best = result, self.is_best(result)
            if is_best:
                self.best = result
                run.save_best(result)
            run.log(result, is_best)
            if text := self.recipe.schedule.after_epoch(valid.loss):
                run.note(text)
            self.epoch, self.sums = self.epoch + 1, None
            run.save_last(self.state_dict())
        if self.best is None:  # its weights were lost between a stop and a resume
            raise UserError("no epoch is left to choose the best one from; give a larger --n_epochs")
        return self.best

    def has_stalled(self, early_stop: int | None) -> bool:
        """Whether that many epochs went by without a better one."""
        return bool(early_stop and self.best and self.epoch - 1 - self.best.epoch >= early_stop)

    def is_best(self, result: EpochResult) -> bool:
        """Whether the epoch beats all before it; ties keep the earlier one."""
        return self.best is None or self._score(result) > self._score(self.best)

    def _score(self, result: EpochResult) -> float:
        score = self.monitor(result.valid)
        return -math.inf if math.isnan(score) else score  # so that any number beats a loss that is none

    def train_one_epoch(self, loader: DataLoader, run: Recorder, n_epochs: int) -> PhaseResult:
        """One pass over the training split with a step a batch, or what is left of it."""
        self.parallel.train()
        self.sums = self.sums or RunningMetrics(self.device)
        loader.batch_sampler.epoch, loader.batch_sampler.start = self.epoch, self.sums.n_batches
        title = f"epoch {self.epoch + 1}/{n_epochs}"
        self._run(loader, self._train_step, run, title, "train", self.sums, self.state_dict)
        self._check_finite()
        return self.sums.all_reduced().result("train")

    def evaluate(self, loader: DataLoader, run: Recorder, split: str = "valid") -> PhaseResult:
        """One pass over the split of that name, with the present weights."""
        distributed.average_statistics(self.model)
        self.refresh()
        sums, kept = RunningMetrics(self.device), []
        # after the last epoch the weights may be the best ones, not those to go on from
        state = self.state_dict if self.sums else None
        self._run(loader, self._evaluate_step, run, split, split, sums, state, kept)
        sums = sums.all_reduced()
        if state:
            sums.check(f"validation loss of epoch {self.epoch + 1}")
        return replace(sums.result(split), outputs=_outputs(kept))

    def _run(
        self,
        loader: DataLoader,
        step: Callable,
        run: Recorder,
        title: str,
        split: str,
        sums: RunningMetrics,
        state: Callable[[], dict] | None,
        kept: list[tuple[torch.Tensor, ...]] | None = None,
    ) -> None:
        start = time.perf_counter() - sums.seconds
        if sums.n_batches == len(loader):  # it was stopped in what follows
            return
        for batch in progress(loader, desc=title, unit="batch", initial=sums.n_batches, total=len(loader)):
            n_bad, n_images = distributed.all_reduce_sum(len(batch.bad), len(batch.labels))
            if n_bad:
                run.skip([pair for part in distributed.all_gather(batch.bad) for pair in part], split)
            if n_images:
                labels = to_device(batch.labels, self.device)
                logits, loss = step(batch, labels, n_images)
                sums.add(labels, logits, loss)
                if kept is not None and len(labels):
                    kept.append((logits, labels, batch.indices))
            sums.n_batches += 1
            sums.seconds = time.perf_counter() - start
            run.between_steps(state)

    def _train_step(self, batch: Batch, labels: torch.Tensor, n_images: int) -> tuple[torch.Tensor, torch.Tensor]:
        """One step; the logits of this rank's slice of `n_images`, and its part of the loss summed over them."""
        torch.manual_seed(derive_seed(self.seed, "step", self.step))
        images, targets = to_device(batch.images, self.device), labels
        if self.recipe.mix:
            images, targets = self.recipe.mix(images, labels)
        if not launcher.is_main():  # dropout acts on slices, which must not all drop the same places
            torch.manual_seed(derive_seed(self.seed, "step", self.step, launcher.rank()))
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits = self._forward(images)
        loss = self.recipe.loss(logits, targets)
        self.recipe.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.recipe.optimizer)
        self.scaler.update()
        self.recipe.schedule.after_step()
        self.step += 1
        return logits, loss.detach() * n_images / launcher.world_size()

    def _forward(self, images: torch.Tensor) -> torch.Tensor:
        try:
            return self.parallel(images)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise UserError(
                "batch norm cannot train on a batch of one image of this size; give a larger --batch_size or "
                "--image_size, or freeze it with --freeze_bn"
            ) from error

    def _evaluate_step(self, batch: Batch, labels: torch.Tensor, _n: int) -> tuple[torch.Tensor, torch.Tensor]:
        if not len(labels):
            return labels, torch.zeros((), device=self.device)
        logits = self.evaluate_batch(batch.images)
        return logits, nn.functional.cross_entropy(logits, labels) * len(labels)

    # --- to go on from here -------------------------------------------------------------------

    def state_dict(self) -> dict:
        """All that the next step depends on, and what is known so far: plain values and tensors.

        Every rank has to ask; they get the same, which is that of a run of one process.

        Raises:
            Diverged: a loss or a weight is no finite number.
        """
        distributed.average_statistics(self.model)
        self._check_finite()
        return {
            "model": self.model.state_dict(),
            "optimizer": self.recipe.optimizer.state_dict(),
            "schedule": self.recipe.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "epoch": self.epoch,
            "sums": self.sums.all_reduced().state_dict() if self.sums else None,
            "best": self.best and _plain(self.best),
            "last": self.last and _plain(self.last),
        }

    def load_state_dict(self, state: Mapping) -> None:
        """Goes on from where `state_dict` was taken."""
        self.model.load_state_dict(state["model"])
        self.recipe.optimizer.load_state_dict(state["optimizer"])
        self.recipe.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        self.step, self.epoch = state["step"], state["epoch"]
        self.sums = RunningMetrics(self.device, state["sums"]) if state["sums"] else None
        if self.sums:
            self.sums.only_on_main()
        self.last, self.best = _result(state["last"]), _result(state["best"])
        if self.last == self.best:
            self.last = self.best

    def _check_finite(self) -> None:
        epoch = f"epoch {self.epoch + 1}"
        if self.sums:
            self.sums.all_reduced().check(f"training loss of {epoch}")
        tensors = [t for t in self.model.state_dict().values() if t.is_floating_point()]
        if not torch.stack([t.isfinite().all() for t in tensors]).all():
            raise Diverged(f"the weights are no finite numbers after {epoch if self.sums else 'the last epoch'}")


def _outputs(kept: list[tuple[torch.Tensor, ...]]) -> Outputs:
    """The outputs of a pass on rank 0, in the order of the split; another rank has its own, or none."""
    own = [torch.cat(parts).cpu() for parts in zip(*kept, strict=True)]
    parts = [part for part in distributed.gather_on_main(own) if part]
    if not parts:
        return Outputs(torch.empty(0, 0), *torch.empty(2, 0, dtype=torch.int64))
    columns = [torch.cat(column) for column in zip(*parts, strict=True)] if len(parts) > 1 else parts[0]
    order = columns[2].argsort()
    return Outputs(*(column[order] for column in columns))


def _plain(result: EpochResult) -> dict:
    phases = {"train": result.train, "valid": result.valid}
    numbers = {
        name: {key: value for key, value in vars(phase).items() if isinstance(value, (int, float))}
        for name, phase in phases.items()
    }
    return {**vars(result), **numbers, "rates": dict(result.rates)}


def _result(about: Mapping | None) -> EpochResult | None:
    if about is None:
        return None
    return EpochResult(**{**about, **{name: PhaseResult(**about[name]) for name in ("train", "valid")}})
