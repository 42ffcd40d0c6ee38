"""Leaf helpers that every room may use and that know no other module of the house."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from photo_classifier.runtime.errors import UserError, WriteError

if TYPE_CHECKING:  # torch takes seconds to import and --help must not wait for it
    pass


LEFTOVER_SECONDS = 60.0  # a file that is being written was touched since
LEFTOVER_FOLDER_SECONDS = 86_400.0  # no folder takes a day to fill


# --- addressed randomness ---------------------------------------------------------------------


# --- the launcher -----------------------------------------------------------------------------


# --- cores, device and precision --------------------------------------------------------------


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
        raise WriteError(f"cannot write {path}: {error.strerror or error}") from error
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
def atomic_folder(folder: str | Path) -> Iterator[Path]:
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


def sha256_file(path: str | Path) -> str:
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
