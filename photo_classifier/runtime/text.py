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


def percent(share: float, digits: int = 1) -> str:
    """Returns a share as `88.8 %`, whole where nothing follows, and never 100 or 0 % where it is not quite that."""
    text = f"{100 * share:.{digits}f}"
    if float(text) in (0, 100) and share not in (0, 1):
        smallest = 10**-digits
        text = f"{100 - smallest if share > 0.5 else smallest:.{digits}f}"
        return f"{'over' if share > 0.5 else 'under'} {text} %"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text} %"


def certainty(probability: float | str) -> str:
    """Returns the probability of an answer as a whole percentage: `83 %`."""
    return percent(float(probability), 0)


def duration(seconds: float) -> str:
    """Returns a time in its two largest units: `2 h 5 min`, `3 min 20 s`, `9 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
