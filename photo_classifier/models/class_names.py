"""Reads the class names that the user gives for a plain state_dict."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from photo_classifier.runtime.errors import UserError


def read_class_names(words: Sequence[str]) -> list[str]:
    """Returns class names as given on the command line, or as the lines of a text file.

    Raises:
        UserError: the file cannot be read, a name is repeated, or there are fewer than two.
    """
    names = list(words)
    if len(words) == 1:
        if not os.path.isfile(words[0]):
            raise UserError(f"--class_names {words[0]}: give two or more names, or a text file with one name per line")
        try:
            text = Path(words[0]).read_text(encoding="utf-8-sig")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise UserError(f"--class_names {words[0]} cannot be read: {reason}") from error
        names = [line.strip() for line in text.splitlines() if line.strip()]
    if len(names) < 2 or len(set(names)) < len(names):
        raise UserError(f"--class_names: {len(names)} names, {len(set(names))} different; give two or more, each once")
    return names
