"""The group of processes that PyTorch's launcher starts, and their collectives.

In a run of one process every collective returns its own value, and torch.distributed is not imported.
"""

from __future__ import annotations

import contextlib
import itertools
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from photo_classifier.runtime import launcher
from photo_classifier.runtime.device import choose_device
from photo_classifier.runtime.launcher import T
from photo_classifier.runtime.peers import watch_launcher

if TYPE_CHECKING:
    import torch
    from torch.distributed import PrefixStore


TIMEOUT = timedelta(hours=24)  # one process may list files or extract features for hours while the others wait
_stores = itertools.count()


@contextlib.contextmanager
def process_group(get_device: Callable[[], torch.device] = choose_device) -> Iterator[None]:
    """Joins the launcher's processes into a group inside the block: NCCL between GPUs, gloo between CPUs."""
    if launcher.is_launched():
        watch_launcher()
    if launcher.world_size() == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    if dist.is_initialized():  # by a caller that runs several commands in one process
        yield
        return
    device = get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend, store=_fresh_store(), rank=launcher.rank(), world_size=launcher.world_size(), timeout=TIMEOUT
    )
    try:
        yield
    finally:
        dist.destroy_process_group()
        _Group.has_ended = True


def group_has_ended() -> bool:
    """Returns whether this process has left a group."""
    return _Group.has_ended


def broadcast_from_main(make: Callable[[], T]) -> T:
    """Calls `make` on the main process alone and returns its result on all.

    An error in it is raised on the main process alone; the others wait here until the launcher ends them.
    """
    if launcher.world_size() == 1:
        return make()
    import torch.distributed as dist

    value = [make() if launcher.is_main() else None]
    dist.broadcast_object_list(value, src=0)
    return value[0]


def all_gather(value: T) -> list[T]:
    """Returns the values of all processes, in the order of their ranks."""
    if launcher.world_size() == 1:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * launcher.world_size()
    dist.all_gather_object(values, value)
    return values


def gather_on_main(value: T) -> list[T]:
    """Returns the values of all processes, in the order of their ranks, on the main process; elsewhere its own."""
    if launcher.world_size() == 1:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * launcher.world_size()
    dist.gather_object(value, values if launcher.is_main() else None)
    return values if launcher.is_main() else [value]


def all_reduce(tensor: torch.Tensor, operation: str = "SUM") -> torch.Tensor:
    """Returns the sum (or `MIN`, `MAX`) of a tensor over all processes, bit for bit the same on each."""
    if launcher.world_size() == 1:
        return tensor
    import torch.distributed as dist

    tensor = tensor.detach().clone()
    dist.all_reduce(tensor, getattr(dist.ReduceOp, operation))
    return tensor


def all_reduce_max(*numbers: int) -> list[int]:
    """Returns the maximum of each number over all processes; for booleans, whether any process has True."""
    if launcher.world_size() == 1:
        return list(numbers)
    import torch

    return all_reduce(torch.tensor(numbers, dtype=torch.int64), "MAX").tolist()


def all_reduce_sum(*numbers: int) -> list[int]:
    """Returns the sum of each number over all processes."""
    if launcher.world_size() == 1:
        return list(numbers)
    import torch

    return all_reduce(torch.tensor(numbers, dtype=torch.int64)).tolist()


def barrier() -> None:
    """Waits for all processes."""
    all_gather(None)


@contextlib.contextmanager
def first_on_each_machine() -> Iterator[None]:
    """Runs the block on one process of each machine before the others, which then find what it downloaded."""
    is_first = launcher.local_rank() == 0
    if not is_first:
        barrier()
    yield
    if is_first:
        barrier()


def agents() -> list[str]:
    """Returns the launcher's processes on all machines, or [] without it; every process has to call this."""
    return sorted(set(all_gather(launcher.agent()))) if launcher.is_launched() else []


def n_restarts() -> int:
    """Returns the highest number of restarts by the launcher on any machine of this run."""
    return all_reduce_max(launcher.restart_count())[0]


def make_store(purpose: str) -> PrefixStore:
    """Returns a new key-value store that all processes share; each of them has to call this."""
    from torch.distributed import PrefixStore
    from torch.distributed.distributed_c10d import _get_default_store

    return PrefixStore(f"{purpose}{next(_stores)}", _get_default_store())


def with_previous_sample(images: torch.Tensor, labels: torch.Tensor) -> tuple[int, torch.Tensor, torch.Tensor]:
    """Prepends the last sample of the previous slice of the batch; returns how many (0 or 1) and the longer slice."""
    if launcher.world_size() == 1:
        return 0, images, labels
    import torch

    lasts = all_gather((images[-1:].cpu(), labels[-1:].cpu()) if len(images) else None)
    if not len(images):
        return 0, images, labels
    order = [*lasts[launcher.rank() :], *lasts[: launcher.rank()]]  # begins with this process
    image, label = next(other for other in reversed(order) if other)
    return 1, torch.cat([image.to(images), images]), torch.cat([label.to(labels), labels])


class _Group:
    has_ended = False


def _fresh_store() -> PrefixStore:
    """Returns the launcher's store under a new prefix, which hides what an earlier start of the run left there.

    The main process draws the prefix. Each other process asks for it with a random word, so that no earlier answer
    can match, and then confirms that it has it.
    """
    import torch.distributed as dist

    shared = dist.PrefixStore("starts", next(dist.rendezvous("env://"))[0])
    word = uuid.uuid4().hex
    if launcher.is_main():
        missing = set(range(1, launcher.world_size()))
        while missing:
            for other in [n for n in missing if shared.check([f"word{n}"])]:
                shared.set(f"answer{shared.get(f'word{other}').decode()}", word)
                if shared.check([f"{word}{other}"]):
                    missing.discard(other)
            time.sleep(0.01)
        return dist.PrefixStore(word, shared)
    shared.set(f"word{launcher.rank()}", word)
    while not shared.check([f"answer{word}"]):
        time.sleep(0.01)
    name = shared.get(f"answer{word}").decode()
    shared.set(f"{name}{launcher.rank()}", "")
    return dist.PrefixStore(name, shared)
