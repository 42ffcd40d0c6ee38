"""Computes the features of images with a frozen backbone, once, and stores them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from photo_classifier.data.batches import ImageSource, ViewBatch, ViewDataset, make_view_loader
from photo_classifier.data.thumbnails import ROW
from photo_classifier.features import cache as feature_cache
from photo_classifier.features.cache import prune_cache
from photo_classifier.features.keys import engine_key, processor_name, recipe_key, thumbnail_key
from photo_classifier.features.loader import SplitFeatures
from photo_classifier.features.shards import RowKey, ShardBuffer, ShardStore, row_keys
from photo_classifier.models.inference import Engine
from photo_classifier.runtime import distributed, launcher, signals
from photo_classifier.runtime.console import progress, say
from photo_classifier.runtime.errors import UserError, WriteError
from photo_classifier.runtime.files import file_state
from photo_classifier.runtime.limits import free_bytes
from photo_classifier.runtime.text import pluralize

Keys = list[list[RowKey] | None]  # by sample and view; None if the file cannot be accessed
Wanted = list[tuple[int, tuple[int, ...]]]  # samples, and those of their views that the cache lacks


class Part(NamedTuple):
    """The rows of a split: their keys, what the cache lacks, and the samples without a stored thumbnail."""

    keys: Keys
    wanted: Wanted
    bare: set[int]


@dataclass(frozen=True)
class FeatureRequest:
    """A split whose features are wanted.

    `recipe` is the name of the augmentation, whose draws depend on the data set's seed; `n_views` is the number of
    views of each image, 1 if nothing is random.
    """

    dataset: ImageSource
    recipe: str
    n_views: int = 1


def extract(
    engine: Engine, requests: Mapping[str, FeatureRequest], cache: Path, n_workers: int | None = None
) -> Iterator[tuple[str, SplitFeatures]]:
    """Computes the features and thumbnails that the cache lacks; yields (name, features), one split after the other.

    Each image is decoded once for all its views, unless they are more than one batch of the engine. Room for all
    splits is made before the first is computed.

    Raises:
        UserError: the disk is too small, or the cache cannot be written.
    """
    plan = plan_extraction(engine, requests, cache)
    distributed.broadcast_from_main(lambda: _make_room(plan, cache))
    for name, request in requests.items():
        yield (
            name,
            _extract_split(engine, request, plan.stores[name], plan.thumbnails, plan.splits.pop(name), n_workers),
        )
    if launcher.is_main():  # another run may have stored as much in the meantime
        prune_cache(cache, 0, feature_cache.CACHE_LIMIT, plan.paths)


@dataclass(frozen=True)
class ExtractionPlan:
    """The rows of each split and those of them that the cache lacks, `new` in all, of `row_bytes` each."""

    stores: Mapping[str, ShardStore]
    thumbnails: ShardStore
    splits: dict[str, Part]
    new: Sequence[RowKey]
    row_bytes: int

    @property
    def n_bytes(self) -> int:
        """The bytes that are still to be stored."""
        n_bare = sum(len(part.bare) for part in self.splits.values())
        return len(self.new) * self.row_bytes + len(json.dumps(self.new)) + n_bare * ROW if self.new else n_bare * ROW

    @property
    def paths(self) -> set[Path]:
        """The shards that are read."""
        return {path for store in (*self.stores.values(), self.thumbnails) for path in store.paths}


def plan_extraction(engine: Engine, requests: Mapping[str, FeatureRequest], cache: Path) -> ExtractionPlan:
    """Returns what `extract` would compute."""
    processors = sorted(set(distributed.all_gather(processor_name(engine.device))))
    example = engine.feature_example()
    engine_hash = distributed.broadcast_from_main(lambda: engine_key(engine, processors))
    keys = {name: recipe_key(engine_hash, request.dataset, request.recipe) for name, request in requests.items()}
    by_key = {key: ShardStore(cache / key, example) for key in keys.values()}
    stores = {name: by_key[key] for name, key in keys.items()}
    # all splits decode alike
    thumbnails = ShardStore(cache / thumbnail_key(next(iter(requests.values())).dataset), torch.empty(1, ROW).byte())
    splits, new = distributed.broadcast_from_main(lambda: _missing_rows(requests, stores, thumbnails))
    return ExtractionPlan(stores, thumbnails, splits, new, example.nbytes)


def size_text(n_bytes: float) -> str:
    """Formats a number of bytes: `5.1 GB`."""
    for unit in ("B", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.0f} {unit}" if unit == "B" else f"{n_bytes:.1f} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.1f} GB"


def existing_part(folder: Path) -> Path:
    """Returns the part of a folder's path that exists."""
    return next(parent for parent in [folder.absolute(), *folder.absolute().parents] if parent.exists())


def _missing_rows(
    requests: Mapping[str, FeatureRequest], stores: Mapping[str, ShardStore], thumbnails: ShardStore
) -> tuple[dict[str, Part], list[RowKey]]:
    """Returns the rows of each split and those the cache lacks, and the latter of all splits."""
    keys = {name: [row_keys(sample, r.n_views) for sample in r.dataset.samples] for name, r in requests.items()}
    for store in set(stores.values()):
        store.open(key for name in requests if stores[name] is store for row in keys[name] for key in row or ())
    thumbnails.open(row[0] for rows in keys.values() for row in rows if row)
    parts: dict[str, Part] = {}
    new: list[RowKey] = []
    for name, request in requests.items():
        rows, views = stores[name].rows, range(request.n_views)
        lacking = [tuple(v for v in views if row is None or row[v] not in rows) for row in keys[name]]
        bare = {index for index, row in enumerate(keys[name]) if row is None or row[0] not in thumbnails.rows}
        wanted = [(index, some) for index, some in enumerate(lacking) if some or index in bare]
        new += [keys[name][index][view] for index, some in wanted if keys[name][index] for view in some]
        parts[name] = Part(keys[name], wanted, bare)
    return parts, new


