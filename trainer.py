"""The epoch loop: training and validation, the schedule, the best weights, each epoch recorded."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import msgspec
import torch
from torch import nn
from torch.utils.data import DataLoader

from photo_classifier.config import TrainConfig, pass_size
from photo_classifier.data.batches import AddressedSampler, Batch
from photo_classifier.data.samples import Splits
from photo_classifier.models.classifier import Classifier
from photo_classifier.runtime import data_parallel, distributed, launcher, signals
from photo_classifier.runtime.console import progress, say
from photo_classifier.runtime.device import to_device
from photo_classifier.runtime.errors import UserError, choose
from photo_classifier.runtime.seeding import seed_device
from photo_classifier.training.optimization import CLASS_WEIGHTS, Plan, Recipe, Schedule, TrainingLoss, make_optimizer
from photo_classifier.training.restore import decays_all
from photo_classifier.training.results import (
    Diverged,
    EpochResult,
    Outputs,
    PhaseResult,
    RunningMetrics,
    explain_memory_of_step,
)
from photo_classifier.training.run_state import StoppedRun
from photo_classifier.training.strategy import Strategy

# What the best epoch is chosen by, from its validation: higher is better.
MONITORS: dict[str, Callable[[PhaseResult], float]] = {
    "accuracy": lambda valid: valid.accuracy,
    "loss": lambda valid: -valid.loss,
    "macro_f1": lambda valid: valid.macro_f1,
}


class Recorder(Protocol):
    """Where epochs are recorded; `photo_classifier.training.run` has one for the main process, one for the others."""

    def log(self, result: EpochResult, is_best: bool) -> None:
        """Records the numbers of an epoch."""

    def save_best(self, result: EpochResult) -> None:
        """Keeps the weights of the best epoch so far."""

    def skip(self, bad: list[tuple[int, str]], split: str) -> None:
        """Records images that could not be read, by their index in a split, with the reasons."""

    def is_save_due(self) -> bool:
        """Returns whether it is time to save within an epoch."""

    def save_last(self, state: dict) -> None:
        """Keeps the state that the next step depends on."""


@dataclass(eq=False)
class Trainer:
    """Trains what requires a gradient and keeps the epoch with the best validation.

    Args:
        model: images (or stored features) in, fp32 logits (n, classes) out.
        evaluate_batch: the same for evaluation: the engine over that model.
        refresh: tells the engine that the weights have changed.
        recipe: how the weights learn; the loss of evaluation is plain cross entropy.
        device: where the model is; batches are moved there.
        dtype: what convolutions compute in; weights stay in fp32.
        seed: dropout and mixing of step `s` are drawn from `(seed, s)`.
        monitor: what the best epoch is chosen by, a row of `MONITORS`.
        sync_bn: whether trained batch norm normalises over the batches of all processes (GPUs only).
        first_epoch: that from which these layers train; an earlier part of the run has trained others.

    Raises:
        UserError: there is no such monitor.
    """

    model: nn.Module
    evaluate_batch: Callable[[torch.Tensor], torch.Tensor]
    refresh: Callable[[], None]
    recipe: Recipe
    device: torch.device
    dtype: torch.dtype = torch.float32
    seed: int = 0
    monitor: str = "accuracy"
    sync_bn: bool = False
    first_epoch: int = 0

    def __post_init__(self) -> None:
        in_passes = bool(self.recipe and self.recipe.pass_size)
        self.ddp_model = data_parallel.wrap_ddp(self.model, self.device, self.sync_bn, in_passes)
        self.score = MONITORS[choose("--monitor", self.monitor, MONITORS)]
        self.step, self.epoch = 0, 0
        self.sums: RunningMetrics | None = None  # of the epoch that is under way
        self.best: EpochResult | None = None
        self.improved: int | None = None  # the last epoch with a higher score; a tie is no reason to go on
        self.last: EpochResult | None = None
        # fp16 has too few exponents for small gradients; elsewhere the scaler does nothing
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    def continue_from(self, earlier: Trainer) -> None:
        """Goes on after the epochs of a trainer of other layers of the same network."""
        self.step, self.epoch = earlier.step, earlier.epoch
        self.best, self.improved, self.last = earlier.best, earlier.improved, earlier.last

    def fit(
        self,
        train_loader: DataLoader,
        valid_loader: DataLoader,
        run: Recorder,
        n_epochs: int,
        early_stop: int | None = None,
        by_folds: Sequence[PhaseResult] = (),
    ) -> EpochResult:
        """Runs the epochs and returns the best one.

        Args:
            n_epochs: of the whole run, those before a resume among them.
            early_stop: end after this many epochs without a higher score, of those that train these layers.
            by_folds: the validation of every epoch by folds, which then takes the place of the loader's.

        Raises:
            Diverged: a loss or a weight is not a finite number; what was saved before stays.
            UserError: no image of a split could be read, batch norm cannot train on a batch this small, or the best
                epoch was lost and none is left to train.
            Stopped: a signal asked for it; the state was saved.
        """
        while self.epoch < n_epochs and not self.has_stalled(early_stop):
            train = self.train_one_epoch(train_loader, run)
            valid = by_folds[self.epoch] if by_folds else self.evaluate(valid_loader, run)
            result = EpochResult(self.epoch, train, valid, self.recipe.schedule.rates)
            self.last, is_best = result, self.is_best(result)
            if is_best:
                self._keep_best(result, run)
            run.log(result, is_best)
            if change := self.recipe.schedule.after_epoch(valid.loss):
                say(change)
            self.epoch, self.sums = self.epoch + 1, None
            run.save_last(self.state_dict())
        if self.best is None:  # its weights were lost between a stop and a resume
            raise UserError(
                "no epoch is left to choose from; raise --n_epochs, or under --scheduler cosine start a new run"
            )
        return self.best

    def _keep_best(self, result: EpochResult, run: Recorder) -> None:
        if self.best is None or self._scores(result)[0] > self._scores(self.best)[0]:
            self.improved = self.epoch
        self.best = result
        run.save_best(result)

    def has_stalled(self, early_stop: int | None) -> bool:
        """Returns whether that many epochs of this part went by without a higher score."""
        if not early_stop or not self.best:
            return False
        return self.epoch - max(self.improved + 1, self.first_epoch) >= early_stop

    def is_best(self, result: EpochResult) -> bool:
        """Returns whether the epoch is better than all before it; on a tie one with a lower validation loss is."""
        return self.best is None or self._scores(result) > self._scores(self.best)

    def _scores(self, result: EpochResult) -> list[float]:
        # the loss tells apart epochs with equally many right answers, of which the first is the least trained
        scores = (self.score(result.valid), -result.valid.loss)
        return [-math.inf if math.isnan(score) else score for score in scores]  # any number is better than none

    def train_one_epoch(self, loader: DataLoader, run: Recorder) -> PhaseResult:
        """Trains on the batches of one epoch that are left, a step per batch."""
        self.ddp_model.train()
        self.sums = self.sums or RunningMetrics(self.device)
        loader.batch_sampler.epoch, loader.batch_sampler.start = self.epoch, self.sums.n_batches
        self._run(loader, self._train_step, run, f"epoch {self.epoch + 1}", "train", self.sums, self.state_dict)
        self._check_finite()
        return self.sums.all_reduced().result("train")

    def evaluate(self, loader: DataLoader, run: Recorder, split: str = "valid") -> PhaseResult:
        """Evaluates the present weights on the split of that name."""
        data_parallel.average_statistics(self.model)
        self.refresh()
        sums, kept = RunningMetrics(self.device), []
        # after the last epoch the weights may be the best ones, from which no run goes on
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
        if sums.n_batches == len(loader):  # the run was stopped after this pass
            return
        for batch in progress(loader, desc=title, unit="batch", initial=sums.n_batches, total=len(loader)):
            n_bad, n_images = distributed.all_reduce_sum(len(batch.bad), len(batch.labels))
            if n_bad:
                run.skip([pair for part in distributed.all_gather(batch.bad) for pair in part], split)
            if n_images:
                labels = to_device(batch.labels, self.device)
                logits, loss, *shares = step(batch, labels, n_images)
                sums.add(labels, logits, loss, *shares)
                if kept is not None and len(labels):
                    kept.append((logits, labels, batch.indices))
            sums.n_batches += 1
            sums.seconds = time.perf_counter() - start
            self.after_batch(run, state)
        sums.loss.cpu()  # waits for the steps that a GPU is still at work on, or images/s would be too high
        sums.seconds = time.perf_counter() - start

    def after_batch(self, run: Recorder, state: Callable[[], dict] | None) -> None:
        """Saves the state if it is time; after a signal to any process saves it and raises `Stopped` on all."""
        is_due, is_asked = distributed.all_reduce_max(run.is_save_due(), signals.stop_requested())
        if state and (is_due or is_asked):
            run.save_last(state())
        if is_asked:
            signals.raise_stopped()

    def _train_step(self, batch: Batch, labels: torch.Tensor, n_images: int) -> tuple[torch.Tensor, ...]:
        """Takes a step with this process's share of `n_images`.

        Returns its logits, its part of the summed loss, and the shares of classes of mixed images.
        """
        seed_device(self.device, self.seed, "step", self.step)
        images, targets = to_device(batch.images, self.device), labels
        if self.recipe.mix:
            images, targets = self.recipe.mix(images, labels)
        if not launcher.is_main():  # or all processes would drop the same features
            seed_device(self.device, self.seed, "step", self.step, launcher.rank())
        self.recipe.optimizer.zero_grad(set_to_none=True)
        with explain_memory_of_step():
            logits, loss = self._add_gradients(images, targets, n_images)
        self.scaler.step(self.recipe.optimizer)
        self.scaler.update()
        self.recipe.schedule.after_step()
        self.step += 1
        return logits, loss * n_images / launcher.world_size(), *((targets,) if targets.is_floating_point() else ())

    def _add_gradients(
        self, images: torch.Tensor, targets: torch.Tensor, n_images: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Computes the gradients of a step, in several passes if the recipe says so; returns the logits and the loss.

        Every process makes the same number of passes.
        """
        n_passes = -(-n_images // (self.recipe.pass_size or n_images))
        total_weight = self.recipe.loss.total_weight(targets) if n_passes > 1 else None
        logits, losses = [], []
        parts = zip(images.tensor_split(n_passes), targets.tensor_split(n_passes), strict=True)
        for inputs, wanted in parts:
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                outputs = self._forward(inputs)
            loss = self.recipe.loss(outputs, wanted, total_weight)
            self.scaler.scale(loss).backward()
            if len(inputs) or not logits:  # without images there is not even a column for each class
                logits = [*(part for part in logits if len(part)), outputs.detach()]
            losses.append(loss.detach())
        if self.recipe.pass_size:
            data_parallel.average_gradients(self.model)
        return torch.cat(logits), torch.stack(losses).sum()

    def _forward(self, images: torch.Tensor) -> torch.Tensor:
        try:
            return self.ddp_model(images)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise UserError(
                "batch norm cannot train on one image of this size at a time; give larger batches (--batch_size), "
                "fewer passes (--accumulate) or larger images (--image_size), or freeze it (--freeze_bn)"
            ) from error

    def _evaluate_step(self, batch: Batch, labels: torch.Tensor, _n: int) -> tuple[torch.Tensor, torch.Tensor]:
        if not len(labels):
            return labels, torch.zeros((), device=self.device)
        logits = self.evaluate_batch(batch.images)
        return logits, nn.functional.cross_entropy(logits, labels) * len(labels)

    def state_dict(self) -> dict:
        """Returns all that the next step depends on, and the results so far: plain values and tensors.

        Every process has to call it; all get the same, which is that of a run of one process.

        Raises:
            Diverged: a loss or a weight is not a finite number.
        """
        data_parallel.average_statistics(self.model)
        self._check_finite()
        return {
            "model": self.model.state_dict(),
            "optimizer": self.recipe.optimizer.state_dict(),
            "schedule": self.recipe.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
            "step": self.step,
            "epoch": self.epoch,
            "first_epoch": self.first_epoch,
            "sums": self.sums.all_reduced().state_dict() if self.sums else None,
            "best": self.best and self.best.state_dict(),
            "improved": self.improved,
            "last": self.last and self.last.state_dict(),
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
            self.sums.keep_on_main()
        self.last, self.best = (msgspec.convert(state[name], EpochResult | None) for name in ("last", "best"))
        if self.last == self.best:
            self.last = self.best
        self.improved = state.get("improved", self.best and self.best.epoch)

    def _check_finite(self) -> None:
        epoch = f"epoch {self.epoch + 1}"
        if self.sums:
            self.sums.all_reduced().check(f"training loss of {epoch}")
        tensors = [t for t in self.model.state_dict().values() if t.is_floating_point()]
        if not torch.stack([t.isfinite().all() for t in tensors]).all():
            raise Diverged(f"the weights are not finite numbers after {epoch if self.sums else 'the last epoch'}")


def make_trainer(
    config: TrainConfig,
    splits: Splits,
    network: Classifier,
    strategy: Strategy,
    stopped: StoppedRun,
    epochs: range,
    device: torch.device,
    dtype: torch.dtype,
    mix: Callable | None,
) -> Trainer:
    """Returns the trainer of what trains in these epochs of the run; `mix` mixes the images of a batch."""
    stores_head_inputs = strategy.uses_stored_features and strategy.has_head
    parameters = {"head": list(strategy.model.parameters())} if stores_head_inputs else network.parameters_by_part()
    recipe = make_recipe(config, parameters, splits, decays_all(stopped), epochs, mix)
    return Trainer(
        strategy.model,
        strategy.evaluate,
        strategy.refresh,
        recipe,
        device,
        dtype,
        config.seed,
        config.monitor,
        config.sync_bn,
        epochs.start,
    )


def make_recipe(
    config: TrainConfig,
    parameters: Mapping[str, list[nn.Parameter]],
    splits: Splits,
    decays_all: bool,
    epochs: range,
    mix: Callable | None,
) -> Recipe:
    """Returns how the weights learn in these epochs: optimizer, schedule, loss and mixing.

    `decays_all` says whether weight decay acts on norms and biases too.
    """
    rates = {"backbone": config.backbone_lr or config.lr, "head": config.lr}
    optimizer = make_optimizer(config.optimizer, parameters, rates, config.momentum, config.weight_decay, decays_all)
    n_steps = len(AddressedSampler(len(splits.train), config.batch_size, config.seed))
    plan = Plan(len(epochs), config.step_size, config.gamma, config.patience)
    schedule = Schedule(config.scheduler, optimizer, plan, round(config.warmup_epochs * n_steps))
    weights = CLASS_WEIGHTS[config.class_weights](splits.training_counts())
    # DistributedDataParallel would average the gradients of a head that trains first in later epochs too
    at_once = pass_size(config) or (config.batch_size if epochs.stop < config.n_epochs else None)
    return Recipe(optimizer, schedule, TrainingLoss(weights, config.label_smoothing), mix, at_once)


def _outputs(kept: list[tuple[torch.Tensor, ...]]) -> Outputs:
    """Returns the outputs of a pass in the order of the split, all of them on the main process alone."""
    own = [torch.cat(parts).cpu() for parts in zip(*kept, strict=True)]
    parts = [part for part in distributed.gather_on_main(own) if part]
    if not parts:
        return Outputs(torch.empty(0, 0), *torch.empty(2, 0, dtype=torch.int64))
    columns = [torch.cat(column) for column in zip(*parts, strict=True)] if len(parts) > 1 else parts[0]
    order = columns[2].argsort()
    return Outputs(*(column[order] for column in columns))
