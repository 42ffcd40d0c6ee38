"""What PyTorch's launcher tells each process that it starts."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


def world_size() -> int:
    """Processes of this run on all machines."""
    return launcher_int("WORLD_SIZE", 1)


def local_world_size() -> int:
    """Processes of this run on this machine."""
    return launcher_int("LOCAL_WORLD_SIZE", 1)


def is_launched() -> bool:
    """Whether PyTorch's launcher started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def agent() -> str:
    """The launcher's process on this machine: it stays while it starts its workers again."""
    started = ""
    with contextlib.suppress(OSError, IndexError):  # a number of a process is used again, its start is not
        started = Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()[19]
    return f"{socket.gethostname()} {os.getppid()} {started}"


def rank_and_world_size() -> tuple[int, int]:
    """The part of every batch that is this process's: (rank, world size)."""
    return rank(), world_size()


def shard(items: Sequence[T], part: tuple[int, int]) -> Sequence[T]:
    """The `part[0]`-th of `part[1]` slices; put one after the other they are the whole."""
    number, n_parts = part
    return items[len(items) * number // n_parts : len(items) * (number + 1) // n_parts]


def main_only(function: Callable[..., None]) -> Callable[..., None]:
    """Makes a function that rank 0 alone carries out."""

    @functools.wraps(function)
    def on_main(*args: Any, **options: Any) -> None:
        if is_main():
            function(*args, **options)

    return on_main


def launcher_int(name: str, default: int) -> int:
    """A number that PyTorch's launcher puts into the environment of the processes that it starts."""
    return int(os.environ.get(name, default)) if "TORCHELASTIC_RUN_ID" in os.environ else default


def rank() -> int:
    """The place of this process among all of its run, from 0."""
    return launcher_int("RANK", 0)


def is_main() -> bool:
    """Whether this is the process that writes, prints and logs."""
    return rank() == 0
