"""What the system limits: shared memory, open files, memory, and steps that never end."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import TINY, assert_one_line_error, on_windows

import model_loader
import train
from photo_classifier.runtime.signals import resource_hint

ROOT = Path(train.__file__).parent
SMALL_SHARED_MEMORY = "mount -t tmpfs -o size=64m tmpfs /dev/shm"


def in_small_shared_memory(*command):
    """Runs Python with 64 MB in /dev/shm, as Docker gives by default."""
    try:
        can_mount = subprocess.run(["unshare", "-m", "sh", "-c", SMALL_SHARED_MEMORY], capture_output=True)
    except OSError:
        pytest.skip("unshare is not installed")
    if can_mount.returncode:
        pytest.skip("only root may mount")
    line = f'{SMALL_SHARED_MEMORY} && exec "$@"'
    command = ["unshare", "-m", "sh", "-c", line, "sh", sys.executable, *map(str, command)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)


def test_a_run_trains_where_shared_memory_has_no_room_for_workers(image_folder):
    flags = ("--model_name", "timm/test_resnet", "--image_size", 224, "--batch_size", 400, "--gpu_id", -1)
    more = ("--n_workers", 2, "--n_epochs", 1, "--data_dir", image_folder)
    done = in_small_shared_memory(ROOT / "train.py", *flags, *more)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("the shared memory (/dev/shm) is too small for 2 workers") == 1


FULL = """
import torch
from torch.utils.data import DataLoader
from photo_classifier.data.batches import collate, worker_options
from photo_classifier.runtime.signals import resource_hint
images = [(0, n, torch.ones(3, 1000, 1000, dtype=torch.uint8)) for n in range(64)]
try:
    next(iter(DataLoader(images, batch_size=64, collate_fn=collate, **worker_options(1, 1))))
except RuntimeError as error:
    print(resource_hint(error))
"""


def test_a_batch_that_shared_memory_cannot_hold_is_an_error_and_no_wait_for_ever():
    assert "ran out of shared memory; give --n_workers 0" in in_small_shared_memory("-c", FULL).stdout


STUCK = """
import sys, time
import train
from photo_classifier.data.batches import get_worker_info
from data_loader import ImageDataset
from photo_classifier.runtime import signals
from utils import run_main

def stuck(self, place, get=ImageDataset.__getitem__):
    if get_worker_info() and place[0] == 1:  # the second epoch
        print("stuck", flush=True)
        time.sleep(1000)
    return get(self, place)

signals.STEP_SECONDS, ImageDataset.__getitem__ = 0.5, stuck
run_main(train.main, sys.argv[1:])
"""


@pytest.mark.skipif(on_windows, reason="Windows has no such signals between processes")
def test_one_signal_ends_a_run_whose_step_never_comes_and_what_was_saved_is_kept(split_folder):
    flags = (*TINY, "--n_workers", 1, "--n_epochs", 2, "--run_dir", "r", "--data_dir", split_folder)
    command = [sys.executable, "-c", STUCK, *map(str, flags)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )
    assert any(line == "stuck\n" for line in process.stdout)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert "the step does not end; stopping without it\nstopped; continue with: python" in errors
    done = subprocess.run([sys.executable, ROOT / "train.py", "--resume", "r"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "continuing after 1 of 2 epochs" in done.stdout


def test_running_out_of_memory_while_a_size_is_tried_is_told_as_that(cli, image_folder, monkeypatch):
    def forward(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    monkeypatch.setattr(model_loader.Classifier, "forward", forward)
    done = cli("train", "--data_dir", image_folder, *TINY)
    assert_one_line_error(done, "memory ran out; give a smaller --batch_size, or train with a smaller --image_size")


@pytest.mark.skipif(on_windows, reason="Windows has no such limits")
def test_too_many_open_files_name_the_flag_and_the_limit(split_folder):
    limits = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60))\n"
    code = limits + "import sys, train\nfrom utils import run_main\nrun_main(train.main, sys.argv[1:])"
    flags = (*TINY, "--n_workers", 9, "--batch_size", 2, "--run_dir", "r", "--data_dir", split_folder)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, flags)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: too many files are open; give a lower --n_workers")
    assert "ulimit -n" in last
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("error", "hint"),
    [
        (OSError(24, "Too many open files"), "ulimit -n"),
        (BlockingIOError(11, "Resource temporarily unavailable"), "ulimit -u"),
        (RuntimeError("can't start new thread"), "ulimit -u"),
        (OSError(12, "Cannot allocate memory"), "memory ran out"),
        (torch.OutOfMemoryError("CUDA out of memory."), "memory ran out"),
        (RuntimeError("Caught RuntimeError in DataLoader worker process 0. unable to do it"), ""),
    ],
)
def test_the_hint_names_what_ran_out(error, hint):
    assert hint in resource_hint(error)
    assert bool(hint) == bool(resource_hint(error))
