import csv
import os

import numpy as np
import pytest
import torch
from helpers import TINY
from helpers.pictures import COPIES, picture, save_copy

from photo_classifier.curation import near_duplicates
from photo_classifier.curation.clusters import find_near_duplicates, settle
from photo_classifier.curation.near_duplicates import Pairs, clusters, find_pairs
from photo_classifier.data.decoding import decode
from photo_classifier.data.samples import Sample
from photo_classifier.data.thumbnails import thumbnail_row, unpack_rows


def found_in(paths):
    rows = torch.stack([thumbnail_row(decode(str(path))) for path in paths])
    return find_near_duplicates([Sample(str(path), "a") for path in paths], unpack_rows(rows)[0])


def duplicates_of(run_dir):
    with open(f"{run_dir}/duplicates.csv", encoding="utf-8") as file:
        return {os.path.basename(row["path"]): row for row in csv.DictReader(file)}


@pytest.mark.parametrize("kind", COPIES)
def test_a_copy_is_found_among_other_pictures(kind, tmp_path):
    paths = [save_copy(picture(n), tmp_path / f"{n}.jpg") for n in range(8)]
    paths.append(save_copy(picture(5), tmp_path / "copy.jpg", kind))
    found = found_in(paths)
    assert {os.path.basename(photo.sample.path) for photo in found} == {"5.jpg", "copy.jpg"}
    assert [photo.cluster for photo in found] == [1, 1]
    assert (found[0].similar_to, found[1].similar_to) == ("", found[0].sample.path)
    assert 0.75 < found[1].similarity <= 1


def test_no_photos_one_photo_and_photos_of_one_colour_have_no_near_duplicates():
    flat = torch.full((4, 64, 64), 90, dtype=torch.uint8)
    for thumbnails in (flat[:0], flat[:1], flat):
        assert not len(find_pairs(thumbnails).first)


