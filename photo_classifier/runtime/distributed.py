"""Many processes as one run: what PyTorch's launcher tells each of them, and how they agree.

Nothing here starts a process. Without the launcher, or with one process, every function is the
identity and torch.distributed is not imported.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from photo_classifier.runtime import launcher, signals
from photo_classifier.runtime.launcher import T

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.distributed import PrefixStore


TIMEOUT = timedelta(hours=24)  # one rank may list or extract for hours while the others wait
LAUNCHER_SECONDS = 10.0  # within these the launcher ends the other ranks of a run that failed
PARENT_SECONDS = 1.0  # how often a rank looks for its launcher
WATCH = "looks for the launcher"
GRACE_SECONDS = 30.0  # what the launcher itself grants between SIGTERM and SIGKILL
LOST = re.compile(r"\bgloo\b|\bnccl\b|connection (closed|reset|refused)|broken pipe|socket", re.IGNORECASE)


# --- who this process is ----------------------------------------------------------------------


def agents() -> list[str]:
    """The launcher's processes on all machines of this run, which every rank has to ask for; none without it."""
    return sorted(set(all_gather(launcher.agent()))) if launcher.is_launched() else []


# --- the group --------------------------------------------------------------------------------


@contextlib.contextmanager
def process_group(get_device: Callable[[], torch.device]) -> Iterator[None]:
    """Inside, the processes that the launcher has started are one group: NCCL between GPUs, gloo between CPUs.

    Raises:
        UserError: the device is not there.
    """
    if launcher.is_launched() and not any(thread.name == WATCH for thread in threading.enumerate()):
        _watch_parent()
    if launcher.world_size() == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    if dist.is_initialized():  # by whoever calls several commands in one process
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


class _Group:
    has_ended = False


def group_has_ended() -> bool:
    """Whether this was one process of several, and they are no group any more."""
    return _Group.has_ended


def _fresh_store() -> PrefixStore:
    """The launcher's store without what an earlier start of the run left there: addresses of processes that are gone.

    Rank 0 draws a name for this start. Each of the others asks for it under a word of its own, which nobody
    can have answered before, and says that it knows it.
    """
    import uuid

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


def _watch_parent() -> None:
    """A rank whose launcher is gone stops as after SIGTERM: it saves, if it can, and ends."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_SECONDS)  # a peer that hangs must not keep it
        signals.end_workers()
        os._exit(128 + signal.SIGTERM)

    if sys.platform != "win32":  # where a process keeps the number of a parent that is gone
        threading.Thread(target=watch, name=WATCH, daemon=True).start()


# --- errors once ------------------------------------------------------------------------------


def is_reported_elsewhere() -> bool:
    """Whether another process tells of the error that ends this one.

    What ends rank 0 usually ends all: it speaks, and the launcher ends the others while they wait here.
    An error that rank 0 does not have is told by the rank that has it.
    """
    return not launcher.is_main() and _is_ended(LAUNCHER_SECONDS)


def is_lost_peer(error: BaseException) -> bool:
    """Whether an error only says that another process of the run is gone; waits for the launcher's end, then."""
    if launcher.world_size() == 1 or not _is_of_the_network(error):
        return False
    _is_ended(3 * LAUNCHER_SECONDS)  # the one that is gone may be waiting to tell why
    return True


def _is_of_the_network(error: BaseException) -> bool:
    from torch.distributed import DistError

    # gloo's own errors are plain ones
    return isinstance(error, DistError) or (isinstance(error, RuntimeError) and bool(LOST.search(str(error))))


def _is_ended(seconds: float) -> bool:
    end = time.monotonic() + seconds
    with contextlib.suppress(signals.Stopped):
        while not signals.stop_requested() and time.monotonic() < end:
            time.sleep(0.05)
    return signals.stop_requested()


# --- to agree ---------------------------------------------------------------------------------


def broadcast_from_main(make: Callable[[], T]) -> T:
    """What `make` gives on rank 0, on every rank; it runs nowhere else.

    What it raises is raised on rank 0 alone: the others wait in here until that has ended and the launcher ends them.
    """
    if launcher.world_size() == 1:
        return make()
    import torch.distributed as dist

    value = [make() if launcher.is_main() else None]
    dist.broadcast_object_list(value, src=0)
    return value[0]


def all_gather(value: T) -> list[T]:
    """The values of all ranks, in their order, on every rank."""
    if launcher.world_size() == 1:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * launcher.world_size()
    dist.all_gather_object(values, value)
    return values


def gather_on_main(value: T) -> list[T]:
    """The values of all ranks, in their order, on rank 0; elsewhere only the own one."""
    if launcher.world_size() == 1:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * launcher.world_size()
    dist.gather_object(value, values if launcher.is_main() else None)
    return values if launcher.is_main() else [value]


_stores = itertools.count()


def make_store(purpose: str) -> PrefixStore:
    """A store of keys and values that all ranks see, new in each call; every rank has to ask."""
    from torch.distributed import PrefixStore
    from torch.distributed.distributed_c10d import _get_default_store

    return PrefixStore(f"{purpose}{next(_stores)}", _get_default_store())


def n_restarts() -> int:
    """How often the launcher has started a process of this run again, on the machine where it was most often."""
    return all_reduce_max(launcher.launcher_int("TORCHELASTIC_RESTART_COUNT", 0))[0]


