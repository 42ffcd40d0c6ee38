"""The frozen backbone as a function: extract once, keep, reuse.

python features.py           shows what the cache holds
python features.py --clear   empties it
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import ranks
import stop
from flags import Parser, run_main
from utils import Obstacle, UserError, progress, return_freed_memory, write_text

if TYPE_CHECKING:
    import torch
    from torch import nn

    from data_loader import ImageDataset
    from engine import Engine
    from splits import Sample

CACHE = ".cache/features"
CACHE_LIMIT = 20e9  # bytes; what was used longest ago goes first
SHARD_SECONDS = 60.0  # a run that is killed loses at most this much of its extraction
SHARD_BYTES = 128e6
RECIPE_NAME = "[0-9a-f]" * 32  # patterns of our own names: nothing else in the folder is ever touched
SHARD_NAME = "[0-9]" * 20 + "-" + "[0-9a-f]" * 8
STALE_SECONDS = 24 * 3600.0  # a file without an index is of a dead run by then


# --- what a row depends on --------------------------------------------------------------------


class RowKey(NamedTuple):
    """One view of one file as it is now: another size or time of change is another row."""

    view: int
    path: str
    key: str
    size: int
    mtime_ns: int


def row_key(sample: Sample, view: int) -> RowKey | None:
    """The identity of a row, or None where the file cannot be looked at."""
    try:
        about = os.stat(sample.path)
    except OSError:
        return None
    return RowKey(view, os.path.abspath(sample.path), sample.key, about.st_size, about.st_mtime_ns)


def recipe_key(engine: Engine, dataset: ImageDataset, recipe: str) -> str:
    """A hash of all that every row depends on but its file: weights, sizes, recipe, seed, precision."""
    import timm
    import torch
    import torchvision

    model, digest = engine.model, hashlib.sha256()
    about = {
        **asdict(dataset.preprocess),
        "recipe": [recipe, repr(dataset.transform)],
        "seed": dataset.seed,
        "max_pixels": dataset.max_pixels,
        "dtype": str(engine.dtype),
        "device": engine.device.type,
        "folded": engine.is_folded,
        "batch_size": engine.batch_size,
        "versions": [str(torch.__version__), str(torchvision.__version__), timm.__version__],
        # two networks can hold the same weights and differ in their padding or activation
        "layers": [
            (name, type(module).__qualname__, module.extra_repr())
            for name, module in model.net.named_modules()
            if name != model.head_name and not name.startswith(model.head_name + ".")
        ],
    }
    digest.update(json.dumps(about, sort_keys=True).encode())
    for name, tensor in model.net.state_dict().items():
        if not name.startswith(model.head_name + "."):
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()[:32]


# --- the cache --------------------------------------------------------------------------------


class Store:
    """Rows of features on the disk under one recipe, memory-mapped.

    A shard is a file of rows and an index beside it. Both are written under other names and renamed,
    the index last, so a shard without an index, or of another length than it says, is never read.
    Runs at the same time write shards of their own.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shards: list[torch.Tensor] = []
        self.rows: dict[RowKey, tuple[int, int]] = {}
        for index in sorted(folder.glob(f"{SHARD_NAME}.json")):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RuntimeError):  # broken: as if absent
                self._open(index)

    def _open(self, index: Path) -> None:
        import torch

        about = json.loads(index.read_text(encoding="utf-8"))
        dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
        shape, dtype = about["shape"], dtypes[about["dtype"]]
        data = index.with_suffix(".bin")
        n_bytes = _n_elements(shape) * dtype.itemsize
        keys = [RowKey(*row) for row in about["rows"]]
        if os.path.getsize(data) != n_bytes or len(keys) != shape[0]:
            return
        shard = torch.from_file(str(data), shared=False, size=_n_elements(shape), dtype=dtype).view(shape)
        with contextlib.suppress(OSError):  # a cache that may only be read is a cache too
            os.utime(index)  # it is in use now, others are older
        self.rows.update({key: (len(self.shards), row) for row, key in enumerate(keys)})
        self.shards.append(shard)

    def add(self, keys: Sequence[RowKey], features: torch.Tensor) -> None:
        """Writes a shard of rows, (n, ...) in any floating type, and opens it."""
        import torch

        name = f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}"
        data, index = self.folder / f"{name}.bin", self.folder / f"{name}.json"
        temporary = data.with_suffix(".tmp")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                file.write(features.contiguous().flatten().view(torch.uint8).numpy())
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, data)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise Obstacle(
                f"--feature_cache {self.folder.parent} cannot be written ({error.strerror}); free some space, give "
                "another DIR, or use --views 0 in a new run, which stores nothing"
            ) from error
        about = {"shape": list(features.shape), "dtype": str(features.dtype).removeprefix("torch."), "rows": keys}
        write_text(index, json.dumps(about))
        self._open(index)

    def gather(self, keys: Sequence[RowKey]) -> torch.Tensor:
        """The rows of those keys, (n, ...), in their order."""
        import torch

        places = [self.rows[key] for key in keys]
        first = self.shards[places[0][0]]
        rows = first.new_empty(len(keys), *first.shape[1:])
        for shard in {shard for shard, _ in places}:
            here = [n for n, place in enumerate(places) if place[0] == shard]
            rows[here] = self.shards[shard][[places[n][1] for n in here]]
        # the memory order that the engine computes in: the head's numbers are then the same
        return rows.contiguous(memory_format=torch.channels_last) if rows.dim() == 4 else rows


