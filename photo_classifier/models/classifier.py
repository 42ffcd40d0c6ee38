"""A backbone with a new head."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable

import torch
from torch import nn

from photo_classifier.data.preprocess import Preprocess
from photo_classifier.models.heads import HeadModule

# What networks raise when they are asked for something they cannot do; each library has its own way.
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
        _train_narrow_convolutions_unstrided(net)
        for name, values in (("_mean", preprocess.mean), ("_std", preprocess.std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1) * 255, persistent=False)

    @property
    def head(self) -> nn.Module:
        """The last layer, which was replaced."""
        return self.net.get_submodule(self.head_name)

    def parameters_by_part(self) -> dict[str, list[nn.Parameter]]:
        """Returns the parameters of `backbone` and `head`, in order."""
        head = list(self.head.parameters())
        ids = {id(p) for p in head}
        return {"backbone": [p for p in self.net.parameters() if id(p) not in ids], "head": head}

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """Scales images, uint8 (n, 3, h, w), as the weights expect them: fp32."""
        return (images.float() - self._mean) / self._std

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Computes logits, fp32 (n, classes), from images, uint8 (n, 3, size, size)."""
        return self.net(self.normalize(images)).float()

    def example_image(self, size: int | None = None) -> torch.Tensor:
        """Returns a grey image, uint8 (1, 3, size, size) on the model's device, to try the network with."""
        size = size or self.preprocess.image_size
        return torch.full((1, 3, size, size), 128, dtype=torch.uint8, device=self._mean.device)

    def features(self, images: torch.Tensor, behind: str | None = None) -> torch.Tensor:
        """Computes the input of the head, (n, ...), from images, uint8 (n, 3, size, size); stops there.

        Args:
            behind: the name of a module whose output is computed instead.
        """
        features: list[torch.Tensor] = []

        def stop(_module: nn.Module, inputs: tuple[torch.Tensor], *output: torch.Tensor) -> None:
            features.append(output[0] if behind else inputs[0])
            raise _Reached

        module = self.net.get_submodule(behind) if behind else self.head
        register = module.register_forward_hook if behind else module.register_forward_pre_hook
        with register(stop), contextlib.suppress(_Reached):
            self.net(self.normalize(images))
        return features[0]

    def head_module(self) -> HeadModule | None:
        """Returns the head and what follows it, sharing their weights, or None if this cannot be determined.

        What follows is taken to be the rest of the sequence that holds the head, and is checked by computing.
        """
        parent, _, child = self.head_name.rpartition(".")
        siblings = self.net.get_submodule(parent)
        names = [name for name, _ in siblings.named_children()]
        rest = list(siblings)[names.index(child) + 1 :] if isinstance(siblings, nn.Sequential) else []
        module = HeadModule(self.head, nn.Sequential(*rest, nn.Flatten(1)))
        image, was_training = self.example_image(), self.training
        self.eval()
        with torch.no_grad():
            expected, actual = self(image), module(self.features(image))
        self.train(was_training)
        return module if actual.shape == expected.shape and torch.allclose(actual, expected, atol=1e-4) else None

    def train(self, mode: bool = True) -> Classifier:
        """Sets training mode, except for frozen modules, which stay in eval mode."""
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self


class _Reached(Exception):
    """Ends a forward pass where its features are known."""


def is_wholly_frozen(model: Classifier) -> bool:
    """Returns whether nothing but the head trains or changes, so that the backbone is a function."""
    return all(f"{name}.".startswith(f"{model.head_name}.") for name in moving_modules(model))


def moving_modules(model: Classifier) -> list[str]:
    """Returns the names of modules whose own parameters train, or that act differently in training mode."""
    was_training = model.training
    model.train()
    names = [
        name
        for name, module in model.net.named_modules()
        if any(p.requires_grad for p in module.parameters(recurse=False))
        or (module.training and _acts_in_training(module) and not list(module.children()))
    ]
    model.train(was_training)
    return names


def has_batch_norm(model: nn.Module) -> bool:
    """Returns whether a network has batch norm, frozen or not."""
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def count_parameters(model: Classifier) -> tuple[int, int]:
    """Returns the number of all parameters and of those that train."""
    sizes = [(p.numel(), p.requires_grad) for p in model.net.parameters()]
    return sum(n for n, _ in sizes), sum(n for n, trains in sizes if trains)


def _acts_in_training(module: nn.Module) -> bool:
    """Returns whether a layer behaves differently in training mode: it keeps statistics or draws random numbers."""
    return isinstance(module, nn.modules.batchnorm._NormBase) or "drop" in type(module).__name__.lower()


def _train_depthwise_in_fp32(net: nn.Module) -> None:
    """Makes depthwise convolutions train in fp32 on the CPU: their backward pass takes four times as long in bf16."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
            module.forward = functools.partial(_forward_in_fp32, module, type(module).forward)


def _forward_in_fp32(module: nn.Module, forward: Callable, inputs: torch.Tensor) -> torch.Tensor:
    if not module.training or inputs.device.type != "cpu":
        return forward(module, inputs)
    with torch.autocast("cpu", enabled=False):
        return forward(module, inputs.float())


NARROW = 16  # channels in one block of oneDNN's widest code; its fault is in blocks of 8


def _train_narrow_convolutions_unstrided(net: nn.Module) -> None:
    """Makes 1x1 convolutions of few channels train without their stride on the CPU.

    oneDNN's code for AVX2 computes the gradient of their weights past the end of its workspace if the memory is
    channels-last: the process crashes or, with several threads, learns from wrong gradients (oneDNN issue 6035).
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and _is_narrow_and_strided(module):
            module.forward = functools.partial(_forward_unstrided, module, type(module).forward)


def _is_narrow_and_strided(conv: nn.Conv2d) -> bool:
    is_pointwise = conv.kernel_size == (1, 1) and conv.padding in ((0, 0), "valid")
    return is_pointwise and conv.stride != (1, 1) and conv.groups == 1 and conv.in_channels < NARROW


def _forward_unstrided(module: nn.Conv2d, forward: Callable, inputs: torch.Tensor) -> torch.Tensor:
    """Computes the same from the pixels that the stride leaves."""
    if inputs.device.type != "cpu" or not torch.is_grad_enabled():
        return forward(module, inputs)
    unstrided = copy.copy(module)  # shares the parameters
    unstrided.stride = (1, 1)
    down, across = module.stride
    return forward(unstrided, inputs[..., ::down, ::across])
