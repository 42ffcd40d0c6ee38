import os
import random
import re
import shutil

import pytest
import torch
from helpers import TINY, assert_one_line_error, make_class_folders, weights_of
from test_layouts import make_table

from photo_classifier.data.discovery import load_splits
from photo_classifier.data.samples import Sample
from photo_classifier.data.split_files import read_splits
from photo_classifier.data.splitting import crossing_groups, stratified_split
from photo_classifier.data.table_columns import Columns
from photo_classifier.runtime.errors import UserError

RATIOS = {"train": 0.6, "valid": 0.2, "test": 0.2}
CLASSES = ("cat", "dog")


def _grouped(n_groups, seed=0, labels=("a", "b", "c"), mixed=0.2):
    """Groups of 1 to 12 images, mostly of one label."""
    rng = random.Random(seed)
    samples = []
    for n in range(n_groups):
        main = rng.choice(labels)
        for image in range(rng.randint(1, 12)):
            label = rng.choice(labels) if rng.random() < mixed else main
            samples.append(Sample(f"{n}/{image}.png", label, f"{n}/{image}.png", f"plant {n}"))
    return samples


def _place(parts):
    return {sample.key: name for name, part in parts.items() for sample in part}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("n_groups", "mixed", "tolerance"), [(50, 0.2, 0.05), (200, 0.2, 0.035), (200, 0.6, 0.035)])
def test_no_group_crosses_and_the_classes_keep_their_shares(seed, n_groups, mixed, tolerance):
    samples = _grouped(n_groups, seed, mixed=mixed)
    parts = stratified_split(samples, RATIOS, seed)
    assert not crossing_groups(parts)
    assert sorted(_place(parts)) == sorted(sample.key for sample in samples)
    for name, share in RATIOS.items():
        for label in ("a", "b", "c"):
            n_all = sum(s.label == label for s in samples)
            assert abs(sum(s.label == label for s in parts[name]) / n_all - share) < tolerance


def test_a_split_by_groups_does_not_depend_on_the_order_of_the_images():
    samples = _grouped(30)
    parts = stratified_split(samples, RATIOS, 1)
    random.Random(0).shuffle(samples)
    assert stratified_split(samples, RATIOS, 1) == parts
    assert stratified_split(samples, RATIOS, 2) != parts


def test_a_new_group_moves_few_images_of_others():
    samples = _grouped(200)
    before = _place(stratified_split(samples[: -len(_last_group(samples))], RATIOS, 0))
    after = _place(stratified_split(samples, RATIOS, 0))
    moved = [key for key in before if before[key] != after[key]]
    assert len(moved) <= 12 * 2  # a group at either cut of its class


def _last_group(samples):
    return [sample for sample in samples if sample.group == samples[-1].group]


def test_a_growing_folder_keeps_its_test_images():
    samples = [Sample(f"{n}.png", "ab"[n % 2], f"{n}.png") for n in range(220)]
    before = _place(stratified_split(samples[:200], RATIOS, 0))
    after = _place(stratified_split(samples, RATIOS, 0))
    assert sum(before[key] != after[key] for key in before) <= 20
    assert sum(before[key] == "test" and after[key] == "train" for key in before) == 0


def test_every_class_is_trained_on_however_the_groups_fall():
    for seed in range(20):
        samples = [Sample(f"{n}", "a" if n % 4 else "rare", str(n), f"g{n // 4}") for n in range(12)]
        samples += [Sample("x", "b", "x", "g0"), Sample("y", "b", "y", "g1")]
        parts = stratified_split(samples, RATIOS, seed)
        assert {s.label for s in parts["train"]} == {"a", "b", "rare"}
        assert not crossing_groups(parts)


def test_images_without_a_group_stand_alone():
    samples = [Sample(f"{n}", "ab"[n % 2], str(n), "g" if n < 6 else "") for n in range(40)]
    parts = stratified_split(samples, RATIOS, 0)
    assert not crossing_groups(parts)
    assert abs(len(parts["test"]) - 8) <= 3


def _with_groups(folder, n_images=12):
    """A table with a column `group` of 3 images and one `house` of 6."""
    make_table(folder, n_images)
    header, *lines = (folder / "labels.csv").read_text().splitlines()
    rows = [f"{line},p{n // 3},h{n // 6}" for n, line in enumerate(lines)]
    (folder / "labels.csv").write_text("\n".join([f"{header},group,house", *rows]))
    return folder


