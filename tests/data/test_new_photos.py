import csv
import os
import shutil
from pathlib import Path

import pytest
from helpers import TINY, assert_one_line_error, make_class_folders, save_image
from test_layouts import make_table

from photo_classifier.data.discovery import load_splits

RATIOS = {"train": 0.6, "valid": 0.2, "test": 0.2}
DRY = (*TINY, "--dry_run", "--max_bad", 0.2)


def split_of_photos(run):
    with open(f"{run}/splits.csv", encoding="utf-8") as file:
        return {row["path"]: row["split"] for row in csv.DictReader(file)}


def held_out(photos):
    return {path: split for path, split in photos.items() if split != "train"}


@pytest.fixture
def first_run(cli, tmp_path):
    """A run on 2 classes of 10 photos in `d`; returns the split of each."""
    make_class_folders(tmp_path / "d", 10, ("cat", "dog"))
    assert cli("train", "--data_dir", "d", *DRY, "--run_dir", "r1").status == 0
    return split_of_photos("r1")


def test_new_photos_train_and_the_old_validation_and_test_photos_stay(cli, first_run):
    make_class_folders(Path("d"), 3, ("fox",), seed=500)
    save_image(Path("d/cat/new.png"), 0, 900)
    tested = next(path for path, split in first_run.items() if split == "test")
    shutil.copy(tested, "d/dog/copy of a test photo.png")
    trained = next(path for path, split in first_run.items() if split == "train")
    os.remove(trained)
    before = held_out(first_run)

    done = cli("train", "--data_dir", "d", "--splits", "r1", "--new_photos", "train", *DRY, "--run_dir", "r2")
    assert done.status == 0, done.err
    assert "r1/splits.csv: 19 images kept in their splits, 5 new (4 train), 1 gone" in done.out
    assert "same photo is in validation or test: 1 image (for example d/dog/copy of a test photo.png)" in done.out
    after = split_of_photos("r2")
    assert held_out(after) == before
    assert after.keys() - first_run.keys() == {"d/cat/new.png", *(f"d/fox/0{n}.png" for n in range(3))}
    assert "the valid split has no images of fox" in done.out

    save_image(Path("d/dog/newer.png"), 1, 901)
    done = cli("train", "--data_dir", "d", "--splits", "r2", "--new_photos", "train", *DRY, "--run_dir", "r3")
    assert "23 images kept in their splits, 2 new (1 train), 0 gone" in done.out
    assert held_out(split_of_photos("r3")) == before
    done = cli("train", "--data_dir", "d", "--splits", "r1", *DRY, "--run_dir", "r4")
    assert "19 images kept in their splits, 6 new (0 train), 1 gone" in done.out
    assert split_of_photos("r4").keys() < first_run.keys(), "without the flag they are left out"


def test_renamed_and_relabelled_photos_stay_in_their_splits(cli, first_run):
    moves = dict(zip(held_out(first_run), ("d/cat/renamed.png", "d/dog/moved.png", "d/other/00.png"), strict=False))
    os.mkdir("d/other")
    for old, new in moves.items():
        os.rename(old, new)
    shutil.copy(next(path for path, split in first_run.items() if split == "train"), "d/other/a copy.png")
    done = cli("train", "--data_dir", "d", "--splits", "r1", "--new_photos", "train", *DRY, "--run_dir", "r2")
    assert done.status == 0, done.err
    assert "20 images kept in their splits, 1 new (1 train), 0 gone" in done.out
    assert "moved or renamed since, and kept in their splits: 3 images" in done.out
    assert held_out(split_of_photos("r2")) == {moves.get(path, path): s for path, s in held_out(first_run).items()}

    os.remove("r1/samples.json")
    done = cli("train", "--data_dir", "d", "--splits", "r1", "--new_photos", "train", *DRY, "--run_dir", "r3")
    assert "3 of those that are gone were in validation or test; if one was renamed" in done.out


