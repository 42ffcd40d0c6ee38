"""Packages that only some uses need."""

from __future__ import annotations

import importlib
from types import ModuleType

from photo_classifier.runtime.errors import UserError


def require(module: str, user: str, install: str) -> ModuleType:
    """Imports a module.

    Args:
        user: what needs it, as the beginning of the message.
        install: what to give to `pip install`.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if not (error.name or "").startswith(module.partition(".")[0]):  # it is there, but broken
            raise
        raise UserError(f"{user} needs {module}, which is not installed; pip install {install}") from error