def test_the_column_group_is_kept_together_and_another_by_its_name(cli, tmp_path):
    ratios = {"train": 0.5, "valid": 0.5, "test": 0.0}
    for column, n_groups in ((None, 8), ("house", 4)):
        splits = load_splits(_with_groups(tmp_path / "d"), ratios, 0, columns=Columns(group=column))
        assert not crossing_groups(splits.by_name())
        assert f"kept {n_groups} groups together, each in one split" in splits.notes
        assert {s.label for s in splits.valid} == set(CLASSES)
    assert_one_line_error(cli("train", "--data_dir", "d", "--group_column", "hose"), "did you mean house?")


def test_a_group_that_the_splits_of_the_data_divide_is_told_by_two_of_its_photos(tmp_path):
    table = _with_groups(tmp_path / "d") / "labels.csv"
    header, *lines = table.read_text().splitlines()
    rows = [f"{line},{'train' if n % 4 else 'valid'}" for n, line in enumerate(lines)]
    table.write_text("\n".join([f"{header},split", *rows]))
    (note,) = (note for note in load_splits(tmp_path / "d", RATIOS, 0).notes if "groups" in note)
    assert note.startswith("the splits divide 6 of 8 groups of photos, so the accuracy may look too good (for example ")
    assert {"validation", "train"} <= set(re.findall(r"\bin (\w+)", note))


def test_groups_that_cannot_be_split_are_an_error(cli, tmp_path):
    make_table(tmp_path / "d", 4)
    text = (tmp_path / "d" / "labels.csv").read_text().splitlines()
    rows = [f"{line},{line.split(',')[1]}" for line in text[1:]]
    (tmp_path / "d" / "labels.csv").write_text("\n".join(["path,label,group", *rows]))
    assert_one_line_error(cli("train", "--data_dir", "d"), "every class has only one image or group")
    make_class_folders(tmp_path / "f", 4, CLASSES)
    assert_one_line_error(cli("train", "--data_dir", "f", "--group_column", "plant"), "has no table")


def test_a_column_split_is_obeyed_and_one_with_folds_is_not(tmp_path):
    make_table(tmp_path / "d", 6)
    header, *lines = (tmp_path / "d" / "labels.csv").read_text().splitlines()

    def load(names):
        rows = [f"{line},{names[n % len(names)]}" for n, line in enumerate(lines)]
        (tmp_path / "d" / "labels.csv").write_text("\n".join([f"{header},split", *rows]))
        return {name: len(part) for name, part in load_splits(tmp_path / "d", RATIOS, 0).by_name().items()}

    assert load(["train", "Val", "test"]) == {"train": 4, "valid": 4, "test": 4}
    assert load(["train", "train", "test"]) == {"train": 6, "valid": 2, "test": 4}
    assert load(["0", "1", "2"]) == {"train": 8, "valid": 2, "test": 2}
    with pytest.raises(UserError, match=r"line 4 has the split 'tset' instead of train, valid or test"):
        load(["train", "val", "tset"])


def test_a_run_lists_its_groups_and_its_splits_are_used_again_to_the_same_weights(cli, tmp_path):
    _with_groups(tmp_path / "d")
    argv = (*TINY, "--n_epochs", 1, "--feature_cache", "none")
    ratios = ("--train_ratio", 0.5, "--test_ratio", 0)
    done = cli(
        "train", "--data_dir", "d", *argv, *ratios, "--group_column", "house", "--run_dir", "r", "--model_fn", "r.pth"
    )
    assert "(labels.csv: path, label, groups by house)" in done.out
    assert "kept 4 groups together" in done.out
    header, *lines = (tmp_path / "r" / "splits.csv").read_text().splitlines()
    assert header == "path,label,split,group"
    assert len({tuple(line.split(",")[2:]) for line in lines}) == 4, "each group in one split"

    shutil.copytree(tmp_path / "d", tmp_path / "moved" / "photos")
    with open(tmp_path / "moved" / "photos" / "labels.csv", "a") as table:
        table.write("\nimages/later.jpg,cat,p9,h9")  # it came later, so the file does not list it
    shutil.copy(tmp_path / "d" / "images" / "c0.jpg", tmp_path / "moved" / "photos" / "images" / "later.jpg")
    weights = weights_of("r.pth")
    # the ratios by themselves would cut otherwise
    flags = ("--data_dir", "moved/photos", "--splits", "r/splits.csv")
    done = cli("train", *flags, *argv, "--run_dir", "again", "--model_fn", "again.pth")
    again = weights_of("again.pth")
    assert all(torch.equal(weights[key], again[key]) for key in weights)
    assert "left out because r/splits.csv does not list them: 1 image (for" in done.out
    assert "not there" not in done.out


