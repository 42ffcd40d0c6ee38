"""Turns a folder of photos into an image classifier by transfer learning."""

import importlib
from typing import Any

# Imported on first use: torch takes seconds.
_MODULES = {"Predictor": "prediction.predictor", "Prediction": "prediction.results", "UserError": "runtime.errors"}
__all__ = [*_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
