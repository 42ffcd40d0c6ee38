"""The console: outlets that may close, colours, warnings and progress bars."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from typing import IO, TYPE_CHECKING, Any

from photo_classifier.runtime import distributed
from photo_classifier.runtime.launcher import is_main

if TYPE_CHECKING:
    from tqdm import tqdm


class PipeSafeStream:
    """stdout or stderr that goes nowhere once nobody takes it any more: behind `| head`, or a pager that was closed."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes, or pretends to."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._let_go(error)
            return len(text)

    def flush(self) -> None:
        """Sends what was written."""
        try:
            self._stream.flush()
        except OSError as error:
            self._let_go(error)

    def _let_go(self, error: OSError) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())  # also for what still waits to be sent
        os.close(nowhere)
        if not isinstance(error, BrokenPipeError):  # a full disk, for example
            warn(f"the console's lines cannot be written ({error.strerror}); the work goes on without them")


@contextlib.contextmanager
def ignore_closed_pipes() -> Iterator[None]:
    """Inside, the work goes on when nobody takes what stdout or stderr say any more."""
    before = sys.stdout, sys.stderr
    outlets = [PipeSafeStream(stream) for stream in before]
    sys.stdout, sys.stderr = outlets
    try:
        yield
    finally:
        for outlet in outlets:
            outlet.flush()
        sys.stdout, sys.stderr = before


COLOURS = {"red": 31, "green": 32, "yellow": 33, "bold": 1}


def coloured(text: str, colour: str, stream: IO[str] | None = None) -> str:
    """The text in a colour where the stream (stdout) is a terminal and NO_COLOR is not set; see no-color.org."""
    stream = stream or sys.stdout
    if not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\033[{COLOURS[colour]}m{text}\033[0m"


def warn(text: str) -> None:
    """A line on stderr that `--verbose 0` does not hide."""
    if is_main():
        sys.stderr.write(f"{coloured('warning:', 'yellow', sys.stderr)} {text}\n")


_verbosity = 1


def set_verbosity(level: int) -> None:
    """Sets how much `say` prints: 0 results alone, 1 also what is done, 2 also details; 0 hides progress bars."""
    global _verbosity
    _verbosity = level


def say(text: object, level: int = 1) -> None:
    """Prints a line on the main process if the verbosity is at least `level`."""
    if is_main() and level <= _verbosity:
        print(text, flush=True)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides lines, results and progress bars inside the block; warnings are still shown."""
    before = _verbosity
    set_verbosity(-1)
    try:
        yield
    finally:
        set_verbosity(before)


def progress(items: Iterable | None = None, **options: Any) -> tqdm:
    """A progress bar on stderr; none where that is not wanted or no terminal, or another process has one."""
    from tqdm import tqdm

    is_hidden = None if is_main() and _verbosity > 0 else True
    return tqdm(items, disable=is_hidden, leave=False, dynamic_ncols=True, **options)


def print_error(text: str) -> None:
    """The one line on stderr that a mistake ends with, from one process of the run."""
    if not distributed.is_reported_elsewhere():
        sys.stderr.write(f"{coloured('error:', 'red', sys.stderr)} {' '.join(text.split())}\n")