@pytest.fixture
def splits_file(tmp_path):
    make_class_folders(tmp_path / "d", 6, CLASSES)
    splits = load_splits(tmp_path / "d", RATIOS, 0)
    rows = [f"d/{s.key},{s.label},{name}" for name, part in splits.by_name().items() for s in part]
    return tmp_path, rows, splits


def write(rows, header="path,label,split"):
    with open("splits.csv", "w", encoding="utf-8") as file:
        file.write("\n".join([header, *rows]))


def test_missing_files_of_a_splits_file_are_reported(splits_file, cli):
    folder, rows, _ = splits_file
    write([*rows, "d/cat/gone.png,cat,train"])
    splits = load_splits(folder / "d", RATIOS, 0, splits="splits.csv")
    assert "listed in splits.csv but missing: 1 image (for example d/cat/gone.png)" in splits.notes
    assert [s.path for s in splits.train][-1] == str(folder / "d" / "d" / "cat" / "gone.png")
    done = cli("train", "--data_dir", "d", "--splits", "splits.csv", *TINY, "--dry_run", "--run_dir", "r",
               "--max_bad", 0.2)  # fmt: skip
    assert done.status == 0
    assert "gone.png,No such file or directory" in (folder / "r" / "skipped.csv").read_text()


def test_a_label_corrected_since_is_taken_from_the_data(splits_file):
    folder, rows, _ = splits_file
    os.rename(folder / "d" / "cat" / "00.png", folder / "d" / "dog" / "cat00.png")
    write([row.replace("d/cat/00.png,cat", "d/dog/cat00.png,cat") for row in rows])
    splits = load_splits(folder / "d", RATIOS, 0, splits="splits.csv")
    assert {s.label for part in splits.by_name().values() for s in part if "cat00" in s.path} == {"dog"}
    assert any("not as in splits.csv: 1 image" in note for note in splits.notes)


def test_paths_of_another_system_are_found(splits_file):
    folder, rows, expected = splits_file
    write(["C:\\photos\\" + row.replace("/", "\\") for row in rows])
    splits = load_splits(folder / "d", RATIOS, 0, splits="splits.csv")
    assert [s.path for s in splits.test] == [s.path for s in expected.test]
    (folder / "elsewhere").mkdir()
    os.chdir(folder / "elsewhere")
    parts, notes = read_splits(folder / "splits.csv")
    assert not notes
    assert [s.key for s in parts["test"]] == [s.key for s in expected.test]


MISTAKES = {
    "none": (None, "--splits splits.csv does not exist"),
    "binary": (b"\x00\x80\xff\x00" * 100, "splits.csv"),
    "empty": (b"", "is empty"),
    "another table": (b"a,b\n1,2\n", "has the columns a, b; expected path, label, split"),
    "no such split": (b"path,label,split\nd/cat/00.png,cat,other\n", "line 2 has the split 'other'"),
    "an empty cell": (b"path,label,split\nd/cat/00.png,,train\n", "line 2 has an empty cell"),
    "twice": (b"path,label,split\nd/cat/00.png,cat,train\nd/cat/00.png,cat,test\n", "is in line 2 and in line 3"),
    "header alone": (b"path,label,split\n", "none of its images exists"),
    "other photos": (
        b"path,label,split\nx/a.png,cat,train\nx/b.png,dog,valid\n",
        "none of its images exists in d",
    ),
    "no training": (b"path,label,split\nd/cat/00.png,cat,test\n", "no images for training"),
    "more cells": (b"path,label,split\nd/cat/0,0.png,cat,test\n", "line 2 has 4 cells"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_broken_or_foreign_splits_file_is_explained_in_one_line(name, splits_file, cli):
    content, expected = MISTAKES[name]
    if content is not None:
        (splits_file[0] / "splits.csv").write_bytes(content)
    assert_one_line_error(cli("train", "--data_dir", "d", "--splits", "splits.csv"), expected)