def _n_elements(shape: Sequence[int]) -> int:
    n = 1
    for length in shape:
        n *= length
    return n


@contextlib.contextmanager
def open_cache(folder: str) -> Iterator[Path]:
    """The cache's folder; `none` is one that vanishes with the run."""
    if folder != "none":
        yield Path(folder)
        return
    temporary = ranks.from_main(lambda: tempfile.mkdtemp(prefix="features-"))
    try:
        yield Path(temporary)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def cache_entries(cache: Path) -> list[tuple[float, int, Path]]:
    """(last use, bytes, index file) of every shard, the one used longest ago first."""
    entries = []
    for index in cache.glob(f"{RECIPE_NAME}/{SHARD_NAME}.json"):
        with contextlib.suppress(OSError):
            n_bytes = index.stat().st_size + index.with_suffix(".bin").stat().st_size
            entries.append((index.stat().st_mtime, n_bytes, index))
    return sorted(entries)


def prune(cache: Path, needed: int = 0, limit: float = CACHE_LIMIT, keep: Sequence[Path] = ()) -> None:
    """Makes room for `needed` bytes within the limit, and removes what dead runs left behind."""
    entries = cache_entries(cache)
    total = sum(n_bytes for _, n_bytes, _ in entries) + needed
    for _, n_bytes, index in entries:
        if total <= limit:
            break
        if index.parent not in keep:
            _remove_shard(index)
            total -= n_bytes
    pattern = f"{RECIPE_NAME}/{SHARD_NAME}"
    for path in [*cache.glob(f"{pattern}.tmp"), *cache.glob(f"{pattern}.bin")]:
        with contextlib.suppress(OSError):
            is_orphan = not path.with_suffix(".json").exists()
            if is_orphan and abs(time.time() - path.stat().st_mtime) > STALE_SECONDS:
                path.unlink()


def _remove_shard(index: Path) -> None:
    # the index first: rows without it are never read
    for path in (index, index.with_suffix(".bin")):
        with contextlib.suppress(OSError):
            path.unlink()
    with contextlib.suppress(OSError):
        index.parent.rmdir()


# --- extraction -------------------------------------------------------------------------------


@dataclass
class Extracted:
    """Stored features of a split: `loader(...)` yields them as batches of a view."""

    dataset: ImageDataset
    store: Store
    keys: list[list[RowKey | None]]  # by sample and view; None where the image could not be read
    bad: list[tuple[int, str]]

    def loader(self, batch_size: int) -> FeatureLoader:
        """Batches in the same addressed order as the images' own loader."""
        from data_loader import AddressedSampler

        return FeatureLoader(self, AddressedSampler(len(self.keys), batch_size, self.dataset.seed, ranks.share()))


