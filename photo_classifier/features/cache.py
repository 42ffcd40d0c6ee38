"""Rows of features on the disk: shards in a folder for each recipe, bounded in size, what is oldest out first."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from photo_classifier.runtime import distributed
from photo_classifier.runtime.errors import WriteError
from photo_classifier.runtime.files import LEFTOVER_SECONDS, file_state, is_older, write_text

if TYPE_CHECKING:
    import torch

    from photo_classifier.data.samples import Sample

CACHE_LIMIT = 20e9  # bytes; what was used longest ago goes first
RECIPE_NAME = "[0-9a-f]" * 32  # patterns of our own names: nothing else in the folder is ever touched
SHARD_NAME = "[0-9]" * 20 + "-" + "[0-9a-f]" * 8
TEMPORARY = "photo-features-"  # begins the name of a folder for one run
STALE_SECONDS = 24 * 3600.0  # a file without an index is of a dead run by then


# --- what a row is of -------------------------------------------------------------------------


class RowKey(NamedTuple):
    """One view of one file as it is now: another size or time of change is another row."""

    view: int
    path: str
    key: str
    size: int
    mtime_ns: int


def row_keys(sample: Sample, n_views: int) -> list[RowKey] | None:
    """The identities of a file's rows by view, or None where it cannot be looked at."""
    state = file_state(sample.path)
    if state is None:
        return None
    file = (os.path.abspath(sample.path), sample.key, *state)
    return [RowKey(view, *file) for view in range(n_views)]


# --- rows -------------------------------------------------------------------------------------


class ShardStore:
    """Rows of features on the disk under one recipe, memory-mapped.

    A shard is a file of rows and an index beside it. Both are written under other names and renamed,
    the index last, so a shard without an index, or of another length than it says, is never read.
    Runs at the same time write shards of their own.

    Args:
        example: features, (1, ...), of the shape and type that all rows have; a shard of others is not read.
    """

    def __init__(self, folder: Path, example: torch.Tensor | None = None) -> None:
        self.folder, self.example = folder, example
        self.shards: list[torch.Tensor] = []
        self.indices: list[Path] = []  # their index files
        self.rows: dict[RowKey, tuple[int, int]] = {}

    def open(self, wanted: Iterable[RowKey]) -> None:
        """Opens the shards that hold rows of those; the others are left to grow old."""
        wanted = set(wanted) - self.rows.keys()
        for index in sorted(self.folder.glob(f"{SHARD_NAME}.json")) if wanted else ():
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RuntimeError):  # broken: as if absent
                self._open(index, wanted)

    def _open(self, index: Path, wanted: Collection[RowKey]) -> None:
        import torch

        about = json.loads(index.read_text(encoding="utf-8"))
        dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
        shape, dtype = about["shape"], dtypes[about["dtype"]]
        data = index.with_suffix(".bin")
        n_bytes = _n_elements(shape) * dtype.itemsize
        keys = [RowKey(*row) for row in about["rows"]]
        # a row that two runs have stored is read from the first of them; the second grows old
        rows = {key: row for row, key in enumerate(keys) if key in wanted and key not in self.rows}
        is_whole = os.path.getsize(data) == n_bytes and len(keys) == shape[0]
        if not rows or not is_whole or not self._takes(shape, dtype):
            return
        self._map(index, rows, shape, dtype)
        with contextlib.suppress(OSError):  # a cache that may only be read is a cache too
            os.utime(index)  # it is in use now, others are older

    def _map(self, index: Path, rows: dict[RowKey, int], shape: Sequence[int], dtype: torch.dtype) -> None:
        import torch

        size = _n_elements(shape)
        shard = torch.from_file(str(index.with_suffix(".bin")), shared=False, size=size, dtype=dtype).view(shape)
        self.rows.update({key: (len(self.shards), row) for key, row in rows.items()})
        self.shards.append(shard)
        self.indices.append(index)

    def _takes(self, shape: list[int], dtype: torch.dtype) -> bool:
        example = self.example
        return example is None or (shape[1:] == list(example.shape[1:]) and dtype == example.dtype)

    def add(self, keys: Sequence[RowKey], features: torch.Tensor) -> None:
        """Writes a shard of rows, (n, ...) in any floating type, and opens it.

        Raises:
            Obstacle: the folder cannot be written; nothing of the shard is left there.
        """
        import torch

        data = self._new_name()
        temporary, index = data.with_suffix(".tmp"), data.with_suffix(".json")
        about = {"shape": list(features.shape), "dtype": str(features.dtype).removeprefix("torch."), "rows": keys}
        with self._writing(temporary, data):
            with open(temporary, "wb") as file:
                file.write(features.contiguous().flatten().view(torch.uint8).numpy())
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, data)
            # before the index is there: another process may empty the cache right after it
            self._map(index, {key: row for row, key in enumerate(keys)}, features.shape, features.dtype)
            write_text(index, json.dumps(about))

    def check_writable(self) -> None:
        """Raises Obstacle where `add` would, before hours of work that could not be kept."""
        temporary = self._new_name().with_suffix(".tmp")
        with self._writing(temporary):
            temporary.touch()
            temporary.unlink()

    def _new_name(self) -> Path:
        return self.folder / f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.bin"

    @contextlib.contextmanager
    def _writing(self, *paths: Path) -> Iterator[None]:
        """The folder is there inside; what fails leaves none of those files and is told with what helps."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            yield
        except (OSError, WriteError) as error:
            for path in paths:
                with contextlib.suppress(OSError):
                    path.unlink()
            raise WriteError(
                f"--feature_cache {self.folder.parent} cannot be written ({getattr(error, 'strerror', error)}); free "
                "some space, give another DIR, or use --views 0 in a new run, which stores nothing"
            ) from error

    def locations(self, keys: Sequence[RowKey]) -> torch.Tensor:
        """Where those rows are: shard and row (n, 2), -1 where there is none."""
        import torch

        return torch.tensor([self.rows.get(key, (-1, -1)) for key in keys], dtype=torch.int32).view(-1, 2)


def gather_rows(shards: Sequence[torch.Tensor], locations: torch.Tensor) -> torch.Tensor:
    """The rows at locations (n, 2), as `Store.locations` gives them, in their order: (n, ...)."""
    import torch

    first = shards[locations[0, 0]]
    rows = first.new_empty(len(locations), *first.shape[1:])
    for shard in locations[:, 0].unique().tolist():
        here = (locations[:, 0] == shard).nonzero()[:, 0]
        rows[here] = shards[shard][locations[here, 1].long()]
    # the memory order that the engine computes in: the head's numbers are then the same
    return rows.contiguous(memory_format=torch.channels_last) if rows.dim() == 4 else rows


def _n_elements(shape: Sequence[int]) -> int:
    n = 1
    for length in shape:
        n *= length
    return n


# --- the folder -------------------------------------------------------------------------------


@contextlib.contextmanager
def open_cache(folder: str) -> Iterator[Path]:
    """The cache's folder; `none` is one that vanishes with the run."""
    if folder != "none":
        yield Path(folder)
        return
    temporary = distributed.broadcast_from_main(_temporary_cache)
    try:
        yield Path(temporary)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if os.path.exists(temporary):  # Windows keeps what is mapped
            atexit.register(shutil.rmtree, temporary, ignore_errors=True)