@pytest.mark.parametrize("broken", ["{", "[]", '{"columns": ["key"], "splits": {}, "files": {}}',
    '{"columns": ["key", "path"], "splits": {"train": [["x"]], "test": 3}, "files": {"train": [[1, 2]], "test": []}}',
])  # fmt: skip
def test_a_broken_note_of_the_files_is_ignored(broken, tmp_path):
    make_class_folders(tmp_path / "d", 4, ("cat", "dog"))
    parts = load_splits(tmp_path / "d", RATIOS, 0).by_name()
    rows = [f"{s.key},{s.label},{name}" for name, part in parts.items() for s in part]
    (tmp_path / "splits.csv").write_text("\n".join(["path,label,split", *rows]))
    (tmp_path / "samples.json").write_text(broken)
    os.rename("d/cat/00.png", "d/cat/new.png")
    splits = load_splits(tmp_path / "d", RATIOS, 0, splits="splits.csv", train_new=True)
    assert "splits.csv: 7 images kept in their splits, 1 new (1 train), 1 gone" in splits.notes


def test_a_new_photo_of_a_held_out_group_does_not_train(tmp_path):
    make_table(tmp_path / "d", 12)
    header, *lines = (tmp_path / "d" / "labels.csv").read_text().splitlines()
    rows = [f"{line},p{n // 3}" for n, line in enumerate(lines)]
    (tmp_path / "d" / "labels.csv").write_text("\n".join([f"{header},group", *rows]))
    splits = load_splits(tmp_path / "d", RATIOS, 0)
    held = splits.valid[0].group
    with open("splits.csv", "w") as file:
        file.write("path,label,split\n")
        file.writelines(f"{s.key},{s.label},{name}\n" for name, part in splits.by_name().items() for s in part)
    for n, (label, group) in enumerate((("cat", held), ("dog", "another"))):
        save_image(tmp_path / "d" / "images" / f"new{n}.png", n, 700 + n)
        rows.append(f"images/new{n}.png,{label},{group}")
    (tmp_path / "d" / "labels.csv").write_text("\n".join([f"{header},group", *rows]))
    again = load_splits(tmp_path / "d", RATIOS, 0, splits="splits.csv", train_new=True)
    assert [s.key for s in again.train if s not in splits.train] == ["images/new1.png"]
    assert (again.valid, again.test) == (splits.valid, splits.test)
    assert any("their group is in validation or test: 1 image" in note for note in again.notes)


def test_new_photos_that_the_data_itself_holds_out_do_not_train(cli, split_folder):
    assert cli("train", "--data_dir", split_folder, *DRY, "--run_dir", "r1").status == 0
    new = save_image(split_folder / "val" / "cat" / "new.png", 0, 700)
    done = cli("train", "--data_dir", split_folder, "--splits", "r1", "--new_photos", "train", *DRY, "--run_dir", "r2")
    assert "39 images kept in their splits, 1 new (0 train), 0 gone" in done.out
    assert str(new) not in split_of_photos("r2")


def test_a_class_without_a_photo_now_is_named_and_left_out(cli, first_run, tmp_path):
    make_class_folders(tmp_path / "d", 3, ("fox",), seed=500)
    shutil.rmtree("d/dog")
    done = cli("train", "--data_dir", "d", "--splits", "r1", "--new_photos", "train", *DRY, "--run_dir", "r2")
    assert done.status == 0, done.err
    assert "classes without a photo now: dog" in done.out
    assert set(split_of_photos("r2").values()) == {"train", "valid", "test"}


def test_the_flag_needs_splits_and_photos(cli, first_run):
    for argv, expected in {
        (
            "--data_dir",
            "d",
            "--new_photos",
            "train",
        ): "needs the splits of an earlier run and the photos; give --splits",
        ("--splits", "r1", "--new_photos", "train"): "give --splits and --data_dir",
        (
            "--data_dir",
            "d",
            "--new_photos",
            "trian",
        ): "'trian' is unknown; choose from skip, train; did you mean train?",
    }.items():
        assert_one_line_error(cli("train", *argv), expected)
