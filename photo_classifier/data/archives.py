"""Archives: unpacked once, safely, with nothing outside their folder."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import stat
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from photo_classifier.data.image_files import is_visible
from photo_classifier.runtime.console import progress, say
from photo_classifier.runtime.errors import UserError
from photo_classifier.runtime.files import atomic_folder

ENDINGS = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
FOLDER = ".cache/archives"
# Photos hardly shrink, so what grows a hundredfold is no folder of photos; small archives may grow to 1 GB.
MAX_GROWTH, MAX_SMALL = 100, 1 << 30
MAX_NAME = 1 << 20  # bytes
BLOCK = 512  # bytes that an entry counts for at least, so that empty files are not free


def is_archive_name(name: str | Path) -> bool:
    """Whether the ending of a file name is that of an archive."""
    return str(name).lower().endswith(ENDINGS)


def unpack_once(archive: str | Path, base: str | Path = FOLDER) -> Path:
    """The folder that holds what is in an archive; it is unpacked at its first use, and anew when it has changed.

    Raises:
        UserError: as `extract`.
    """
    archive = Path(archive)
    folder = Path(base) / f"{archive.name[:60]}-{_fingerprint(archive)}"
    if folder.is_dir():
        say(f"{archive} was unpacked before, into {folder}")
        return folder
    extract(archive, folder)
    say(f"unpacked {archive} into {folder}")
    return folder


def _fingerprint(archive: Path) -> str:
    """Of size, time, head and tail: a zip lists the checksums of all its files in the tail."""
    try:
        about = archive.stat()
        digest = hashlib.blake2b(f"{about.st_size} {about.st_mtime_ns}".encode(), digest_size=6)
        with open(archive, "rb") as file:
            digest.update(file.read(1 << 16))
            file.seek(max(0, about.st_size - (1 << 20)))
            digest.update(file.read())
    except OSError as error:
        raise UserError(f"cannot read {archive}: {error.strerror}") from error
    return digest.hexdigest()


def extract(archive: str | Path, folder: str | Path, strip: str = "") -> None:
    """Unpacks a zip or tar so that `folder` appears whole or not at all; hidden files are passed over.

    Args:
        strip: a leading folder inside the archive that is left out.

    Raises:
        UserError: the archive is broken, locked or grows beyond the limit, the disk is full, or an entry
            is a link or a device, is absolute or leaves the folder.
    """
    archive, folder = Path(archive), Path(folder)
    with atomic_folder(folder) as place:
        staging = place.with_name("all")
        staging.mkdir()
        try:
            unpack = _unzip if zipfile.is_zipfile(archive) else _untar
            unpack(archive, ArchiveExtractor(archive, staging))
        except (tarfile.TarError, zipfile.BadZipFile, EOFError, OSError, RuntimeError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise UserError(f"{archive} cannot be unpacked ({reason}); bring it again or unpack it yourself") from error
        source = staging / strip if strip else staging
        if not source.is_dir():
            raise UserError(f"{archive} has no folder {strip!r} in it; is it another archive?")
        os.replace(source, place)


class ArchiveExtractor:
    """Where the entries of one archive go: nowhere but below `folder`, and not without end."""

    def __init__(self, archive: Path, folder: Path) -> None:
        self.archive, self.folder = archive, folder
        self.limit = max(MAX_SMALL, MAX_GROWTH * archive.stat().st_size)
        self.n_bytes = 0

    def refuse(self, reason: str) -> None:
        """Ends the unpacking.

        Raises:
            UserError: always.
        """
        raise UserError(f"{self.archive} was refused: {reason}")

    def count(self, n_bytes: int) -> None:
        """Adds to what has been unpacked.

        Raises:
            UserError: it is more than the limit.
        """
        self.n_bytes += n_bytes
        if self.n_bytes > self.limit:
            limit = f"{self.limit / 1e9:.1f} GB ({MAX_GROWTH} times its size, at least 1 GB)"
            self.refuse(f"it unpacks to more than {limit}; if you trust it, unpack it yourself and give the folder")

    def write(self, name: str, source: IO[bytes], seconds: Callable[[], float]) -> None:
        """Copies one entry to its place, with the time that it was packed with; hidden ones are passed over.

        Args:
            seconds: gives that time since the epoch.
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
        with contextlib.suppress(OSError, OverflowError, ValueError):  # some have none, or one before all time
            # what is unpacked again is then the same file to all who remember it
            os.utime(path, (seconds(), seconds()))

    def _parts(self, name: str) -> Sequence[str]:
        path = name.replace("\\", "/")
        parts = PurePosixPath(path).parts
        if not parts or path.startswith("/") or ".." in parts or re.match("[A-Za-z]:", path):
            self.refuse(f"its entry {name!r} would leave the folder")
        if sys.platform == "win32":  # letters that Windows has no names with
            return [re.sub(r'[:<>|"?*]', "_", part) for part in parts]
        return parts


