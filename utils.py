"""What the commands share at their start and end: the model, the device, output paths and the exit status."""

from __future__ import annotations

import glob
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from photo_classifier.config import InputFlags
from photo_classifier.runtime import distributed, launcher, limits, peers, signals
from photo_classifier.runtime.console import ignore_closed_pipes, print_error
from photo_classifier.runtime.device import choose_device, find_gpus
from photo_classifier.runtime.errors import UserError, did_you_mean_path

if TYPE_CHECKING:
    import torch


def device_from_gpu_id(gpu_id: int | None) -> torch.device:
    """Returns the device that `--gpu_id` names: -1 is the CPU, None the one that `choose_device` prefers.

    Raises:
        UserError: the machine has no such GPU, or several processes would share it.
    """
    if gpu_id in (None, -1):
        return choose_device("cpu" if gpu_id == -1 else None)
    if (n_processes := launcher.local_world_size()) > 1:
        raise UserError(
            f"--gpu_id {gpu_id} is one device for {n_processes} processes; leave it out, and choose GPUs for the "
            "launcher with CUDA_VISIBLE_DEVICES"
        )
    import torch

    gpus = find_gpus()
    if gpu_id >= len(gpus):
        known = "".join(f", {i} ({gpu})" for i, gpu in enumerate(gpus))
        raise UserError(f"--gpu_id {gpu_id} does not exist on this machine; choose from -1 (the CPU){known}")
    device = choose_device(gpus[gpu_id])
    if device.type == "cuda":  # or the thread that pins memory for copies would take some of the first GPU's
        torch.cuda.set_device(device)
    return device


def check_checkpoint(path: str) -> None:
    """Raises a UserError if there is no checkpoint; this and other checks come before imports that take seconds."""
    if os.path.isfile(path):
        return
    here = ", ".join(sorted(glob.glob("*.pth")))
    hint = f"this folder has {here}" if here else "train one with python train.py"
    what = f"{path} is a folder" if os.path.isdir(path) else f"there is no checkpoint {path}"
    raise UserError(f"{what}; {hint}{did_you_mean_path(path)}; name it with --model_fn FILE")


def described(config: InputFlags) -> dict[str, object]:
    """Returns the flags that describe a plain state_dict, as `Predictor` takes them."""
    from photo_classifier.models.checkpoint import read_class_names

    names = ("weights_key", "head_activation", "image_size", "resize", "fit", "interpolation", "mean", "std")
    class_names = read_class_names(config.class_names) if config.class_names else None
    given = {name: getattr(config, name) for name in names}
    return {"model_name": config.model_name, "class_names": class_names, **given}


def check_output_path(path: str | Path, flag: str) -> None:
    """Checks before the work that its result can be written to a path; raises UserError if not."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{flag} {path} is a folder; give the name of a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        reason = limits.write_reason(error)
        raise UserError(f"{flag} {path} cannot be written: {reason}; choose another folder") from error


def run_main(main: Callable[[list[str] | None], int], argv: list[str] | None = None) -> None:
    """Runs a command and ends the process with its exit status.

    An error that the user can correct becomes one line and status 2, a signal becomes status 128 + its number.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a console that lacks some letters must not stop the work
            stream.reconfigure(errors="backslashreplace")
    if not launcher.is_main():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    with ignore_closed_pipes(), signals.handle_signals():
        try:
            limits.fit_threads()
            status = main(argv)
        except (UserError, RuntimeError, MemoryError, OSError, ImportError, SystemError, signals.Stopped) as error:
            signals.end_workers()
            status = _report(error)
            if status is None:
                raise
            if sys.unraisablehook is sys.__unraisablehook__:  # objects that were left half made complain as they go
                sys.unraisablehook = lambda _: None
    if distributed.group_has_ended():  # threads that the group left behind can abort the interpreter at its exit
        signals.end_workers()
        os._exit(status)
    raise SystemExit(status)


def _report(error: BaseException) -> int | None:
    """Prints in one line what ended a command; returns its exit status, or None for an error of the tool itself."""
    if isinstance(error, signals.Stopped):
        if launcher.is_main():
            sys.stderr.write(f"stopped{error.hint}\n")
        return error.status
    if reason := str(error) if isinstance(error, UserError) else limits.resource_hint(error):
        print_error(reason)
        return 2
    if peers.is_lost_peer(error):
        signals.exit_if_requested()
        print_error("another process of this run has ended")
        return 1
    return None
