"""Rows of features on disk: safetensors files that hold the rows, their keys, and the time that computing them took."""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save

from photo_classifier.data.samples import Sample
from photo_classifier.runtime.errors import WriteError
from photo_classifier.runtime.files import atomic_write, can_map, file_state
from photo_classifier.runtime.limits import resource_hint, write_reason
from photo_classifier.runtime.memory import return_freed_memory

SHARD_NAME = "[0-9]" * 20 + "-" + "[0-9a-f]" * 8  # a pattern: time in nanoseconds and a random number
SHARD_SUFFIX = ".safetensors"
PACE = "seconds_per_row"  # the name of its tensor
SHARD_SECONDS = 60.0  # a run that is killed loses at most this much of its extraction
SHARD_BYTES = 48e6  # writing a shard takes twice as much memory again


class RowKey(NamedTuple):
    """One view of one file in its present state: a new size or modification time makes another row."""

    view: int
    path: str
    key: str
    size: int
    mtime_ns: int


class Shard(NamedTuple):
    """What a file holds: rows and their keys, and the seconds that a row took; earlier versions kept no time."""

    keys: list[RowKey]
    features: torch.Tensor
    seconds_per_row: float | None = None


def row_keys(sample: Sample, n_views: int) -> list[RowKey] | None:
    """Returns the keys of a file's rows by view, or None if the file cannot be accessed."""
    state = file_state(sample.path)
    if state is None:
        return None
    file = (os.path.abspath(sample.path), sample.key, *state)
    return [RowKey(view, *file) for view in range(n_views)]


