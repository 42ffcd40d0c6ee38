"""How numbers, names and commands are written in messages."""

from __future__ import annotations

import shlex
import subprocess
import sys


def escape_surrogates(name: str) -> str:
    """A name as it is written: one that is no valid Unicode on this system is no reason to stop."""
    return name.encode("utf-8", "backslashreplace").decode()


def pluralize(n: int, noun: str) -> str:
    """`1 image`, `2 images`."""
    return f"{n:,} {noun}{'s' * (n != 1)}"


def shell_command(*words: object) -> str:
    """Words as they are typed into the shell of this system, with quotes where they need them."""
    texts = [str(word) for word in words]
    return subprocess.list2cmdline(texts) if sys.platform == "win32" else shlex.join(texts)
