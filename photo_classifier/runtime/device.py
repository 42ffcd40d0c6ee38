"""Devices and the precision to compute in."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from photo_classifier.runtime import launcher
from photo_classifier.runtime.errors import UserError, choose
from photo_classifier.runtime.memory import keep_freed_memory
from photo_classifier.runtime.text import pluralize

if TYPE_CHECKING:
    import torch


def n_cores() -> int:
    """Returns the number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


PRECISIONS = ("auto", "fp32", "bf16", "fp16")


def choose_device(device: str | torch.device | None = None) -> torch.device:
    """Returns the device to compute on, and keeps freed memory from here on.

    Args:
        device: a name such as `cpu` or `cuda:1`. None is the first CUDA GPU, else MPS (with a single process
            only), else the CPU; of several processes on this machine each gets a GPU of its own.

    Raises:
        UserError: the machine does not have the device, or has fewer GPUs than processes.
    """
    import torch

    keep_freed_memory()
    cpu, gpus = torch.device("cpu"), find_gpus()
    if device is not None:
        known = {str(one): one for one in (cpu, *gpus)}
        # a type without a number is its first device
        known = {one.type: one for one in reversed(known.values())} | known
        if str(device) not in known:
            raise UserError(f"there is no device {str(device)!r} on this machine; choose from {', '.join(known)}")
        return known[str(device)]
    if not gpus:
        return cpu
    n_processes = launcher.local_world_size()
    if n_processes > len(gpus):
        raise UserError(
            f"the launcher started {n_processes} processes, but this machine has {pluralize(len(gpus), 'GPU')}; start "
            f"as many (--nproc_per_node {len(gpus)}), or compute on the CPU (--gpu_id -1)"
        )
    return gpus[launcher.local_rank()]


def find_gpus() -> list[torch.device]:
    """Returns the GPUs of this machine that the run can use."""
    import torch

    gpus = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    # processes on several machines communicate through their CPUs unless all have CUDA
    if not gpus and launcher.world_size() == 1 and torch.backends.mps.is_available():
        return [torch.device("mps", 0)]
    return gpus


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """Returns the type that convolutions compute in; weights stay in fp32.

    Raises:
        UserError: the name is unknown, or the device does not support fp16.
    """
    import torch

    choose("--precision", name, PRECISIONS)
    if name == "fp16" and device.type == "cpu":
        raise UserError("precision fp16 needs a GPU; on this CPU choose from auto, fp32, bf16")
    if name == "auto":
        return torch.bfloat16 if _has_bf16(device) else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


@contextlib.contextmanager
def exact_fp32() -> Iterator[None]:
    """Makes GPUs compute in fp32 and not in TF32, whose 10 bits change answers by 1e-3, and with the batch."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def _has_bf16(device: torch.device) -> bool:
    """Returns whether bf16 runs in hardware; emulated bf16 is slower than fp32."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    if platform.machine().lower() in ("arm64", "aarch64"):
        return sys.platform == "linux" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    # torch has no public functions for this yet
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, bool)() for check in checks)


def to_device(tensor: torch.Tensor, device: torch.device, **options: Any) -> torch.Tensor:
    """Returns the tensor on the device; `options` are those of `Tensor.to`.

    Only CUDA copies without waiting: on MPS the memory could be reused before it has been read.
    """
    return tensor.to(device, non_blocking=device.type == "cuda", **options)
