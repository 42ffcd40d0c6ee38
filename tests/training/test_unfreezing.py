"""The head first, then everything: `--unfreeze_after`."""

import pytest
import torch
from helpers import NAME, TINY, assert_one_line_error, board_of, metrics_of, weights_of
from test_resume import assert_same, files

from model_loader import get_model
from photo_classifier.features import worth
from photo_classifier.runtime import signals
from photo_classifier.runtime.errors import WriteError
from photo_classifier.training import run as run_module
from photo_classifier.training.run import Run
from trainer import Trainer

HEAD_FIRST = ("--freeze", "--unfreeze_after", 2, "--n_epochs", 4, "--batch_size", 8)


@pytest.fixture
def argv(split_folder):
    return ("--data_dir", split_folder, *TINY, *HEAD_FIRST)


def changed(path, before):
    return {name for name, value in weights_of(path).items() if not torch.equal(value, before[name])}


def test_the_head_trains_first_and_then_everything_and_the_schedule_is_said(cli, trained, argv):
    start = weights_of("tiny.pth")
    done = cli("train", *argv, "--weights", "tiny.pth", "--run_dir", "a", "--model_fn", "a.pth")
    assert done.status == 0, done.err
    assert (
        "epochs 1 to 2: the head alone at 0.001; epochs 3 to 4: all layers but batch norm at 0.001 (backbone"
        in done.out
    )
    assert [row["backbone_lr"] for row in metrics_of("a")] == ["", "", "0.0001", "0.0001"]
    board = board_of("a")
    assert [point.step for point in board.Scalars("LearningRate/backbone")] == [3, 4]
    assert [point.step for point in board.Scalars("Validation/Accuracy")] == [1, 2, 3, 4]
    modules = get_model(NAME, 3, image_size=32).net.named_modules()
    norms = {name for name, module in modules if isinstance(module, torch.nn.BatchNorm2d)}
    assert changed("a/last_model.pth", start) == {name for name in start if name.rpartition(".")[0] not in norms}
    head_alone = (*argv[: argv.index("--unfreeze_after")], "--n_epochs", 2, "--batch_size", 8)
    assert cli("train", *head_alone, "--weights", "tiny.pth", "--run_dir", "b", "--model_fn", "b.pth").status == 0
    numbers = ("train_loss", "valid_loss", "valid_accuracy")
    head_first, alone = ([[row[name] for name in numbers] for row in metrics_of(run)[:2]] for run in "ab")
    assert head_first == alone
    assert cli("predict", "--model_fn", "a.pth", "--n_workers", 0).out.splitlines()[-1] == done.out.splitlines()[-1]


@pytest.mark.parametrize(
    ("flags", "frozen", "rates"),
    [
        (("--freeze_until", "layer2"), {"conv1", "bn1", "layer1", "layer2"}, {1e-3}),
        (("--lr", 1e-4), {"bn1"}, {1e-4}),
        (("--backbone_lr", 1e-5), set(), {1e-5}),
        (("--views", 0), set(), {1e-3}),
    ],
)
def test_what_is_frozen_for_good_stays_so(flags, frozen, rates, cli, argv):
    done = cli("train", *argv, "--n_epochs", 3, *flags, "--run_dir", "r", "--model_fn", "m.pth")
    assert done.status == 0, done.err
    before = torch.load("r/last_model.pth", weights_only=True)["state_dict"]
    assert cli("train", "--resume", "r", "--n_epochs", 4).status == 0
    moved = {name.split(".")[0] for name in changed("r/last_model.pth", before)}
    assert not moved & frozen
    assert "layer4" in moved
    assert {float(row["backbone_lr"]) for row in metrics_of("r")[2:]} == rates
    assert "has no effect" not in done.err


@pytest.mark.parametrize("scheduler", ["step", "plateau"])
def test_a_run_that_is_killed_before_at_and_after_the_change_comes_to_the_same(scheduler, argv, cli, killed_after):
    # a schedule that acts in both parts, and everything that draws numbers or has a memory
    flags = ("--step_size", 1, "--patience", 0, "--warmup_epochs", 0.5, "--mixup", 0.2, "--dropout", 0.3)
    flags = (*flags, "--accumulate", 2, "--early_stop", 9, "--precision", "bf16", "--weight_decay", 0.01)
    planned = (*argv, "--scheduler", scheduler, *flags)
    assert cli("train", *planned, "--model_fn", "a.pth", "--run_dir", "a").status == 0

    killed_after(Trainer, "after_batch", 5, *planned, "--model_fn", "b.pth", "--run_dir", "b", "--save_every", 1e-9)
    killed_after(Trainer, "continue_from", 1, "--resume", "b")  # the head is done, and the rest has not begun
    assert "backbone.pth" in files("b")
    if scheduler == "step":
        killed_after(Run, "save_first", 1, "--resume", "b")
        assert "backbone.pth" not in files("b"), "last.pth has all weights from here on"
    killed_after(Trainer, "after_batch", 2, "--resume", "b")
    done = cli("train", "--resume", "b")
    assert done.status == 0, done.err
    assert_same(("a.pth", "a"), ("b.pth", "b"))


