import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import TINY, save_image, weights_of
from helpers.families import NAMED
from safetensors.torch import save

import train
from data_loader import ImageDataset, make_datasets, train_transform
from model_loader import freeze, get_model
from photo_classifier.config import TrainConfig
from photo_classifier.data import batches
from photo_classifier.data.discovery import load_splits
from photo_classifier.data.preprocess import eval_transform
from photo_classifier.data.samples import Sample
from photo_classifier.data.thumbnails import thumbnail_row
from photo_classifier.features import cache as feature_cache
from photo_classifier.features import extraction, shards
from photo_classifier.features import keys as feature_keys
from photo_classifier.features.cache import cache_entries, open_cache, prune_cache
from photo_classifier.features.extraction import FeatureRequest, extract
from photo_classifier.features.loader import SplitFeatures
from photo_classifier.features.shards import RowKey, ShardStore, gather_rows, row_keys
from photo_classifier.models.classifier import is_wholly_frozen
from photo_classifier.models.inference import Engine, HeadEngine
from photo_classifier.runtime import launcher
from photo_classifier.runtime.device import choose_precision
from photo_classifier.runtime.errors import UserError

CPU = torch.device("cpu")
FROZEN = (*TINY, "--freeze", "--n_epochs", 3)


def same_weights(a, b):
    a, b = weights_of(a), weights_of(b)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture
def engine():
    model = get_model("resnet18", 3, image_size=32)
    freeze(model)
    return Engine(model, CPU, torch.float32, batch_size=8)


@pytest.fixture
def train_set(image_folder, engine):
    splits = load_splits(image_folder, {"train": 0.6, "valid": 0.2, "test": 0.2}, 0)
    preprocess = engine.model.preprocess
    return ImageDataset(splits.train, splits.class_names, preprocess, train_transform("basic", preprocess), seed=0)


def rows_of(extracted):
    return gather_rows(extracted.shards, extracted.locations.view(-1, 2))


@pytest.fixture
def said(monkeypatch):
    """The lines that the extraction prints."""
    lines = []
    monkeypatch.setattr(extraction, "say", lines.append)
    return lines


def extract_one(engine, dataset, cache, recipe, n_views=1, n_workers=0):
    return dict(extract(engine, {"train": FeatureRequest(dataset, recipe, n_views)}, cache, n_workers))["train"]


# --- the same result --------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*NAMED, "timm/mobilenetv3_small_050"])
def test_head_on_features_is_the_whole_model(name):
    model = get_model(name, 3, image_size=64)
    freeze(model)
    assert is_wholly_frozen(model)
    images = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float32, torch.bfloat16):
        engine = Engine(model, CPU, dtype, batch_size=4)
        head = HeadEngine(model.head_module(), CPU, dtype, batch_size=4)
        assert torch.equal(head(engine.features(images)), engine(images))


def test_stored_features_train_the_weights_of_the_plain_loop(cli, split_folder):
    for views in (3, 0):
        done = cli("train", "--data_dir", split_folder, *FROZEN, "--views", views, "--model_fn", f"v{views}.pth")
        assert done.status == 0, done.err
    assert same_weights("v3.pth", "v0.pth"), "with as many views as epochs each epoch sees the same images"
    predicted = cli("predict", "--model_fn", "v3.pth", "--n_workers", 0)
    done = cli("train", "--data_dir", split_folder, *FROZEN, "--views", 3, "--model_fn", "again.pth")
    assert predicted.out.splitlines()[-1] == done.out.splitlines()[-1]


def test_more_views_than_a_batch_are_computed_in_steps_to_the_same_numbers(engine, train_set, tmp_path, monkeypatch):
    whole = rows_of(extract_one(engine, train_set, tmp_path / "whole", "basic", 20))
    real, sizes = batches.stack, []
    monkeypatch.setattr(batches, "stack", lambda images: sizes.append(len(images)) or real(images))
    assert torch.equal(rows_of(extract_one(engine, train_set, tmp_path / "some", "basic", 20)), whole)
    assert max(sizes) == engine.batch_size
    assert sum(sizes) == 20 * len(train_set)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is looked at in /proc")
