"""Unpacks archives once, safely, and never outside their folder."""

from __future__ import annotations

import contextlib
import hashlib
import lzma
import os
import re
import stat
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from photo_classifier.data.encodings import DOS_LETTERS, encoding_of
from photo_classifier.data.image_files import is_visible
from photo_classifier.runtime.console import progress, say
from photo_classifier.runtime.errors import UserError
from photo_classifier.runtime.files import atomic_folder
from photo_classifier.runtime.limits import free_bytes, resource_hint

ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
FOLDER = ".cache/archives"
# Photos hardly compress, so an archive that grows a hundredfold holds something else; small ones may grow to 1 GB.
MAX_GROWTH, MAX_SMALL = 100, 1 << 30
MAX_NAME = 1 << 20  # bytes
DAMAGE = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError)
BLOCK = 512  # bytes that each entry counts as at least, so that empty files are limited too


def is_archive_name(name: str | Path) -> bool:
    """Returns whether a file name has the ending of an archive."""
    return str(name).lower().endswith(ENDINGS)


def unpack_once(archive: str | Path, base: str | Path = FOLDER) -> Path:
    """Unpacks an archive at its first use, and again when it has changed; returns the folder.

    Raises:
        UserError: as for `extract`.
    """
    archive = Path(archive)
    folder = Path(base) / f"{archive.name[:60]}-{_fingerprint(archive)}"
    if folder.is_dir():
        say(f"{archive} is already unpacked in {folder}")
        return folder
    extract(archive, folder)
    say(f"unpacked {archive} into {folder}")
    return folder


def _fingerprint(archive: Path) -> str:
    """Hashes size, time, start and end: the end of a zip lists the checksums of all its files."""
    try:
        status = archive.stat()
        digest = hashlib.blake2b(f"{status.st_size} {status.st_mtime_ns}".encode(), digest_size=6)
        with open(archive, "rb") as file:
            digest.update(file.read(1 << 16))
            file.seek(max(0, status.st_size - (1 << 20)))
            digest.update(file.read())
    except OSError as error:
        raise UserError(f"cannot read {archive}: {error.strerror}") from error
    return digest.hexdigest()


def extract(archive: str | Path, folder: str | Path, strip: str = "") -> None:
    """Unpacks a zip or tar so that `folder` appears complete or not at all; skips hidden files.

    Args:
        strip: a top folder inside the archive to remove from the paths.

    Raises:
        UserError: the archive is broken, encrypted or larger than the limit, the disk is full, or an entry
            is a link, a device, an absolute path or outside the folder.
    """
    archive, folder = Path(archive), Path(folder)
    with atomic_folder(folder) as target:
        staging = target.with_name("all")
        staging.mkdir()
        try:
            unpack = _unzip if zipfile.is_zipfile(archive) else _untar
            unpack(archive, ArchiveExtractor(archive, staging))
        except (*DAMAGE, OSError, RuntimeError, ValueError) as error:
            if getattr(error, "errno", None) or resource_hint(error):  # the disk's or the system's fault
                raise
            raise UserError(
                f"{archive} cannot be unpacked ({error}); copy or download it again, or unpack it yourself"
            ) from error
        source = staging / strip if strip else staging
        if not source.is_dir():
            raise UserError(f"{archive} contains no folder {strip!r}; is it a different archive?")
        os.replace(source, target)