class ShardStore:
    """Rows of features under one recipe, memory-mapped from the shards in a folder.

    A shard is written whole or not at all; a damaged one counts as absent. Runs that work at the same time write
    shards of their own.

    Args:
        example: features, (1, ...), with the shape and dtype of all rows; shards that differ are not read.
    """

    def __init__(self, folder: Path, example: torch.Tensor | None = None) -> None:
        self.folder, self.example = folder, example
        self.shards: list[torch.Tensor] = []
        self.paths: list[Path] = []
        self.paces: list[float | None] = []  # seconds a row
        self.rows: dict[RowKey, tuple[int, int]] = {}

    def open(self, wanted: Iterable[RowKey]) -> None:
        """Opens the shards that hold any of the wanted rows; the others age until they are removed."""
        wanted = set(wanted) - self.rows.keys()
        for path in sorted(self.folder.glob(f"{SHARD_NAME}{SHARD_SUFFIX}")) if wanted else ():
            try:
                self._open(path, wanted)
            except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:  # it is damaged
                if resource_hint(error):
                    raise

    def _open(self, path: Path, wanted: Collection[RowKey]) -> None:
        keys, features, pace = _read_shard(path)
        # A row that two runs have stored is read from the first shard; the second ages.
        rows = {key: row for row, key in enumerate(keys) if key in wanted and key not in self.rows}
        if not rows or len(keys) != len(features) or not self._fits(features):
            return
        self._add_rows(path, rows, features, pace)
        with contextlib.suppress(OSError):  # a read-only cache works too
            os.utime(path)  # marks it as recently used

    def _fits(self, features: torch.Tensor) -> bool:
        example = self.example
        return example is None or (features.shape[1:] == example.shape[1:] and features.dtype == example.dtype)

    @property
    def seconds_per_row(self) -> float | None:
        """What computing a row took on average, in the process that did it; None if no opened shard tells."""
        known = [
            (len(rows), pace)
            for rows, pace in zip(self.shards, self.paces, strict=True)
            if pace and 0 < pace < math.inf
        ]
        return sum(n * pace for n, pace in known) / sum(n for n, _ in known) if known else None

    def _add_rows(self, path: Path, rows: dict[RowKey, int], features: torch.Tensor, pace: float | None) -> None:
        self.rows.update({key: (len(self.shards), row) for key, row in rows.items()})
        self.shards.append(features)
        self.paths.append(path)
        self.paces.append(pace)

    def add(self, keys: Sequence[RowKey], features: torch.Tensor, seconds_per_row: float = 0.0) -> None:
        """Writes a shard of rows, (n, ...) in any floating-point dtype, and opens it; raises WriteError."""
        path = self.folder / f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}{SHARD_SUFFIX}"
        # Keys are a tensor as well: the format limits its header, and so the metadata, to 100 MB.
        text = torch.frombuffer(bytearray(json.dumps(keys).encode()), dtype=torch.uint8)
        with self._explained(), atomic_write(path) as file:
            pace = torch.tensor([seconds_per_row], dtype=torch.float64)
            file.write(save({"features": features.contiguous(), "keys": text, PACE: pace}))
            file.flush()
            # Mapped before it is renamed: another process may empty the cache right after.
            mapped = _read_shard(Path(file.name)).features
        self._add_rows(path, {key: row for row, key in enumerate(keys)}, mapped, seconds_per_row)

    def check_writable(self) -> None:
        """Raises the `WriteError` of `add` early, before hours of computing."""
        with self._explained():
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                pass

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns write errors into a message that says what to do."""
        try:
            yield
        except (OSError, WriteError) as error:
            reason = error if isinstance(error, OSError) else error.__cause__
            raise WriteError(
                f"cannot write to the feature cache {self.folder.parent}: {write_reason(reason)}; give another "
                "folder (--feature_cache), or start a new run that stores nothing (--views 0)"
            ) from error

    def locations(self, keys: Sequence[RowKey]) -> torch.Tensor:
        """Returns where those rows are: shard and row, int32 (n, 2), -1 for a row that is missing."""
        return torch.tensor([self.rows.get(key, (-1, -1)) for key in keys], dtype=torch.int32).view(-1, 2)


class ShardBuffer:
    """Collects up to `n_rows` rows in one block of memory, which is reused for every shard.

    Rows kept one by one among the activations would fragment the heap, which then grows with every shard.
    """

    def __init__(self, store: ShardStore, n_rows: int) -> None:
        self.store, self.n_rows = store, n_rows
        self.keys: list[RowKey] = []
        self.block: torch.Tensor | None = None
        self.last_write = time.monotonic()

    def add(self, keys: Sequence[RowKey], features: torch.Tensor) -> None:
        """Adds rows, (n, ...); writes the block when it is full or has waited for `SHARD_SECONDS`."""
        if self.block is None:
            n_fit = int(SHARD_BYTES / features[0].nbytes)
            self.block = features.new_empty(max(len(features), min(n_fit, self.n_rows)), *features.shape[1:])
        if len(self.keys) + len(keys) > len(self.block):
            self.flush()
        self.block[len(self.keys) : len(self.keys) + len(keys)] = features
        self.keys += keys
        if time.monotonic() - self.last_write > SHARD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes the rows collected so far as a shard."""
        if self.keys:
            seconds = time.monotonic() - self.last_write
            self.store.add(self.keys, self.block[: len(self.keys)], seconds / len(self.keys))
            return_freed_memory()
        self.keys, self.last_write = [], time.monotonic()


def gather_rows(shards: Sequence[torch.Tensor], locations: torch.Tensor) -> torch.Tensor:
    """Returns the rows at locations (n, 2), as `ShardStore.locations` gives them, in that order: (n, ...)."""
    first = shards[locations[0, 0]]
    rows = first.new_empty(len(locations), *first.shape[1:])
    for shard in locations[:, 0].unique().tolist():
        here = (locations[:, 0] == shard).nonzero()[:, 0]
        rows[here] = shards[shard][locations[here, 1].long()]
    # The memory order in which the engine computes: the head then gives the same numbers.
    return rows.contiguous(memory_format=torch.channels_last) if rows.dim() == 4 else rows


def _read_shard(path: Path) -> Shard:
    """Returns the content of a shard, the features memory-mapped where the file system can do that."""
    if can_map(path):
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 it is no dict
    else:
        tensors = load(path.read_bytes())
    keys = [RowKey(*key) for key in json.loads(tensors["keys"].numpy().tobytes())]
    return Shard(keys, tensors["features"], tensors[PACE].item() if PACE in tensors else None)
