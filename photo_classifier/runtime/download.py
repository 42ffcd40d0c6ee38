"""Downloads files from the network."""

from __future__ import annotations

import hashlib
import http.client
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

from photo_classifier.runtime.console import progress
from photo_classifier.runtime.files import atomic_write

CONNECT_SECONDS = 3.0  # without a network the error must come at once, not after minutes
READ_SECONDS = 30.0


class DownloadError(Exception):
    """The file could not be downloaded; the message gives the reason only."""


def download(
    url: str, path: str | Path, sha256: str | None = None, check: Callable[[Path], None] | None = None
) -> Path:
    """Downloads `url` to `path`, completely or not at all, with a progress bar.

    Proxies are taken from the usual environment variables.

    Args:
        sha256: the checksum in hexadecimal, or its beginning.
        check: is called with the complete file before it gets its name; raises `DownloadError` to reject it.

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
        """Puts the response, or the error, into `result`."""
        try:
            # a new opener reads the environment's current proxies
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