def _unzip(archive: Path, target: ArchiveExtractor) -> None:
    with zipfile.ZipFile(archive) as file:
        entries = file.infolist()
        free, n_bytes = shutil.disk_usage(target.folder).free, sum(entry.file_size for entry in entries)
        target.count(BLOCK * len(entries))
        if target.limit >= n_bytes > free:
            target.refuse(f"it needs {n_bytes / 1e9:.1f} GB, and the disk has {free / 1e9:.1f} GB left")
        names = zip_names(entries)
        for entry, name in progress(list(zip(entries, names, strict=True)), desc=archive.name, unit="file"):
            if stat.S_IFMT(entry.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                target.refuse(f"its entry {name!r} is a link or a device")
            if entry.flag_bits & 1:
                target.refuse("it is locked with a password; unpack it yourself and give the folder")
            if not entry.is_dir():
                with file.open(entry) as source:
                    target.write(name, source, lambda entry=entry: time.mktime((*entry.date_time, 0, 0, -1)))


class _TarEntry(tarfile.TarInfo):
    """An entry whose long names must fit into memory: tarfile reads them whole."""

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> tarfile.TarInfo:
        entry = super().frombuf(buf, encoding, errors)
        if entry.type not in (*tarfile.REGULAR_TYPES, tarfile.DIRTYPE) and entry.size > MAX_NAME:
            raise tarfile.ReadError(f"a header of {entry.size} bytes")
        return entry


def _untar(archive: Path, target: ArchiveExtractor) -> None:
    if not tarfile.is_tarfile(archive):  # tarfile's own message is one for each kind of compression
        raise tarfile.ReadError("it is no zip or tar file, or not a whole one")
    with tarfile.open(archive, tarinfo=_TarEntry) as file:
        for entry in progress(file, desc=archive.name, unit="file"):
            name = _tar_name(entry.name)
            target.count(BLOCK)
            if not (entry.isfile() or entry.isdir()):
                target.refuse(f"its entry {name!r} is a link or a device")
            if entry.isfile():
                target.write(name, file.extractfile(entry), lambda entry=entry: entry.mtime)


def zip_names(entries: Sequence[zipfile.ZipInfo]) -> list[str]:
    """The names in a zip. Old ones say no encoding: they are UTF-8, else Korean (cp949), else cp437."""
    old = [entry for entry in entries if not entry.flag_bits & 0x800]
    encoding = _encoding_of(b"/".join(_raw(entry) for entry in old))
    return [entry.filename if entry.flag_bits & 0x800 else _raw(entry).decode(encoding, "replace") for entry in entries]


def _raw(entry: zipfile.ZipInfo) -> bytes:
    return entry.orig_filename.partition("\0")[0].encode("cp437")


def _encoding_of(raw: bytes) -> str:
    for encoding in ("utf-8", "cp949"):
        with contextlib.suppress(UnicodeDecodeError):
            text = raw.decode(encoding)
            if encoding == "utf-8" or _is_korean(text):
                return encoding
    return "cp437"


def _is_korean(text: str) -> bool:
    """Most letters of Western cp437 names read as cp949 give syllables that nobody writes (not in KS X 1001)."""
    foreign = [letter for letter in text if not letter.isascii()]
    usual = "".join(foreign).encode("euc_kr", "ignore")
    return len(usual) >= len(foreign)  # two bytes a letter: at least half of them


def _tar_name(name: str) -> str:
    """A tar's name; what is no UTF-8 was kept in surrogates, and is Korean if it can be."""
    raw = name.encode("utf-8", "surrogateescape")
    return raw.decode("cp949") if _encoding_of(raw) == "cp949" else name
