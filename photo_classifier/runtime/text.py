"""Numbers, names and commands as messages show them."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence


def escape_surrogates(name: str) -> str:
    """Returns a name that can be printed: bytes that are not valid Unicode become backslash escapes."""
    return name.encode("utf-8", "backslashreplace").decode()


def pluralize(n: int, noun: str) -> str:
    """Returns a count with its noun: `1 image`, `2 images`."""
    return f"{n:,} {noun}{'s' * (n != 1)}"


def first_few(names: Sequence[str]) -> str:
    """Returns the first three names and the number of the others: `a, b, c and 4 more`."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def shell_command(*words: object) -> str:
    """Returns words as one types them into this system's shell, quoted where necessary."""
    texts = [str(word) for word in words]
    return subprocess.list2cmdline(texts) if sys.platform == "win32" else shlex.join(texts)
