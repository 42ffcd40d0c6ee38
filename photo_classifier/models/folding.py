"""Folds batch norm into convolutions."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from photo_classifier.models.classifier import Classifier

FOLD_TOLERANCE = 1e-3  # of the largest logit: folding rounds, a wrong pair is off by far more


def find_pairs(model: Classifier) -> list[tuple[str, str]]:
    """Convolutions and the batch norms that really take their output, by running the model once.

    The order in which a model names its layers is not the order in which it runs them, and not every
    model can be traced; what runs is seen by hooks.
    """
    made_by: dict[int, tuple[str, torch.Tensor]] = {}
    runs: dict[str, int] = {}
    pairs: list[tuple[str, str]] = []

    def after_conv(name):
        def hook(_module, _inputs, output):
            runs[name] = runs.get(name, 0) + 1
            made_by[id(output)] = (name, output)  # the tensor is kept, or its id could be used again

        return hook

    def before_norm(name):
        def hook(_module, inputs):
            runs[name] = runs.get(name, 0) + 1
            if id(inputs[0]) in made_by:
                pairs.append((made_by[id(inputs[0])][0], name))

        return hook

    handles = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(after_conv(name)))
        elif isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            handles.append(module.register_forward_pre_hook(before_norm(name)))
    try:
        with torch.no_grad():
            model(model.example_image())
    finally:
        for handle in handles:
            handle.remove()
    return [(conv, norm) for conv, norm in pairs if runs[conv] == runs[norm] == 1]


@contextlib.contextmanager
def _exact_fp32() -> Iterator[None]:
    """Inside, GPUs compute fp32 as such: TF32, their default in convolutions, rounds by more than a wrong pair may."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def _with_random_statistics(model: Classifier) -> Classifier:
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            shape = module.running_mean.shape
            draws = torch.rand(4, *shape, generator=generator).to(module.running_mean)
            module.running_mean.copy_(draws[0] - 0.5)
            module.running_var.copy_(draws[1] + 0.5)
            if module.affine:
                module.weight.data.copy_(draws[2] + 0.5)
                module.bias.data.copy_(draws[3] - 0.5)
    return model


def fold(model: Classifier, pairs: list[tuple[str, str]]) -> Classifier:
    """Folds each batch norm into its convolution, in place; Jacob et al. 2018, section 3.2."""
    for conv_name, norm_name in pairs:
        conv, norm = model.get_submodule(conv_name), model.get_submodule(norm_name)
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        parent, _, child = norm_name.rpartition(".")
        # timm's batch norm holds the activation too, and that must survive
        rest = [part for part in (getattr(norm, "drop", None), getattr(norm, "act", None)) if part is not None]
        setattr(model.get_submodule(parent), child, nn.Sequential(*rest) if rest else nn.Identity())
    return model.to(memory_format=torch.channels_last)