def _make_room(plan: ExtractionPlan, cache: Path) -> None:
    """Prints what will be stored, and removes the least recently used shards if it would be too much."""
    limit, needed = feature_cache.CACHE_LIMIT, plan.n_bytes
    if plan.new:
        views = pluralize(len(plan.new), "view")
        say(f"features {views} to compute, kept in {cache} ({size_text(needed)})")
    total = prune_cache(cache, needed, limit, plan.paths)
    if total > limit:
        say(f"         this run needs {size_text(total)}, more than the limit; features of other runs were removed")
    existing = existing_part(cache)
    free = free_bytes(existing)
    if needed > free:
        raise WriteError(
            f"the features need {size_text(needed)} and {existing} has {size_text(free)} free; give a "
            "folder on a larger disk (--feature_cache), fewer views (--views), or none, to store nothing (--views 0)"
        )


def _extract_split(
    engine: Engine,
    request: FeatureRequest,
    store: ShardStore,
    thumbnails: ShardStore,
    part: Part,
    n_workers: int | None,
) -> SplitFeatures:
    keys, wanted, bare = part
    own = launcher.shard(wanted, launcher.rank_and_world_size())
    bad = _compute(engine, request.dataset, store, thumbnails, part._replace(wanted=own), n_workers) if own else {}
    if launcher.world_size() > 1:
        bad = {index: reason for other in distributed.all_gather(bad) for index, reason in other.items()}
        # rows that other processes have computed
        store.open(key for row in keys for key in row or ())
        thumbnails.open(keys[index][0] for index in bare if keys[index])
    missing = RowKey(-1, "", "", 0, 0)
    rows = [[missing] * request.n_views if index in bad else row for index, row in enumerate(keys)]
    locations = store.locations([key for row in rows for key in row]).view(len(keys), request.n_views, 2)
    if int((locations[..., 0] < 0).any(1).sum()) > len(bad):
        raise UserError(
            f"the features that other processes stored are not in {store.folder}; on several machines give a "
            "folder that all of them share (--feature_cache), or store nothing (--views 0)"
        )
    bad = sorted(bad.items())
    pictures = thumbnails.locations([row[0] for row in rows]).view(len(keys), 1, 2)
    small = SplitFeatures(request.dataset, thumbnails.shards, pictures, bad)
    pace = store.seconds_per_row and store.seconds_per_row / launcher.world_size()
    return SplitFeatures(request.dataset, store.shards, locations, bad, small, pace)


def _compute(
    engine: Engine,
    dataset: ImageSource,
    store: ShardStore,
    thumbnails: ShardStore,
    part: Part,
    n_workers: int | None,
) -> dict[int, str]:
    """Stores the wanted rows and returns why some images have none, by index."""
    keys, wanted, bare = part
    # Another machine may see other modification times of the same files: it compares with those that it saw first.
    seen = {} if launcher.is_main() else {index: file_state(dataset.samples[index].path) for index, _ in wanted}

    def has_changed(index: int) -> bool:
        expected = keys[index] and seen.get(index, keys[index][0][-2:])
        return not expected or file_state(dataset.samples[index].path) != expected

    bad: dict[int, str] = {}
    # Divides very many views into steps, or the prefetched batches would fill the memory.
    size = engine.batch_size
    steps = [(index, views[k : k + size]) for index, views in wanted for k in range(0, max(1, len(views)), size)]
    buffer = ShardBuffer(store, sum(len(views) for _, views in steps))
    pictures = ShardBuffer(thumbnails, len(bare))
    is_pinned = engine.device.type == "cuda"
    loader = make_view_loader(ViewDataset(dataset, steps, bare), engine.batch_size, n_workers, is_pinned)
    try:
        for batch in progress(loader, desc="features", unit="batch"):
            signals.raise_if_requested()
            bad.update(batch.bad)
            # A file that differs now may have differed when it was decoded.
            changed = {index for index in {*batch.pictured, *(index for index, _ in batch.views)} if has_changed(index)}
            bad.update(dict.fromkeys(changed, "changed while it was read"))
            _compute_batch(engine, buffer, keys, batch, changed)
            _keep_thumbnails(pictures, keys, batch, changed)
    finally:
        buffer.flush()  # keeps what was computed, also when the user stops here
        pictures.flush()
    return bad


def _compute_batch(engine: Engine, buffer: ShardBuffer, keys: Keys, batch: ViewBatch, left_out: set[int]) -> None:
    rows = [(keys[index][view], n) for n, (index, view) in enumerate(batch.views) if index not in left_out]
    if not rows:
        return
    if buffer.block is None:
        buffer.store.check_writable()
    features = engine.features(batch.images).cpu()
    buffer.add([key for key, _ in rows], features[[n for _, n in rows]])


def _keep_thumbnails(buffer: ShardBuffer, keys: Keys, batch: ViewBatch, left_out: set[int]) -> None:
    rows = [(keys[index][0], n) for n, index in enumerate(batch.pictured) if index not in left_out]
    if rows:
        buffer.add([key for key, _ in rows], batch.thumbnails[[n for _, n in rows]])
