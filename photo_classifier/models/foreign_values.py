"""Plain values that training scripts of others save beside the weights, read without running code.

Arguments, numpy's scalars, paths and default dicts: what PyTorch's own reader refuses is made here from its parts.
"""

from __future__ import annotations

import argparse
import re
from pathlib import PurePosixPath

import numpy as np
from torch.serialization import safe_globals

PLAIN = re.compile(r"[biufc]\d{1,2}|[US]\d{1,9}")  # numpy's codes of plain numbers and texts, such as f8 and U5


class _Dtype:
    """Stands for `numpy.dtype`, which takes its byte order from the state."""

    def __init__(self, code: str, *_flags: bool) -> None:
        self.code, self.order = code, "<"

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1] if state[1] in ("<", ">") else "="


def _scalar(dtype: _Dtype, data: bytes) -> bool | int | float | complex | str | bytes:
    """Returns a scalar of numpy as Python's; raises ValueError for others than numbers and texts."""
    if not PLAIN.fullmatch(dtype.code):
        raise ValueError(f"numpy's {dtype.code} is neither a number nor a text")
    if dtype.code in ("U0", "S0"):
        return "" if dtype.code == "U0" else b""
    return np.frombuffer(data, dtype.order + dtype.code, count=1)[0].item()


def _path(*parts: str) -> str:
    """Returns a path as text, as those of another system cannot be made here."""
    return str(PurePosixPath(*parts))


def _dict(_factory: object = None) -> dict:
    return {}


def _no_bytes() -> bytes:
    return b""


def _no_factory() -> None:
    """Stands for the types that fill default dicts; they are never called."""


STAND_INS = {
    "argparse.Namespace": argparse.Namespace,
    "collections.defaultdict": _dict,
    "builtins.bytes": _no_bytes,  # how pickle writes those of an empty text
    **{f"builtins.{name}": _no_factory for name in ("bool", "dict", "float", "int", "list", "str", "tuple")},
    **{
        f"{module}.{name}": _path
        for module in ("pathlib", "pathlib._local")  # the second in Python 3.13
        for name in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    },
    "numpy.dtype": _Dtype,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,  # since numpy 2
}


def allowed() -> safe_globals:
    """Returns a context in which `torch.load(weights_only=True)` takes these values too, and nothing else."""
    return safe_globals([(stand_in, name) for name, stand_in in STAND_INS.items()])
