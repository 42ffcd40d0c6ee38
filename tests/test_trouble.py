"""What ends a training on the way, each in one line, and what is kept then."""

import errno
import multiprocessing
import os
import shlex
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from helpers import TINY, assert_one_line_error, metrics_of, on_windows, weights_of

import train
from photo_classifier.models import inference
from photo_classifier.training.run import Run
from trainer import Trainer


def run_until(word, signum, argv):
    """Runs train.py as a process of its own, and sends it a signal once it has said that: (status, stderr)."""
    command = [sys.executable, "-u", train.__file__, *map(str, argv)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "encoding": "utf-8"}
    with subprocess.Popen(command, **pipes) as process:
        next(line for line in process.stdout if line.startswith(word))
        process.send_signal(signum)
        return process.wait(), process.stderr.read()


@pytest.mark.skipif(on_windows, reason="Windows has no such signals between processes")
def test_ctrl_c_in_an_epoch_saves_and_the_resumed_run_ends_with_the_same_weights(cli, split_folder):
    argv = ("--data_dir", split_folder, *TINY, "--batch_size", 4, "--n_epochs", 3)
    assert cli("train", *argv, "--model_fn", "a.pth", "--run_dir", "a").status == 0
    status, err = run_until("epoch 1/3", signal.SIGINT, (*argv, "--model_fn", "b.pth", "--run_dir", "b"))
    assert status == 130
    assert err.endswith("--resume b\n")
    done = cli("train", "--resume", "b")
    assert "continuing after" in done.out
    first, second = weights_of("a.pth"), weights_of("b.pth")
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.skipif(on_windows, reason="Windows has no such signals between processes")
def test_a_run_that_sigterm_ends_while_features_are_computed_goes_on(cli, split_folder):
    argv = ("--data_dir", split_folder, *TINY, "--freeze", "--n_epochs", 2, "--image_size", 160, "--run_dir", "r")
    status, err = run_until("features", signal.SIGTERM, argv)
    assert status == 143
    assert err.endswith("--resume r\n")
    assert cli("train", "--resume", "r").status == 0


NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of")


@pytest.fixture
def small_memory(monkeypatch):
    """Lets the forward pass of training take that many images."""
    forward, most = Trainer._forward, [99]

    def limited(trainer, images):
        if len(images) > most[0]:
            raise NO_MEMORY
        return forward(trainer, images)

    monkeypatch.setattr(Trainer, "_forward", limited)
    return most


def advised(err):
    """The command that an error ends with, as words after `python train.py`."""
    return shlex.split(err.rpartition("python train.py ")[2])


@pytest.mark.parametrize("kind", [("--freeze_bn",), ("--freeze", "--views", 0), ("--freeze",)])
def test_a_step_that_memory_has_no_room_for_goes_on_in_the_passes_that_are_advised(
    kind, cli, split_folder, small_memory
):
    argv = ("--data_dir", split_folder, *TINY, *kind, "--batch_size", 12, "--n_epochs", 2, "--optimizer", "sgd")
    argv = (*argv, "--class_weights", "balanced", "--label_smoothing", 0.1, "--mixup", 0.2, "--precision", "fp32")
    assert cli("train", *argv, "--model_fn", "a.pth", "--run_dir", "a").status == 0
    small_memory[0] = 3
    done = cli("train", *argv, "--model_fn", "b.pth", "--run_dir", "b")
    for n_passes in (2, 4):
        assert f"the GPU's memory ran out in a step of training; compute each step in {n_passes} smaller" in done.err
        assert advised(done.err) == ["--resume", "b", "--accumulate", str(n_passes)]
        done = cli("train", *advised(done.err))
    assert done.status == 0, done.err
    first, second = weights_of("a.pth"), weights_of("b.pth")
    assert all(torch.allclose(first[key], second[key], atol=1e-5) for key in first)
    rows = [[float(row[name]) for name in ("train_loss", "train_accuracy")] for row in metrics_of("a")]
    assert rows == [
        pytest.approx([float(row[name]) for name in ("train_loss", "train_accuracy")], abs=1e-4)
        for row in metrics_of("b")
    ]


def test_a_dry_run_without_memory_names_the_flag_to_add(cli, split_folder, small_memory):
    argv = ("--data_dir", split_folder, *TINY, "--batch_size", 8, "--dry_run", "--run_dir", "r")
    small_memory[0] = 4
    done = cli("train", *argv)
    assert_one_line_error(done, "compute each step in 2 smaller passes: add --accumulate 2\n")
    assert cli("train", *argv, *advised(done.err.replace("add ", "python train.py "))).status == 0


def test_a_run_that_a_gpu_has_no_memory_for_one_image_of_says_what_needs_a_new_run_and_how_to_continue(
    cli, split_folder, small_memory
):
    small_memory[0] = 0
    argv = ("--data_dir", split_folder, *TINY, "--run_dir", "r", "--batch_size", 8, "--accumulate", 8)
    done = cli("train", *argv)
    assert_one_line_error(
        done, "the GPU's memory ran out in a step of training; give a smaller --image_size or another"
    )
    assert "--model_name, in a new run; if other programs took the memory, end them and continue" in done.err
    assert done.err.endswith("--resume r\n")


@pytest.fixture
def small_passes(monkeypatch):
    """Lets passes without gradients take that many images."""
    compute, most = inference.to_device, [999]

    def limited(images, *args, **options):
        if len(images) > most[0]:
            raise NO_MEMORY
        return compute(images, *args, **options)

    monkeypatch.setattr(inference, "to_device", limited)
    return most