class ArchiveExtractor:
    """Writes the entries of one archive below `folder`, up to a size limit."""

    def __init__(self, archive: Path, folder: Path) -> None:
        self.archive, self.folder = archive, folder
        self.limit = max(MAX_SMALL, MAX_GROWTH * archive.stat().st_size)
        self.n_bytes = 0

    def refuse(self, reason: str) -> None:
        """Stops unpacking.

        Raises:
            UserError: always.
        """
        raise UserError(f"{self.archive} was refused: {reason}")

    def count(self, n_bytes: int) -> None:
        """Adds to the number of unpacked bytes.

        Raises:
            UserError: the limit is exceeded.
        """
        self.n_bytes += n_bytes
        if self.n_bytes > self.limit:
            limit = f"{self.limit / 1e9:.1f} GB ({MAX_GROWTH} times its size, at least 1 GB)"
            self.refuse(f"it unpacks to more than {limit}; if you trust it, unpack it yourself and give the folder")

    def write(self, name: str, source: IO[bytes], seconds: Callable[[], float]) -> None:
        """Writes one entry with its stored modification time; skips hidden ones.

        Args:
            seconds: returns that time in seconds since the epoch.
        """
        parts = self._parts(name)
        if not all(is_visible(part) for part in parts):
            return
        path = self.folder.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            while block := source.read(1 << 20):
                self.count(len(block))
                file.write(block)
        with contextlib.suppress(OSError, OverflowError, ValueError):  # some have no valid time
            # caches that compare times stay valid when it is unpacked again
            os.utime(path, (seconds(), seconds()))

    def _parts(self, name: str) -> Sequence[str]:
        path = name.replace("\\", "/")
        parts = PurePosixPath(path).parts
        if not parts or path.startswith("/") or ".." in parts or re.match("[A-Za-z]:", path):
            self.refuse(f"its entry {name!r} would be written outside the folder")
        if sys.platform == "win32":  # characters that Windows does not allow in names
            return [re.sub(r'[:<>|"?*]', "_", part) for part in parts]
        return parts


def _unzip(archive: Path, target: ArchiveExtractor) -> None:
    with zipfile.ZipFile(archive) as file:
        entries = file.infolist()
        free, n_bytes = free_bytes(target.folder), sum(entry.file_size for entry in entries)
        target.count(BLOCK * len(entries))
        if target.limit >= n_bytes > free:
            target.refuse(f"it needs {n_bytes / 1e9:.1f} GB, and the disk has {free / 1e9:.1f} GB left")
        names = zip_names(entries)
        for entry, name in progress(list(zip(entries, names, strict=True)), desc=archive.name, unit="file"):
            if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                target.refuse(f"its entry {name!r} is a link or a device")
            if entry.flag_bits & 1:
                target.refuse("it is encrypted with a password; unpack it yourself and give the folder")
            if not entry.is_dir():
                with file.open(entry) as source:
                    target.write(name, source, lambda entry=entry: time.mktime((*entry.date_time, 0, 0, -1)))


class _TarEntry(tarfile.TarInfo):
    """Limits the length of names, which tarfile reads into memory whole."""

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> tarfile.TarInfo:
        entry = super().frombuf(buf, encoding, errors)
        if entry.type not in (*tarfile.REGULAR_TYPES, tarfile.DIRTYPE) and entry.size > MAX_NAME:
            raise tarfile.ReadError(f"a header of {entry.size} bytes")
        return entry


def _untar(archive: Path, target: ArchiveExtractor) -> None:
    if not tarfile.is_tarfile(archive):  # tarfile's own message lists every kind of compression
        raise tarfile.ReadError("it is not a complete zip or tar file")
    with tarfile.open(archive, tarinfo=_TarEntry) as file:
        for entry in progress(file, desc=archive.name, unit="file"):
            name = _tar_name(entry.name)
            target.count(BLOCK)
            if not (entry.isfile() or entry.isdir()):
                target.refuse(f"its entry {name!r} is a link or a device")
            if entry.isfile():
                target.write(name, file.extractfile(entry), lambda entry=entry: entry.mtime)


def zip_names(entries: Sequence[zipfile.ZipInfo]) -> list[str]:
    """Returns the names in a zip. Old ones state no encoding: it is guessed, from code pages of DOS and East Asia."""
    old = [entry for entry in entries if not entry.flag_bits & 0x800]
    encoding = encoding_of(b"/".join(_raw(entry) for entry in old), DOS_LETTERS) or "cp437"
    return [entry.filename if entry.flag_bits & 0x800 else _raw(entry).decode(encoding, "replace") for entry in entries]


def _raw(entry: zipfile.ZipInfo) -> bytes:
    return entry.orig_filename.partition("\0")[0].encode("cp437")


def _tar_name(name: str) -> str:
    """Returns a name in a tar; bytes that are not UTF-8 arrive as surrogates and may be Korean."""
    raw = name.encode("utf-8", "surrogateescape")
    return raw.decode("cp949") if encoding_of(raw) == "cp949" else name
