"""The frozen backbone as a function: extract once, keep, reuse."""

from __future__ import annotations

import hashlib
import inspect
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from photo_classifier.features import cache as feature_cache
from photo_classifier.features.cache import RowKey, ShardStore, gather_rows, prune_cache, row_keys, size_text
from photo_classifier.runtime import distributed, launcher, signals
from photo_classifier.runtime.console import progress, say
from photo_classifier.runtime.device import return_freed_memory
from photo_classifier.runtime.errors import UserError, WriteError
from photo_classifier.runtime.files import file_state
from photo_classifier.runtime.text import pluralize

if TYPE_CHECKING:
    import torch
    from torch import nn

    from photo_classifier.data.batches import ImageSource
    from photo_classifier.models.classifier import Classifier
    from photo_classifier.models.inference import Engine

SHARD_SECONDS = 60.0  # a run that is killed loses at most this much of its extraction
SHARD_BYTES = 128e6

Keys = list[list[RowKey] | None]  # by sample and view; None where the file could not be looked at
Wanted = list[tuple[int, tuple[int, ...]]]  # samples and those of their views that the cache lacks

# Rows are what this code computes: with other code they are others.
PACKAGE = Path(__file__).parents[1]
CODE = (
    "data/batches",
    "data/decoding",
    "data/preprocess",
    "models/backbones",
    "models/classifier",
    "models/folding",
    "models/inference",
    "runtime/device",
    "runtime/seeding",
)


def engine_key(engine: Engine, processors: Sequence[str] = ()) -> str:
    """A hash of what computes every row: weights, layers, precision, shape of a pass, code, libraries, processors.

    Args:
        processors: what the processes of the run compute on.
    """
    import torch
    import torchvision

    model = engine.model
    about = {
        "backbone": _backbone_hash(model),
        "dtype": str(engine.dtype),
        "device": engine.device.type,
        "folded": engine.is_folded,
        "batch_size": engine.batch_size,
        "processors": list(processors),
        # timm itself is not imported for its version: it takes most of a second
        "versions": [str(torch.__version__), str(torchvision.__version__), *map(version, ("timm", "pillow"))],
        "code": [_hash_of_file(PACKAGE / f"{name}.py") for name in CODE],
        # two networks can hold the same weights and differ in their padding, their activation or number of heads
        "layers": [
            (name, type(module).__qualname__, module.extra_repr(), _plain_attributes(module))
            for name, module in model.net.named_modules()
            if name != model.head_name and not name.startswith(model.head_name + ".")
        ],
    }
    return _hash_of(about)


def recipe_key(engine: str, dataset: ImageSource, recipe: str) -> str:
    """A hash of all that every row depends on but its file.

    Args:
        engine: what `engine_key` gives.
        recipe: the name of the augmentation.
    """
    about = {
        **asdict(dataset.preprocess),
        "engine": engine,
        "recipe": [recipe, repr(dataset.transform)],
        "draws": _hash_of_file(inspect.getsourcefile(type(dataset))),
        "seed": dataset.seed,
        "max_pixels": dataset.max_pixels,
    }
    return _hash_of(about)[:32]


