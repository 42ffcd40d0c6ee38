"""Heads: the last layer of a network, which gives the class scores."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from photo_classifier.runtime.errors import UserError
from photo_classifier.runtime.seeding import seeded_rng
from photo_classifier.runtime.text import pluralize


class _Float32Head:
    """Computes in fp32 at any precision, after a dropout that adds no names to the state_dict."""

    dropout = 0.0

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return super().forward(nn.functional.dropout(features.float(), self.dropout, self.training))


class LinearHead(_Float32Head, nn.Linear):
    """A linear head."""


class ConvHead(_Float32Head, nn.Conv2d):
    """A 1x1 convolution as head, as in SqueezeNet."""


class HiddenHead(_Float32Head, nn.Sequential):
    """Linear - ReLU - Dropout - Linear, or the layers that another script had."""


class HeadModule(nn.Module):
    """The head and what follows it (SqueezeNet: its last ReLU and pooling): features in, fp32 logits out."""

    def __init__(self, head: nn.Module, tail: nn.Module) -> None:
        super().__init__()
        self.head, self.tail = head, tail

    def reset(self, seed: int, number: int) -> None:
        """Draws the weights of the head anew, by the seed and a number."""
        with seeded_rng(seed, "head", number):
            for module in self.head.modules():
                if hasattr(module, "reset_parameters"):
                    module.reset_parameters()

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Computes logits, fp32 (n, classes), from the output of `Classifier.features`, (n, ...)."""
        return self.tail(self.head(features)).float()


def replace_head(net: nn.Module, name: str, n_classes: int, hidden: int | None, dropout: float) -> None:
    """Replaces the layer of that name by a new head for `n_classes`, with a hidden layer of `hidden` units if given.

    Raises:
        UserError: a hidden layer was asked for where the head is a convolution.
    """
    old = net.get_submodule(name)
    if isinstance(old, nn.Conv2d):
        if hidden:
            raise UserError("--head_hidden needs a linear head, but that of this model is a convolution; leave it out")
        head: nn.Module = ConvHead(old.in_channels, n_classes, 1)
    elif hidden:
        head = HiddenHead(
            nn.Linear(old.in_features, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, n_classes)
        )
    else:
        head = LinearHead(old.in_features, n_classes)
    if not hidden:  # a hidden layer has its own dropout
        head.dropout = dropout
    parent, _, child = name.rpartition(".")
    setattr(net.get_submodule(parent), child, head)


def copy_rows(
    head: nn.Module, tensors: Mapping[str, torch.Tensor], old_names: Sequence[str], class_names: Sequence[str]
) -> list[str]:
    """Copies the rows of another head for classes of the same name, and the layers before them.

    Returns the names of those classes: none if the two heads differ in more than their classes.
    """
    own = head.state_dict()
    last = f"{len(head) - 1}." if isinstance(head, nn.Sequential) else ""
    rows = [f"{last}weight", f"{last}bias"]
    if own.keys() != tensors.keys() or any(len(tensors[name]) != len(old_names) for name in rows):
        return []
    if any(own[name].shape[name in rows :] != tensors[name].shape[name in rows :] for name in own):
        return []
    kept = [name for name in class_names if name in old_names]
    new, old = ([names.index(name) for name in kept] for names in (list(class_names), list(old_names)))
    for name, value in own.items():
        if name in rows:
            value[new] = tensors[name][old].to(value.dtype)
        elif kept:
            value.copy_(tensors[name])
    return kept


# --- heads of other scripts -------------------------------------------------------------------

ACTIVATIONS = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "leaky_relu": nn.LeakyReLU,
    "hardswish": nn.Hardswish,
    "sigmoid": nn.Sigmoid,
    "none": nn.Identity,
}


def head_of(
    tensors: Mapping[str, torch.Tensor], name: str, activations: Sequence[str], path: str | Path
) -> nn.Sequential | LinearHead | ConvHead:
    """Returns a head with the layers that have these tensors, `weight` or by number as in `0.weight`, still empty.

    Modules without tensors are seen as gaps in the numbers: what comes first is a dropout, and between two layers
    there is an activation.

    Args:
        name: of the head in the network, for messages.
        activations: one for each gap, from `ACTIVATIONS`.

    Raises:
        UserError: these are no layers in a row, or the activations are not told.
    """
    layers: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        number, _, what = key.rpartition(".")
        if number and not re.fullmatch(r"\d{1,2}", number):
            raise UserError(f"{path} has {name}.{key}, but its head can be rebuilt only from layers in a row")
        layers.setdefault(number, {})[what] = value
    modules = {number: _layer(layer, f"{name}.{number}", path) for number, layer in layers.items()}
    if "" in modules:
        _activations(activations, [], path)
        return modules[""]
    by_number = {int(number): module for number, module in modules.items()}
    numbers = sorted(by_number)
    gaps = [n + 1 for n, following in itertools.pairwise(numbers) if following > n + 1]
    by_number |= dict(zip(gaps, _activations(activations, [f"{name}.{n}" for n in gaps], path), strict=True))
    # flattening changes nothing where the features are flat already
    fillers = (nn.Flatten(1) if n < numbers[0] else nn.Identity() for n in range(numbers[-1] + 1))
    return HiddenHead(*(by_number.get(n, filler) for n, filler in enumerate(fillers)))


def _activations(names: Sequence[str], gaps: Sequence[str], path: str | Path) -> list[nn.Module]:
    if unknown := [name for name in names if name not in ACTIVATIONS]:
        raise UserError(f"head_activation {unknown[0]!r} is unknown; choose from {', '.join(ACTIVATIONS)}")
    if names and not gaps:
        raise UserError(f"{path} has nothing to compute between layers of its head; leave out --head_activation")
    if len(names) != len(gaps):
        raise UserError(
            f"{path} does not tell what its head computes at {', '.join(gaps)}, between layers with weights; give "
            f"{pluralize(len(gaps), 'name')}, for example --head_activation {' '.join(['relu'] * len(gaps))} (or "
            f"{', '.join(name for name in ACTIVATIONS if name != 'relu')})"
        )
    return [ACTIVATIONS[name]() for name in names]


def _layer(tensors: Mapping[str, torch.Tensor], name: str, path: str | Path) -> nn.Module:
    weight, has_bias = tensors.get("weight"), "bias" in tensors
    if weight is not None and weight.dim() == 2:
        return LinearHead(weight.shape[1], weight.shape[0], bias=has_bias)
    if weight is not None and weight.dim() == 4:
        return ConvHead(weight.shape[1], weight.shape[0], weight.shape[2:], bias=has_bias)
    if "running_mean" in tensors:
        return nn.BatchNorm1d(len(tensors["running_mean"]), affine=weight is not None)
    if weight is not None and weight.dim() == 1 and has_bias:
        return nn.LayerNorm(len(weight))
    raise UserError(f"{path} has a layer {name} in its head that is neither linear nor a norm; it cannot be rebuilt")


def last_layer(head: nn.Module) -> nn.Module:
    """Returns the layer that gives the class scores."""
    return head[-1] if isinstance(head, nn.Sequential) else head


def add_zero_output(layer: nn.Linear | nn.Conv2d) -> None:
    """Puts an output that is always 0 before the only one, so that softmax says of two classes what a sigmoid did."""
    for parameter in layer.parameters():
        parameter.data = torch.cat([torch.zeros_like(parameter), parameter])
