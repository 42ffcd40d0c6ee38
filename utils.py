"""Leaf helpers that every room may use and that know no other module of the house."""

from __future__ import annotations

import contextlib
import ctypes
import difflib
import glob
import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch takes seconds to import and --help must not wait for it
    import torch


MAX_PIXELS = 200_000_000  # 600 MB as RGB: larger than any camera's photo, smaller than a decompression bomb


LEFTOVER_SECONDS = 60.0  # a file that is being written was touched since
LEFTOVER_FOLDER_SECONDS = 86_400.0  # no folder takes a day to fill


class UserError(Exception):
    """Something that the user can mend. Only `main` prints it, as one line, and exits with 2."""


def count_of(n: int, noun: str) -> str:
    """`1 image`, `2 images`."""
    return f"{n:,} {noun}{'s' * (n != 1)}"


def typed(*words: object) -> str:
    """Words as they are typed into the shell of this system, with quotes where they need them."""
    texts = [str(word) for word in words]
    return subprocess.list2cmdline(texts) if sys.platform == "win32" else shlex.join(texts)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`"; did you mean X?"` for the nearest of the known words, whatever their case, or nothing."""
    by_lower = {name.lower(): name for name in reversed(list(known))}
    begun = [name for name in by_lower if len(word) > 2 and name.startswith(word.lower())]
    near = difflib.get_close_matches(word.lower(), by_lower, n=1) or (begun if len(begun) == 1 else [])
    return f"; did you mean {by_lower[near[0]]}?" if near else ""


def did_you_mean_path(path: str | Path) -> str:
    """The same for a path, by the names that are beside it."""
    path = Path(path)
    try:
        names = [entry.name for entry in os.scandir(path.parent) if entry.name != path.name]
    except OSError:
        return ""
    # endings that agree are no likeness
    by_stem = {name.removesuffix(path.suffix): name for name in names if name.endswith(path.suffix)}
    near = difflib.get_close_matches(path.stem, by_stem, n=1)
    return f"; did you mean {path.parent / by_stem[near[0]]}?" if near else ""


def pick(flag: str, name: str, table: Iterable[str]) -> str:
    """The name, if the table has it.

    Raises:
        UserError: it has not; the message lists what it has.
    """
    if name not in table:
        raise UserError(f"{flag} {name!r} is unknown; choose from {', '.join(table)}{did_you_mean(name, table)}")
    return name


class Obstacle(UserError):
    """Something outside stopped the work, a full disk for example; once it is mended, the work can go on."""


def first_false(claims: Mapping[str, object]) -> str:
    """The text of the first claim that does not hold, or nothing."""
    return next((text for text, holds in claims.items() if not holds), "")


def first_unlike(value: object, kind: object, name: str = "") -> str:
    """What is not as it should be in plain values from a file: `"class_names is no list"`, or nothing.

    Args:
        kind: a type (`float` takes whole numbers too, neither takes what is not finite); a tuple of alternatives,
            None among them; `[kind]` for a list; `{str: kind}` for a dict, `{"key": kind, ...}` for one
            that has those keys at least.
    """
    if isinstance(kind, tuple):
        found = [first_unlike(value, one, name) for one in kind]
        return "" if "" in found else found[-1]
    if isinstance(kind, (list, dict)):
        if not isinstance(value, (list, tuple) if isinstance(kind, list) else dict):
            return f"{name} is no {type(kind).__name__}".lstrip()
        return next(filter(None, _inside(value, kind, name)), "")
    if kind is None or kind is object:
        return "" if kind is object or value is None else f"{name} is no None"
    right = isinstance(value, (int, float) if kind is float else kind) and isinstance(value, bool) == (kind is bool)
    if right and kind in (int, float) and not abs(value) < float("inf"):
        return f"{name} is {value}"
    return "" if right else f"{name} is a {type(value).__name__}, not a {kind.__name__}"


def _inside(value: Any, kind: Any, name: str) -> Iterator[str]:
    if isinstance(kind, list):
        yield from (first_unlike(item, kind[0], f"an entry of {name}") for item in value)
    elif str in kind:
        yield from (first_unlike(key, str, f"a key of {name}") for key in value)
        yield from (first_unlike(item, kind[str], f"an entry of {name}") for item in value.values())
    else:
        yield from (f"it has no {key}" for key in kind if key not in value)
        yield from (first_unlike(value[key], one, key) for key, one in kind.items() if key in value)


# --- addressed randomness ---------------------------------------------------------------------


def seed_for(*address: int | str) -> int:
    """A 63-bit seed that depends on the address alone: `seed_for(seed, "order", epoch)`.

    Every random draw has such an address instead of a place in a stream, so that neither the number
    of workers nor a resume can change it.
    """
    digest = hashlib.blake2b(repr(address).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@contextlib.contextmanager
def addressed_rng(*address: int | str) -> Iterator[None]:
    """Draws of torch's CPU generator inside the block depend on the address alone."""
    import torch

    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed_for(*address))
    try:
        yield
    finally:
        torch.set_rng_state(state)


