"""Folds batch norm into convolutions."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections import Counter

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from photo_classifier.models.classifier import REFUSALS, Classifier
from photo_classifier.runtime.device import exact_fp32
from photo_classifier.runtime.limits import resource_hint

FOLD_TOLERANCE = 1e-3  # of the largest logit: folding only rounds, while a wrong pair is off by far more


def find_pairs(model: Classifier) -> list[tuple[str, str]]:
    """Returns the names of convolutions and of the batch norms that take their output, by running the model once.

    Uses hooks, as neither the order of the layers nor a trace shows reliably what runs.
    """
    made_by: dict[int, tuple[str, torch.Tensor]] = {}
    runs: Counter[str] = Counter()
    pairs: list[tuple[str, str]] = []

    def after_conv(name: str, _module: nn.Module, _inputs: tuple, output: torch.Tensor) -> None:
        runs[name] += 1
        made_by[id(output)] = (name, output)  # keeps the tensor, or its id could be reused

    def before_norm(name: str, _module: nn.Module, inputs: tuple) -> None:
        runs[name] += 1
        if id(inputs[0]) in made_by:
            pairs.append((made_by[id(inputs[0])][0], name))

    with contextlib.ExitStack() as hooks, torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d):
                hooks.enter_context(module.register_forward_hook(functools.partial(after_conv, name)))
            elif _has_statistics(module):
                hooks.enter_context(module.register_forward_pre_hook(functools.partial(before_norm, name)))
        model(model.example_image())
    return [(conv, norm) for conv, norm in pairs if runs[conv] == runs[norm] == 1]


def fold(model: Classifier, pairs: list[tuple[str, str]]) -> Classifier:
    """Folds each batch norm into its convolution, in place; Jacob et al. 2018, section 3.2."""
    for conv_name, norm_name in pairs:
        conv, norm = model.get_submodule(conv_name), model.get_submodule(norm_name)
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        parent, _, child = norm_name.rpartition(".")
        # timm's batch norm includes the activation, which must be kept
        rest = [layer for layer in (getattr(norm, "drop", None), getattr(norm, "act", None)) if layer is not None]
        setattr(model.get_submodule(parent), child, nn.Sequential(*rest) if rest else nn.Identity())
    return model.to(memory_format=torch.channels_last)


def folds_correctly(model: Classifier, pairs: list[tuple[str, str]]) -> bool:
    """Returns whether the model computes the same after folding those pairs, tried on copies."""
    # With statistics as after training: those of a new network are nearly the identity and hide wrong pairs.
    plain = _with_random_statistics(copy.deepcopy(model))
    folded = fold(copy.deepcopy(plain), pairs)
    size = plain.preprocess.image_size
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=generator)
    images = images.to(next(plain.parameters()).device)
    with torch.inference_mode(), exact_fp32():
        expected = plain(images)
        try:
            actual = folded(images)
        except REFUSALS as error:  # the network reads its batch norm, which is gone
            if resource_hint(error):
                raise
            return False
    return bool((expected - actual).abs().max() <= FOLD_TOLERANCE * expected.abs().max().clamp(min=1.0))


def _has_statistics(module: nn.Module) -> bool:
    return isinstance(module, nn.BatchNorm2d) and module.running_mean is not None


def _with_random_statistics(model: Classifier) -> Classifier:
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if _has_statistics(module):
            shape = module.running_mean.shape
            draws = torch.rand(4, *shape, generator=generator).to(module.running_mean)
            module.running_mean.copy_(draws[0] - 0.5)
            module.running_var.copy_(draws[1] + 0.5)
            if module.affine:
                module.weight.data.copy_(draws[2] + 0.5)
                module.bias.data.copy_(draws[3] - 0.5)
    return model
