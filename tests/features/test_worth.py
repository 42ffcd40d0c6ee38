import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import TINY, metrics_of, weights_of
from torchvision import models

from photo_classifier.models.inference import Engine

ROOT = Path(__file__).parents[2]
PARTLY = (*TINY, "--freeze_until", "layer2", "--n_epochs", 3)


def same_weights(a, b):
    a, b = weights_of(a), weights_of(b)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_frozen_layers_run_once_and_a_second_run_reads_what_they_gave(cli, split_folder, monkeypatch):
    argv = ("--data_dir", split_folder, *PARTLY)
    first = cli("train", *argv, "--model_fn", "a.pth", "--run_dir", "a")
    assert first.status == 0, first.err
    assert "stores  the output of layer2 for 24 photos x 3 views + 15 photos x 1 view = " in first.out
    assert "features 87 views to compute" in first.out
    monkeypatch.setattr(Engine, "features", lambda _self, images, size: Engine.real(_self, images, 1))
    monkeypatch.setattr(Engine, "real", lambda self, images, n: torch.empty(1, 48, 4, 4).to(self.dtype), raising=False)
    second = cli("train", *argv, "--model_fn", "b.pth", "--run_dir", "b")
    assert second.status == 0, second.err
    assert "views to compute" not in second.out
    assert same_weights("a.pth", "b.pth")


def test_with_as_many_views_as_epochs_it_is_the_plain_recipe_whatever_the_workers(cli, split_folder):
    for name, extra in {"stored": ("--views", 3), "workers": ("--feature_cache", "none"), "plain": ()}.items():
        extra = (*extra, "--views", 0) if name == "plain" else extra
        argv = ("--data_dir", split_folder, *PARTLY, "--precision", "fp32", *extra, "--run_dir", name)
        workers = ("--n_workers", 2 if name == "workers" else 0)
        done = cli("train", *argv, *workers, "--model_fn", f"{name}.pth")
        assert done.status == 0, done.err
        assert ("stores" in done.out) == (name != "plain")
    assert same_weights("stored.pth", "workers.pth")
    losses = [[float(row["train_loss"]) for row in metrics_of(name)] for name in ("stored", "plain")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3), "but for rounding: batch norm is folded in what is stored"


def test_prediction_agrees_and_torchvision_loads_the_checkpoint_alone(cli, split_folder):
    argv = ("--model_name", "resnet18", *TINY[2:], "--freeze_until", "layer3", "--n_epochs", 1)
    done = cli("train", "--data_dir", split_folder, *argv, "--model_fn", "m.pth")
    assert "stores  the output of layer3" in done.out
    assert cli("predict", "--model_fn", "m.pth").out.splitlines()[-1] == done.out.splitlines()[-1]
    models.resnet18(num_classes=3).load_state_dict(weights_of("m.pth"))


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        (
            ("--model_name", "timm/test_efficientnet", "--freeze_until", "bn1"),
            "the output of bn1 takes 24.6 kB an image, and reading that is slower than computing it (0 million",
        ),
        (("--freeze_until", "conv1"), "the other layers need more than one output of the frozen ones"),
        (("--freeze_until", "layer2", "--cutmix", 1), "--cutmix changes the pictures themselves"),
    ],
)
def test_where_nothing_is_stored_a_line_says_why_and_all_layers_run(extra, expected, cli, split_folder):
    done = cli("train", "--data_dir", split_folder, *TINY, *extra, "--n_epochs", 1, "--precision", "fp32")
    assert done.status == 0, done.err
    assert expected in done.out
    assert "in every epoch" in done.out
    assert not Path(".cache").exists()


def test_a_disk_without_room_trains_as_without_storing_and_resumes_so(cli, split_folder, monkeypatch):
    argv = ("--data_dir", split_folder, *PARTLY)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 90, 10))
        done = cli("train", *argv, "--n_epochs", 1, "--model_fn", "full.pth", "--run_dir", "full")
    assert done.status == 0, done.err
    assert "has 10 B free (--feature_cache, --views): nothing is stored, and all layers run in every epoch" in done.out
    assert cli("train", *argv, "--views", 0, "--model_fn", "plain.pth", "--run_dir", "plain").status == 0
    done = cli("train", "--resume", "full", "--n_epochs", 3)
    assert "this run began without stored outputs" in done.out
    assert same_weights("full.pth", "plain.pth")


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGKILL")
def test_a_run_behind_a_cut_that_is_killed_resumes_to_the_same_bits(cli, split_folder):
    argv = ("--data_dir", split_folder, *PARTLY, "--batch_size", 4, "--dropout", 0.3)
    assert cli("train", *argv, "--model_fn", "a.pth", "--run_dir", "a").status == 0
    shutil.rmtree(".cache")  # the resumed run computes again what it needs
    command = [sys.executable, ROOT / "train.py", *argv, "--save_every", 1e-9, "--model_fn", "b.pth", "--run_dir", "b"]
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("epoch 1/3"):
                time.sleep(0.05)  # somewhere in the second epoch
                process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    shutil.rmtree(".cache")
    done = cli("train", "--resume", "b", "--n_workers", 2)
    assert done.status == 0, done.err
    assert same_weights("a.pth", "b.pth")
    assert same_weights("a/last_model.pth", "b/last_model.pth")
