"""torchvision, timm and torch's optimizers without torch's compiler, whose import takes as long as that of torch.

They ask for it only to mark what it has to leave alone, and nothing here is compiled.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from types import ModuleType

import torch

UTILS = "torch._dynamo.utils"  # what torchvision's detection takes a function from


class _Deferred(ModuleType):
    """Stands for the compiler's utilities until any of them is used."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):  # what the import system asks of every module
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)

    def is_compile_supported(self, device_type: str) -> bool:
        """Asks the compiler itself."""
        return self.__getattr__("is_compile_supported")(device_type)


@contextlib.contextmanager
def _without_compiler() -> Iterator[None]:
    if "torch._dynamo" in sys.modules:
        yield
        return
    disable, torch.compiler.disable = torch.compiler.disable, _leave
    deferred = sys.modules[UTILS] = _Deferred(UTILS)
    try:
        yield
    finally:
        torch.compiler.disable = disable
        if sys.modules.get(UTILS) is deferred:
            del sys.modules[UTILS]


def _leave(function: Callable | None = None, *_: object, **__: object) -> Callable:
    """Stands for `torch.compiler.disable`, with or without arguments."""
    return function or _leave


with _without_compiler():
    import torchvision
    from torchvision.transforms import v2


def import_timm() -> ModuleType:
    """Returns timm, which most runs do without."""
    with _without_compiler():
        import timm
        import timm.layers
    return timm


def uncompiled(kind: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """Returns one of torch's optimizers whose methods leave the compiler alone, and do the same otherwise."""
    names = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")
    plain = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    return type(kind.__name__, (kind,), {**plain, "step": torch.no_grad()(inspect.unwrap(kind.step))})


__all__ = ["import_timm", "torchvision", "uncompiled", "v2"]
