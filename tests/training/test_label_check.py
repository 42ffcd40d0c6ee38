import csv
import re
import shlex
import shutil

import pytest
from helpers import TINY, save_image
from PIL import Image


def suspects_of(run_dir):
    with open(f"{run_dir}/suspects.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def splits_of(run_dir):
    with open(f"{run_dir}/splits.csv", encoding="utf-8") as file:
        return {row["path"]: (row["label"], row["split"]) for row in csv.DictReader(file)}


@pytest.fixture
def argv(image_folder):
    """Three classes by colour, of 16 photos, one of which lies in the folder of another class."""
    for hue, name in enumerate(("cat", "dog", "개")):
        for n in range(10, 16):
            save_image(image_folder / name / f"{n}.png", hue, 5000 + 100 * hue + n)
    shutil.move(image_folder / "cat" / "03.png", image_folder / "dog" / "a cat.png")
    return ("--data_dir", image_folder, *TINY, "--n_epochs", 2, "--run_dir", "r", "--model_fn", "m.pth")


KINDS = {"epochs": (), "folds": ("--folds", 3, "--lr", 0.03, "--n_epochs", 20), "solved": ("--head", "logistic")}


@pytest.mark.parametrize("kind", KINDS)
def test_a_photo_in_the_folder_of_another_class_is_named_and_its_table_trains(kind, argv, image_folder, cli):
    done = cli("train", *argv, "--freeze", *KINDS[kind])
    assert done.status == 0, done.err
    rows, splits = suspects_of("r"), splits_of("r")
    assert {row["path"] for row in rows} == splits.keys()
    assert all(row["label"] == splits[row["path"]][0] for row in rows)
    assert {row["suggested"] for row in rows} == {"cat", "dog", "개"}
    assert rows[0]["path"] == str(image_folder / "dog" / "a cat.png")
    assert (rows[0]["label"], rows[0]["suggested"]) == ("dog", "cat")
    assert f"first {rows[0]['path']}: labelled dog, but cat is" in done.out
    assert Image.open("r/suspects.png").height > 144
    # the corrected table takes the place of the folders, with the same splits
    text = open("r/suspects.csv", encoding="utf-8", newline="").read().replace("a cat.png,dog", "a cat.png,cat")
    open("r/suspects.csv", "w", encoding="utf-8", newline="").write(text)
    (command,) = re.findall(r"^next .*look.* wrong .*python train\.py (.*)$", done.out, re.M)
    again = cli("train", *shlex.split(command), "--run_dir", "r2")
    assert again.status == 0, again.err
    assert "wrong (first" not in again.out, "it was taken"
    assert "r/suspects.csv: 1 label changed since the run that checked them" in again.out
    assert "nearby" not in again.out + again.err
    after = splits_of("r2")
    assert after.pop(rows[0]["path"])[0] == "cat"
    if kind == "epochs":
        assert after.items() <= splits.items()


def test_without_freeze_the_photos_of_training_steps_are_not_judged(argv, cli):
    done = cli("train", *argv, "--verbose", 2)
    assert done.status == 0
    assert "labels  those of training photos are not judged, as the network has learned them" in done.out
    rows, splits = suspects_of("r"), splits_of("r")
    assert {row["path"] for row in rows} == splits.keys()
    assert {row["split"] for row in rows if row["suggested"]} == {"valid", "test"}
    assert not any(row["suggested"] or row["probability"] or row["reason"] for row in rows if row["split"] == "train")
    assert all(row["split"] == splits[row["path"]][1] for row in rows)


def test_of_too_few_photos_for_folds_none_of_training_is_judged(cli, tmp_path):
    for hue, name in enumerate(("cat", "dog")):
        for n in range(2):
            save_image(tmp_path / "few" / ("train", "val")[n] / name / f"{n}.png", hue, n)
    done = cli("train", "--data_dir", tmp_path / "few", *TINY, "--freeze", "--n_epochs", 1, "--run_dir", "r")
    assert done.status == 0, done.err
    assert {row["split"] for row in suspects_of("r") if row["suggested"]} == {"valid"}
