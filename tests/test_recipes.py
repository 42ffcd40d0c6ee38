"""The recipes of the README, each run as a user types it on tiny images, and what it claims."""

import re
import signal
from pathlib import Path

import pytest
import torch
from helpers import TINY, board_of, metrics_of, weights_of

from model_loader import get_model
from photo_classifier.runtime import signals


def moved(path, before):
    """The names of the tensors of a checkpoint that differ from those."""
    return {key for key, value in weights_of(path).items() if not torch.equal(value, before[key])}


def curve(run_dir, tag):
    return [point.value for point in board_of(run_dir).Scalars(tag)]


def test_from_scratch_fine_tuned_and_frozen_give_three_curves_side_by_side(cli, trained, split_folder, tmp_path):
    start, argv = weights_of("tiny.pth"), ("--data_dir", split_folder, *TINY, "--n_epochs", 2, "--lr", 1e-4)
    recipes = {"scratch": (), "tuned": ("--weights", "tiny.pth"), "frozen": ("--weights", "tiny.pth", "--freeze")}
    for name, extra in recipes.items():
        done = cli("train", *argv, *extra, "--model_fn", f"{name}.pth", "--run_dir", f"runs/{name}")
        assert done.status == 0, done.err
        assert len(curve(tmp_path / "runs" / name, "Validation/Accuracy")) == 2
    assert moved("frozen.pth", start) == {"fc.weight", "fc.bias"}
    weights = {key for key in start if key.endswith(("weight", "bias"))}
    assert moved("tuned.pth", start) >= weights
    first = next(iter(start))
    first_layer = [(weights_of(f"{name}.pth")[first] - start[first]).abs().max() for name in recipes]
    assert first_layer[0] > 3 * first_layer[1] > first_layer[2] == 0, "from scratch, near its start, not at all"


def test_sgd_as_in_the_tutorial_drops_its_rate_after_seven_epochs_and_keeps_the_best_weights(cli, split_folder):
    argv = ("--data_dir", split_folder, *TINY, "--freeze", "--optimizer", "sgd", "--lr", 1e-3, "--n_epochs", 8)
    assert cli("train", *argv, "--run_dir", "r", "--model_fn", "m.pth").status == 0
    assert curve("r", "LearningRate/head") == pytest.approx([1e-3] * 7 + [1e-4])
    row = max(metrics_of("r"), key=lambda row: (float(row["valid_accuracy"]), -float(row["valid_loss"])))
    best = torch.load("m.pth", weights_only=True)["metrics"]
    assert best["epoch"] == int(row["epoch"])
    assert best["valid"]["accuracy"] == pytest.approx(float(row["valid_accuracy"]), abs=1e-5)


def test_a_warm_up_is_in_the_learning_rate_curve_from_its_first_step(cli, split_folder, monkeypatch):
    argv = ("--data_dir", split_folder, *TINY, "--freeze", "--scheduler", "none", "--warmup_epochs", 1)
    argv = (*argv, "--batch_size", 8, "--n_epochs", 2, "--run_dir", "r", "--model_fn", "m.pth")
    with monkeypatch.context() as patched:
        patched.setattr("photo_classifier.training.run.Run.log", lambda *_: signals.raise_stopped())
        assert cli("train", *argv).status == 128 + signal.SIGTERM
    assert cli("train", "--resume", "r").status == 0
    board = board_of("r")
    assert [(point.step, round(point.value, 6)) for point in board.Scalars("LearningRate/head")] == [
        (0, pytest.approx(1e-3 / 3, abs=1e-6)), (1, 1e-3), (2, 1e-3)
    ]  # fmt: skip
    assert [point.step for point in board.Scalars("Train/Loss")] == [1, 2]


def test_the_first_layers_of_resnet50_stay_on_leaves_cut_from_64_to_52_pixels(cli, split_folder):
    argv = ("--data_dir", split_folder, "--model_name", "resnet50", "--freeze_until", "layer1", "--n_workers", 0)
    sizes = ("--resize", 64, "--image_size", 52, "--augment", "shifts")
    done = cli("train", *argv, *sizes, "--lr", 1e-3, "--n_epochs", 1, "--model_fn", "m.pth", "--gpu_id", -1)
    assert done.status == 0, done.err
    content = torch.load("m.pth", weights_only=True)
    assert (content["resize"], content["image_size"]) == (64, 52)
    before = get_model("resnet50", 3, image_size=52).net.state_dict()
    still = {key for key in before if key.split(".")[0] in ("conv1", "bn1", "layer1")}
    assert moved("m.pth", before) == before.keys() - still, "batch norm's statistics too"


