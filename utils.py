"""How a command ends: what the user can mend as one line, a signal as its status."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from photo_classifier.runtime import device as devices
from photo_classifier.runtime import distributed, signals
from photo_classifier.runtime.console import ignore_closed_pipes, print_error
from photo_classifier.runtime.errors import UserError
from photo_classifier.runtime.launcher import is_main, local_world_size
from photo_classifier.runtime.text import pluralize

if TYPE_CHECKING:  # torch takes seconds to import
    import torch


def device_from_gpu_id(gpu_id: int | None) -> torch.device:
    """Returns the device that --gpu_id names: -1 is the CPU, None is automatic.

    Raises:
        UserError: this machine has no such device; the message lists those that it has.
    """
    gpus, n_here = devices.available_gpus(), local_world_size()
    if n_here > 1 and gpu_id not in (None, -1):
        raise UserError(
            f"--gpu_id {gpu_id} is one device for {n_here} processes; leave it out, and choose GPUs for the launcher "
            "with CUDA_VISIBLE_DEVICES"
        )
    if gpu_id is None and gpus and n_here > len(gpus):
        raise UserError(
            f"the launcher started {n_here} processes on a machine of {pluralize(len(gpus), 'GPU')}; give "
            f"--nproc_per_node {len(gpus)}, or --gpu_id -1 for the CPU"
        )
    if gpu_id not in (None, -1) and gpu_id >= len(gpus):
        there = "".join(f", {i} ({gpu})" for i, gpu in enumerate(gpus))
        raise UserError(f"--gpu_id {gpu_id} is not on this machine; it has -1 (the CPU){there}: give that, or none")
    return devices.choose_device(None if gpu_id is None else "cpu" if gpu_id == -1 else gpus[gpu_id])


def run_main(main: Callable[[list[str] | None], int], argv: list[str] | None = None) -> None:
    """Runs an entry point and turns what the user can mend into one line and exit status 2, a signal into 128 + it."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a console without Korean letters is no reason to stop
            stream.reconfigure(errors="backslashreplace")
    if not is_main():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    with ignore_closed_pipes(), signals.handle_signals():
        try:
            status = main(argv)
        except (UserError, RuntimeError, MemoryError, signals.Stopped) as error:
            signals.end_workers()
            status = _told(error)
            if status is None:
                raise
    if (
        distributed.group_has_ended()
    ):  # threads of the group that are left make the interpreter abort now and then at its end
        signals.end_workers()
        os._exit(status)
    raise SystemExit(status)


def _told(error: BaseException) -> int | None:
    """Tells in one line what ended a command; its exit status, None where the fault is the tool's own."""
    if isinstance(error, signals.Stopped):
        if is_main():
            sys.stderr.write(f"stopped{error.hint}\n")
        return error.status
    if reason := str(error) if isinstance(error, UserError) else signals.resource_hint(error):
        print_error(reason)
        return 2
    if distributed.is_lost_peer(error):
        signals.exit_if_requested()
        print_error("another process of this run is gone")
        return 1
    return None
