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
        except UserError as error:
            stop.end_workers()
            say_error(str(error))
            status = 2
        except (RuntimeError, MemoryError) as error:
            if reason := stop.reason_of(error):
                stop.end_workers()
                say_error(reason)
                status = 2
            elif not ranks.is_lost(error):
                raise
            else:
                stop.end_workers()
                stop.exit_if_asked()
                say_error("another process of this run is gone")
                status = 1
        except stop.Stopped as stopped:
            stop.end_workers()
            if is_main():
                sys.stderr.write(f"stopped{stopped.hint}\n")
            status = stopped.status
    if ranks.has_ended():  # threads of the group that are left make the interpreter abort now and then at its end
        stop.end_workers()
        os._exit(status)
    raise SystemExit(status)
