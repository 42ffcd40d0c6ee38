"""Turns a folder of photos into an image classifier by transfer learning."""

from typing import Any

_EXPORTS = {
    "Predictor": "photo_classifier.prediction.predictor",
    "Prediction": "photo_classifier.prediction.results",
    "UserError": "photo_classifier.runtime.errors",
}
__all__ = ["Prediction", "Predictor", "UserError"]


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used, so that importing the package does not import torch."""
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_EXPORTS[name]), name)
