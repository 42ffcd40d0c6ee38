"""How the weights learn: optimizers, learning-rate schedules and the loss of training."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.optim import lr_scheduler

from photo_classifier.runtime import distributed, launcher
from photo_classifier.runtime.errors import choose
from photo_classifier.runtime.uncompiled import uncompiled

# --- optimizers -------------------------------------------------------------------------------

Adam, AdamW, SGD = (uncompiled(kind) for kind in (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD))

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": lambda groups, momentum, decay, fused: Adam(groups, weight_decay=decay, fused=fused),
    "adamw": lambda groups, momentum, decay, fused: AdamW(groups, weight_decay=decay, fused=fused),
    "sgd": lambda groups, momentum, decay, fused: SGD(groups, momentum=momentum, weight_decay=decay, fused=fused),
}


def make_optimizer(
    name: str,
    parameters: Mapping[str, Sequence[nn.Parameter]],
    rates: Mapping[str, float],
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    decays_all: bool = False,
) -> torch.optim.Optimizer:
    """Returns the optimizer of that name; raises UserError if there is none.

    Parameters and learning rates are by group; a group without trained parameters is left out. Weight decay leaves out
    biases and norms, which are vectors, unless `decays_all`: they scale and shift what the weights compute.
    """
    make = OPTIMIZERS[choose("--optimizer", name, OPTIMIZERS)]
    groups = []
    for group, members in parameters.items():
        trained = [p for p in members if p.requires_grad]
        splits = weight_decay and not decays_all
        parts = [[p for p in trained if p.dim() > 1], [p for p in trained if p.dim() <= 1]] if splits else [trained]
        for part, decay in zip(parts, (weight_decay, 0.0), strict=False):
            groups += [{"params": part, "lr": rates[group], "name": group, "weight_decay": decay}] if part else []
    # one pass over the weights instead of a dozen: that is a third of a step of ResNet-34 on small images
    fused = groups[0]["params"][0].device.type in ("cpu", "cuda")
    return make(groups, momentum, weight_decay, fused)


# --- schedules --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What schedules use: epochs in total and between two drops, the factor of a drop, patience in epochs."""

    n_epochs: int
    step_size: int = 7
    gamma: float = 0.1
    patience: int = 4


# They change the rate once per epoch.
SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer, Plan], lr_scheduler.LRScheduler]] = {
    "step": lambda optimizer, plan: lr_scheduler.StepLR(optimizer, plan.step_size, plan.gamma),
    "plateau": lambda optimizer, plan: lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=plan.gamma, patience=plan.patience, eps=0.0
    ),
    "cosine": lambda optimizer, plan: lr_scheduler.CosineAnnealingLR(optimizer, plan.n_epochs),
    "none": lambda optimizer, plan: lr_scheduler.ConstantLR(optimizer, 1.0),
}


