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

# --- optimizers -------------------------------------------------------------------------------

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": lambda groups, momentum, decay, fused: torch.optim.Adam(groups, weight_decay=decay, fused=fused),
    "adamw": lambda groups, momentum, decay, fused: torch.optim.AdamW(groups, weight_decay=decay, fused=fused),
    "sgd": lambda groups, momentum, decay, fused: torch.optim.SGD(
        groups, momentum=momentum, weight_decay=decay, fused=fused
    ),
}


def make_optimizer(
    name: str,
    parameters: Mapping[str, Sequence[nn.Parameter]],
    rates: Mapping[str, float],
    momentum: float = 0.9,
    weight_decay: float = 0.0,
) -> torch.optim.Optimizer:
    """The optimizer of that name over those parameters that train.

    Args:
        parameters: by the name of their group; a group of which nothing trains is left out.
        rates: the learning rate of each group.

    Raises:
        UserError: there is no such optimizer.
    """
    make = OPTIMIZERS[choose("--optimizer", name, OPTIMIZERS)]
    trained = {group: [p for p in members if p.requires_grad] for group, members in parameters.items()}
    groups = [{"params": members, "lr": rates[group], "name": group} for group, members in trained.items() if members]
    # one pass over the weights in place of a dozen: a third of a step of ResNet-34 on small images
    fused = groups[0]["params"][0].device.type in ("cpu", "cuda")
    return make(groups, momentum, weight_decay, fused)


# --- schedules --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """What schedules may ask for: epochs in all and between two drops, the factor of a drop, patience in epochs."""

    n_epochs: int
    step_size: int = 7
    gamma: float = 0.1
    patience: int = 4


# They move once an epoch.
SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer, Plan], lr_scheduler.LRScheduler]] = {
    "step": lambda optimizer, plan: lr_scheduler.StepLR(optimizer, plan.step_size, plan.gamma),
    "plateau": lambda optimizer, plan: lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=plan.gamma, patience=plan.patience, eps=0.0
    ),
    "cosine": lambda optimizer, plan: lr_scheduler.CosineAnnealingLR(optimizer, plan.n_epochs),
    "none": lambda optimizer, plan: lr_scheduler.ConstantLR(optimizer, 1.0),
}


class Schedule:
    """The learning rates over a training: a schedule of epochs times a warm-up of steps.

    Args:
        warmup_steps: over these the factor grows evenly to 1; the first step has `1 / warmup_steps`.

    Raises:
        UserError: there is no such schedule.
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
        """Moves the warm-up on."""
        if self.warmup and self.warmup.last_epoch < self.warmup.total_iters:
            with warnings.catch_warnings():
                # fp16's scaler may leave out the first steps, and torch takes that for a mistake
                warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
                self.warmup.step()

    def after_epoch(self, valid_loss: float) -> str:
        """Moves the schedule on; what there is to say of it: the reductions of a plateau."""
        if not isinstance(self.by_epoch, lr_scheduler.ReduceLROnPlateau):
            self.by_epoch.step()
            return ""
        before = self.rates
        self.by_epoch.step(valid_loss)
        changes = [f"{before[name]:.2g} -> {rate:.2g}" for name, rate in self.rates.items() if rate < before[name]]
        what = f"no lower validation loss than {self.by_epoch.best:.4f} for {self.by_epoch.patience + 1} epochs"
        return f"plateau {what}: learning rate {', '.join(changes)}" if changes else ""

    def state_dict(self) -> dict:
        """Plain values, enough to go on from here."""
        return {name: part.state_dict() for name, part in self._parts().items()}

    def load_state_dict(self, state: Mapping[str, dict]) -> None:
        """Goes on from where `state_dict` was taken; the optimizer brings the rates themselves."""
        for name, part in self._parts().items():
            part.load_state_dict(state[name])

    def _parts(self) -> dict:
        return {"by_epoch": self.by_epoch, **({"warmup": self.warmup} if self.warmup else {})}


# --- the loss ---------------------------------------------------------------------------------


def balanced_weights(counts: Sequence[int]) -> torch.Tensor:
    """Class weights that give each class the same say: `n / (classes * count)`, as scikit-learn's "balanced".

    A class without images has the weight 0.
    """
    n = torch.tensor(counts, dtype=torch.float64)
    return torch.where(n > 0, n.sum() / (len(counts) * n.clamp(min=1)), 0.0).float()


CLASS_WEIGHTS: dict[str, Callable[[Sequence[int]], torch.Tensor | None]] = {
    "none": lambda counts: None,
    "balanced": balanced_weights,
}


class TrainingLoss:
    """Cross entropy as training minimises it: the mean over the batch, which all ranks hold a slice of.

    The mean over a batch is a weighted one: the sum over its images, each class's share of an image
    times the weight of that class, divided by the sum of those weights. With mixed images the shares are
    those of the mixture; label smoothing changes the sum above, not the one below.

    Args:
        class_weights: fp32 (classes,), or None for equal ones.
    """

    def __init__(self, class_weights: torch.Tensor | None = None, label_smoothing: float = 0.0) -> None:
        self.class_weights, self.label_smoothing = class_weights, label_smoothing

    def __call__(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Logits (n, classes) and labels, int64 (n,), or shares, fp32 (n, classes) -> the mean loss in nats.

        Among several ranks it is this slice's part of the mean, times their number: gradients are then averaged.
        """
        if self.class_weights is None and launcher.world_size() == 1:
            return nn.functional.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        loss, weight = self._sums(logits, targets)
        return loss * launcher.world_size() / distributed.all_reduce(weight)

    def _sums(self, logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The sum of the loss and that of its weights over this slice."""
        smoothing, weights = self.label_smoothing, self.class_weights
        if not len(targets):
            return logits.sum(), logits.new_zeros(())
        if weights is None:
            loss = nn.functional.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="sum")
            return loss, loss.new_tensor(len(targets))
        weights = weights.to(logits.device)
        shares = targets if targets.is_floating_point() else nn.functional.one_hot(targets, len(weights)).float()
        loss = nn.functional.cross_entropy(logits, shares, weights, label_smoothing=smoothing, reduction="sum")
        return loss, (shares @ weights).sum()


@dataclass(frozen=True)
class Recipe:
    """All that decides how a step changes the weights.

    `mix` mixes a batch's images and its labels, which are then shares of classes.
    """

    optimizer: torch.optim.Optimizer
    schedule: Schedule
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = field(default_factory=TrainingLoss)
    mix: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]] | None = None
