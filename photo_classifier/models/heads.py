"""Heads: the last layer of a network, which gives the class scores."""

from __future__ import annotations

import torch
from torch import nn

from photo_classifier.runtime.errors import UserError
from photo_classifier.runtime.seeding import seeded_rng


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
    """Linear - ReLU - Dropout - Linear."""


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
