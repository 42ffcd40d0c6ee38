"""Files and folders that are written whole or not at all, and their state and checksums."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import mmap
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from photo_classifier.runtime.errors import UserError, WriteError
from photo_classifier.runtime.limits import write_reason

LEFTOVER_SECONDS = 60.0  # a file that is being written has changed more recently
LEFTOVER_FOLDER_SECONDS = 86_400.0  # no folder takes a day to fill


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: str = "wb", keep_existing: bool = False, **options: Any) -> Iterator[IO]:
    """Opens a file that gets its name only once it is complete and on the disk.

    Args:
        keep_existing: keeps an existing file of that name as `.prev`, once the new one is complete.

    Raises:
        WriteError: the folder cannot be created, is read-only or full; an existing file stays as it was.
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
            sync(file)
        with contextlib.suppress(OSError):  # not every file system has modes
            os.chmod(temporary, 0o666 & ~_umask())  # mkstemp gives 0600, which others in a shared folder cannot read
        if keep_existing:
            keep_previous(path)
        os.replace(temporary, path)
    except OSError as error:
        _remove(temporary)
        raise WriteError(f"cannot write {path}: {write_reason(error)}") from error
    except BaseException:
        _remove(temporary)
        raise


def sync(file: IO) -> None:
    """Brings what was written to the disk, where the file system can do that."""
    file.flush()
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise


def can_map(path: str | Path) -> bool:
    """Returns whether a file can be memory-mapped, which some network file systems do not support."""
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ):
            return True
    except (OSError, ValueError):
        return False


def keep_previous(path: str | Path) -> bool:
    """Keeps an existing file also as `<path>.prev`, and returns whether there is one; its own name always exists.

    Raises:
        OSError: it cannot be kept.
    """
    path = Path(path)
    if not path.exists():
        return False
    second = path.with_name(f".{path.name[:40]}.{os.getpid()}.tmp.prev")
    try:
        os.link(path, second)
    except OSError:  # not every file system has links
        shutil.copyfile(path, second)  # nor has every one modes or times to be copied
    os.replace(second, f"{path}.prev")
    return True


def remove_leftovers(path: str | Path) -> None:
    """Removes temporary files beside a path that processes left when they were killed while writing it."""
    path = Path(path)
    names = os.listdir(path.parent) if path.parent.is_dir() else []
    for name in names:
        if name.startswith(f".{path.name[:40]}.") and name.endswith((".tmp", ".tmp.prev")):
            with contextlib.suppress(OSError):  # another run may be writing a file of that name now
                if is_older(os.path.getmtime(path.parent / name), LEFTOVER_SECONDS):
                    os.unlink(path.parent / name)


def file_state(path: str | Path) -> tuple[int, int] | None:
    """Returns size (bytes) and modification time (ns), which show a change; None if it is inaccessible."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


def is_older(mtime: float, seconds: float) -> bool:
    """Returns whether a modification time is that far away, also in the future: a file server's clock may be wrong."""
    return abs(time.time() - mtime) > seconds


@contextlib.contextmanager
def atomic_folder(folder: str | Path) -> Iterator[Path]:
    """Creates a folder that gets its name only once it is complete; that of a faster process is kept instead.

    Yields the path to fill, on the same disk. Whatever else is put beside that path is removed.

    Raises:
        UserError: it cannot be written.
    """
    folder, outer = Path(folder), None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftover_folders(folder)
        outer = Path(tempfile.mkdtemp(prefix=f".{folder.name[:40]}.", suffix=".tmp", dir=folder.parent))
        yield (inside := outer / "inside")  # mkdtemp's own folder is private to its owner
        try:
            os.replace(inside, folder)
        except OSError:
            if not folder.is_dir():
                raise
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise UserError(f"cannot make {folder}: {write_reason(error)}{where}") from error
    finally:
        if outer:
            shutil.rmtree(outer, ignore_errors=True)


def _remove_leftover_folders(folder: Path) -> None:
    """Removes temporary folders beside a path that processes left when they were killed while filling them."""
    for path in folder.parent.glob(f".{glob.escape(folder.name[:40])}.{'?' * 8}.tmp"):
        with contextlib.suppress(OSError):
            if is_older(path.stat().st_mtime, LEFTOVER_FOLDER_SECONDS):
                shutil.rmtree(path, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Writes UTF-8 text atomically; invalid Unicode becomes backslash escapes."""
    with atomic_write(path, "w", encoding="utf-8", newline="", errors="backslashreplace") as file:
        file.write(text)


def read_json(path: str | Path) -> dict:
    """Returns the dict in a JSON file; {} if the file is missing, broken or holds something else."""
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, ValueError, RecursionError):  # RecursionError: a million brackets
        return {}
    return content if isinstance(content, dict) else {}


def sha256_file(path: str | Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _remove(path: str | None) -> None:
    if path:
        with contextlib.suppress(OSError):
            os.unlink(path)
