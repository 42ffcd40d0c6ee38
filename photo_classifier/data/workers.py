"""The worker processes that decode: how many, as far as the system lets them run."""

from __future__ import annotations

import functools
import multiprocessing
import sys
from multiprocessing.connection import Listener

import torch

from photo_classifier.data.preprocess import Preprocess
from photo_classifier.runtime.console import warn
from photo_classifier.runtime.device import n_cores
from photo_classifier.runtime.launcher import local_world_size
from photo_classifier.runtime.limits import SPARE_THREADS, free_bytes, startable_threads
from photo_classifier.runtime.signals import end_workers_at_exit, init_worker
from photo_classifier.runtime.text import pluralize

SHARED_MEMORY = "/dev/shm"  # Linux alone keeps it in a file system, of 64 MB in Docker
THREADS_PER_WORKER = 3  # itself, that of its queue, and the one that hands out shared memory
# fork takes milliseconds but is safe only on Linux; spawn takes seconds
START_METHOD = "fork" if sys.platform == "linux" else "spawn"


def worker_options(n_batches: int, n_workers: int | None, n_bytes: int = 0) -> dict:
    """Returns loader options: how many processes decode and how they start; None chooses by cores and batches.

    Args:
        n_bytes: the size of a batch; there are no more workers than the shared memory has room for.
    """
    if n_workers is None:
        is_worth_it = START_METHOD == "fork" or n_batches >= 32
        n_workers = min(max(1, n_cores() // local_world_size()), 16, n_batches) if is_worth_it else 0
    room = shared_room(n_bytes) if n_workers else 0
    n_workers = usable_workers(n_workers, room, n_bytes)
    if not n_workers:
        return {"num_workers": 0}
    end_workers_at_exit()
    return {
        "num_workers": n_workers,
        "multiprocessing_context": START_METHOD,
        "prefetch_factor": min(4, room // n_workers),
        "worker_init_fn": init_worker,
    }


def batch_bytes(preprocess: Preprocess, batch_size: int) -> int:
    """Returns the size of the images of a batch."""
    return 3 * batch_size * preprocess.image_size**2


def shared_room(n_bytes: int) -> int:
    """Returns how many batches of that size workers may keep ready in shared memory, beside one that is in use."""
    free = free_bytes(SHARED_MEMORY) if sys.platform == "linux" else sys.maxsize
    # a page for each small tensor; a quarter is left for others
    return max(0, int(min(free, sys.maxsize)) * 3 // 4 // local_world_size() // (n_bytes + 16384) - 1)


def usable_workers(n_wanted: int, room: int, n_bytes: int) -> int:
    """Returns how many of the wanted workers the system lets run, and warns if those are fewer."""
    wanted = pluralize(n_wanted, "worker")
    if room < n_wanted:
        why = f"the shared memory ({SHARED_MEMORY}) is too small for {wanted}"
        _warn_of_fewer(room, why, "raise its limit (docker run --shm-size 2g), or give a smaller --batch_size")
    n_wanted = min(n_wanted, room)
    if n_wanted and (obstacle := _obstacle(n_bytes)):
        advice = f"make {SHARED_MEMORY} writable, and set TMPDIR to a writable folder with a short path"
        _warn_of_fewer(0, f"{wanted} could not hand over their images ({obstacle})", advice)
        return 0
    n_threads = startable_threads(THREADS_PER_WORKER * n_wanted + SPARE_THREADS) if n_wanted else 0
    n_workers = min(n_wanted, max(0, n_threads - SPARE_THREADS) // THREADS_PER_WORKER)
    if n_workers < n_wanted:
        why = f"the system allows too few processes and threads for {wanted}"
        _warn_of_fewer(n_workers, why, "allow more with `ulimit -u` (in a container --pids-limit)")
    return n_workers


def _obstacle(n_bytes: int) -> str:
    """Tries what handing a batch from one process to another needs; returns why that fails, or an empty text.

    A lock is a file in shared memory, a batch is another, and its handle goes through a socket in the folder for
    temporary files, which may be missing, read-only or too deep.
    """
    try:
        multiprocessing.get_context(START_METHOD).Lock()
        Listener().close()
        torch.empty(max(1, n_bytes), dtype=torch.uint8).share_memory_()
    except (OSError, RuntimeError) as error:
        return getattr(error, "strerror", None) or str(error)
    return ""


@functools.cache  # once for all loaders
def _warn_of_fewer(n_workers: int, why: str, advice: str) -> None:
    warn(f"{why}: {f'using {n_workers}' if n_workers else 'the main process decodes the images itself'}; {advice}")