def test_features_larger_than_memory_are_read_from_the_disk_batch_by_batch(tmp_path):
    def anonymous_mb():
        return int(re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1e3

    block = torch.zeros(32, 250_000)  # one, as extraction has: the holes of many would be counted
    before, most, total = anonymous_mb(), 0.0, 0.0
    store, keys = ShardStore(tmp_path / recipe("a")), [RowKey(0, str(n), str(n), 1, 1) for n in range(256)]
    for k in range(0, 256, 32):
        store.add(keys[k : k + 32], block.fill_(k))
    dataset = SimpleNamespace(seed=0, label_of=lambda index: 0)
    loader = SplitFeatures(dataset, store.shards, store.locations(keys).view(256, 1, 2), []).loader(16)
    for batch in loader:
        total += batch.images[:, 0].sum().item()
        most = max(most, anonymous_mb())
    assert total == sum(32 * k for k in range(0, 256, 32))
    assert most - before < 128, "of 256 MB"


def test_epochs_take_the_views_in_turn(engine, train_set, tmp_path):
    extracted = extract_one(engine, train_set, tmp_path / "cache", "basic", n_views=2, n_workers=0)
    loader, found = extracted.loader(4), []
    for epoch in range(3):
        loader.batch_sampler.epoch = epoch
        batches = list(loader)
        order = torch.cat([batch.indices for batch in batches]).argsort()
        found.append(torch.cat([batch.images for batch in batches])[order])
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])


def test_unreadable_images_are_listed_whether_features_are_computed_or_cached(cli, split_folder):
    bad = split_folder / "train" / "cat" / "00.png"
    bad.write_bytes(bad.read_bytes()[:-200])  # its header is whole: only decoding shows it
    for run_dir in ("computed", "cached"):
        done = cli("train", "--data_dir", split_folder, *FROZEN, "--run_dir", run_dir)
        assert "left out 1 image that" in done.out
        assert str(bad) in open(f"{run_dir}/skipped.csv", encoding="utf-8").read()


# --- kept between runs ------------------------------------------------------------------------


def test_a_second_run_computes_nothing_and_gives_the_same(cli, split_folder):
    first = cli("train", "--data_dir", split_folder, *FROZEN, "--model_fn", "a.pth")
    assert "features 87 views to compute" in first.out  # 24 images in 3 views, and 15 of validation
    second = cli("train", "--data_dir", split_folder, *FROZEN, "--model_fn", "b.pth")
    assert "views to compute" not in second.out
    assert same_weights("a.pth", "b.pth")
    other = cli("train", "--data_dir", split_folder, *FROZEN, "--lr", 0.1, "--optimizer", "sgd", "--model_fn", "c.pth")
    assert "views to compute" not in other.out
    assert not same_weights("a.pth", "c.pth")


def test_features_are_computed_anew_when_what_they_depend_on_changes(cli, split_folder):
    def computed(*extra):
        done = cli("train", "--data_dir", split_folder, *FROZEN, *extra)
        assert done.status == 0, done.err
        return sum(int(n) for n in re.findall(r"features (\d+) views", done.out))

    assert computed() == 72 + 15
    assert computed() == 0
    assert computed("--augment", "none") == 24, "one view is all there is; validation is as before"
    assert computed("--image_size", 40) == 72 + 15
    assert computed("--resize", 64) == 72 + 15
    other = "bf16" if choose_precision("auto", CPU) == torch.float32 else "fp32"
    assert computed("--precision", other) == 72 + 15
    assert computed("--seed", 1) == 72 + 15, "random weights differ with the seed too"
    assert computed("--n_epochs", 4) == 24, "a fourth view of each"
    assert computed("--head_hidden", 8) == 0
    assert computed() == 0


def test_one_touched_photo_is_computed_again_to_the_same_numbers(engine, train_set, tmp_path, said):
    cache = tmp_path / "cache"
    first = rows_of(extract_one(engine, train_set, cache, "basic", 2, 0))
    path = train_set.samples[4].path
    os.utime(path, ns=(0, os.stat(path).st_mtime_ns + 10**9))
    again = rows_of(extract_one(engine, train_set, cache, "basic", 2, 0))
    assert torch.equal(first, again), "the same photo in another batch has the same numbers"
    save_image(train_set.samples[5].path and tmp_path / "photos" / "new.png", 2, 99)
    os.replace(tmp_path / "photos" / "new.png", train_set.samples[5].path)
    third = rows_of(extract_one(engine, train_set, cache, "basic", 2, 0))
    changed = [n for n in range(len(first)) if not torch.equal(first[n], third[n])]
    assert changed == [10, 11]
    assert [line.split()[1] for line in said] == ["36", "2", "2"]


