"""One way to unpack an archive, whatever is in it."""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from utils import UserError, progress


def extract(archive: str | Path, folder: str | Path, strip: str = "") -> None:
    """Unpacks a zip or tar so that `folder` appears whole or not at all.

    Args:
        strip: a leading folder inside the archive that is left out.

    Raises:
        UserError: the archive is broken, or an entry is a link, is absolute or leaves the folder.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{folder.name[:40]}.", dir=folder.parent))
    try:
        unpack = _unzip if zipfile.is_zipfile(archive) else _untar
        unpack(Path(archive), lambda name: _target(staging, name, Path(archive)))
        source = staging / strip if strip else staging
        if not source.is_dir():
            raise UserError(f"{archive} has no folder {strip!r} in it; is it another archive?")
        os.replace(source, folder)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, RuntimeError) as error:
        raise UserError(f"{archive} cannot be unpacked ({error}); bring it again") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _target(staging: Path, name: str, archive: Path) -> Path:
    name = name.replace("\\", "/")
    parts = PurePosixPath(name).parts
    if name.startswith("/") or ".." in parts or any(":" in part for part in parts[:1]):
        raise UserError(f"{archive} was refused: its entry {name!r} would leave the folder")
    return staging.joinpath(*parts)


def _unzip(archive: Path, target: Callable[[str], Path]) -> None:
    with zipfile.ZipFile(archive) as file:
        for entry in progress(file.infolist(), desc=f"unpacking {archive.name}", unit="file"):
            if stat.S_ISLNK(entry.external_attr >> 16):
                raise UserError(f"{archive} was refused: its entry {entry.filename!r} is a link")
            if not entry.is_dir():
                with file.open(entry) as source:
                    _write(source, target(entry.filename))


def _untar(archive: Path, target: Callable[[str], Path]) -> None:
    with tarfile.open(archive) as file:
        for entry in progress(file, desc=f"unpacking {archive.name}", unit="file"):
            if not (entry.isfile() or entry.isdir()):
                raise UserError(f"{archive} was refused: its entry {entry.name!r} is a link or a device")
            if entry.isfile():
                _write(file.extractfile(entry), target(entry.name))


def _write(source, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        shutil.copyfileobj(source, file)
