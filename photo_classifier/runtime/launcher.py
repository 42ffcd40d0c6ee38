"""What PyTorch's launcher (torchrun) tells each process that it starts."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


def is_launched() -> bool:
    """Returns whether PyTorch's launcher started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def world_size() -> int:
    """Returns the number of processes of this run on all machines."""
    return _launcher_int("WORLD_SIZE", 1)


def local_world_size() -> int:
    """Returns the number of processes of this run on this machine."""
    return _launcher_int("LOCAL_WORLD_SIZE", 1)


def rank() -> int:
    """Returns the index of this process among all of its run."""
    return _launcher_int("RANK", 0)


def local_rank() -> int:
    """Returns the index of this process among those on this machine."""
    return _launcher_int("LOCAL_RANK", 0)


def restart_count() -> int:
    """Returns how often the launcher has restarted the processes of this machine."""
    return _launcher_int("TORCHELASTIC_RESTART_COUNT", 0)


def rank_and_world_size() -> tuple[int, int]:
    """Returns which of how many shards of every batch this process computes."""
    return rank(), world_size()


def is_main() -> bool:
    """Returns whether this is rank 0, the process that writes, prints and logs."""
    return rank() == 0


def shard(items: Sequence[T], index_and_count: tuple[int, int]) -> Sequence[T]:
    """Returns one of `count` consecutive slices of the items, which are as equal in length as possible."""
    index, count = index_and_count
    return items[len(items) * index // count : len(items) * (index + 1) // count]


def agent() -> str:
    """Names the launcher's process on this machine, which stays the same when it restarts its workers."""
    started = ""
    with contextlib.suppress(OSError, IndexError):  # process ids are reused; with the start time they are unique
        started = Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()[19]
    return f"{socket.gethostname()} {os.getppid()} {started}"


def _launcher_int(name: str, default: int) -> int:
    """Returns a number that the launcher put into the environment; elsewhere the variable may be anything."""
    return int(os.environ.get(name, default)) if is_launched() else default
