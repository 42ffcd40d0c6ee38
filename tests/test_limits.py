"""What the system limits: shared memory, open files, memory, and steps that never end."""

import errno
import gc
import multiprocessing.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import TINY, assert_one_line_error, on_windows
from torch.utils.data import DataLoader

import model_loader
import train
from photo_classifier.data.workers import worker_options
from photo_classifier.runtime import limits
from photo_classifier.runtime.errors import WriteError
from photo_classifier.runtime.files import atomic_write
from photo_classifier.runtime.limits import resource_hint

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
from photo_classifier.data.batches import collate
from photo_classifier.data.workers import worker_options
from photo_classifier.runtime.limits import resource_hint
images = [(0, n, torch.ones(3, 1000, 1000, dtype=torch.uint8)) for n in range(64)]
try:
    next(iter(DataLoader(images, batch_size=64, collate_fn=collate, **worker_options(1, 1))))
except RuntimeError as error:
    print(resource_hint(error))
"""


def test_a_batch_that_shared_memory_cannot_hold_is_an_error_and_no_wait_for_ever():
    assert "ran out of shared memory; give --n_workers 0" in in_small_shared_memory("-c", FULL).stdout


STUCK = """
import ctypes, sys, time
import train
from photo_classifier.data.batches import get_worker_info
from data_loader import ImageDataset
from photo_classifier.runtime import signals
from utils import run_main

def stuck(self, place, get=ImageDataset.__getitem__):
    if self.seed is not None and place[0] == 1:  # the second epoch of training
        print("stuck", flush=True)
        if get_worker_info():
            time.sleep(1000)
        lock, library = ctypes.create_string_buffer(64), ctypes.CDLL(None)
        library.pthread_mutex_lock(lock)
        library.pthread_mutex_lock(lock)  # a library that hangs: no handler of Python runs
    return get(self, place)

