"""The console: lines, warnings, colours, progress bars, and pipes that nobody reads any more."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterable, Iterator
from typing import IO, TYPE_CHECKING, Any

from photo_classifier.runtime import peers
from photo_classifier.runtime.launcher import is_main

if TYPE_CHECKING:
    from tqdm import tqdm


class PipeSafeStream:
    """stdout or stderr that discards text once its reader has gone, as after `| head` or a closed pager."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Writes the text, or discards it when the reader has gone."""
        try:
            return self._stream.write(text)
        except OSError as error:
            self._discard(error)
            return len(text)

    def flush(self) -> None:
        """Sends what was written."""
        try:
            self._stream.flush()
        except OSError as error:
            self._discard(error)

    def _discard(self, error: OSError) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())  # also for what is still in the buffer
        os.close(nowhere)
        if not isinstance(error, BrokenPipeError):  # a full disk, for example
            warn(f"cannot print to the console ({error.strerror}); the work continues without it")


@contextlib.contextmanager
def ignore_closed_pipes() -> Iterator[None]:
    """Lets the work inside continue when the readers of stdout or stderr have gone."""
    before = sys.stdout, sys.stderr
    streams = [PipeSafeStream(stream) for stream in before]
    sys.stdout, sys.stderr = streams
    try:
        yield
    finally:
        for stream in streams:
            stream.flush()
        sys.stdout, sys.stderr = before


COLOURS = {"red": 31, "green": 32, "yellow": 33, "bold": 1}


def coloured(text: str, colour: str, stream: IO[str] | None = None) -> str:
    """Returns the text in a colour if the stream (stdout) is a terminal and NO_COLOR is unset; see no-color.org."""
    stream = stream or sys.stdout
    if not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return text
    return f"\033[{COLOURS[colour]}m{text}\033[0m"


def warn(text: str) -> None:
    """Prints a line on stderr, at every verbosity."""
    if is_main():
        sys.stderr.write(f"{coloured('warning:', 'yellow', sys.stderr)} {text}\n")


_verbosity = 1


def set_verbosity(level: int) -> None:
    """Sets how much `say` prints: 0 only results (and no progress bars), 1 also what is done, 2 also details."""
    global _verbosity
    _verbosity = level


def say(text: object, level: int = 1) -> None:
    """Prints a line on the main process if the verbosity is at least `level`."""
    if is_main() and level <= _verbosity:
        print(text, flush=True)


def say_loading(first: str = "") -> None:
    """Says that PyTorch is loaded, which takes seconds; nothing where that is done.

    Args:
        first: what else is done before the next line.
    """
    if "torch" not in sys.modules:
        say(f"{first}loading PyTorch ...")


@contextlib.contextmanager
def hide_library_output() -> Iterator[None]:
    """Hides what libraries print, log and warn of inside the block; our own lines as well."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


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
    """Returns a progress bar on stderr, shown in terminals, on the main process, at verbosity 1 and above."""
    from tqdm import tqdm

    is_hidden = None if is_main() and _verbosity > 0 else True
    return tqdm(items, disable=is_hidden, leave=False, dynamic_ncols=True, **options)


def print_error(text: str) -> None:
    """Prints the one line on stderr that an error ends with, from a single process of the run."""
    if not peers.is_reported_elsewhere():
        sys.stderr.write(f"{coloured('error:', 'red', sys.stderr)} {' '.join(text.split())}\n")