def _hash_of_file(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _hash_of(about: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _backbone_hash(model: Classifier) -> str:
    import torch

    digest = hashlib.sha256()
    for name, tensor in model.net.state_dict().items():
        if not name.startswith(model.head_name + "."):
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _processor(device: torch.device) -> str:
    """What rounds the numbers: the GPU's name, or the instructions of the CPU."""
    import torch

    return torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()


def _plain_attributes(module: nn.Module) -> str:
    plain = (bool, int, float, str, tuple)
    own = {name: value for name, value in vars(module).items() if isinstance(value, plain)}
    return repr(sorted((name, value) for name, value in own.items() if name != "training"))


# --- extraction -------------------------------------------------------------------------------


@dataclass(frozen=True)
class FeatureRequest:
    """A split whose features are wanted.

    `recipe` is the name of the augmentation, whose draws depend on the data set's seed; `n_views` are the
    views of each image, one where nothing is random.
    """

    dataset: ImageSource
    recipe: str
    n_views: int = 1


@dataclass
class SplitFeatures:
    """Stored features of a split: `loader(...)` yields them as batches of a view.

    `locations` (samples, views, 2) say in which shard and row each is, -1 where the image could not be read.
    """

    dataset: ImageSource
    shards: Sequence[torch.Tensor]
    locations: torch.Tensor
    bad: list[tuple[int, str]]

    def loader(self, batch_size: int) -> FeatureLoader:
        """Batches in the same addressed order as the images' own loader."""
        from photo_classifier.data.batches import AddressedSampler

        return FeatureLoader(
            self, AddressedSampler(len(self.locations), batch_size, self.dataset.seed, launcher.rank_and_world_size())
        )

    def rows(self, indices: Sequence[int], view: int = 0) -> torch.Tensor:
        """The features of those samples, all of which could be read, (n, ...)."""
        return gather_rows(self.shards, self.locations[indices, view])


@dataclass
class FeatureLoader:
    """Batches of stored features; epoch `e` is of view `e mod V`."""

    extracted: SplitFeatures
    batch_sampler: object

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator:
        import torch

        from photo_classifier.data.batches import Batch

        dataset, locations = self.extracted.dataset, self.extracted.locations
        for batch in self.batch_sampler:
            asked = torch.tensor(batch, dtype=torch.int64).view(-1, 2)  # epoch and index of each
            found = locations[asked[:, 1], asked[:, 0] % locations.shape[1]]
            is_good = found[:, 0] >= 0
            indices, found = asked[is_good, 1], found[is_good]
            labels = torch.tensor([dataset.label_of(index) for index in indices.tolist()], dtype=torch.int64)
            # a batch of which nothing could be read counts all the same: a run goes on by their number
            features = gather_rows(self.extracted.shards, found) if len(found) else torch.empty(0)
            yield Batch(features, labels, indices, [])


def extract(
    engine: Engine,
    parts: Mapping[str, FeatureRequest],
    cache: Path,
    n_workers: int | None = None,
) -> Iterator[tuple[str, SplitFeatures]]:
    """Computes what the cache lacks of the features of all splits, one split after the other, and opens them.

    Each image is decoded once for all its views, where they are no more than a pass of the engine has. The room for
    all of them is made before the first is computed.

    Raises:
        UserError: the disk has not the room, or the cache cannot be written.
    """
    processors, example = sorted(set(distributed.all_gather(_processor(engine.device)))), engine.feature_example()

    computer = distributed.broadcast_from_main(lambda: engine_key(engine, processors))
    keys = {name: recipe_key(computer, part.dataset, part.recipe) for name, part in parts.items()}
    by_key = {key: ShardStore(cache / key, example) for key in keys.values()}
    stores = {name: by_key[key] for name, key in keys.items()}
    plans = distributed.broadcast_from_main(lambda: _plan(example.nbytes, parts, stores, cache))
    for name, part in parts.items():
        yield name, _extract(engine, part, stores[name], *plans.pop(name), n_workers)
    if launcher.is_main():  # another run may have stored as much in the meantime
        prune_cache(
            cache, 0, feature_cache.CACHE_LIMIT, {index for store in by_key.values() for index in store.indices}
        )


def _plan(
    row_bytes: int,
    parts: Mapping[str, FeatureRequest],
    stores: Mapping[str, ShardStore],
    cache: Path,
) -> dict[str, tuple[Keys, Wanted]]:
    """What each split consists of and lacks, once there is room for it."""
    keys = {name: [row_keys(sample, part.n_views) for sample in part.dataset.samples] for name, part in parts.items()}
    for store in set(stores.values()):
        store.open(key for name in parts if stores[name] is store for row in keys[name] for key in row or ())
    wanted: dict[str, Wanted] = {}
    for name, part in parts.items():
        rows, views = stores[name].rows, range(part.n_views)
        lacking = [tuple(v for v in views if row is None or row[v] not in rows) for row in keys[name]]
        wanted[name] = [(index, some) for index, some in enumerate(lacking) if some]
    new = [key for name in parts for index, some in wanted[name] for key in _some(keys[name][index], some)]
    _make_room(row_bytes, cache, new, {index for store in stores.values() for index in store.indices})
    return {name: (keys[name], wanted[name]) for name in parts}


def _some(row: list[RowKey] | None, views: Sequence[int]) -> list[RowKey]:
    return [row[view] for view in views] if row else []


def _extract(
    engine: Engine, part: FeatureRequest, store: ShardStore, keys: Keys, wanted: Wanted, n_workers: int | None
) -> SplitFeatures:
    mine = launcher.shard(wanted, launcher.rank_and_world_size())
    bad = _compute(engine, part.dataset, store, keys, mine, n_workers) if mine else {}
    if launcher.world_size() > 1:
        bad = {index: reason for other in distributed.all_gather(bad) for index, reason in other.items()}
        store.open(key for row in keys for key in row or ())  # the rows of the others
    nothing = [RowKey(-1, "", "", 0, 0)] * part.n_views
    asked = [key for index, row in enumerate(keys) for key in (nothing if index in bad else row)]
    locations = store.locations(asked).view(len(keys), part.n_views, 2)
    if int((locations[..., 0] < 0).any(1).sum()) > len(bad):
        raise UserError(
            f"the features that other processes stored are not in {store.folder}; on several machines give a "
            "--feature_cache DIR that all of them share, or use --views 0, which stores nothing"
        )
    return SplitFeatures(part.dataset, store.shards, locations, sorted(bad.items()))


def _make_room(row_bytes: int, cache: Path, new: Sequence[RowKey], keep: set[Path]) -> None:
    """Says what is to be stored, and removes what was used longest ago where it would be too much."""
    limit = feature_cache.CACHE_LIMIT
    needed = len(new) * row_bytes + len(json.dumps(new)) if new else 0
    if new:
        views = pluralize(len(new), "view")
        say(f"features {views} to compute, {size_text(needed)} in {cache} (limit {size_text(limit)})")
    total = prune_cache(cache, needed, limit, keep)
    if total > limit:
        say(f"         this run's own take {size_text(total)}, more than that: they are kept, those of others removed")
    existing = next(parent for parent in [cache.absolute(), *cache.absolute().parents] if parent.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise WriteError(
            f"the features need {size_text(needed)} and {existing} has {size_text(free)} free; give "
            "--feature_cache DIR on a larger disk, fewer --views, or --views 0, which stores nothing"
        )


def _compute(
    engine: Engine,
    dataset: ImageSource,
    store: ShardStore,
    keys: Keys,
    wanted: Wanted,
    n_workers: int | None,
) -> dict[int, str]:
    """Stores the wanted rows; the reasons of those images that have none."""
    from photo_classifier.data.batches import ViewDataset, make_view_loader

    # another machine may see other times of the same files: its own first look counts there
    looks = {} if launcher.is_main() else {index: file_state(dataset.samples[index].path) for index, _ in wanted}

    def has_changed(index: int) -> bool:
        expected = keys[index] and looks.get(index, keys[index][0][-2:])
        return not expected or file_state(dataset.samples[index].path) != expected

    bad: dict[int, str] = {}
    # of very many views some at a time, or the batches on their way from the workers would fill the memory
    size = engine.batch_size
    wanted = [(index, views[k : k + size]) for index, views in wanted for k in range(0, len(views), size)]
    pending = ShardBuffer(store, sum(len(views) for _, views in wanted))
    loader = make_view_loader(ViewDataset(dataset, wanted), engine.batch_size, n_workers)
    try:
        for batch in progress(loader, desc="features", unit="batch"):
            signals.raise_if_requested()
            bad.update(batch.bad)
            # a file that is another one by now may have been that already when it was decoded
            changed = {index for index in {index for index, _ in batch.views} if has_changed(index)}
            bad.update(dict.fromkeys(changed, "changed while it was read"))
            rows = [(keys[index][view], n) for n, (index, view) in enumerate(batch.views) if index not in changed]
            if not rows:
                continue
            if pending.block is None:
                store.check_writable()
            features = engine.features(batch.images).cpu()
            pending.add([key for key, _ in rows], features[[n for _, n in rows]])
    finally:
        # what was computed is kept, also when the user stops here
        pending.flush()
    return bad


class ShardBuffer:
    """Rows on their way to the disk, in one block that is used again for every shard.

    Rows kept one by one between the activations scatter the heap, which then grows with every shard.

    Args:
        n_rows: the most that will come.
    """

    def __init__(self, store: ShardStore, n_rows: int) -> None:
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
