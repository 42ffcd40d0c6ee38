"""Transformers at another image size: what they learnt of positions, interpolated as their library does it."""

from __future__ import annotations

import sys
from collections.abc import Mapping

import torch
from torch import nn

from photo_classifier.models.classifier import REFUSALS
from photo_classifier.runtime.limits import resource_hint


def fit_positions(net: nn.Module, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the tensors with those of positions in the shapes of the network, where its library can do that.

    torchvision's `interpolate_embeddings`, and timm's own filter for the checkpoints of each family.
    """
    own, tensors = net.state_dict(), dict(tensors)
    if all(own[name].shape == value.shape for name, value in tensors.items() if name in own):
        return tensors
    position = "encoder.pos_embedding"
    try:
        if position in tensors and hasattr(net, "image_size"):
            from torchvision.models.vision_transformer import interpolate_embeddings

            return dict(interpolate_embeddings(net.image_size, net.patch_size, tensors))
        convert = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
        converted = convert(dict(tensors), net) if convert and type(net).__module__.startswith("timm.") else tensors
    except (*REFUSALS, KeyError) as error:  # tensors of another network, whose shapes are reported next
        if resource_hint(error):
            raise
        return tensors
    return {name: value for name, value in converted.items() if name in own or name in tensors}
