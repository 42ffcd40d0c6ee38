"""Packages that only some uses need."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
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


def version_rows(*packages: str) -> list[tuple[str, str]]:
    """Returns this system, and the versions of Python and of installed packages, each with its name."""
    versions = [(name, importlib.metadata.version(name)) for name in packages]
    return [("system", platform.platform(terse=True)), ("python", platform.python_version()), *versions]