class Schedule:
    """The learning rates of a run: a schedule by epochs times a warm-up by steps; raises UserError for an unknown name.

    Over `warmup_steps` the factor grows linearly to 1; the first step has `1 / warmup_steps`.
    """

    def __init__(self, name: str, optimizer: torch.optim.Optimizer, plan: Plan, warmup_steps: int = 0) -> None:
        make = SCHEDULERS[choose("--scheduler", name, SCHEDULERS)]
        self.optimizer, self.warmup = optimizer, None
        if warmup_steps > 1:
            self.warmup = lr_scheduler.LinearLR(optimizer, 1 / warmup_steps, total_iters=warmup_steps - 1)
        self.by_epoch = make(optimizer, plan)

    @property
    def rates(self) -> dict[str, float]:
        """The present learning rate of each group."""
        return {group["name"]: group["lr"] for group in self.optimizer.param_groups}

    def after_step(self) -> None:
        """Advances the warm-up."""
        if self.warmup and self.warmup.last_epoch < self.warmup.total_iters:
            with warnings.catch_warnings():
                # the gradient scaler of fp16 may skip the first steps, which torch takes for a mistake
                warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
                self.warmup.step()

    def after_epoch(self, valid_loss: float) -> str:
        """Advances the schedule; returns a line about a drop on a plateau, otherwise an empty text."""
        if not isinstance(self.by_epoch, lr_scheduler.ReduceLROnPlateau):
            self.by_epoch.step()
            return ""
        before = self.rates
        self.by_epoch.step(valid_loss)
        changes = [f"{before[name]:.2g} -> {rate:.2g}" for name, rate in self.rates.items() if rate < before[name]]
        what = f"validation loss not below {self.by_epoch.best:.4f} for {self.by_epoch.patience + 1} epochs"
        return f"plateau: {what}, learning rate {', '.join(changes)}" if changes else ""

    def state_dict(self) -> dict:
        """Returns plain values, enough to go on from here."""
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load_state_dict(self, state: Mapping[str, dict]) -> None:
        """Goes on from where `state_dict` was taken; the rates themselves are in the optimizer's state."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])

    def _parts(self) -> dict:
        return {"by_epoch": self.by_epoch, **({"warmup": self.warmup} if self.warmup else {})}


# --- the loss ---------------------------------------------------------------------------------


def balanced_weights(counts: Sequence[int]) -> torch.Tensor:
    """Returns weights that give each class the same influence: `n / (classes * count)`, as scikit-learn's "balanced".

    A class without images gets the weight 0, where scikit-learn raises an error.
    """
    n = torch.tensor(counts, dtype=torch.float64)
    return torch.where(n > 0, n.sum() / (len(counts) * n.clamp(min=1)), 0.0).float()


CLASS_WEIGHTS: dict[str, Callable[[Sequence[int]], torch.Tensor | None]] = {
    "none": lambda counts: None,
    "balanced": balanced_weights,
}


class TrainingLoss:
    """Cross entropy as training minimises it: the mean over the batch, of which each process has a share.

    It is a weighted mean: the sum over the images, with each class's share of an image times the weight of that class,
    divided by the sum of those weights. For mixed images the shares are those of the mixture; label smoothing changes
    the numerator, not the denominator.

    Args:
        class_weights: fp32 (classes,), or None for equal ones.
    """

    def __init__(self, class_weights: torch.Tensor | None = None, label_smoothing: float = 0.0) -> None:
        self.class_weights, self.label_smoothing = class_weights, label_smoothing

    def __call__(
        self, logits: torch.Tensor, targets: torch.Tensor, total_weight: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Returns the mean loss in nats of logits (n, classes) for labels, int64 (n,), or shares, fp32 (n, classes).

        With several processes it is this one's part of the mean times their number, as gradients are averaged. With
        `total_weight`, that of a batch that these images are a part of, it is their part of the batch's mean.
        """
        smoothing, weights = self.label_smoothing, self.class_weights
        if total_weight is None and weights is None and launcher.world_size() == 1:
            return nn.functional.cross_entropy(logits, targets, label_smoothing=smoothing)
        total = self.total_weight(targets) if total_weight is None else total_weight
        if not len(targets):
            return logits.sum()
        if weights is not None:
            targets = self._shares(targets)
            weights = self.class_weights
        loss = nn.functional.cross_entropy(logits, targets, weights, label_smoothing=smoothing, reduction="sum")
        return loss * launcher.world_size() / total

    def total_weight(self, targets: torch.Tensor) -> torch.Tensor:
        """Returns what the loss of a batch is divided by, of all processes: the sum of the weights of its images."""
        own = torch.full((), len(targets), dtype=torch.float32, device=targets.device)  # a copy would make a GPU wait
        if self.class_weights is not None and len(targets):
            own = (self._shares(targets) @ self.class_weights).sum()
        return distributed.all_reduce(own)

    def _shares(self, targets: torch.Tensor) -> torch.Tensor:
        """Returns the targets as shares of classes, after moving the class weights to their device."""
        self.class_weights = self.class_weights.to(targets.device)  # a copy in the first step alone
        if targets.is_floating_point():
            return targets
        return nn.functional.one_hot(targets, len(self.class_weights)).float()


@dataclass(frozen=True)
class Recipe:
    """Everything that decides how a step changes the weights.

    `mix` mixes the images of a batch and their labels, which become shares of classes. `pass_size` is the number of
    images, of all processes, that a step computes at once; None computes the whole batch at once.
    """

    optimizer: torch.optim.Optimizer
    schedule: Schedule
    loss: TrainingLoss = field(default_factory=TrainingLoss)
    mix: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]] | None = None
    pass_size: int | None = None
