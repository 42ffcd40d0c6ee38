"""One way to bring a file from the network, and one to unpack an archive."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import stat
import tarfile
import tempfile
import threading
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from utils import UserError, atomic_write, progress

CONNECT_SECONDS = 3.0  # a machine without a network must be told so at once, not after minutes
READ_SECONDS = 30.0


class DownloadError(Exception):
    """The file could not be brought; the message is the reason alone."""


def sha256_of(path: str | Path) -> str:
    """The checksum of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def download(
    url: str, path: str | Path, sha256: str | None = None, check: Callable[[Path], None] | None = None
) -> Path:
    """Brings `url` to `path`, whole or not at all, with a progress bar.

    Proxies are taken from the usual environment variables.

    Args:
        sha256: the checksum in hexadecimal, or its beginning.
        check: looks at the whole file before it gets its name, and raises `DownloadError` if it is not right.

    Raises:
        DownloadError: no answer within 3 s, an HTTP error, a short file or a wrong checksum.
    """
    path = Path(path)
    with _connect(url) as answer, atomic_write(path) as file:
        length = answer.headers.get("Content-Length") or ""
        n_bytes = int(length) if length.isdigit() else 0
        digest, received = hashlib.sha256(), 0
        with progress(total=n_bytes or None, unit="B", unit_scale=True, desc=path.name) as bar:
            for block in _blocks(answer):
                file.write(block)
                digest.update(block)
                received += len(block)
                bar.update(len(block))
        if n_bytes and received != n_bytes:
            raise DownloadError(f"the connection broke after {received} of {n_bytes} bytes")
        if sha256 and not digest.hexdigest().startswith(sha256):
            raise DownloadError(f"the file has SHA-256 {digest.hexdigest()}, expected {sha256}")
        if check:
            file.flush()
            check(Path(file.name))
    return path


def _blocks(answer) -> Iterator[bytes]:
    while True:
        try:
            block = answer.read(1 << 20)
        except (OSError, http.client.HTTPException) as error:
            raise DownloadError(f"the connection broke: {error}") from error
        if not block:
            return
        yield block


def _connect(url: str):
    """Opens the URL in a thread: a name server that never answers has no timeout of its own."""
    result: list = []

    def connect() -> None:
        try:
            # a new opener reads the proxies of the environment as they are now
            result.append(urllib.request.build_opener().open(url, timeout=READ_SECONDS))
        except (OSError, ValueError, http.client.HTTPException) as error:
            result.append(error)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(CONNECT_SECONDS)
    if not result:
        raise DownloadError(f"no answer within {CONNECT_SECONDS:.0f} s")
    if isinstance(result[0], urllib.error.HTTPError):
        raise DownloadError(f"the server answered {result[0].code} {result[0].reason}")
    if isinstance(result[0], Exception):
        raise DownloadError(f"no connection ({getattr(result[0], 'reason', result[0])})")
    return result[0]


# --- archives ---------------------------------------------------------------------------------


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
