"""Numbers, names and commands as messages show them."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import unicodedata
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


def own_name(path: str) -> str:
    """Returns the name of a file or folder without those above it, also of `.` and `..`."""
    return os.path.basename(os.path.abspath(path)) or path


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


def aligned(rows: Sequence[Sequence[object]], left: Sequence[int] = (0,)) -> list[str]:
    """Returns rows of cells as lines with aligned columns, those of `left` to the left."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(width, column)) for column in zip(*texts, strict=True)]

    def padded(n: int, text: str) -> str:
        fill = " " * (widths[n] - width(text))
        return text + fill if n in left else fill + text

    return ["  ".join(padded(n, text) for n, text in enumerate(row)).rstrip() for row in texts]


def width(text: str) -> int:
    """Returns the columns that a text takes on a console: Korean and Chinese letters take two."""
    marks = sum(unicodedata.combining(c) > 0 for c in text)
    return len(text) - marks + sum(unicodedata.east_asian_width(c) in "WF" for c in text)