def test_the_line_for_vgg16_trains_its_classifier_alone_and_predicts(cli, image_folder, narrow_classifiers):
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"`python train\.py (--data_dir photos --model_name vgg [^`]*)`", readme)
    random = line.replace("--use_pretrained ", "").split()
    argv = (*random, "--image_size", 32, "--n_epochs", 2, "--n_workers", 0, "--gpu_id", -1, "--run_dir", "r")
    done = cli("train", *argv, "--verbose", 2)
    assert done.status == 0, done.err
    best, last = weights_of("vgg.pth"), weights_of("r/last_model.pth")
    before = get_model("vgg", 3, image_size=32, head_hidden=512).net.state_dict()
    assert {key.split(".")[0] for key in moved("r/last_model.pth", before)} == {"classifier"}
    assert best["classifier.6.0.weight"].shape == last["classifier.6.0.weight"].shape == (512, 64)
    assert re.search(r"schedule plateau", done.out)
    predicted = cli("predict", "--model_fn", "vgg.pth", "--n_workers", 0, "--gpu_id", -1)
    assert predicted.status == 0, predicted.err
    assert predicted.out.splitlines()[-1] == done.out.splitlines()[-1]


MONITORED = {"accuracy": ("valid_accuracy", 1), "loss": ("valid_loss", -1), "macro_f1": ("valid_macro_f1", 1)}


@pytest.mark.parametrize("monitor", MONITORED)
def test_the_best_epoch_is_the_best_by_the_monitor_and_of_equals_that_of_the_lowest_loss(monitor, cli, split_folder):
    column, sign = MONITORED[monitor]
    # a rate so high that the loss goes up and down
    argv = ("--data_dir", split_folder, *TINY, "--freeze", "--lr", 0.3, "--scheduler", "none", "--n_epochs", 6)
    assert cli("train", *argv, "--monitor", monitor, "--run_dir", "r", "--model_fn", "m.pth").status == 0
    best = max(metrics_of("r"), key=lambda row: (sign * float(row[column]), -float(row["valid_loss"])))
    assert torch.load("m.pth", weights_only=True)["metrics"]["epoch"] == int(best["epoch"])


@pytest.mark.parametrize("frozen", [(), ("--freeze",)])
def test_squeezenet_whose_head_is_a_convolution_takes_every_recipe(frozen, cli, split_folder):
    flags = "--scheduler cosine --warmup_epochs 0.5 --optimizer adamw --weight_decay 0.01 --class_weights balanced"
    flags += " --label_smoothing 0.1 --mixup 0.2 --backbone_lr 1e-4 --monitor macro_f1 --augment shifts --n_epochs 2"
    argv = ("--data_dir", split_folder, "--model_name", "squeezenet", "--image_size", 32, "--n_workers", 0, *frozen)
    done = cli("train", *argv, *flags.split(), "--run_dir", "r", "--model_fn", "m.pth", "--gpu_id", -1)
    assert done.status == 0, done.err
    assert [row["backbone_lr"] for row in metrics_of("r")] == (["", ""] if frozen else ["0.0001", "5e-05"])
    assert cli("predict", "--model_fn", "m.pth", "--n_workers", 0).out.splitlines()[-1] == done.out.splitlines()[-1]


@pytest.mark.parametrize(
    ("flags", "rate"),
    [
        (("--weights", "tiny.pth"), 3e-4),
        (("--weights", "tiny.pth", "--freeze_until", "layer1"), 3e-4),
        (("--weights", "tiny.pth", "--lr", 1e-3), 1e-3),
        (("--weights", "tiny.pth", "--optimizer", "sgd"), 1e-3),
        ((), 1e-3),
    ],
)
def test_a_pretrained_backbone_learns_slower_unless_a_rate_is_given(flags, rate, cli, trained, split_folder):
    argv = ("--data_dir", split_folder, *TINY, *flags, "--n_epochs", 1, "--run_dir", "own", "--model_fn", "own.pth")
    done = cli("train", *argv, "--verbose", 2)
    assert done.status == 0, done.err
    (row,) = metrics_of("own")
    assert (float(row["lr"]), float(row["backbone_lr"])) == (1e-3, rate)
    assert ("at 0.001 (backbone 0.0003)" in done.out) == (rate == 3e-4), "what was chosen is said at the start"