def barrier() -> None:
    """Waits for all ranks."""
    all_gather(None)


@contextlib.contextmanager
def first_on_each_machine() -> Iterator[None]:
    """The block runs on one process of each machine first: what it downloads, the others find."""
    is_first = launcher.launcher_int("LOCAL_RANK", 0) == 0
    if not is_first:
        barrier()
    yield
    if is_first:
        barrier()


def all_reduce(tensor: torch.Tensor, operation: str = "SUM") -> torch.Tensor:
    """The sum (or `MIN`, `MAX`) of a tensor over all ranks, the same bits on each."""
    if launcher.world_size() == 1:
        return tensor
    import torch.distributed as dist

    tensor = tensor.detach().clone()
    dist.all_reduce(tensor, getattr(dist.ReduceOp, operation))
    return tensor


def all_reduce_max(*numbers: int) -> list[int]:
    """The largest of each number over all ranks; of truth values: whether it is so anywhere."""
    if launcher.world_size() == 1:
        return list(numbers)
    import torch

    return all_reduce(torch.tensor(numbers, dtype=torch.int64), "MAX").tolist()


def all_reduce_sum(*numbers: int) -> list[int]:
    """The sum of each number over all ranks."""
    if launcher.world_size() == 1:
        return list(numbers)
    import torch

    return all_reduce(torch.tensor(numbers, dtype=torch.int64)).tolist()


def average_statistics(model: nn.Module) -> None:
    """Batch norm's running statistics become their mean over all ranks, each of which has seen its own slices.

    They are linear in what was seen, so the mean of later ones does not depend on when this was done.
    """
    if launcher.world_size() == 1:
        return
    import torch
    from torch import nn

    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._NormBase) and m.running_mean is not None]
    buffers = [buffer for norm in norms for buffer in (norm.running_mean, norm.running_var)]
    if not buffers:
        return
    # in 64 bits the mean of equal numbers is that number, whatever the number of ranks
    mean = all_reduce(torch.cat([buffer.double() for buffer in buffers])) / launcher.world_size()
    for buffer, values in zip(buffers, mean.split([len(buffer) for buffer in buffers]), strict=True):
        buffer.copy_(values)


def broadcast_model(model: nn.Module) -> None:
    """Gives every rank the weights and statistics of rank 0."""
    if launcher.world_size() == 1:
        return
    import torch.distributed as dist

    for tensor in model.state_dict().values():
        dist.broadcast(tensor, src=0)


def with_previous_sample(images: torch.Tensor, labels: torch.Tensor) -> tuple[int, torch.Tensor, torch.Tensor]:
    """How many images of the slice before are put before this one, which is 1 or 0, and the slice with them."""
    if launcher.world_size() == 1:
        return 0, images, labels
    import torch

    lasts = all_gather((images[-1:].cpu(), labels[-1:].cpu()) if len(images) else None)
    if not len(images):
        return 0, images, labels
    order = [*lasts[launcher.rank() :], *lasts[: launcher.rank()]]  # the first of it is this one
    image, label = next(other for other in reversed(order) if other)
    return 1, torch.cat([image.to(images), images]), torch.cat([label.to(labels), labels])


# --- gradients --------------------------------------------------------------------------------


def wrap_ddp(model: nn.Module, device: torch.device, sync_batch_norm: bool = False) -> nn.Module:
    """The model as training runs it: its gradients are means over all ranks.

    A rank whose slice of a batch is empty gives `(0, 1)` logits and takes part with gradients of zero.
    With `sync_batch_norm`, batch norm that trains normalises over the whole batch (GPUs only).
    """
    if launcher.world_size() == 1:
        return model
    from torch.nn.parallel import DistributedDataParallel

    if sync_batch_norm:
        model = with_sync_batch_norm(model)
    devices = [device.index] if device.type == "cuda" else None
    with warnings.catch_warnings():
        # newer releases of torch have another name for it, older ones only this
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        # statistics stay a rank's own until they are looked at: `average_statistics`
        return DistributedDataParallel(_slice_of(model), devices, broadcast_buffers=False, static_graph=True)


def _slice_of(model: nn.Module) -> nn.Module:
    import torch
    from torch import nn

    class Slice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if len(images):
                return self.model(images)
            zeros = [parameter.sum() * 0 for parameter in self.model.parameters() if parameter.requires_grad]
            return torch.stack(zeros).sum().view(1, 1)[:0]

    return Slice()


def with_sync_batch_norm(model: nn.Module) -> nn.Module:
    """A model of the same tensors whose batch norm, where it trains, counts over all ranks."""
    import copy

    from timm.layers import convert_sync_batchnorm  # knows timm's batch norm with an activation, too
    from torch import nn

    tensors = [*model.parameters(), *model.buffers()]
    twin = copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})
    frozen = {id(inner) for module in getattr(twin, "frozen", []) for inner in module.modules()}
    for name, module in list(twin.named_modules()):
        if isinstance(module, nn.BatchNorm2d) and id(module) not in frozen:
            parent, _, child = name.rpartition(".")
            setattr(twin.get_submodule(parent), child, convert_sync_batchnorm(module))
    return twin
