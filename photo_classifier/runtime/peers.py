"""Errors of one process among several, and the end of their launcher."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
import time

from photo_classifier.runtime import launcher, signals

LAUNCHER_SECONDS = 10.0  # when a process fails, the launcher ends the others within this time
PARENT_SECONDS = 1.0  # between two checks that the launcher is alive
GRACE_SECONDS = 30.0  # the launcher's own wait between SIGTERM and SIGKILL
WATCHER = "launcher watcher"
LOST = re.compile(r"\bgloo\b|\bnccl\b|connection (closed|reset|refused)|broken pipe|socket", re.IGNORECASE)


def watch_launcher() -> None:
    """Starts a thread, once, that stops this process as SIGTERM does when its launcher has ended."""
    if sys.platform == "win32" or any(thread.name == WATCHER for thread in threading.enumerate()):
        return  # on Windows the parent's id stays the same after its end
    parent = os.getppid()

    def watch() -> None:
        """Waits until the launcher has ended, stops this process, and ends it if that takes too long."""
        while os.getppid() == parent:
            time.sleep(PARENT_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_SECONDS)  # time to save; a hanging peer could block the process for longer
        signals.end_workers()
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, name=WATCHER, daemon=True).start()


def is_reported_elsewhere() -> bool:
    """Returns whether another process reports the error that ends this one.

    Most errors end every process. The main process reports them, and the launcher ends the others while they wait
    here. A process that the launcher does not end has an error of its own.
    """
    return not launcher.is_main() and _wait_for_stop(LAUNCHER_SECONDS)


def is_lost_peer(error: BaseException) -> bool:
    """Returns whether an error only means that another process has ended; waits for the launcher first."""
    if launcher.world_size() == 1 or not _is_network_error(error):
        return False
    _wait_for_stop(3 * LAUNCHER_SECONDS)  # the other process may itself be waiting to report its error
    return True


def _is_network_error(error: BaseException) -> bool:
    from torch.distributed import DistError

    # gloo raises plain RuntimeErrors
    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and bool(LOST.search(str(error))))


def _wait_for_stop(seconds: float) -> bool:
    """Returns whether a signal to stop came within that time."""
    end = time.monotonic() + seconds
    with contextlib.suppress(signals.Stopped):
        while not signals.stop_requested() and time.monotonic() < end:
            time.sleep(0.05)
    return signals.stop_requested()