def _temporary_cache() -> str:
    """A folder for this run, once those that killed runs have left are removed."""
    for left in Path(tempfile.gettempdir()).glob(f"{TEMPORARY}*"):
        with contextlib.suppress(OSError):
            # a run that lives has written within the day, or has opened all that it will read
            if is_older(max(path.stat().st_mtime for path in (left, *left.iterdir())), STALE_SECONDS):
                clear_cache(left)
                left.rmdir()
    return tempfile.mkdtemp(prefix=TEMPORARY)


def cache_entries(cache: Path) -> list[tuple[float, int, Path]]:
    """(last use, bytes, index file) of every shard, the one used longest ago first."""
    entries = []
    for index in cache.glob(f"{RECIPE_NAME}/{SHARD_NAME}.json"):
        with contextlib.suppress(OSError):
            n_bytes = index.stat().st_size + index.with_suffix(".bin").stat().st_size
            entries.append((index.stat().st_mtime, n_bytes, index))
    return sorted(entries)


def prune_cache(cache: Path, needed: int, limit: float, keep: Collection[Path] = ()) -> int:
    """Makes room for `needed` bytes within the limit, and removes what dead runs left behind.

    Args:
        keep: index files of shards that stay, also where the limit is too small for them.

    Returns:
        The bytes that the cache takes with those needed: more than the limit where what stays is too large.
    """
    entries = cache_entries(cache)
    total = sum(n_bytes for _, n_bytes, _ in entries) + needed
    for _, n_bytes, index in entries:
        if total <= limit:
            break
        if index not in keep:
            _remove_shard(index)
            total -= n_bytes
    _remove_orphans(cache, STALE_SECONDS)
    return total


def clear_cache(cache: Path) -> tuple[int, int]:
    """Empties the cache: the bytes removed, and the number of files left because a run may be writing them now."""
    entries = cache_entries(cache)
    for _, _, index in entries:
        _remove_shard(index)
    n_bytes, n_left = _remove_orphans(cache, LEFTOVER_SECONDS)
    return sum(n for _, n, _ in entries) + n_bytes, n_left


def _remove_shard(index: Path) -> None:
    # the index first: rows without it are never read
    for path in (index, index.with_suffix(".bin")):
        with contextlib.suppress(OSError):
            path.unlink()
    with contextlib.suppress(OSError):
        index.parent.rmdir()


def _remove_orphans(cache: Path, seconds: float) -> tuple[int, int]:
    """Removes files without an index that are older than that: bytes removed, and the number of younger ones."""
    n_bytes = n_left = 0
    for name in (f"{SHARD_NAME}.tmp", f"{SHARD_NAME}.bin", f".{SHARD_NAME}.json.*.tmp"):
        for path in cache.glob(f"{RECIPE_NAME}/{name}"):
            with contextlib.suppress(OSError):
                if path.with_suffix(".json").exists():
                    continue
                about = path.stat()
                if not is_older(about.st_mtime, seconds):
                    n_left += 1
                    continue
                path.unlink()
                n_bytes += about.st_size
                path.parent.rmdir()
    return n_bytes, n_left


def size_text(n_bytes: float) -> str:
    """`5.1 GB`."""
    for unit in ("B", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} GB"