def test_thumbnails_come_with_the_features_from_the_same_decode(engine, train_set, tmp_path, monkeypatch):
    first = extract_one(engine, train_set, tmp_path / "cache", "basic", 2)
    indices = range(len(train_set))
    expected = torch.stack([thumbnail_row(train_set.decoded(index)) for index in indices])
    kept = feature_shard(tmp_path / "cache")
    for *_, path in cache_entries(tmp_path / "cache"):
        if path != kept:
            path.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(extraction, "_compute_batch", lambda *_: None)
        lost = extract_one(engine, train_set, tmp_path / "cache", "basic", 2)
    monkeypatch.setattr(ImageDataset, "decoded", None)
    again = extract_one(engine, train_set, tmp_path / "cache", "basic", 2)
    for found in (first, lost, again):
        assert torch.equal(found.thumbnails.rows(indices), expected)


def test_the_number_of_workers_changes_no_feature(engine, train_set, tmp_path):
    found = [rows_of(extract_one(engine, train_set, tmp_path / f"c{n}", "basic", 2, n)) for n in (0, 2)]
    assert torch.equal(*found)


def test_the_time_that_a_view_took_is_stored_with_it(engine, train_set, tmp_path):
    first, again = (extract_one(engine, train_set, tmp_path / "cache", "basic").seconds_per_view for _ in range(2))
    assert first == again > 0
    path = feature_shard(tmp_path / "cache")
    keys, features, _ = shards._read_shard(path)
    write_shard(path, features.clone(), keys)
    assert extract_one(engine, train_set, tmp_path / "cache", "basic").seconds_per_view is None, (
        "as earlier versions did"
    )


def test_features_keep_their_precision(engine, tmp_path):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        store, rows = ShardStore(tmp_path / str(dtype)), torch.randn(3, 5, 2, 2).to(dtype)
        keys = [RowKey(0, str(n), str(n), 1, n) for n in range(3)]
        store.add(keys, rows)
        store = ShardStore(store.folder)
        store.open(keys)
        assert torch.equal(gather_rows(store.shards, store.locations(keys[::-1])), rows.flip(0))


# --- never a wrong cache ----------------------------------------------------------------------


def feature_shard(cache):
    """The only shard of features, beside that of thumbnails."""
    (path,) = (path for *_, path in cache_entries(cache) if shards._read_shard(path)[1].dtype != torch.uint8)
    return path


def test_damaged_shards_are_never_read(engine, train_set, tmp_path):
    cache = tmp_path / "cache"
    first = rows_of(extract_one(engine, train_set, cache, "basic", 1, 0))
    path = feature_shard(cache)
    keys, features, _ = shards._read_shard(path)
    features, content = features.clone(), path.read_bytes()
    damages = (
        lambda: path.write_bytes(content[:-7]),
        lambda: path.unlink(),
        lambda: path.write_bytes(b""),
        lambda: path.write_bytes(content + b"more"),
        lambda: path.write_bytes(content[:20] + bytes(20) + content[40:]),
        lambda: write_shard(path, features[:-1], keys),
        lambda: write_shard(path, features[0, 0], keys),
        lambda: write_shard(path, features, [[["a list"]]]),
        lambda: write_shard(path, features, 3),
        lambda: path.write_bytes(save({"features": features})),
        lambda: path.write_bytes(save({"features": features, "keys": torch.zeros(9)})),
    )
    for damage in damages:
        path.write_bytes(content)
        damage()
        store = ShardStore(path.parent)
        store.open(keys)
        assert not store.rows
    assert torch.equal(rows_of(extract_one(engine, train_set, cache, "basic", 1, 0)), first)


def write_shard(path, features, keys):
    text = torch.frombuffer(bytearray(json.dumps(keys).encode()), dtype=torch.uint8)
    path.write_bytes(save({"features": features.contiguous(), "keys": text}))


def test_shards_of_another_shape_or_type_are_computed_again(engine, train_set, tmp_path):
    cache = tmp_path / "cache"
    expected = rows_of(extract_one(engine, train_set, cache, "basic"))
    path = feature_shard(cache)
    keys, features, _ = shards._read_shard(path)
    features = features.clone()
    for other in (features.view(len(keys), -1, 2), features.view(torch.bfloat16)):
        for _, _, stored in cache_entries(cache):
            stored.unlink()
        write_shard(path, other, keys)
        assert torch.equal(rows_of(extract_one(engine, train_set, cache, "basic")), expected)


