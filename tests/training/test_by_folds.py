import csv
import json
import re

import pytest
import torch
from helpers import TINY, assert_one_line_error, board_of, metrics_of, weights_of

from photo_classifier.models import penalty_path
from photo_classifier.training.run import Run

HEADS = {"solved": ("--head", "logistic", "--folds", 3), "epochs": ("--folds", 3, "--n_epochs", 3, "--lr", 0.01)}


def folds_of(run_dir):
    with open(f"{run_dir}/folds.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def argv(image_folder):
    return ("--data_dir", image_folder, *TINY, "--freeze", "--run_dir", "r", "--model_fn", "m.pth")


@pytest.mark.parametrize("kind", HEADS)
def test_every_photo_that_is_not_test_is_predicted_once(kind, argv, cli):
    done = cli("train", *argv, *HEADS[kind])
    assert done.status == 0, done.err
    rows = folds_of("r")
    with open("r/splits.csv", encoding="utf-8") as file:
        split_of = {row["path"]: row["split"] for row in csv.DictReader(file)}
    assert sorted(row["path"] for row in rows) == sorted(path for path, split in split_of.items() if split != "test")
    assert {row["fold"] for row in rows} == {"1", "2", "3"}
    classes = ["cat", "dog", "개"]
    assert list(rows[0]) == ["path", "label", "fold", "predict", *(f"p_{name}" for name in classes)]
    for row in rows:
        shares = {name: float(row[f"p_{name}"]) for name in classes}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
        assert row["predict"] == max(shares, key=shares.get)
    n_right = sum(row["label"] == row["predict"] for row in rows)
    report = json.load(open("r/report.json", encoding="utf-8"))
    assert list(report)[:2] == ["out-of-fold", "test"]
    assert (report["out-of-fold"]["n_correct"], report["out-of-fold"]["n_images"]) == (n_right, 24)
    assert f"out-of-fold accuracy {n_right / 24:.4f} ({n_right}/24)" in done.out
    assert "3 folds: accuracy" in done.out
    page = " ".join(open("r/report.html", encoding="utf-8").read().split())
    assert "</strong> of the 24 out-of-fold photos are right" in page
    assert ">Test: " in page, "beside it"
    (kept,) = re.findall(r"saved   m.pth \((C .*|epoch .*)\)", done.out)
    assert f"<bdi>penalty {kept}, of " in page if kind == "solved" else f"<bdi>{kept}</bdi>" in page
    predicted = cli("predict", "--model_fn", "m.pth", "--n_workers", 0, "--gpu_id", -1)
    assert predicted.out.splitlines()[-1] == done.out.splitlines()[-1]
    assert "test accuracy" in done.out.splitlines()[-1]


@pytest.mark.parametrize("kind", HEADS)
def test_without_a_test_split_the_last_line_is_by_folds_and_no_photo_is_left_to_predict(kind, cli, split_folder):
    argv = ("--data_dir", split_folder, *TINY, "--freeze", "--run_dir", "r", "--model_fn", "m.pth")
    done = cli("train", *argv, *HEADS[kind])
    assert done.status == 0, done.err
    n_right = sum(row["label"] == row["predict"] for row in folds_of("r"))
    assert done.out.splitlines()[-1] == f"out-of-fold accuracy {n_right / 39:.4f} ({n_right}/39)"
    assert_one_line_error(cli("predict", "--model_fn", "m.pth"), "none is left to predict; give new ones with --input")
    assert "predict.py --model_fn m.pth --input new_photos" in done.out
    assert cli("predict", "--model_fn", "m.pth", "--input", split_folder / "val", "--n_workers", 0).status == 0


@pytest.mark.parametrize("kind", HEADS)
def test_a_killed_run_by_folds_ends_as_if_it_had_not_been(kind, argv, cli, killed_after):
    assert cli("train", *argv, *HEADS[kind]).status == 0
    expected, rows, folds = weights_of("m.pth"), metrics_of("r"), folds_of("r")

    killed_after(Run, "log", 2, *argv, *HEADS[kind], "--run_dir", "again", "--model_fn", "n.pth")
    done = cli("train", "--resume", "again")
    assert done.status == 0, done.err
    found = weights_of("n.pth")
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert folds_of("again") == folds
    times = ("seconds", "images_per_s")
    without = [
        [{k: v for k, v in row.items() if k not in times} for row in some] for some in (metrics_of("again"), rows)
    ]
    assert without[0] == without[1]
    assert "again is finished" in cli("train", "--resume", "again").out


def test_the_path_of_the_penalty_is_in_tensorboard_and_metrics_csv(argv, cli):
    assert cli("train", *argv, "--head", "logistic").status == 0
    rows, board = metrics_of("r"), board_of("r")
    strengths = [float(row["C"]) for row in rows]
    assert strengths == pytest.approx(penalty_path.STRENGTHS[: len(rows)], rel=1e-5)
    assert [point.value for point in board.Scalars("Regularization/C")] == pytest.approx(strengths)
    assert len(board.Scalars("Validation/Loss")) == len(rows)
    assert "LearningRate/head" not in board.Tags()["scalars"]
    best = min(rows, key=lambda row: float(row["valid_loss"]))
    assert torch.load("m.pth", weights_only=True)["metrics"]["epoch"] == int(best["epoch"])


def test_a_solved_head_is_a_plain_layer_that_torchvision_loads_alone(cli, image_folder):
    import torchvision

    argv = ("--data_dir", image_folder, "--model_name", "resnet18", *TINY[2:], "--freeze", "--head", "logistic")
    done = cli("train", *argv, "--augment", "none", "--class_weights", "balanced", "--model_fn", "m.pth")
    assert done.status == 0, done.err
    torchvision.models.resnet18(num_classes=3).load_state_dict(weights_of("m.pth"))


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--head", "logistic"), "add --freeze"),
        (("--folds", 5), "would train the whole network 6 times"),
        (("--freeze", "--folds", 5, "--views", 0), "with --views 0 none are stored"),
        (("--freeze", "--head", "logistic", "--cutmix", 1), "with --cutmix none are stored"),
        (("--freeze", "--head", "logistic", "--head_hidden", 8), "--head_hidden makes two"),
        (("--freeze", "--head", "ridge"), "choose from epochs, logistic"),
        (("--freeze", "--folds", 25), "25 folds need at least 25"),
        (("--freeze", "--head", "logistic", "--model_name", "squeezenet"), "needs a linear last layer"),
    ],
)
def test_flags_that_do_not_go_together_are_an_error(flags, expected, cli, image_folder):
    done = cli("train", "--data_dir", image_folder, *TINY, *flags)
    assert done.status == 2, done
    error = done.err.splitlines()[-1]
    assert error.startswith("error: ")
    assert expected in error


def test_flags_of_the_epochs_have_no_effect_on_a_solved_head(argv, cli):
    done = cli("train", *argv, "--head", "logistic", "--lr", 0.1, "--mixup", 0.2, "--n_epochs", 3)
    assert done.status == 0
    for name in ("--lr 0.1", "--mixup 0.2", "--n_epochs 3"):
        assert f"warning: {name} has no effect with --head logistic" in done.err


def test_a_dry_run_of_a_solved_head_writes_no_checkpoint(argv, cli, tmp_path):
    done = cli("train", *argv, "--head", "logistic", "--dry_run")
    assert done.status == 0, done.err
    assert not (tmp_path / "m.pth").exists()