def test_more_epochs_are_more_of_all_layers(cli, argv):
    step = ("--scheduler", "step", "--step_size", 1)
    assert cli("train", *argv, *step, "--model_fn", "a.pth", "--run_dir", "a").status == 0
    assert cli("train", *argv, *step, "--n_epochs", 3, "--model_fn", "b.pth", "--run_dir", "b").status == 0
    assert cli("train", "--resume", "b", "--n_epochs", 4).status == 0
    assert_same(("a.pth", "a"), ("b.pth", "b"))


def test_early_stop_counts_from_the_change_on(cli, argv):
    flags = ("--lr", 1e-12, "--backbone_lr", 1e-12, "--n_epochs", 9, "--early_stop", 1)
    done = cli("train", *argv, *flags, "--run_dir", "r", "--model_fn", "m.pth")
    assert "stopped after 3 of 9 epochs: the last epoch was not better than epoch 1 (--early_stop 1)" in done.out
    assert len(metrics_of("r")) == 3, "the head has its two epochs, whether they were better or not"
    command = done.out.partition("train on with: python train.py ")[2].splitlines()[0]
    assert cli("train", *command.split()).status == 0
    assert len(metrics_of("r")) == 4


def test_the_best_epoch_may_be_one_of_the_head(cli, argv, monkeypatch):
    monkeypatch.setattr(Trainer, "is_best", lambda self, result: result.epoch == 0)
    done = cli("train", *argv, "--run_dir", "r", "--model_fn", "m.pth")
    assert "saved   m.pth (epoch 1 of 4)" in done.out
    assert cli("predict", "--model_fn", "m.pth", "--n_workers", 0).out.splitlines()[-1] == done.out.splitlines()[-1]


def test_a_stop_in_either_part_prints_the_line_that_goes_on_and_leaves_weights(cli, argv, monkeypatch):
    for n_epochs, name in ((1, "head"), (3, "all")):
        real = Run.save_last

        def stop_after(run, state, real=real, n_epochs=n_epochs):
            real(run, state)
            if state["epoch"] == n_epochs:
                signals.raise_stopped()

        with monkeypatch.context() as patch:
            patch.setattr(Run, "save_last", stop_after)
            done = cli("train", *argv, "--run_dir", name, "--model_fn", f"{name}.pth")
        assert done.err.endswith(f"continue with: python train.py --resume {name}\n")
        done = cli("train", *argv, "--weights", f"{name}/last.pth", "--dry_run")
        assert "head    kept from" in done.out, done.err
        assert cli("train", "--resume", name).status == 0
    assert_same(("head.pth", "head"), ("all.pth", "all"))


def test_a_dry_run_tries_a_step_of_each_part(cli, argv):
    done = cli("train", *argv, "--dry_run")
    assert "dry run: a step of 8 images, the head alone, loss" in done.out
    assert "dry run: a step of 8 images, all layers, loss" in done.out


REFUSED = {
    "--unfreeze_after 2": "--unfreeze_after 2 trains the head alone first; add --freeze, or leave it out",
    "--freeze --unfreeze_after 0": "--unfreeze_after",
    "--freeze --unfreeze_after 4 --n_epochs 4": "--unfreeze_after 4 leaves no epoch for training all layers",
    "--freeze --unfreeze_after 2 --head logistic": "goes on to train all layers, and --head logistic trains only",
    "--freeze --unfreeze_after 2 --folds 3": "goes on to train all layers, and --folds 3 trains only",
    "--freeze --freeze_until layer2": "--unfreeze_after N the layers behind --freeze_until train after N epochs",
}


@pytest.mark.parametrize("flags", REFUSED)
def test_what_does_not_go_together_is_refused_in_one_line(flags, cli, split_folder):
    assert_one_line_error(cli("train", "--data_dir", split_folder, *TINY, *flags.split()), REFUSED[flags])


def test_a_save_that_fails_at_the_change_leaves_all_frozen_layers_for_the_resume(argv, cli, trained, monkeypatch):
    monkeypatch.setattr(worth, "OPERATIONS_PER_BYTE", 0)  # or nothing would be stored of so small a network
    flags = (*argv, "--freeze_until", "layer3", "--weights", "tiny.pth", "--run_dir", "x", "--model_fn", "m.pth")
    with monkeypatch.context() as patched:
        write = run_module.write_last

        def full(folder, state, trainer):
            if trainer.get("first_epoch"):  # the second part
                raise WriteError("cannot write last.pth: No space left on device")
            write(folder, state, trainer)

        patched.setattr(run_module, "write_last", full)
        assert "No space left on device" in cli("train", *flags).err
    assert len(metrics_of("x")) == 2
    assert cli("train", "--resume", "x").status == 0
    start, end = weights_of("tiny.pth"), weights_of("x/last_model.pth")
    frozen = [name for name in start if name.startswith(("conv1", "layer1", "layer2", "layer3")) or "bn" in name]
    assert any(name.startswith("layer4") for name in frozen)  # its batch norm
    assert all(torch.equal(end[name], start[name]) for name in frozen)


def test_the_head_alone_stores_no_more_views_than_it_has_epochs(argv, cli, monkeypatch):
    monkeypatch.setattr(worth, "OPERATIONS_PER_BYTE", 0)
    done = cli("train", *argv, "--freeze_until", "layer3", "--model_fn", "m.pth")
    assert done.status == 0, done.err
    assert "features 63 views to compute" in done.out  # 24 photos in two epochs, and 15 once