def test_what_was_computed_before_a_stop_is_kept(engine, train_set, tmp_path, monkeypatch, said):
    real, calls = engine.features, []

    def stop_at_the_third(images, *size):
        calls.append(len(images))
        if calls == [1, 8, 8, 8]:  # the first is of the example
            raise KeyboardInterrupt
        return real(images, *size)

    monkeypatch.setattr(engine, "features", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        extract_one(engine, train_set, tmp_path / "cache", "basic", 2, 0)
    monkeypatch.setattr(engine, "features", real)
    extract_one(engine, train_set, tmp_path / "cache", "basic", 2, 0)
    assert said[1].startswith("features 20 views")  # 36 less two batches of 8


def test_a_disk_without_room_is_reported_before_the_work(engine, train_set, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: os.terminal_size((0, 0)) and FewBytes)
    with pytest.raises(UserError, match=r"need [0-9.]+ kB and .* has 10 B free.*--views 0"):
        extract_one(engine, train_set, tmp_path / "cache", "basic", 2, 0)


class FewBytes:
    total = free = 10


def test_a_disk_that_fills_up_is_one_line_and_leaves_no_half_shard(engine, train_set, tmp_path, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"feature cache .*: No space left on device \(free some space\).*--views 0"):
        extract_one(engine, train_set, tmp_path / "cache", "basic", 2, 0)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_two_runs_at_once_leave_a_correct_cache(cli, split_folder):
    script = str(Path(train.__file__))
    argv = [sys.executable, script, *map(str, ("--data_dir", split_folder, *FROZEN))]
    runs = [subprocess.Popen([*argv, "--model_fn", f"{n}.pth"], stdout=subprocess.DEVNULL) for n in range(2)]
    assert [run.wait() for run in runs] == [0, 0]
    third = cli("train", "--data_dir", split_folder, *FROZEN, "--model_fn", "2.pth")
    assert "views to compute" not in third.out
    assert same_weights("0.pth", "1.pth")
    assert same_weights("1.pth", "2.pth")


# --- its size ---------------------------------------------------------------------------------


def recipe(name):
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def add_shard(cache, name, age):
    folder = cache / recipe(name)
    ShardStore(folder).add([RowKey(0, name, name, 1, 1)], torch.zeros(1, 250))
    (path,) = folder.iterdir()
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_the_least_recently_used_shard_is_removed_first(tmp_path):
    kept = {name: add_shard(tmp_path, name, age) for name, age in (("old", 300), ("middle", 200), ("new", 100))}
    total = sum(n_bytes for _, n_bytes, _ in cache_entries(tmp_path))
    assert prune_cache(tmp_path, needed=0, limit=total - 1) <= total - 1
    assert {path.name for path in tmp_path.iterdir()} == {recipe("middle"), recipe("new")}
    assert prune_cache(tmp_path, needed=10**9, limit=10**9, keep=[kept["middle"]]) > 10**9
    assert [path.name for path in tmp_path.iterdir()] == [recipe("middle")]


def size_of(cache):
    return sum(n_bytes for _, n_bytes, _ in cache_entries(cache))


def test_one_network_on_many_sets_stays_within_the_limit_and_keeps_what_a_run_asks_for(
    engine, tmp_path, monkeypatch, said
):
    preprocess = engine.model.preprocess

    for hue, name in enumerate("abcdefg"):
        for n in range(6):
            save_image(tmp_path / name / f"{n}.png", hue, 10 * hue + n, (8, 8))

    def images_of(name):
        samples = [Sample(str(path), "a", f"{name}/{path.name}") for path in sorted((tmp_path / name).iterdir())]
        return ImageDataset(samples, ["a"], preprocess, eval_transform(preprocess))

    def computed(*names):
        said.clear()
        requests = {name: FeatureRequest(images_of(name), "evaluation") for name in names}
        for _ in extract(engine, requests, tmp_path / "cache", 0):
            pass
        return [int(line.split()[1]) if "compute" in line else line.strip() for line in said]

    assert computed("a", "b") == [12]
    size = size_of(tmp_path / "cache")
    monkeypatch.setattr(feature_cache, "CACHE_LIMIT", 2 * size)
    for name in "cdef":
        assert computed("a", name) == [6], "what the same run asks for stays, though it is the oldest"
        assert size_of(tmp_path / "cache") <= feature_cache.CACHE_LIMIT
    assert computed("b") == [6], "the others went, of the same network too"
    for _, _, index in cache_entries(tmp_path / "cache"):
        os.utime(index, (1, 1))
    computed("a")
    assert sum(age > 1 for age, _, _ in cache_entries(tmp_path / "cache")) == 2, "only what was asked for is in use"
    monkeypatch.setattr(feature_cache, "CACHE_LIMIT", size // 2)
    n, line = computed("a", "g")
    assert n == 6
    assert "more than the limit; features of other runs were removed" in line
    assert computed("a", "g")[0].startswith("this run needs")
    assert len(cache_entries(tmp_path / "cache")) == 4


def test_leftovers_of_dead_runs_are_removed_but_not_those_of_live_ones(tmp_path):
    folder = add_shard(tmp_path, "a", 0).parent
    for n, age in enumerate((3, 0)):
        shard = f"{n:020d}-{'ab' * 4}"
        for name in (f"{shard}.tmp", f".{shard}.safetensor.x1y2z3_4.tmp"):
            (folder / name).write_bytes(b"x")
            os.utime(folder / name, (time.time() - age * 86400,) * 2)
    prune_cache(tmp_path, 0, limit=10**9)
    left = sorted(path.name for path in folder.iterdir() if "abab" in path.name)
    assert left == [f".{shard}.safetensor.x1y2z3_4.tmp", f"{shard}.tmp"]


def test_shards_of_the_first_version_count_and_are_removed_like_any_other(tmp_path):
    path = add_shard(tmp_path, "a", 0)
    old = tmp_path / recipe("b") / f"{1:020d}-{'ab' * 4}.bin"
    old.parent.mkdir()
    for name in (old, old.with_suffix(".json")):
        name.write_bytes(bytes(1000))
        os.utime(name, (time.time() - 90,) * 2)
    assert size_of(tmp_path) == 2000 + path.stat().st_size
    prune_cache(tmp_path, 0, limit=path.stat().st_size)
    assert list(tmp_path.iterdir()) == [path.parent]


def test_nothing_but_its_own_files_is_ever_removed_from_the_folder(tmp_path):
    mine = [tmp_path / "proj" / "firmware.bin", tmp_path / "proj" / "notes.tmp", tmp_path / recipe("a") / "x.bin",
            tmp_path / "proj" / "pair.json", tmp_path / "proj" / "pair.bin"]  # fmt: skip
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"mine")
        os.utime(path, (0, 0))
    prune_cache(tmp_path, needed=10**12, limit=10**9)
    assert all(path.exists() for path in mine)


def test_networks_that_differ_only_in_their_layers_share_no_features(image_folder, tmp_path):
    keys = set()
    for name in ("timm/efficientnet_b0", "timm/tf_efficientnet_b0"):
        model = get_model(name, 3, image_size=32)
        engine = Engine(model, CPU, torch.float32, 4)
        dataset = ImageDataset([], [], model.preprocess, None)
        torch.manual_seed(0)
        for tensor in model.net.state_dict().values():
            tensor.zero_()
        keys.add(feature_keys.recipe_key(feature_keys.engine_key(engine), dataset, "evaluation"))
    assert len(keys) == 2


def test_folders_that_killed_runs_left_are_removed_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(feature_cache.tempfile, "tempdir", str(tmp_path))
    dead, alive = (tmp_path / f"photo-features-{name}" for name in ("dead", "alive"))
    for folder in (dead, alive):
        folder = add_shard(folder, "a", 0).parent
    for path in (dead / recipe("a"), dead):
        os.utime(path, (0, 0))
    with open_cache("none") as mine:
        assert sorted(tmp_path.iterdir()) == sorted([alive, mine])
    assert list(tmp_path.iterdir()) == [alive]


def test_none_leaves_nothing_behind(cli, split_folder, tmp_path):
    with open_cache("none") as folder:
        assert folder.is_dir()
    assert not folder.exists()
    done = cli("train", "--data_dir", split_folder, *FROZEN, "--feature_cache", "none")
    assert done.status == 0
    assert not (tmp_path / ".cache").exists()


def test_a_set_larger_than_a_shard_is_read_across_shards(engine, train_set, tmp_path, monkeypatch):
    whole = rows_of(extract_one(engine, train_set, tmp_path / "one", "basic", 2, 0))
    monkeypatch.setattr(shards, "SHARD_BYTES", 10_000)
    extracted = extract_one(engine, train_set, tmp_path / "many", "basic", 2, 0)
    assert len(extracted.shards) > 2
    assert torch.equal(rows_of(extracted), whole)


def test_evaluation_features_do_not_depend_on_the_seed(engine, image_folder, tmp_path, said):
    splits = load_splits(image_folder, {"train": 0.6, "valid": 0.2, "test": 0.2}, 0)
    for seed in (0, 1):
        datasets = make_datasets(TrainConfig(seed=seed), splits, engine.model.preprocess)
        requests = {
            "valid": FeatureRequest(datasets["valid"], "evaluation"),
            "train": FeatureRequest(datasets["train"], "basic", 2),
        }
        list(extract(engine, requests, tmp_path / "cache", 0))
    assert [line.split()[1] for line in said] == ["42", "36"], "the views of training alone"


def test_a_file_that_changes_while_it_is_read_has_no_row_and_is_reported(engine, train_set, tmp_path, said):
    path, decoded = train_set.samples[4].path, train_set.decoded
    train_set.decoded = lambda index: (decoded(index), os.utime(path))[0]
    extracted = extract_one(engine, train_set, tmp_path / "cache", "basic", 2)
    assert extracted.bad == [(4, "changed while it was read")]
    assert (extracted.locations[4] == -1).all()
    train_set.decoded = decoded
    assert not extract_one(engine, train_set, tmp_path / "cache", "basic", 2).bad
    assert [line.split()[1] for line in said] == ["36", "2"]


def test_other_code_and_other_numbers_of_heads_share_no_features(engine, train_set, tmp_path, monkeypatch):
    def key():
        return feature_keys.recipe_key(feature_keys.engine_key(engine), train_set, "basic")

    before = key()
    assert key() == before
    engine.model.net.layer1.num_heads = 4
    assert key() != before
    del engine.model.net.layer1.num_heads
    assert key() == before
    for name in feature_keys.CODE:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(feature_keys.PACKAGE / f"{name}.py", tmp_path / f"{name}.py")
    monkeypatch.setattr(feature_keys, "PACKAGE", tmp_path)
    assert key() == before
    for name in feature_keys.CODE:
        code = (tmp_path / f"{name}.py").read_bytes()
        (tmp_path / f"{name}.py").write_bytes(code + b"# more")
        assert key() != before, name
        (tmp_path / f"{name}.py").write_bytes(code)
    monkeypatch.setattr(feature_keys.inspect, "getsourcefile", lambda _: tmp_path / f"{name}.py")  # of the data set
    assert key() != before


def test_a_cache_that_cannot_be_written_is_reported_before_the_work(engine, train_set, tmp_path, monkeypatch):
    def refused(**_options):
        raise PermissionError(13, "Permission denied")

    engine.features = lambda *_args, **_options: pytest.fail("computed")
    monkeypatch.setattr(engine, "feature_example", lambda: torch.zeros(1, 512))
    monkeypatch.setattr(shards.tempfile, "TemporaryFile", refused)
    with pytest.raises(UserError, match=r"cannot write to the feature cache .*: Permission denied \(.*; give another"):
        extract_one(engine, train_set, tmp_path / "cache", "basic", 2, 0)


def test_a_read_only_cache_works_with_an_unreadable_image(engine, train_set, tmp_path, monkeypatch):
    path = Path(train_set.samples[4].path)
    path.write_bytes(path.read_bytes()[:-200])
    first = extract_one(engine, train_set, tmp_path / "cache", "basic", 2)
    monkeypatch.setattr(ShardStore, "check_writable", lambda _: pytest.fail("nothing is to be written"))
    second = extract_one(engine, train_set, tmp_path / "cache", "basic", 2)
    assert [index for index, _ in second.bad] == [4]
    assert second.bad == first.bad


def test_a_rank_that_sees_other_times_of_the_files_compares_with_its_own_first_look(
    engine, train_set, tmp_path, monkeypatch
):
    keys = [row_keys(sample, 1) for sample in train_set.samples]
    for sample in train_set.samples:
        os.utime(sample.path, ns=(0, 10**18))
    monkeypatch.setattr(launcher, "is_main", lambda: False)
    part = extraction.Part(keys, [(index, (0,)) for index in range(len(keys))], {0})
    stores = ShardStore(tmp_path / "rows"), ShardStore(tmp_path / "thumbnails")
    assert not extraction._compute(engine, train_set, *stores, part, 0)


def test_rows_outlive_another_process_that_empties_the_cache(tmp_path):
    store, keys = ShardStore(tmp_path / recipe("a")), [RowKey(0, "a", "a", 1, 1)]
    store.add(keys, torch.ones(1, 3))
    prune_cache(tmp_path, 0, limit=0)
    assert gather_rows(store.shards, store.locations(keys)).tolist() == [[1, 1, 1]]
    store.add([RowKey(0, "b", "b", 1, 1)], torch.zeros(1, 3))
    assert len(cache_entries(tmp_path)) == 1
