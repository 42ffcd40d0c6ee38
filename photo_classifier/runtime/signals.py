"""Signals: a run ends between two steps when asked to, and no worker process outlives it."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from multiprocessing import connection
from multiprocessing.queues import Queue

from photo_classifier.runtime.launcher import is_main

# SIGBREAK is Windows' Ctrl-Break; SIGHUP comes when the terminal is closed
NAMES = ("SIGINT", "SIGTERM", "SIGBREAK", "SIGHUP")
SIGNALS = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
PR_SET_PDEATHSIG = 1  # of Linux's prctl
STEP_SECONDS = 30.0  # how long a stop waits for the end of a step, which may never come
HANDLER_SECONDS = 3.0  # how long a handler of Python may take to run, once a stop has waited


class Stopped(BaseException):
    """A signal asked the process to end. Not an `Exception`, so that no handler mistakes it for an error.

    `hint` says how to continue what was stopped.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.status = 130 if signum == getattr(signal, "SIGBREAK", None) else 128 + signum
        self.hint = ""


class _SignalState:
    """The state of the signal handlers, one for the whole process."""

    signum: int | None = None
    is_deferred = False
    pid: int | None = None
    handled_at = 0.0  # when a handler ran last


@contextlib.contextmanager
def handle_signals() -> Iterator[None]:
    """Turns the first signal into `Stopped`; the second ends the process at once."""
    if threading.current_thread() is not threading.main_thread():  # Python allows handlers there only
        yield
        return
    _SignalState.signum, _SignalState.is_deferred, _SignalState.pid = None, False, os.getpid()
    # nohup ignores SIGHUP, and that must stay so
    wanted = [s for s in SIGNALS if signal.getsignal(s) != signal.SIG_IGN or s in (signal.SIGINT, signal.SIGTERM)]
    before = {s: signal.signal(s, _on_signal) for s in wanted}
    if CAN_WAKE:
        before[signal.SIGALRM] = signal.signal(signal.SIGALRM, _on_overdue)
    try:
        with _watched():
            yield
    finally:
        _wake_after(0)
        for s, handler in before.items():
            signal.signal(s, handler if handler is not None else signal.SIG_DFL)


def _on_signal(signum: int, _frame: object) -> None:
    if os.getpid() != _SignalState.pid:  # a worker that is being started; its parent decides
        return
    _SignalState.handled_at = time.monotonic()
    if _SignalState.signum is not None:
        end_workers()
        os._exit(Stopped(signum).status)
    _SignalState.signum = signum
    if not _SignalState.is_deferred:
        raise Stopped(signum)
    _wake_after(STEP_SECONDS)
    if not is_main():
        return
    with contextlib.suppress(OSError):  # not sys.stderr, which the signal may have interrupted
        os.write(2, b"stopping after this step; press Ctrl-C again to stop at once\n")


CAN_WAKE = hasattr(signal, "setitimer")  # not on Windows


def _wake_after(seconds: float) -> None:
    """Makes `_on_overdue` run after that time; 0 for never."""
    if CAN_WAKE:
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _on_overdue(_signum: int, _frame: object) -> None:
    _SignalState.handled_at = time.monotonic()
    if os.getpid() == _SignalState.pid and _SignalState.is_deferred:
        with contextlib.suppress(OSError):
            os.write(2, b"the step does not end; stopping without it\n")
        raise_stopped()


@contextlib.contextmanager
def _watched() -> Iterator[None]:
    """Ends the process after a signal if no handler runs: Python's wait while the main thread is in a library."""
    if not CAN_WAKE:
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(RuntimeError):  # no more threads can be started
        threading.Thread(target=_watch, args=(reader,), daemon=True).start()
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writer)


def _watch(reader: int) -> None:
    """Reads which signals come, until the other end of the pipe is closed."""
    deadline, came_at, signum = None, 0.0, 0
    while True:
        if connection.wait([reader], None if deadline is None else max(0.0, deadline - time.monotonic())):
            byte = os.read(reader, 1)
            if not byte:
                os.close(reader)
                return
            if byte[0] in SIGNALS or byte[0] == signal.SIGALRM:
                is_first, came_at = not signum, time.monotonic()
                deadline = came_at + (STEP_SECONDS if is_first else 0) + HANDLER_SECONDS
                signum = signum or byte[0]
        elif _SignalState.handled_at < came_at - 1:  # handlers and this thread run in any order
            with contextlib.suppress(OSError):
                os.write(2, b"the step does not end; stopping without it; what was saved is kept\n")
            end_workers()
            os._exit(Stopped(signum).status)
        else:
            deadline = None


@contextlib.contextmanager
def defer_signals() -> Iterator[None]:
    """Holds signals back until `raise_if_requested` or the end of the block."""
    _SignalState.is_deferred = True
    try:
        yield
    finally:
        _SignalState.is_deferred = False
    raise_if_requested()


def stop_requested() -> bool:
    """Returns whether a signal came; called at the end of a step, which a stop no longer waits for."""
    if _SignalState.signum is None:
        return False
    _wake_after(0)
    return True


def exit_if_requested() -> None:
    """Ends the process as after a signal, if one came."""
    if _SignalState.signum is not None:
        raise SystemExit(Stopped(_SignalState.signum).status)


def raise_stopped() -> None:
    """Raises `Stopped`, also where the signal came to another process of the run."""
    raise Stopped(_SignalState.signum or signal.SIGTERM)


def raise_if_requested() -> None:
    """Raises `Stopped` if a signal came."""
    if stop_requested():
        raise Stopped(_SignalState.signum)


def init_worker(_worker_id: int = 0) -> None:
    """Prepares a worker process: it leaves signals to its parent and dies with it.

    Ctrl-C, and SIGTERM on many clusters, go to all processes of a job. A worker that obeyed them would
    spoil the step that its parent wants to finish.
    """
    if CAN_WAKE:
        signal.set_wakeup_fd(-1)  # that of the parent
    for s in SIGNALS:
        signal.signal(s, signal.SIG_IGN)
    if sys.platform == "linux":  # elsewhere torch's watchdog checks the parent every 5 s
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if _SignalState.pid and os.getppid() != _SignalState.pid:  # it died before the call
            os._exit(1)
    Queue._on_queue_feeder_error = _send_feeder_error


def _send_feeder_error(queue: Queue, error: Exception, item: tuple[int, object]) -> None:
    """Sends an error in place of a batch that could not be sent: printed, it would leave the parent waiting for ever.

    Called in the thread of a worker's queue, while the error is handled.
    """
    from torch._utils import ExceptionWrapper

    if not isinstance(item, tuple):  # the connection is lost, and nothing can be sent any more
        os._exit(1)
    queue.put((item[0], ExceptionWrapper(where="in DataLoader worker process")))


def end_workers_at_exit() -> None:
    """Ends workers at exit: multiprocessing would wait for them after sending a signal that they ignore.

    torch ends them itself only if their iterator is gone by then or pins memory.
    """
    atexit.unregister(end_workers)
    atexit.register(end_workers)


def end_workers() -> None:
    """Ends the worker processes of this one without waiting for their work."""
    is_main = threading.current_thread() is threading.main_thread()
    # torch's handler would raise an error for each of them
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if is_main and hasattr(signal, "SIGCHLD") else None
    workers = [child for child in multiprocessing.active_children() if child.daemon]
    for worker in workers:
        with contextlib.suppress(OSError):
            worker.kill()
    for worker in workers:
        worker.join(1)
    if handler is not None:
        signal.signal(signal.SIGCHLD, handler)
