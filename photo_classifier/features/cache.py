"""The folder of the feature cache: a subfolder per recipe; the least recently used shards are removed first."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

from photo_classifier.features.shards import SHARD_NAME, SHARD_SUFFIX
from photo_classifier.runtime import distributed
from photo_classifier.runtime.files import is_older

CACHE_LIMIT = 20e9  # bytes
# Patterns of our own names: nothing else in the folder is ever removed.
RECIPE_NAME = "[0-9a-f]" * 32
SHARD_SUFFIXES = (SHARD_SUFFIX, ".bin", ".json")  # the first version wrote two files for each shard
TEMPORARY_NAMES = (f".{SHARD_NAME}.*.tmp", f"{SHARD_NAME}.tmp")
RUN_PREFIX = "photo-features-"  # begins the name of a folder for one run
STALE_SECONDS = 24 * 3600.0  # older temporary files belong to dead runs


@contextlib.contextmanager
def open_cache(folder: str) -> Iterator[Path]:
    """Yields the folder of the cache; for `none`, a temporary one that is removed at the end."""
    if folder != "none":
        yield Path(folder)
        return
    temporary = distributed.broadcast_from_main(_make_temporary_cache)
    try:
        yield Path(temporary)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if os.path.exists(temporary):  # Windows keeps files that are memory-mapped
            atexit.register(shutil.rmtree, temporary, ignore_errors=True)


def place_of(folder: str) -> Path:
    """Returns where features will be stored, for `none` as well."""
    return Path(tempfile.gettempdir(), RUN_PREFIX) if folder == "none" else Path(folder)


def cache_entries(cache: Path) -> list[tuple[float, int, Path]]:
    """Returns (last use, bytes, path) of every shard file, the least recently used first."""
    entries = []
    for suffix in SHARD_SUFFIXES:
        for path in cache.glob(f"{RECIPE_NAME}/{SHARD_NAME}{suffix}"):
            with contextlib.suppress(OSError):
                stat = path.stat()
                entries.append((stat.st_mtime, stat.st_size, path))
    return sorted(entries)


def prune_cache(cache: Path, needed: int, limit: float, keep: Collection[Path] = ()) -> int:
    """Makes room for `needed` bytes within the limit, and removes the temporary files of dead runs.

    Args:
        keep: shards that are kept even if the limit is too small for them.

    Returns:
        The bytes that the cache takes including those needed: more than the limit if what is kept is too large.
    """
    entries = cache_entries(cache)
    total = sum(n_bytes for _, n_bytes, _ in entries) + needed
    for _, n_bytes, path in entries:
        if total <= limit:
            break
        if path not in keep:
            _remove(path)
            total -= n_bytes
    for name in TEMPORARY_NAMES:
        for path in cache.glob(f"{RECIPE_NAME}/{name}"):
            with contextlib.suppress(OSError):
                if is_older(path.stat().st_mtime, STALE_SECONDS):
                    _remove(path)
    return total


def _make_temporary_cache() -> str:
    """Makes a folder for this run, after removing those that killed runs have left."""
    for folder in Path(tempfile.gettempdir()).glob(f"{RUN_PREFIX}*"):
        with contextlib.suppress(OSError):
            # A live run has written within the last day, or has already opened everything it will read.
            if is_older(max(path.stat().st_mtime for path in (folder, *folder.iterdir())), STALE_SECONDS):
                prune_cache(folder, needed=0, limit=0)
                folder.rmdir()
    return tempfile.mkdtemp(prefix=RUN_PREFIX)


def _remove(path: Path) -> None:
    """Removes a file, and its folder if it is then empty."""
    with contextlib.suppress(OSError):
        path.unlink()
    with contextlib.suppress(OSError):
        path.parent.rmdir()
