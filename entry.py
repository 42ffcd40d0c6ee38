"""How a command ends: what the user can mend as one line, a signal as its status."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import ranks
import stop
from console import painted, unheard
from utils import UserError, is_main


def say_error(text: str) -> None:
    """The one line on stderr that a mistake ends with, from one process of the run."""
    if not ranks.is_told_elsewhere():
        sys.stderr.write(f"{painted('error:', 'red', sys.stderr)} {' '.join(text.split())}\n")


def run_main(main: Callable[[list[str] | None], int], argv: list[str] | None = None) -> None:
    """Runs an entry point and turns what the user can mend into one line and exit status 2, a signal into 128 + it."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a console without Korean letters is no reason to stop
            stream.reconfigure(errors="backslashreplace")
    if not is_main():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    with unheard(), stop.handled():
        try:
            status = main(argv)
        except (UserError, RuntimeError, MemoryError, stop.Stopped) as error:
            stop.end_workers()
            status = _told(error)
            if status is None:
                raise
    if ranks.has_ended():  # threads of the group that are left make the interpreter abort now and then at its end
        stop.end_workers()
        os._exit(status)
    raise SystemExit(status)


def _told(error: BaseException) -> int | None:
    """Tells in one line what ended a command; its exit status, None where the fault is the tool's own."""
    if isinstance(error, stop.Stopped):
        if is_main():
            sys.stderr.write(f"stopped{error.hint}\n")
        return error.status
    if reason := str(error) if isinstance(error, UserError) else stop.reason_of(error):
        say_error(reason)
        return 2
    if ranks.is_lost(error):
        stop.exit_if_asked()
        say_error("another process of this run is gone")
        return 1
    return None