def burst(n):
    image = torch.from_numpy(np.asarray(picture(3, (64, 64)).convert("L")).copy())
    return image + torch.randint(0, 3, (n, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_a_burst_is_connected_without_comparing_all_its_photos():
    pairs = find_pairs(burst(30))
    assert len(pairs.first) == 29
    assert set(clusters(30, pairs)) == {0}


def test_photos_that_are_not_alike_are_connected_by_others_that_are(monkeypatch):
    def is_next(thumbnails, levels, pairs, similar):
        which = (pairs.first - pairs.second).abs() == 1
        return Pairs(pairs.first[which], pairs.second[which], torch.ones(int(which.sum())))

    monkeypatch.setattr(near_duplicates, "_confirmed", is_next)
    assert set(clusters(8, find_pairs(burst(8)))) == {0}


@pytest.fixture
def photos(tmp_path):
    """Two classes of 12 photos; of six photos there are three copies each, one with the label of the other class."""
    for n in range(24):
        label = "ab"[n % 2]
        save_copy(picture(n), tmp_path / "photos" / label / f"{n:02d}.jpg")
        for kind in ("crop", "mirror", "q30") if n < 6 else ():
            other = "ba"[n % 2] if (n, kind) == (0, "q30") else label
            save_copy(picture(n), tmp_path / "photos" / other / f"{n:02d}-{kind}.jpg", kind)
    return ("--data_dir", tmp_path / "photos", *TINY, "--n_epochs", 1)


def test_a_frozen_run_names_near_duplicates_and_those_that_straddle_its_splits(photos, cli):
    done = cli("train", *photos, "--freeze", "--run_dir", "r")
    assert done.status == 0, done.err
    rows = duplicates_of("r")
    assert len(rows) == 24
    assert len({row["cluster"] for row in rows.values()}) == 6
    assert "24 photos are near-duplicates, in 6 clusters; 1 of them has photos of several classes" in done.out
    by_cluster = {}
    for row in rows.values():
        by_cluster.setdefault(row["cluster"], []).append(row["split"])
    n = sum({"train"} < {*part} for part in by_cluster.values())
    assert f"in {n} clusters one photo is trained on while another is held out" in done.out
    quiet = cli("train", *photos, "--freeze", "--run_dir", "q", "--verbose", 0)
    assert "duplicate" not in quiet.out + quiet.err


def test_exact_copies_that_were_dropped_stay_in_the_table(photos, tmp_path, cli):
    (tmp_path / "photos" / "b" / "copy.jpg").write_bytes((tmp_path / "photos" / "a" / "00.jpg").read_bytes())
    assert cli("train", *photos, "--freeze", "--on_leak", "drop", "--run_dir", "r").status == 0
    rows = duplicates_of("r")
    dropped = [row for row in rows.values() if row["split"] == "dropped"]
    assert dropped
    assert len(rows) > 20
    listed = open("r/splits.csv", encoding="utf-8").read()
    assert not any(row["path"] in listed for row in dropped)


def test_a_group_stays_in_one_split_and_one_fold(photos, cli):
    done = cli("train", *photos, "--freeze", "--folds", 3, "--near_duplicates", "group", "--run_dir", "r")
    assert done.status == 0, done.err
    rows = duplicates_of("r")
    with open("r/folds.csv", encoding="utf-8") as file:
        folds = {os.path.basename(row["path"]): row["fold"] for row in csv.DictReader(file)}
    places = {(row["cluster"], folds.get(name, row["split"])) for name, row in rows.items()}
    assert len(places) == len({row["cluster"] for row in rows.values()}) == 6
    assert (
        "near-duplicates: 24 photos in 6 clusters; each cluster is kept together; 1 of them has photos of" in done.out
    )


def test_one_of_each_cluster_is_left_and_a_resumed_run_has_the_same_photos(photos, cli):
    done = cli("train", *photos, "--near_duplicates", "drop", "--run_dir", "r", "--model_fn", "m.pth")
    assert done.status == 0, done.err
    assert "15 photos dropped, the first of each cluster kept; 1 of them has photos of several classes" in done.out
    assert "so all 4 are kept: see duplicates.csv" in done.out
    rows = duplicates_of("r")
    assert sum(row["split"] == "dropped" for row in rows.values()) == 15
    assert len({row["split"] for name, row in rows.items() if name.startswith("00")} - {"dropped"}) == 1
    with open("r/splits.csv", encoding="utf-8") as file:
        before = file.read()
    assert sum(".jpg" in line for line in before.splitlines()) == 27
    again = cli("train", "--resume", "r", "--n_epochs", 2)
    assert again.status == 0, again.err
    assert open("r/splits.csv", encoding="utf-8").read() == before
    assert duplicates_of("r") == rows


def split_photos(folder):
    """Two classes of 4 training and 2 test photos, and two training copies of a test photo."""
    for n in range(8):
        save_copy(picture(n), folder / "train" / "ab"[n % 2] / f"{n:02d}.jpg")
    for n in range(20, 24):
        save_copy(picture(n), folder / "test" / "ab"[n % 2] / f"{n:02d}.jpg")
        save_copy(picture(n + 10), folder / "val" / "ab"[n % 2] / f"{n + 10:02d}.jpg")
    for kind in ("crop", "q30"):
        save_copy(picture(20), folder / "train" / "a" / f"20-{kind}.jpg", kind)
    return folder


def test_in_splits_that_are_given_group_says_what_is_left_and_drop_as_advised_leaves_out_training_copies(tmp_path, cli):
    run = ("--data_dir", split_photos(tmp_path / "s"), *TINY, "--freeze", "--n_epochs", 1, "--near_duplicates")
    group = cli("train", *run, "group", "--run_dir", "g")
    assert "--near_duplicates group has no effect" in group.err
    assert "each cluster is kept together, except in splits that came with the data" in group.out
    assert "in 1 cluster one photo is trained on while another is held out, so the accuracy looks too" in group.out
    assert "start a new run with --near_duplicates drop: one photo" in group.out
    drop = cli("train", *run, "drop", "--run_dir", "d")
    assert "2 photos dropped" in drop.out
    assert "looks too good" not in drop.out
    assert {name: row["split"] for name, row in duplicates_of("d").items()} == {
        "20.jpg": "test",
        "20-crop.jpg": "dropped",
        "20-q30.jpg": "dropped",
    }


def test_no_class_loses_all_its_photos_of_a_split(tmp_path):
    def sample(n, label, kind=""):
        path = save_copy(picture(n), tmp_path / label / f"{n}{kind}.jpg", kind)
        return Sample(str(path), label, f"{label}/{path.name}")

    tests = [sample(n, "ab"[n % 2]) for n in range(4)]
    train = [sample(n, "a", "half") for n in (0, 2)] + [sample(n, "b") for n in (7, 9)] + [sample(1, "b", "half")]
    parts, (_, note) = settle("drop", 10**8, [])({"train": train, "test": tests})
    assert parts == {"train": train[:4], "test": tests}
    assert note.startswith("2 near-duplicates of a kept in train, or the class would have none there")
    copies = [sample(n, "c", "crop") for n in range(3)]  # a class of copies of the photos of others
    parts, (note,) = settle("drop", 10**8, [])({"train": [*tests, *copies]})
    assert [kept.path for kept in parts["train"]] == [kept.path for kept in (*tests, *copies)]
    assert len({kept.group for kept in parts["train"] if kept.group}) == 3
    assert "3 of them have photos of several classes" in note
    assert "so all 6 are kept" in note


def test_tiny_pictures_are_not_taken_for_copies_of_one_another():
    pictures = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    rows = torch.stack([thumbnail_row(picture // 8 + 100) for picture in pictures])
    assert not len(find_pairs(unpack_rows(rows)[0]).first)
