"""Where to compute, in which precision, and how memory is kept."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import sys
from typing import TYPE_CHECKING, Any

from photo_classifier.runtime.errors import UserError, choose
from photo_classifier.runtime.launcher import launcher_int

if TYPE_CHECKING:
    import torch


def n_cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


PRECISIONS = ("auto", "fp32", "bf16", "fp16")


def choose_device(device: str | torch.device | None = None) -> torch.device:
    """Returns the device to compute on: the given one, else the first GPU where there is one, else the CPU.

    The caller is about to compute, so the process keeps freed memory from here on: `keep_freed_memory`.

    Raises:
        UserError: this machine has no such device; the message lists those that it has.
    """
    import torch

    keep_freed_memory()
    gpus = available_gpus()
    if device is None:
        return gpus[launcher_int("LOCAL_RANK", 0) if is_shared() else 0] if gpus else torch.device("cpu")
    chosen = torch.device(device)
    if chosen.type != "cpu" and torch.device(chosen.type, chosen.index or 0) not in gpus:
        raise UserError(f"device {device} is not on this machine; it has {', '.join(map(str, ['cpu', *gpus]))}")
    return chosen if chosen.type == "cpu" else torch.device(chosen.type, chosen.index or 0)


def is_shared() -> bool:
    """Returns whether the launcher started several processes on this machine."""
    return launcher_int("LOCAL_WORLD_SIZE", 1) > 1


def available_gpus() -> list[torch.device]:
    """Returns the GPUs that this process may use: CUDA's, else MPS where the run has one process only."""
    import torch

    gpus = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    # processes of several machines talk through the CPU, unless all have CUDA
    if not gpus and launcher_int("WORLD_SIZE", 1) == 1 and torch.backends.mps.is_available():
        return [torch.device("mps", 0)]
    return gpus


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The type that convolutions compute in; weights stay in fp32.

    Raises:
        UserError: the name is unknown, or the device has no fp16.
    """
    import torch

    choose("--precision", name, PRECISIONS)
    if name == "fp16" and device.type == "cpu":
        raise UserError("--precision fp16 needs a GPU; on this CPU choose from auto, fp32, bf16")
    if name == "auto":
        return torch.bfloat16 if _has_bf16(device) else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]


def _has_bf16(device: torch.device) -> bool:
    """Whether bf16 runs in hardware; emulated bf16 is slower than fp32."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type != "cpu":
        return False
    if platform.machine().lower() in ("arm64", "aarch64"):
        return sys.platform == "linux" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    # torch has no public question for this yet
    questions = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, question, bool)() for question in questions)


def to_device(tensor: torch.Tensor, device: torch.device, **options: Any) -> torch.Tensor:
    """The tensor on the device, as `Tensor.to` takes `options`.

    Only CUDA copies without waiting: MPS may read the memory when it belongs to something else already.
    """
    return tensor.to(device, non_blocking=device.type == "cuda", **options)


def keep_freed_memory() -> None:
    """Tells glibc to keep large freed blocks for the next batch in place of returning them.

    Every activation is larger than glibc's threshold for asking the system; fetching and clearing its
    pages again at every layer was seen to take a third of a forward pass. Elsewhere it does nothing.
    """
    m_trim_threshold, m_mmap_threshold = -1, -3
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL(None)
            # an older glibc refuses more than half of a heap, and a refusal must not fix the threshold at 128 kB
            libc.mallopt(m_mmap_threshold, 1 << 30) or libc.mallopt(m_mmap_threshold, 32 << 20)
            libc.mallopt(m_trim_threshold, (1 << 31) - 1)


def return_freed_memory() -> None:
    """Gives back what `keep_freed_memory` kept: between two phases, or where the heap would grow by its holes."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