# --- the launcher -----------------------------------------------------------------------------


def number_from_launcher(name: str, default: int) -> int:
    """A number that PyTorch's launcher puts into the environment of the processes that it starts."""
    return int(os.environ.get(name, default)) if "TORCHELASTIC_RUN_ID" in os.environ else default


def rank() -> int:
    """The place of this process among all of its run, from 0."""
    return number_from_launcher("RANK", 0)


def is_main() -> bool:
    """Whether this is the process that writes, prints and logs."""
    return rank() == 0


# --- cores, device and precision --------------------------------------------------------------


def n_cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


PRECISIONS = ("auto", "fp32", "bf16", "fp16")


def pick_device(gpu_id: int | None = None) -> torch.device:
    """The one place that chooses where to compute: CUDA 0, else MPS (one process only), else the CPU; -1 is the CPU.

    Whoever asks is about to compute, so the process keeps freed memory from here on: `keep_freed_memory`.

    Raises:
        UserError: the device is not there; the message lists those that are.
    """
    import torch

    keep_freed_memory()
    gpus = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    if (n_here := number_from_launcher("LOCAL_WORLD_SIZE", 1)) > 1:
        return _pick_own_device(gpu_id, gpus, n_here)
    # processes of several machines talk through the CPU, unless all have CUDA
    if not gpus and number_from_launcher("WORLD_SIZE", 1) == 1 and torch.backends.mps.is_available():
        gpus = [torch.device("mps", 0)]
    if gpu_id == -1 or (gpu_id is None and not gpus):
        return torch.device("cpu")
    if not 0 <= (gpu_id or 0) < len(gpus):
        there = "".join(f", {i} ({gpu})" for i, gpu in enumerate(gpus))
        raise UserError(f"--gpu_id {gpu_id} is not on this machine; it has -1 (the CPU){there}: give that, or none")
    return gpus[gpu_id or 0]


def _pick_own_device(gpu_id: int | None, gpus: list[torch.device], n_here: int) -> torch.device:
    """One device for each of the processes that the launcher started on this machine."""
    import torch

    if gpu_id not in (None, -1):
        raise UserError(
            f"--gpu_id {gpu_id} is one device for {n_here} processes; leave it out, and choose GPUs for the launcher "
            "with CUDA_VISIBLE_DEVICES"
        )
    if gpu_id == -1 or not gpus:
        return torch.device("cpu")
    if n_here > len(gpus):
        raise UserError(
            f"the launcher started {n_here} processes on a machine of {count_of(len(gpus), 'GPU')}; give "
            f"--nproc_per_node {len(gpus)}, or --gpu_id -1 for the CPU"
        )
    return gpus[number_from_launcher("LOCAL_RANK", 0)]


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """The type that convolutions compute in; weights stay in fp32.

    Raises:
        UserError: the name is unknown, or the device has no fp16.
    """
    import torch

    pick("--precision", name, PRECISIONS)
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


# --- files ------------------------------------------------------------------------------------


