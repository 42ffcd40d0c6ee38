"""Errors that the user can correct, and hints at what was probably meant."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from pathlib import Path


class UserError(Exception):
    """An error that the user can correct. Commands print it as one line and exit with status 2."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Returns `"; did you mean X?"` for the known word that is nearest, ignoring case, or an empty string."""
    by_lower = {name.lower(): name for name in reversed(list(known))}
    begun = [name for name in by_lower if len(word) > 2 and name.startswith(word.lower())]
    near = difflib.get_close_matches(word.lower(), by_lower, n=1) or (begun if len(begun) == 1 else [])
    return f"; did you mean {by_lower[near[0]]}?" if near else ""


def did_you_mean_path(path: str | Path) -> str:
    """Returns the same hint for a path, from the names in its folder."""
    path = Path(path)
    try:
        names = [entry.name for entry in os.scandir(path.parent) if entry.name != path.name]
    except OSError:
        return ""
    # an equal ending does not make names similar
    by_stem = {name.removesuffix(path.suffix): name for name in names if name.endswith(path.suffix)}
    near = difflib.get_close_matches(path.stem, by_stem, n=1)
    return f"; did you mean {path.parent / by_stem[near[0]]}?" if near else ""


def choose(flag: str, name: str, table: Iterable[str]) -> str:
    """Returns the name if the table has it; raises UserError, which lists the names that it has, if not."""
    if name not in table:
        known = f"{', '.join(table)}{did_you_mean(name, table)}"
        raise UserError(f"{flag.replace('--', '')} {name!r} is unknown; choose from {known}")
    return name


class WriteError(UserError):
    """An obstacle outside the tool, such as a full disk; once it is removed, the work can be continued."""