@dataclass
class FeatureLoader:
    """Batches of stored features; epoch `e` is of view `e mod V`."""

    extracted: Extracted
    batch_sampler: object

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator:
        import torch

        from data_loader import Batch

        dataset, keys = self.extracted.dataset, self.extracted.keys
        for places in self.batch_sampler:
            good = [(index, key) for epoch, index in places if (key := keys[index][epoch % len(keys[index])])]
            labels = torch.tensor([dataset.label_of(index) for index, _ in good], dtype=torch.int64)
            indices = torch.tensor([index for index, _ in good], dtype=torch.int64)
            # a batch of which nothing could be read counts all the same: a run goes on by their number
            features = self.extracted.store.gather([key for _, key in good]) if good else torch.empty(0)
            yield Batch(features, labels, indices, [])


def extract(
    engine: Engine,
    dataset: ImageDataset,
    cache: Path,
    recipe: str,
    n_views: int = 1,
    n_workers: int | None = None,
    say: Callable[[str], None] = print,
) -> Extracted:
    """Computes what the cache lacks of a split's features and opens all of them.

    Each image is decoded once for all its views.

    Args:
        recipe: the name of the augmentation; its draws depend on the data set's seed.
        n_views: views of each image; one where nothing is random.

    Raises:
        UserError: the disk has not the room, or the cache cannot be written.
    """
    folder = cache / recipe_key(engine, dataset, recipe)
    store = Store(folder)

    def plan() -> tuple[list[list[RowKey | None]], list[tuple[int, tuple[int, ...]]]]:
        keys = [[row_key(sample, view) for view in range(n_views)] for sample in dataset.samples]
        wanted = [
            (index, tuple(view for view, key in enumerate(row) if key is None or key not in store.rows))
            for index, row in enumerate(keys)
        ]
        wanted = [(index, views) for index, views in wanted if views]
        if wanted:
            _make_room(engine, cache, folder, sum(len(views) for _, views in wanted), say)
        return keys, wanted

    keys, wanted = ranks.from_main(plan)
    bad: dict[int, str] = {}
    if wanted:
        _compute(engine, dataset, store, keys, ranks.sliced(wanted, ranks.share()), bad, n_workers)
    if ranks.world_size() > 1:
        bad = {index: reason for part in ranks.gathered(bad) for index, reason in part.items()}
        store = Store(folder)  # with the rows of the others
        _check_shared(store, keys, bad)
    for index, row in enumerate(keys):
        if None in row:  # it was not there when its row was named
            bad.setdefault(index, "changed while it was read")
    for index in bad:
        keys[index] = [None] * n_views
    return Extracted(dataset, store, keys, sorted(bad.items()))


def _check_shared(store: Store, keys: list[list[RowKey | None]], bad: dict[int, str]) -> None:
    rows = (key for index, row in enumerate(keys) if index not in bad for key in row if key)
    if not all(key in store.rows for key in rows):
        raise UserError(
            f"the features that other processes stored are not in {store.folder}; on several machines give a "
            "--feature_cache DIR that all of them share, or use --views 0, which stores nothing"
        )