@contextlib.contextmanager
def atomic_write(
    path: str | Path, mode: str = "wb", previous: str | Path | None = None, **options: Any
) -> Iterator[IO]:
    """A file that appears under its name only when it is whole and on the disk.

    Args:
        previous: where a file that already has that name is kept, once the new one is whole.

    Raises:
        Obstacle: the folder cannot be made, is read-only or full; an earlier file stays as it was.
        UserError: the path is a folder.
    """
    path = Path(path)
    temporary = None
    if path.is_dir():
        raise UserError(f"cannot write {path}: it is a folder")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:40]}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        with open(temporary, mode, **options) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp gives 0600: a shared folder wants the usual
        if previous and path.exists():
            _keep(path, previous, temporary)
        os.replace(temporary, path)
    except OSError as error:
        _remove(temporary)
        raise Obstacle(f"cannot write {path}: {error.strerror or error}") from error
    except BaseException:
        _remove(temporary)
        raise


def remove_leftovers(path: str | Path) -> None:
    """Removes what a process that was killed while it wrote that file has left beside it."""
    path = Path(path)
    names = os.listdir(path.parent) if path.parent.is_dir() else []
    for name in names:
        if name.startswith(f".{path.name[:40]}.") and name.endswith((".tmp", ".tmp.prev")):
            with contextlib.suppress(OSError):  # another run may be writing a file of that name just now
                if is_older(os.path.getmtime(path.parent / name), LEFTOVER_SECONDS):
                    os.unlink(path.parent / name)


def file_state(path: str | Path) -> tuple[int, int] | None:
    """Size in bytes and time of change in ns, by which another content is known; None where nothing can be seen."""
    try:
        about = os.stat(path)
    except OSError:
        return None
    return about.st_size, about.st_mtime_ns


def is_older(mtime: float, seconds: float) -> bool:
    """Whether a time of change is that long ago, or ahead: the clock of a file server may be another."""
    return abs(time.time() - mtime) > seconds


@contextlib.contextmanager
def whole_folder(folder: str | Path) -> Iterator[Path]:
    """A folder that appears under its name only when it is whole; where another process was faster, its own stays.

    Inside, the place where to make it, on the same disk; what else is put beside that place goes.

    Raises:
        UserError: it cannot be written.
    """
    folder, outer = Path(folder), None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftover_folders(folder)
        outer = Path(tempfile.mkdtemp(prefix=f".{folder.name[:40]}.", suffix=".tmp", dir=folder.parent))
        yield (place := outer / "inside")  # mkdtemp's own is for its owner alone
        try:
            os.replace(place, folder)
        except OSError:
            if not folder.is_dir():
                raise
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise UserError(f"cannot make {folder}: {error.strerror or error}{where}") from error
    finally:
        if outer:
            shutil.rmtree(outer, ignore_errors=True)


def _remove_leftover_folders(folder: Path) -> None:
    """Removes what processes that were killed while they made that folder have left beside it."""
    for path in folder.parent.glob(f".{glob.escape(folder.name[:40])}.{'?' * 8}.tmp"):
        with contextlib.suppress(OSError):
            if is_older(path.stat().st_mtime, LEFTOVER_FOLDER_SECONDS):
                shutil.rmtree(path, ignore_errors=True)


def check_target(path: str | Path, flag: str) -> None:
    """Checks before the work that a file can be written there after it.

    Raises:
        UserError: the path is a folder, or its folder cannot be written to.
    """
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{flag} {path} is a folder; give the name of a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UserError(f"{flag} {path}: cannot write there ({error.strerror}); give another place") from error


def write_text(path: str | Path, text: str) -> None:
    """Writes UTF-8 text atomically; names that are no Unicode are shown with backslashes."""
    with atomic_write(path, "w", encoding="utf-8", newline="", errors="backslashreplace") as file:
        file.write(text)


def read_json(path: str | Path) -> dict:
    """What a file of ours holds; {} where there is none, or it is broken or no dict."""
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, ValueError, RecursionError):  # the last is of a million brackets
        return {}
    return content if isinstance(content, dict) else {}


def sha256_of(path: str | Path) -> str:
    """The checksum of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _keep(path: Path, previous: str | Path, temporary: str) -> None:
    """Gives the file a second name, so that at no instant the first is without a file."""
    second = f"{temporary}.prev"
    try:
        os.link(path, second)
    except OSError:  # not every file system has links
        shutil.copy2(path, second)
    os.replace(second, previous)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _remove(path: str | None) -> None:
    if path:
        with contextlib.suppress(OSError):
            os.unlink(path)
