"""How the C library keeps freed memory."""

from __future__ import annotations

import contextlib
import ctypes
import sys


def keep_freed_memory() -> None:
    """Makes glibc keep large freed blocks for the next batch instead of returning them to the system.

    Every activation is larger than the size above which glibc asks the system for memory. Fetching and clearing
    its pages anew in every layer took up to a third of a forward pass. Does nothing on other systems.
    """
    m_trim_threshold, m_mmap_threshold = -1, -3
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL(None)
            # an older glibc refuses more than half of a heap; the threshold must not stay at 128 kB then
            libc.mallopt(m_mmap_threshold, 1 << 30) or libc.mallopt(m_mmap_threshold, 32 << 20)
            libc.mallopt(m_trim_threshold, (1 << 31) - 1)


def return_freed_memory() -> None:
    """Returns to the system what `keep_freed_memory` kept: between two phases, or where the heap is fragmented."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