@pytest.mark.parametrize("kind", [(), ("--freeze", "--feature_cache", "none")])
def test_a_pass_of_evaluation_that_memory_has_no_room_for_names_a_batch_that_makes_it_smaller(
    kind, cli, split_folder, small_passes
):
    argv = ("--data_dir", split_folder, *TINY, *kind, "--n_epochs", 1)
    small_passes[0] = 32
    done = cli("train", *argv, "--batch_size", 64, "--run_dir", "a")
    assert "error: the GPU's memory ran out in a pass of 64 images without gradients; give --batch_size 32," in done.err
    assert advised(done.err) == ["--resume", "a"]
    assert cli("train", *argv, "--batch_size", 32, "--run_dir", "b").status == 0
    small_passes[0] = 16
    done = cli("train", *argv, "--batch_size", 8, "--run_dir", "c")
    assert "in a pass of 32 images without gradients; give a smaller --image_size or another --model_name" in done.err
    small_passes[0] = 32
    assert cli("train", *advised(done.err)).status == 0


def test_a_prediction_that_memory_has_no_room_for_goes_on_in_the_batches_that_are_advised(cli, trained, small_passes):
    small_passes[0] = 4
    argv = ("--model_fn", "tiny.pth", "--gpu_id", -1, "--n_workers", 0)
    done = cli("predict", *argv, "--batch_size", 8)
    assert_one_line_error(done, "the GPU's memory ran out in a pass of 8 images; give --batch_size 4")
    assert cli("predict", *argv, "--batch_size", 4).status == 0


def test_a_loss_that_is_no_number_is_told_with_its_step_and_never_saved(cli, split_folder):
    argv = ("--data_dir", split_folder, *TINY, "--n_epochs", 1, "--model_fn", "m.pth")
    assert cli("train", *argv).status == 0
    before = open("m.pth", "rb").read()
    done = cli("train", *argv, "--n_epochs", 3, "--lr", 1e30, "--batch_size", 4)
    assert_one_line_error(done, "of epoch 1 is nan from step ")
    assert "try a lower --lr" in done.err
    assert open("m.pth", "rb").read() == before


def in_the_second_epoch(monkeypatch, act):
    """Lets something happen while the second epoch is recorded."""
    original = Run.log

    def log(self, result, is_best):
        if result.epoch == 1:
            act(self)
        original(self, result, is_best)

    monkeypatch.setattr(Run, "log", log)


def no_room(_handle):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


TROUBLES = {
    "a full disk": (
        lambda _: setattr(os, "fsync", no_room),
        "No space left on device (free some space); continue with",
    ),
    "no curves": (
        lambda run: os.unlink(next(run.folder.glob("events*"))),
        "with the curves so far; continue with: python train.py",
    ),
}


@pytest.mark.skipif(on_windows, reason="Windows keeps files that are open")
@pytest.mark.parametrize("name", TROUBLES)
def test_after_trouble_with_the_disk_the_run_goes_on_from_its_last_save(name, cli, split_folder, monkeypatch):
    act, expected = TROUBLES[name]
    argv = ("--data_dir", split_folder, *TINY, "--freeze", "--n_epochs", 3, "--model_fn", "m.pth", "--run_dir", "r")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", os.fsync)  # put back at the end
        in_the_second_epoch(patch, act)
        done = cli("train", *argv)
        assert (done.status, done.err.count("error: ")) == (2, 1)
        assert expected in done.err
    assert weights_of("m.pth")
    done = cli("train", "--resume", "r")
    assert done.status == 0, done.err
    assert "continuing after 1 of 3 epochs" in done.out


@pytest.mark.skipif(on_windows, reason="Windows keeps files that are open")
@pytest.mark.parametrize("first_full", ["config.json", "last.pth"])
def test_after_a_disk_that_was_full_before_the_first_save_the_same_command_works(
    first_full, cli, split_folder, monkeypatch
):
    is_full, replace = [], os.replace

    def limited(source, target):
        is_full.extend([True] * (os.path.basename(target) == first_full))
        if is_full:
            no_room(None)
        replace(source, target)

    argv = ("--data_dir", split_folder, *TINY, "--freeze", "--n_epochs", 1, "--run_dir", "r")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", limited)
        done = cli("train", *argv)
    assert done.status == 2
    assert "No space left on device (free some space); nothing was saved yet" in done.err
    assert cli("train", *argv).status == 0


@pytest.mark.skipif(on_windows, reason="Windows keeps files that are open")
def test_a_run_folder_that_is_removed_under_the_run_is_told(cli, split_folder, monkeypatch):
    in_the_second_epoch(monkeypatch, lambda run: shutil.rmtree(run.folder))
    argv = ("--data_dir", split_folder, *TINY, "--freeze_bn", "--n_epochs", 2, "--model_fn", "m.pth", "--run_dir", "r")
    assert_one_line_error(cli("train", *argv), "the run folder r was removed during the run")
    assert weights_of("m.pth")


@pytest.mark.skipif(on_windows, reason="Windows has no such signals between processes")
def test_a_worker_that_the_system_ends_is_told_with_the_flag_that_helps(cli, split_folder, monkeypatch):
    def end_workers(*_):
        for worker in multiprocessing.active_children():
            os.kill(worker.pid, signal.SIGKILL)
            worker.join()

    monkeypatch.setattr(Trainer, "after_batch", end_workers)
    argv = ("--data_dir", split_folder, *TINY, "--n_epochs", 1, "--batch_size", 2, "--n_workers", 1, "--run_dir", "r")
    done = cli("train", *argv)
    assert_one_line_error(done, "give a lower --n_workers, or 0; continue with: python train.py --resume r")
