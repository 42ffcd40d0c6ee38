"""Numbers, names and commands as messages show them."""

from __future__ import annotations

import shlex
import subprocess
import sys


def escape_surrogates(name: str) -> str:
    """Returns a name that can be printed: bytes that are not valid Unicode become backslash escapes."""
    return name.encode("utf-8", "backslashreplace").decode()


def pluralize(n: int, noun: str) -> str:
    """Returns a count with its noun: `1 image`, `2 images`."""
    return f"{n:,} {noun}{'s' * (n != 1)}"


def shell_command(*words: object) -> str:
    """Returns words as one types them into this system's shell, quoted where necessary."""
    texts = [str(word) for word in words]
    return subprocess.list2cmdline(texts) if sys.platform == "win32" else shlex.join(texts)
