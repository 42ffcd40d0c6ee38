"""The tensors of a network: found in a file's content, checked against a network, loaded into it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from photo_classifier.runtime.errors import UserError
from photo_classifier.runtime.text import first_few

WEIGHT_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def state_dict_of(content: dict, path: str | Path) -> dict[str, torch.Tensor]:
    """Returns the tensors of a plain state_dict or of a checkpoint of this tool; raises UserError if it has none."""
    content = content["state_dict"] if isinstance(content.get("state_dict"), dict) else content
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and torch.is_tensor(value)}
    if not tensors:
        raise UserError(f"{path} holds no tensors; give a state_dict or a checkpoint of this tool")
    return tensors


def check_fit(own: Mapping[str, torch.Tensor], loaded: Mapping[str, torch.Tensor], path: str | Path) -> None:
    """Raises UserError if names, shapes or dtypes differ from the model's own, or a value is not finite."""
    common = [key for key in own if key in loaded]
    mistakes = {
        # older files lack the counter of batches, which nothing here reads
        "lacks": [key for key in own if key not in loaded and not key.endswith("num_batches_tracked")],
        "has the unexpected": [key for key in loaded if key not in own],
        "has another shape for": [key for key in common if own[key].shape != loaded[key].shape],
        "has the wrong type of numbers for": [k for k in common if not _is_compatible(loaded[k].dtype, own[k].dtype)],
    }
    for what, keys in mistakes.items():
        if keys:
            raise UserError(
                f"{path} does not fit the model: it {what} {first_few(keys)}; "
                "was it made with another --model_name or --image_size?"
            )
    # in fp32, as they are kept
    infinite = [key for key, value in loaded.items() if not value.float().isfinite().all()]
    if infinite:
        raise UserError(f"{path} has values that are not finite in {', '.join(infinite[:3])}; it cannot be used")


def load_into(net: nn.Module, tensors: Mapping[str, torch.Tensor], strict: bool = True) -> None:
    """Loads tensors, also into torchvision's networks that ask which version wrote them (MNASNet)."""
    versioned = OrderedDict(tensors)
    versioned._metadata = net.state_dict()._metadata  # a plain dict, as files have it, carries no versions
    net.load_state_dict(versioned, strict=strict)


def _is_compatible(dtype: torch.dtype, own: torch.dtype) -> bool:
    """Returns whether numbers of a file can replace those of the model."""
    return dtype == own or (dtype in WEIGHT_TYPES and own in WEIGHT_TYPES)
