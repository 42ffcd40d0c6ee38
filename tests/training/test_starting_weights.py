"""What a run has learnt is kept when the next one starts from it."""

import csv
import shutil

import pytest
import torch
from helpers import CLASSES, TINY, assert_one_line_error, make_class_folders, save_image, weights_of

from model_loader import get_model

START = (*TINY, "--n_epochs", 1, "--lr", 1e-9, "--model_fn", "next.pth", "--run_dir", "n")


def rows(path):
    with open(path, encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def add_class(folder, name="ant"):
    for split in ("train", "val"):
        for n in range(4):
            save_image(folder / split / name / f"{n}.png", 1, 500 + n)


@pytest.mark.parametrize("weights", ["tiny.pth", "r", "r/last.pth"])
def test_the_head_keeps_the_rows_of_the_classes_that_it_knows(weights, cli, trained, tmp_path):
    shutil.copytree(trained.folder.parent / "split", tmp_path / "split")
    add_class(tmp_path / "split")
    shutil.rmtree(tmp_path / "split" / "train" / "dog")
    shutil.rmtree(tmp_path / "split" / "val" / "dog")
    done = cli("train", "--data_dir", "split", *START, "--weights", weights)
    assert done.status == 0, done.err
    shown = {"tiny.pth": "tiny.pth", "r": "tiny.pth", "r/last.pth": "r/last.pth"}[weights]
    head = next(line for line in done.out.splitlines() if line.startswith("head"))
    assert head.endswith(f"{shown}: cat, 개; new: ant; left out: dog")
    old, new = weights_of("r/last_model.pth" if "last" in weights else "tiny.pth"), weights_of("next.pth")
    assert torch.allclose(new["fc.weight"][1:], old["fc.weight"][[0, 2]], atol=1e-6)
    assert torch.allclose(new["fc.bias"][1:], old["fc.bias"][[0, 2]], atol=1e-6)


def test_a_folder_that_is_no_run_names_the_flag_that_it_was_given_to(cli, image_folder):
    done = cli("train", "--data_dir", image_folder, *START, "--weights", image_folder)
    assert_one_line_error(
        done, f"there is no last.pth in {image_folder}; give the run folder of a training (--weights)"
    )


def test_by_folds_only_photos_that_the_earlier_run_held_out_may_have_changed(cli, trained):
    data = ("--data_dir", trained.folder.parent / "split", *START)
    done = cli("train", *data, "--weights", "tiny.pth", "--freeze", "--folds", 3)
    assert done.status == 0, done.err
    assert "of 15 held-out photos of the earlier classes" in done.out


def test_a_frozen_run_that_was_stopped_is_started_from_too(cli, trained, tmp_path):
    make_class_folders(tmp_path / "photos", 6)
    argv = ("--data_dir", "photos", *TINY, "--freeze", "--n_epochs", 1, "--model_fn", "frozen.pth", "--run_dir", "f")
    for views in (0, 1):
        assert cli("train", *argv, "--views", views, "--weights", "tiny.pth", "--seed", views).status == 0
        model = get_model(TINY[1], 3, weights_file="f/last.pth", class_names=CLASSES)
        expected = weights_of("f/last_model.pth")
        assert all(torch.equal(value, expected[name]) for name, value in model.net.state_dict().items())
        shutil.rmtree("f")


def test_a_hidden_layer_is_kept_or_said_to_be_new(cli, trained, tmp_path):
    data = ("--data_dir", trained.folder.parent / "split")
    assert cli("train", *data, *START, "--head_hidden", 8).status == 0
    again = ("--weights", "next.pth", *TINY, "--n_epochs", 1, "--lr", 1e-9, "--run_dir", "m", "--model_fn", "m.pth")
    assert "has another hidden layer (--head_hidden)" in cli("train", *data, *again).out
    shutil.rmtree("m")
    assert "head    kept from next.pth: cat, dog, 개\n" in cli("train", *data, *again, "--head_hidden", 8).out
    old, new = weights_of("next.pth"), weights_of("m.pth")
    assert all(torch.allclose(old[name], new[name], atol=1e-6) for name in old if name.startswith("fc."))


def test_images_are_prepared_as_the_checkpoint_has_it_also_after_a_resume(cli, trained, tmp_path):
    content = torch.load("tiny.pth", weights_only=True)
    torch.save({**content, "mean": [0.1, 0.2, 0.3], "image_size": 48, "resize": 50}, "other.pth")
    own = ("--model_name", TINY[1], "--n_workers", 0, "--gpu_id", -1, "--model_fn", "next.pth", "--run_dir", "n")
    data = ("--data_dir", trained.folder.parent / "split", "--weights", "other.pth", "--scheduler", "none")
    assert cli("train", *data, *own, "--n_epochs", 1).status == 0
    for _ in range(2):
        content = torch.load("next.pth", weights_only=True)
        assert (content["mean"], content["image_size"], content["resize"]) == ([0.1, 0.2, 0.3], 48, 50)
        (tmp_path / "other.pth").unlink(missing_ok=True)
        assert cli("train", "--resume", "n", "--n_epochs", 2).status == 0


def test_a_preparation_that_was_given_acts_also_if_it_is_the_usual_one(cli, trained):
    content = torch.load("tiny.pth", weights_only=True)
    torch.save({**content, "fit": "squash", "bit_depth": 12}, "other.pth")
    data = ("--data_dir", trained.folder.parent / "split", "--weights", "other.pth")
    for flags, expected in (((), ("squash", 12)), (("--fit", "crop", "--bit_depth", 16), ("crop", 16))):
        assert cli("train", *data, *START, *flags).status == 0
        content = torch.load("next.pth", weights_only=True)
        assert (content["fit"], content["bit_depth"]) == expected
        assert cli("train", "--resume", "n", "--fit", expected[0], "--bit_depth", expected[1]).status == 0
        shutil.rmtree("n")


def test_a_head_that_is_solved_anew_is_said_to_be(cli, trained):
    data = ("--data_dir", trained.folder.parent / "split")
    done = cli("train", *data, *TINY, "--weights", "tiny.pth", "--freeze", "--head", "logistic", "--run_dir", "n",
               "--model_fn", "next.pth")  # fmt: skip
    assert done.status == 0, done.err
    assert "head    solved anew: that of tiny.pth is not used\n" in done.out


@pytest.mark.parametrize("weights", ["hub", "hub/model.safetensors"])
def test_the_head_of_a_hub_folder_is_kept(weights, cli, trained, tmp_path):
    assert cli("export", "--model_fn", "tiny.pth", "--to", "hub_folder", "--output", "hub").status == 0
    shutil.copytree(trained.folder.parent / "split", tmp_path / "split")
    add_class(tmp_path / "split")
    done = cli("train", "--data_dir", "split", *START, "--weights", weights)
    assert done.status == 0, done.err
    assert "head    kept from hub/model.safetensors: cat, dog, 개; new: ant\n" in done.out
    old, new = weights_of("tiny.pth"), weights_of("next.pth")
    scale = new["fc.bias"][1:] / old["fc.bias"]  # the temperature
    assert torch.allclose(scale, scale.mean(), atol=1e-3)
    assert torch.allclose(new["fc.weight"][1:], old["fc.weight"] * scale.mean(), atol=1e-3)


def test_a_head_without_class_names_is_said_to_be_new(cli, trained):
    torch.save(weights_of("tiny.pth"), "plain.pth")
    torch.save({n: v for n, v in weights_of("tiny.pth").items() if not n.startswith("fc.")}, "backbone.pth")
    for weights in ("plain.pth", "backbone.pth"):
        done = cli("train", "--data_dir", trained.folder.parent / "split", *START, "--weights", weights)
        assert done.status == 0, done.err
        assert ("head    new: that of plain.pth is not used\n" in done.out) == (weights == "plain.pth")
        shutil.rmtree("n")


def test_a_run_without_a_checkpoint_is_named(cli, trained, tmp_path):
    data = ("--data_dir", trained.folder.parent / "split")
    assert cli("train", *data, *START).status == 0
    for name in ("next.pth", "n/last_model.pth"):
        (tmp_path / name).unlink(missing_ok=True)
    again = (*TINY, "--run_dir", "m", "--weights")
    assert_one_line_error(cli("train", *data, *again, "n"), "has no checkpoint any more")
    assert_one_line_error(cli("train", *data, *again, "nowhere"), "there is no")


def test_after_a_class_was_added_the_photos_are_listed_whose_answer_changed(cli, trained, tmp_path):
    shutil.copytree(trained.folder.parent / "split", tmp_path / "split")
    add_class(tmp_path / "split")
    predict = ("--input", "split/val", "--gpu_id", -1, "--model_fn", "tiny.pth", "--result")
    assert cli("predict", *predict, "a.csv").status == 0
    done = cli("train", "--data_dir", "split", *TINY, "--n_epochs", 2, "--weights", "tiny.pth", "--run_dir", "n",
               "--model_fn", "tiny.pth", "--lr", 0.01)  # fmt: skip
    assert done.status == 0, done.err
    assert cli("predict", *predict, "b.csv").status == 0
    before, now = ({row["file_dir"]: row["predict"] for row in rows(name)} for name in ("a.csv", "b.csv"))
    expected = {path for path in now if before[path] != now[path] and "ant/" not in path}
    changed = rows("n/changed_answers.csv") if expected else []
    assert expected, "the test shows something"
    assert {row["path"] for row in changed} == expected
    assert all((row["before"], row["now"]) == (before[row["path"]], now[row["path"]]) for row in changed)
    assert f"changed {len(expected)} of 15 held-out photos of the earlier classes" in done.out
    assert all(f"{path} (" in done.out for path in expected)