def _make_room(engine: Engine, cache: Path, folder: Path, n_rows: int, say: Callable[[str], None]) -> None:
    needed = n_rows * engine.feature_bytes()
    say(f"features {n_rows:,} views to compute, {_size(needed)} in {cache} (limit {_size(CACHE_LIMIT)})")
    prune(cache, needed, keep=[folder])
    existing = next(parent for parent in [cache.absolute(), *cache.absolute().parents] if parent.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise Obstacle(
            f"the features need {_size(needed)} and {existing} has {_size(free)} free; give --feature_cache DIR "
            "on a larger disk, fewer --views, or --views 0, which stores nothing"
        )


def _compute(
    engine: Engine,
    dataset: ImageDataset,
    store: Store,
    keys: list[list[RowKey | None]],
    wanted: list[tuple[int, tuple[int, ...]]],
    bad: dict[int, str],
    n_workers: int | None,
) -> None:
    from data_loader import ViewDataset, make_view_loader

    pending = _Pending(store, sum(len(views) for _, views in wanted))
    loader = make_view_loader(ViewDataset(dataset, wanted), engine.batch_size, n_workers)
    try:
        for batch in progress(loader, desc="features", unit="batch"):
            stop.raise_if_asked()
            bad.update(batch.bad)
            rows = [(keys[index][view], n) for n, (index, view) in enumerate(batch.places) if keys[index][view]]
            if not rows:
                continue
            features = engine.features(batch.images).cpu()
            pending.add([key for key, _ in rows], features[[n for _, n in rows]])
    finally:
        # what was computed is kept, also when the user stops here
        pending.flush()


class _Pending:
    """Rows on their way to the disk, in one block that is used again for every shard.

    Rows kept one by one between the activations scatter the heap, which then grows with every shard.

    Args:
        n_rows: the most that will come.
    """

    def __init__(self, store: Store, n_rows: int) -> None:
        self.store, self.n_rows = store, n_rows
        self.keys: list[RowKey] = []
        self.block: torch.Tensor | None = None
        self.last = time.monotonic()

    def add(self, keys: Sequence[RowKey], features: torch.Tensor) -> None:
        """Takes some rows, (n, ...); a block that is full or old goes to the disk."""
        if self.block is None:
            n_fit = int(SHARD_BYTES / features[0].nbytes)
            self.block = features.new_empty(max(len(features), min(n_fit, self.n_rows)), *features.shape[1:])
        if len(self.keys) + len(keys) > len(self.block):
            self.flush()
        self.block[len(self.keys) : len(self.keys) + len(keys)] = features
        self.keys += keys
        if time.monotonic() - self.last > SHARD_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes what there is as a shard."""
        if self.keys:
            self.store.add(self.keys, self.block[: len(self.keys)])
            return_freed_memory()
        self.keys, self.last = [], time.monotonic()


def is_wholly_frozen(model) -> bool:
    """Whether nothing but the head trains or moves, so that the backbone is a function."""
    head = {id(p) for p in model.head.parameters()} | {id(m) for m in model.head.modules()}
    if any(p.requires_grad and id(p) not in head for p in model.net.parameters()):
        return False
    was_training = model.training
    model.train()
    leaves = [m for m in model.net.modules() if not list(m.children())]
    moving = [m for m in leaves if m.training and id(m) not in head and _acts_in_training(m)]
    model.train(was_training)
    return not moving


def _acts_in_training(module: nn.Module) -> bool:
    """Whether a layer computes otherwise in training mode: it keeps statistics or draws numbers."""
    from torch import nn

    return isinstance(module, nn.modules.batchnorm._NormBase) or "drop" in type(module).__name__.lower()


# --- the command ------------------------------------------------------------------------------


def _size(n_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000 or unit == "GB":
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return ""


def main(argv: list[str] | None = None) -> int:
    """Shows or empties the cache."""
    parser = Parser(prog="features.py", description="Shows or empties the cache of features.")
    parser.add_argument("--feature_cache", metavar="DIR", default=CACHE, help=f"the cache (default: {CACHE})")
    parser.add_argument("--clear", action="store_true", default=False, help="remove all of it")
    options = parser.parse_args(argv)
    entries = cache_entries(Path(options.feature_cache))
    total = sum(n_bytes for _, n_bytes, _ in entries)
    if options.clear:
        for _, _, index in entries:
            _remove_shard(index)
        print(f"removed {_size(total)} from {options.feature_cache}")
        return 0
    by_folder: dict[Path, list[int]] = {}
    for _, n_bytes, index in entries:
        by_folder.setdefault(index.parent, []).append(n_bytes)
    for folder, sizes in by_folder.items():
        print(f"{_size(sum(sizes)):>10}  {len(sizes):4d} files  {folder.name}")
    print(f"{_size(total):>10}  in {options.feature_cache}; at most {_size(CACHE_LIMIT)} are kept")
    return 0


if __name__ == "__main__":
    run_main(main)
