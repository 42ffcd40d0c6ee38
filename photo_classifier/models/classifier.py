"""A backbone with a new head."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import nn

from photo_classifier.data.preprocess import Preprocess
from photo_classifier.runtime.errors import UserError


class _Float32Head:
    """Computes in fp32 whatever the precision, after a dropout that adds no names of its own."""

    dropout = 0.0

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return super().forward(nn.functional.dropout(features.float(), self.dropout, self.training))


class LinearHead(_Float32Head, nn.Linear):
    """A linear head."""


class ConvHead(_Float32Head, nn.Conv2d):
    """A 1x1 convolution as head, as SqueezeNet has it."""


class HiddenHead(_Float32Head, nn.Sequential):
    """Linear - ReLU - Dropout - Linear."""


class _AtTheHead(Exception):
    """The forward pass has come to the head."""


class HeadModule(nn.Module):
    """The head and what follows it (SqueezeNet: its last ReLU and pooling): features in, fp32 logits out."""

    def __init__(self, head: nn.Module, tail: nn.Module) -> None:
        super().__init__()
        self.head, self.tail = head, tail

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """What `Classifier.features` gives, (n, ...) -> logits, fp32 (n, classes)."""
        return self.tail(self.head(features)).float()


# What a network raises that is asked for what it cannot do: each library refuses in its own way.
REFUSALS = (RuntimeError, AssertionError, ValueError, TypeError, IndexError, AttributeError)


class Classifier(nn.Module):
    """A backbone with a new head: uint8 images in, fp32 logits out.

    `net` keeps the library's own names, so its state_dict loads there. It is cut at the head:
    `logits = tail(head(features(images)))`.
    """

    def __init__(self, net: nn.Module, head_name: str, preprocess: Preprocess) -> None:
        super().__init__()
        self.net = net
        self.head_name = head_name
        self.preprocess = preprocess
        self.frozen: list[nn.Module] = []
        _train_depthwise_in_fp32(net)
        for name, values in (("_mean", preprocess.mean), ("_std", preprocess.std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1) * 255, persistent=False)

    @property
    def head(self) -> nn.Module:
        """The layer that was replaced."""
        return self.net.get_submodule(self.head_name)

    def parameters_by_part(self) -> dict[str, list[nn.Parameter]]:
        """Those of `backbone` and `head`, each in its order."""
        head = list(self.head.parameters())
        others = {id(p) for p in head}
        return {"backbone": [p for p in self.net.parameters() if id(p) not in others], "head": head}

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (n, 3, h, w) -> fp32 in the scale that the weights were trained with."""
        return (images.float() - self._mean) / self._std

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images, uint8 (n, 3, size, size) -> logits, fp32 (n, classes)."""
        return self.net(self.normalize(images)).float()

    def example_image(self, size: int | None = None) -> torch.Tensor:
        """A grey image, uint8 (1, 3, size, size) on the model's device, to see what runs and what shape comes out."""
        size = size or self.preprocess.image_size
        return torch.full((1, 3, size, size), 128, dtype=torch.uint8, device=self._mean.device)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Images, uint8 (n, 3, size, size) -> what the head takes, (n, ...); nothing behind it is computed."""
        found: list[torch.Tensor] = []

        def stop(_module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
            found.append(inputs[0])
            raise _AtTheHead

        handle = self.head.register_forward_pre_hook(stop)
        try:
            self.net(self.normalize(images))
        except _AtTheHead:
            pass
        finally:
            handle.remove()
        return found[0]

    def head_module(self) -> HeadModule | None:
        """The head and what follows it, sharing their weights, or None where this cannot be told.

        What follows is looked up (the rest of the head's own sequence) and then checked by computing.
        """
        parent, _, child = self.head_name.rpartition(".")
        siblings = self.net.get_submodule(parent)
        names = [name for name, _ in siblings.named_children()]
        rest = list(siblings)[names.index(child) + 1 :] if isinstance(siblings, nn.Sequential) else []
        top = HeadModule(self.head, nn.Sequential(*rest, nn.Flatten(1)))
        image, was_training = self.example_image(), self.training
        self.eval()
        with torch.no_grad():
            expected, found = self(image), top(self.features(image))
        self.train(was_training)
        return top if found.shape == expected.shape and torch.allclose(found, expected, atol=1e-4) else None

    def train(self, mode: bool = True) -> Classifier:
        """Training mode for what trains; frozen modules stay in eval mode."""
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self


def _train_depthwise_in_fp32(net: nn.Module) -> None:
    """Makes depthwise convolutions train in fp32 on the CPU: their backward pass in bf16 takes four times as long."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
            module.forward = functools.partial(_forward_in_fp32, module, type(module).forward)


def _forward_in_fp32(module: nn.Module, forward: Callable, inputs: torch.Tensor) -> torch.Tensor:
    if not module.training or inputs.device.type != "cpu":
        return forward(module, inputs)
    with torch.autocast("cpu", enabled=False):
        return forward(module, inputs.float())


def replace_head(
    net: nn.Module, name: str, n_classes: int, hidden: int | None, dropout: float, model_name: str
) -> None:
    """Puts a new head for `n_classes` in the place of that name, with a hidden layer where `hidden` gives its units.

    Raises:
        UserError: a hidden layer is asked for where the head is a convolution.
    """
    old = net.get_submodule(name)
    if isinstance(old, nn.Conv2d):
        if hidden:
            raise UserError(f"--head_hidden needs a linear head; that of {model_name} is a convolution")
        head: nn.Module = ConvHead(old.in_channels, n_classes, 1)
    elif hidden:
        head = HiddenHead(
            nn.Linear(old.in_features, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, n_classes)
        )
    else:
        head = LinearHead(old.in_features, n_classes)
    if not hidden:  # with a hidden layer it acts there
        head.dropout = dropout
    parent, _, child = name.rpartition(".")
    setattr(net.get_submodule(parent), child, head)


def is_wholly_frozen(model: Classifier) -> bool:
    """Whether nothing but the head trains or moves, so that the backbone is a function."""
    head = {id(p) for p in model.head.parameters()} | {id(m) for m in model.head.modules()}
    if any(p.requires_grad and id(p) not in head for p in model.net.parameters()):
        return False
    was_training = model.training
    model.train()
    leaves = [m for m in model.net.modules() if not list(m.children())]
    moving = [m for m in leaves if m.training and id(m) not in head and _acts_in_training(m)]
    model.train(was_training)
    return not moving


def _acts_in_training(module: nn.Module) -> bool:
    """Whether a layer computes otherwise in training mode: it keeps statistics or draws numbers."""
    return isinstance(module, nn.modules.batchnorm._NormBase) or "drop" in type(module).__name__.lower()


def count_parameters(model: Classifier) -> tuple[int, int]:
    """Parameters in all, and those that train."""
    sizes = [(p.numel(), p.requires_grad) for p in model.net.parameters()]
    return sum(n for n, _ in sizes), sum(n for n, trains in sizes if trains)
