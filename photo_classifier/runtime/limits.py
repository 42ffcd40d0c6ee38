"""What the system limits: which resource ran out and what helps, and how many threads and workers it lets us start."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import math
import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from photo_classifier.runtime.device import n_cores
from photo_classifier.runtime.errors import UserError

# imported here, as a process without memory could not do so any more; Windows does not have it
resource = importlib.import_module("resource") if importlib.util.find_spec("resource") else None

WRITE_ADVICE = {
    "ENOSPC": "free some space",
    "EDQUOT": "remove files of yours, or ask for a larger quota",
    "EFBIG": "raise the limit on the size of files with `ulimit -f unlimited`",
    "EROFS": "choose a folder that can be written",
    "EACCES": "choose a folder that you may write",
}
UNSAID = ("could not create a", "operator torchvision::")  # oneDNN; torchvision whose library was not loaded
SPARE_THREADS = 8  # of TensorBoard, of the backward pass, of queues
FEWEST_THREADS = 6
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def write_reason(error: BaseException | None) -> str:
    """Returns why something could not be written, with what helps in parentheses where that is known."""
    reason = getattr(error, "strerror", None) or str(error)
    advice = WRITE_ADVICE.get(errno.errorcode.get(getattr(error, "errno", None), ""))
    return f"{reason} ({advice})" if advice else reason


def free_bytes(folder: str | Path) -> float:
    """Returns the free space where a folder is, infinite if the file system does not tell."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return math.inf
    return usage.free if usage.total else math.inf


def check_temporary_folder() -> None:
    """Raises UserError if there is no folder for temporary files, which figures and features need."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        raise UserError("there is no writable folder for temporary files; set the variable TMPDIR to one") from error


# --- errors -----------------------------------------------------------------------------------


class PassTooLarge(RuntimeError):
    """Memory ran out in a pass of `n_images` without gradients; the text is that of the error before."""

    def __init__(self, text: str, n_images: int) -> None:
        super().__init__(text)
        self.n_images = n_images


def resource_hint(error: BaseException) -> str:
    """Returns advice if an error means that memory, files or processes ran out, here or in a worker; otherwise ""."""
    text = str(error)
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.EMFILE, errno.ENFILE) or "Too many open files" in text or "too many open files" in text:
        return "too many files are open; give a lower --n_workers, or 0, or raise the limit with `ulimit -n 4096`"
    if number == errno.EAGAIN or "can't start new thread" in text or "Resource temporarily unavailable" in text:
        return (
            "the system allows no more processes or threads; give a lower --n_workers, or 0, or raise the limit with "
            "`ulimit -u`"
        )
    if "DataLoader worker" in text and any(some in text for some in ("Bus error", "shared memory", "</torch_")):
        return "the worker processes ran out of shared memory; give --n_workers 0, or raise its limit"
    if memory := memory_that_ran_out(error):
        if memory == "memory" and (limited := _memory_limit()):
            return f"{memory} ran out; {limited}"
        fewer = "give a lower --n_workers, or 0, " if memory == "memory" else ""
        smaller = "or train a new run with a smaller --image_size or another --model_name"
        return f"{memory} ran out; end other programs, {fewer}{smaller}"
    if "DataLoader worker" in text and ("killed by signal" in text or "exited unexpectedly" in text):
        return (
            "the system ended a worker process, most often because memory ran out; fewer workers need less memory: "
            "give a lower --n_workers, or 0"
        )
    return ""


def memory_that_ran_out(error: BaseException) -> str:
    """Returns which memory an error says ran out, "memory" or "the GPU's memory"; "" for any other error."""
    text = str(error)
    # of a GPU (also from its libraries, such as CUBLAS_STATUS_ALLOC_FAILED), of Linux and its loader, of Windows
    words = ("out of memory", "_ALLOC_FAILED", "allocate memory", "not enough memory", "bad_alloc", "failed to map")
    is_memory = isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM
    if _memory_limit():  # then libraries do not say what they lack
        is_memory, words = is_memory or isinstance(error, SystemError | ImportError), (*words, *UNSAID)
    if not is_memory and not any(some in text for some in words):
        return ""
    return "the GPU's memory" if any(some in text for some in ("CUDA", "_ALLOC_FAILED", "MPS")) else "memory"


def _memory_limit() -> str:
    """Returns what to do about a limit on the addresses of this process; "" if there is none."""
    if not resource:
        return ""
    for flag, limit in (("-v", resource.RLIMIT_AS), ("-d", resource.RLIMIT_DATA)):
        n_bytes = resource.getrlimit(limit)[0]
        if n_bytes != resource.RLIM_INFINITY:
            return f"this process may have {n_bytes / 1e9:.1f} GB: raise the limit with `ulimit {flag} unlimited`"
    return ""


@contextlib.contextmanager
def explain_memory_of_pass(n_images: int) -> Iterator[None]:
    """Raises `PassTooLarge` if memory runs out inside the block, which is a pass of that many images."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not memory_that_ran_out(error):
            raise
        raise PassTooLarge(str(error) or "out of memory", n_images) from error


# --- threads ----------------------------------------------------------------------------------


def fit_threads() -> None:
    """Makes libraries compute in one thread if the system lets this user start few; called before they are imported.

    They end the process if they cannot have the threads that they want.

    Raises:
        UserError: the system allows too few threads for anything.
    """
    wanted = 2 * n_cores() + SPARE_THREADS
    n = startable_threads(wanted)
    if n < FEWEST_THREADS:
        raise UserError(
            f"the system allows no more than {n} threads for this user, and {FEWEST_THREADS} are needed; raise the "
            "limit with `ulimit -u` (in a container --pids-limit), or end other programs"
        )
    if n < wanted:
        os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))


def startable_threads(most: int) -> int:
    """Returns how many threads the system would start now, up to `most`; processes count as threads."""
    end, threads = threading.Event(), []
    try:
        for _ in range(most):
            thread = threading.Thread(target=end.wait, daemon=True)
            thread.start()
            threads.append(thread)
    except (RuntimeError, MemoryError):
        pass
    finally:
        end.set()
        for thread in threads:
            thread.join()
    return len(threads)