signals.STEP_SECONDS, signals.HANDLER_SECONDS, ImageDataset.__getitem__ = 1.5, 0.5, stuck
run_main(train.main, sys.argv[1:])
"""


@pytest.mark.skipif(on_windows, reason="Windows has no such signals between processes")
@pytest.mark.parametrize("where", ["a worker", "a library"])
def test_one_signal_ends_a_run_whose_step_never_comes_and_what_was_saved_is_kept(where, split_folder):
    if where == "a library" and sys.platform != "linux":
        pytest.skip("a lock of Linux")
    flags = (*TINY, "--n_workers", int(where == "a worker"), "--n_epochs", 2, "--run_dir", "r")
    flags = (*flags, "--data_dir", split_folder)
    command = [sys.executable, "-c", STUCK, *map(str, flags)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )
    assert any(line == "stuck\n" for line in process.stdout)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    assert "the step does not end; stopping without it" in errors
    assert ("stopped; continue with: python" in errors) == (where == "a worker")
    done = subprocess.run([sys.executable, ROOT / "train.py", "--resume", "r"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "continuing after 1 of 2 epochs" in done.stdout


def test_running_out_of_memory_while_a_size_is_tried_is_told_as_that(cli, image_folder, monkeypatch):
    def forward(*_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    monkeypatch.setattr(model_loader.Classifier, "forward", forward)
    done = cli("train", "--data_dir", image_folder, *TINY)
    assert_one_line_error(
        done, "memory ran out; end other programs, give a lower --n_workers, or 0, or train a new run"
    )


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


@pytest.mark.skipif(on_windows, reason="Windows has no such limits")
def test_an_address_limit_is_named_where_memory_runs_out(monkeypatch):
    monkeypatch.setattr(limits.resource, "getrlimit", lambda _: (4_000_000_000, 4_000_000_000))
    for error in (MemoryError(), ImportError("libtorch_cpu.so: failed to map segment from shared object")):
        assert "this process may have 4.0 GB: raise the limit with `ulimit -v unlimited`" in resource_hint(error)


def test_a_batch_that_a_worker_cannot_send_is_an_error_and_no_wait_for_ever(monkeypatch):
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.2)  # the stuck worker ends after two
    loader = DataLoader([lambda: "cannot be pickled"], collate_fn=lambda items: items, **worker_options(1, 1))
    with pytest.raises(Exception, match="in DataLoader worker process"):
        next(iter(loader))
    gc.collect()  # ends the worker here, not in a later test


@pytest.mark.skipif(sys.platform != "linux", reason="other systems pass images in other ways")
def test_workers_that_could_not_hand_over_their_images_are_not_started(monkeypatch, tmp_path, capsys):
    folder = tmp_path / ("d" * 120)
    folder.mkdir()
    monkeypatch.setattr(multiprocessing.util, "get_temp_dir", lambda: str(folder))
    assert worker_options(4, 2) == {"num_workers": 0}
    assert "2 workers could not hand over their images (AF_UNIX path too long): the main" in capsys.readouterr().err


@pytest.fixture
def few_threads(monkeypatch):
    """Lets that many threads start."""
    start, left = threading.Thread.start, [0]

    def limited(thread):
        if not left[0]:
            raise RuntimeError("can't start new thread")
        left[0] -= 1
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    return left


def test_no_more_workers_run_than_there_are_processes_and_threads_for(few_threads, capsys):
    few_threads[0] = 14
    assert worker_options(4, 3)["num_workers"] == 2
    assert "the system allows too few processes and threads for 3 workers: using 2" in capsys.readouterr().err


def test_libraries_compute_in_one_thread_where_few_can_be_started(few_threads, monkeypatch, cli):
    monkeypatch.setattr(os, "environ", dict(os.environ))
    few_threads[0] = 7
    limits.fit_threads()
    assert os.environ["OMP_NUM_THREADS"] == os.environ["OPENBLAS_NUM_THREADS"] == "1"
    few_threads[0] = 2
    assert_one_line_error(
        cli("train", *TINY), "threads for this user, and 6 are needed; raise the limit with `ulimit -u`"
    )


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP])
def test_files_are_written_where_the_file_system_knows_no_fsync_modes_or_links(number, tmp_path, monkeypatch):
    def refused(*_args, **_options):
        raise OSError(number, os.strerror(number))

    for name in ("fsync", "chmod", "link", "utime"):
        monkeypatch.setattr(os, name, refused)
    for text in ("first", "second"):
        with atomic_write(tmp_path / "a", "w", keep_existing=True) as file:
            file.write(text)
    assert [(tmp_path / name).read_text() for name in ("a", "a.prev")] == ["second", "first"]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("number", "advice"),
    [(errno.EDQUOT, "a larger quota"), (errno.EFBIG, "`ulimit -f unlimited`"), (errno.EROFS, "can be written")],
)
def test_what_helps_against_a_limit_of_the_disk_is_said(number, advice, tmp_path, monkeypatch):
    def refused(_handle):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refused)
    with (
        pytest.raises(WriteError, match=f"cannot write .*: {os.strerror(number)} .*{advice}"),
        atomic_write(tmp_path / "a"),
    ):
        pass
    assert not list(tmp_path.iterdir())


def test_a_file_system_that_does_not_tell_its_free_space_counts_as_large_enough(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=0, free=0))
    assert limits.free_bytes(".") == float("inf")


def test_a_training_without_any_folder_for_temporary_files_says_so_before_it_begins(cli, split_folder, monkeypatch):
    def none():
        raise FileNotFoundError(2, "No usable temporary directory found in ['/tmp']")

    with monkeypatch.context() as patch:  # pytest needs one again
        patch.setattr(tempfile, "gettempdir", none)
        done = cli("train", "--data_dir", split_folder, *TINY)
    assert_one_line_error(done, "there is no writable folder for temporary files; set the variable TMPDIR to one")
