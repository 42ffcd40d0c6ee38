"""Hashes of a network's weights and layers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import nn


def everything(_name: str) -> bool:
    """Returns True: every module takes part."""
    return True


def hash_tensors(net: nn.Module, takes_part: Callable[[str], bool] = everything) -> str:
    """Hashes names, shapes and values of the tensors of the modules that take part, by their names."""
    digest = hashlib.sha256()
    for name, tensor in net.state_dict().items():
        if takes_part(name.rpartition(".")[0]):
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def list_layers(net: nn.Module, takes_part: Callable[[str], bool] = everything) -> list[tuple[str, ...]]:
    """Lists what defines the layers: networks can have the same weights and differ in padding or activation."""
    return [
        (name, type(module).__qualname__, module.extra_repr(), _plain_attributes(module))
        for name, module in net.named_modules()
        if takes_part(name)
    ]


def _plain_attributes(module: nn.Module) -> str:
    plain = (bool, int, float, str, tuple)
    own = {name: value for name, value in vars(module).items() if isinstance(value, plain)}
    return repr(sorted((name, value) for name, value in own.items() if name != "training"))
