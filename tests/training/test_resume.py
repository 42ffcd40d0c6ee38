import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import (
    TINY,
    assert_one_line_error,
    board_of,
    make_class_folders,
    metrics_of,
    on_windows,
    save_image,
    weights_of,
)

import data_loader
import train
from photo_classifier.config import TrainConfig
from photo_classifier.runtime import signals
from photo_classifier.training import optimization, resume
from photo_classifier.training.run import Run
from trainer import Trainer

KINDS = {"frozen": ("--freeze",), "partly frozen": ("--freeze_until", "layer3"), "full": ()}
TIMES = ("images_per_s", "seconds")


@pytest.fixture
def argv(split_folder):
    # mixing and dropout draw numbers in every step, the warm-up moves the rate in each
    extra = ("--dropout", 0.3, "--mixup", 0.2, "--warmup_epochs", 1.5, "--batch_size", 8, "--n_epochs", 3)
    return ("--data_dir", split_folder, *TINY, *extra)


def metrics(folder):
    return [{name: value for name, value in row.items() if name not in TIMES} for row in metrics_of(folder)]


def steps(folder):
    board = board_of(folder)
    return {tag: [point.step for point in board.Scalars(tag)] for tag in board.Tags()["scalars"]}


def files(folder):
    return {path.name for path in Path(folder).iterdir() if "tfevents" not in path.name}


def assert_same(a, b):
    """Two runs, as (checkpoint, run folder), came to the same."""
    first, second = weights_of(a[0]), weights_of(b[0])
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    last, other = (torch.load(f"{folder}/last.pth", weights_only=True)["trainer"]["model"] for folder in (a[1], b[1]))
    assert all(torch.equal(last[key], other[key]) for key in last)
    assert metrics(a[1]) == metrics(b[1])
    assert steps(a[1]) == steps(b[1])
    assert files(a[1]) == files(b[1])


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_resumes_to_the_same_weights(kind, argv, cli, killed_after):
    argv = (*argv, *KINDS[kind])
    assert cli("train", *argv, "--model_fn", "a.pth", "--run_dir", "a").status == 0
    # every step is saved; ended within the second epoch, then after its line was written but not saved
    killed_after(Trainer, "after_batch", 7, *argv, "--model_fn", "b.pth", "--run_dir", "b", "--save_every", 1e-9)
    killed_after(Run, "log", 1, "--resume", "b")
    done = cli("train", "--resume", "b", "--n_workers", 2)
    assert done.status == 0, done.err
    assert_same(("a.pth", "a"), ("b.pth", "b"))
    assert "continuing after 1 of 3 epochs: b" in done.out


def test_more_epochs_end_as_if_they_had_been_asked_for_at_once(cli, split_folder):
    argv = ("--data_dir", split_folder, *TINY, "--freeze", "--scheduler", "step", "--step_size", 1, "--views", 4)
    assert cli("train", *argv, "--n_epochs", 3, "--model_fn", "a.pth", "--run_dir", "a").status == 0
    assert cli("train", *argv, "--n_epochs", 1, "--model_fn", "b.pth", "--run_dir", "b").status == 0
    done = cli("train", "--resume", "b")
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith("b is finished: 1 epoch, the best weights are in b.pth")
    assert cli("train", "--resume", "b", "--n_epochs", 3).status == 0
    assert_same(("a.pth", "a"), ("b.pth", "b"))


def test_a_finished_run_that_grew_and_was_stopped_goes_on_without_being_told_again(cli, stopped, monkeypatch):
    assert cli("train", "--resume", "r").status == 0

    def interrupt(*_):
        signal.raise_signal(signal.SIGINT)
        signals.raise_if_requested()

    for place in ((data_loader, "extract"), (Trainer, "after_batch")):  # before its first step, and after it
        with monkeypatch.context() as patch:
            patch.setattr(*place, interrupt)
            done = cli("train", "--resume", "r", "--n_epochs", 4)
        assert done.status == 130
        assert done.err.endswith("stopped; continue with: python train.py --resume r\n")
    done = cli("train", "--resume", "r")
    assert (done.status, len(metrics("r"))) == (0, 4), done.err
    assert "r is finished: 4 epochs" in cli("train", "--resume", "r").out


def test_a_finished_run_tells_where_its_weights_are_by_now(cli, stopped):
    assert "the best weights" not in cli("train", "--resume", "r").out
    assert "the best weights are in m.pth;" in cli("train", "--resume", "r").out
    assert cli("train", "--data_dir", "photos", *TINY, "--n_epochs", 1, "--model_fn", "m.pth").status == 0
    assert "the best weights are in m.pth.prev;" in cli("train", "--resume", "r").out
    os.unlink("m.pth.prev")
    assert "the best weights are no longer in m.pth;" in cli("train", "--resume", "r").out


def test_a_run_that_stopped_early_is_finished(cli, split_folder):
    argv = ("--data_dir", split_folder, *TINY, "--freeze_bn", "--lr", 1e-12, "--n_epochs", 9, "--early_stop", 1)
    done = cli("train", *argv, "--run_dir", "r")
    reason = "the last epoch was not better than epoch 1 (--early_stop 1); train on with: python train.py --resume r"
    assert f"stopped after 2 of 9 epochs: {reason} --early_stop 2\n" in done.out
    assert f"r is finished: 2 epochs, the best weights are in timm_test_resnet.pth; {reason}" in (
        cli("train", "--resume", "r").out
    )
    assert_one_line_error(cli("train", "--resume", "r", "--n_epochs", 12), f"would not train r any further: {reason}")
    assert cli("train", "--resume", "r", "--early_stop", 2).status == 0
    assert len(metrics("r")) == 3


def test_a_run_whose_last_epoch_stops_it_early_names_both_flags_that_train_on(cli, split_folder):
    argv = ("--data_dir", split_folder, *TINY, "--freeze_bn", "--lr", 1e-12, "--n_epochs", 2, "--early_stop", 1)
    assert "stopped after" not in cli("train", *argv, "--run_dir", "r").out
    done = cli("train", "--resume", "r")
    command = done.out.rpartition("train on with: python train.py ")[2].splitlines()[0]
    assert command == "--resume r --n_epochs 3 --early_stop 2"
    assert done.out.endswith(f"report  {os.path.join(os.path.realpath('r'), 'report.html')}\n")
    assert cli("train", *command.split()).status == 0
    assert len(metrics("r")) == 3


def test_a_larger_number_of_epochs_that_was_refused_is_part_of_the_line_that_trains_on(cli, split_folder):
    argv = ("--data_dir", split_folder, *TINY, "--freeze_bn", "--lr", 1e-12, "--n_epochs", 2, "--early_stop", 1)
    assert cli("train", *argv, "--run_dir", "r", "--model_fn", "m.pth").status == 0
    refused = cli("train", "--resume", "r", "--n_epochs", 4)
    assert_one_line_error(refused, "train on with: python train.py --resume r --n_epochs 4 --early_stop 2")
    assert cli("train", "--resume", "r", "--n_epochs", 4, "--early_stop", 2).status == 0
    assert len(metrics_of("r")) == 3


@pytest.fixture(scope="module")
def stopped_once(tmp_path_factory):
    """A run of two epochs that was stopped after its first."""
    folder = tmp_path_factory.mktemp("stopped")
    make_class_folders(folder / "photos" / "train", 4)
    make_class_folders(folder / "photos" / "val", 2, seed=1000)
    argv = ("--data_dir", "photos", *TINY, "--freeze", "--n_epochs", 2, "--model_fn", "m.pth", "--run_dir", "r")
    code = "import sys; from photo_classifier.training.run import Run; import train; from utils import run_main\n"
    code += "def log(self, result, best, log=Run.log):\n"
    code += "    log(self, result, best) if not result.epoch else sys.exit(9)\nRun.log = log\n"
    code += f"run_main(train.main, {[str(arg) for arg in argv]})"
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(train.__file__)}
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 9, done.stderr
    return folder


@pytest.fixture
def stopped(stopped_once, tmp_path):
    """That run in the working folder, as if it had been started here."""
    shutil.copytree(stopped_once, tmp_path, dirs_exist_ok=True)
    content = torch.load("r/last.pth", weights_only=True)
    torch.save({**content, "cwd": str(tmp_path), "folder": str(tmp_path / "r")}, "r/last.pth")
    return tmp_path


def test_a_flag_that_would_change_the_result_is_an_error_that_names_it(cli, stopped):
    for flags, expected in (
        (("--lr", 0.1), "--lr 0.1 would change the result of the run, which has 0.001"),
        (("--use_pretrained",), "--use_pretrained True would change"),
        (("--data_dir", "other"), "which has photos"),
        (("--n_epochs", 1), "it may only grow"),
    ):
        assert_one_line_error(cli("train", "--resume", "r", *flags), expected)


def test_flags_that_change_nothing_may_be_given_anew(cli, stopped):
    assert set(resume.MAY_CHANGE) <= set(TrainConfig.__dataclass_fields__)
    page = (Path(train.__file__).parent / "docs" / "training.md").read_text(encoding="utf-8")
    assert all(f"`--{name}`" in page for name in resume.MAY_CHANGE)
    new = ("--n_workers", 2, "--max_bad", 0.5, "--feature_cache", "none", "--save_every", 3, "--verbose", 0)
    done = cli("train", "--resume", "r", *new, "--lr", 0.001, "--run_dir", "r")  # the last two say nothing new
    assert done.status == 0, done.err
    assert done.out.count("\n") == 1
    assert json.load(open("r/config.json", encoding="utf-8"))["max_bad"] == 0.5


def test_a_run_that_decays_norms_and_biases_goes_on_so(cli, split_folder, monkeypatch):
    argv = ("--data_dir", split_folder, *TINY, "--freeze_bn", "--weight_decay", 0.1, "--optimizer", "adamw")
    real = optimization.make_optimizer
    with monkeypatch.context() as patch:
        patch.setattr(optimization, "make_optimizer", lambda *values: real(*values[:-1], True))
        for n_epochs, name in ((2, "a"), (1, "b")):
            flags = ("--n_epochs", n_epochs, "--model_fn", f"{name}.pth", "--run_dir", name)
            assert cli("train", *argv, *flags).status == 0
    assert cli("train", "--resume", "b", "--n_epochs", 2).status == 0
    first, second = weights_of("a.pth"), weights_of("b.pth")
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_cosine_was_planned_for_its_epochs(cli, split_folder):
    argv = ("--data_dir", split_folder, *TINY, "--freeze", "--n_epochs", 1, "--scheduler", "cosine", "--run_dir", "r")
    assert cli("train", *argv).status == 0
    assert_one_line_error(cli("train", "--resume", "r", "--n_epochs", 2), "under --scheduler cosine the learning rate")
    assert "to train longer start a new run" in cli("train", "--resume", "r").out


def test_images_that_are_gone_or_changed_are_told_and_new_ones_not_taken(cli, stopped):
    images = sorted((stopped / "photos" / "train").rglob("*.png"))
    images[0].unlink()
    save_image(images[1], 0, 77)
    save_image(images[2].with_name("new.png"), 0, 78)
    done = cli("train", "--resume", "r", "--max_bad", 0.1)
    assert done.status == 0, done.err
    assert f"warning: missing since the run began: 1 image ({images[0].relative_to(stopped)})" in done.err
    assert f"warning: modified since the run began: 1 image ({images[1].relative_to(stopped)})" in done.err
    assert "left out 1 image" in done.out
    assert "12 train" in done.out


def test_an_earlier_checkpoint_is_kept_once_across_a_resume(cli, split_folder, killed_after):
    argv = ("--data_dir", split_folder, *TINY, "--freeze", "--n_epochs", 3, "--model_fn", "m.pth")
    assert cli("train", *argv, "--seed", 5, "--n_epochs", 1).status == 0
    earlier = weights_of("m.pth")
    killed_after(Run, "save_best", 1, *argv, "--run_dir", "r")  # the file is new, and last.pth does not know it yet
    assert cli("train", "--resume", "r").status == 0
    kept = weights_of("m.pth.prev")
    assert all(torch.equal(earlier[key], kept[key]) for key in earlier)
    assert torch.load("m.pth", weights_only=True)["run_id"] == torch.load("r/last.pth", weights_only=True)["run_id"]


def test_best_weights_that_another_run_has_moved_are_found(cli, stopped):
    assert cli("train", "--data_dir", "photos", *TINY, "--n_epochs", 1, "--model_fn", "m.pth").status == 0
    assert_one_line_error(cli("train", "--resume", "r"), "they are in m.pth.prev; restore both file names")
    os.unlink("m.pth.prev")
    done = cli("train", "--resume", "r")
    assert done.status == 0
    assert "warning: the best weights so far (epoch 1) were in m.pth" in done.err


def test_a_checkpoint_that_another_run_wrote_under_it_stays_as_prev(cli, split_folder, monkeypatch):
    argv = ("--data_dir", split_folder, *TINY, "--freeze", "--model_fn", "m.pth")
    assert cli("train", *argv, "--seed", 5, "--n_epochs", 1).status == 0
    other, real = Path("m.pth").read_bytes(), Run.save_last

    def written_under_it(run, state):
        real(run, state)
        if state["epoch"] == 1:
            Path("m.pth").write_bytes(other)

    monkeypatch.setattr(Run, "save_last", written_under_it)
    monkeypatch.setattr(Trainer, "is_best", lambda self, result: True)
    done = cli("train", *argv, "--n_epochs", 2)
    assert done.status == 0, done.err
    assert Path("m.pth.prev").read_bytes() == other
    assert Path("m.pth").read_bytes() != other


def test_best_weights_of_an_epoch_that_did_not_come_to_the_same_again_are_told_as_what_they_are(
    cli, stopped, monkeypatch
):
    content = torch.load("m.pth", weights_only=True)  # as if the kill had come once the second epoch was kept
    torch.save({**content, "metrics": {**content["metrics"], "epoch": 2}}, "m.pth")
    monkeypatch.setattr(Trainer, "is_best", lambda self, result: False)
    done = cli("train", "--resume", "r", "--n_epochs", 3)
    assert done.status == 0
    assert done.err == "warning: m.pth holds epoch 2, whose repetition gave different numbers; it is kept\n"
    assert "saved   m.pth (epoch 2 of 3)" in done.out
    assert torch.load("m.pth", weights_only=True)["metrics"]["epoch"] == 2
    assert cli("predict", "--model_fn", "m.pth", "--n_workers", 0).out.splitlines()[-1] == done.out.splitlines()[-1]


def test_a_run_goes_on_from_any_folder_in_the_one_that_it_was_started_in(cli, stopped, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    done = cli("train", "--resume", "../r")
    assert done.status == 0, done.err
    assert f"the run was started in {tmp_path} and continues there" in done.out
    assert not os.listdir(tmp_path / "elsewhere")


def test_a_resume_removes_what_a_kill_left_half_written_in_the_run_folder(cli, stopped, tmp_path):
    for name in (".last.pth.abc123.tmp", ".backbone.pth.x.tmp", ".last_model.pth.y.tmp.prev"):
        (tmp_path / "r" / name).write_text("half")
    assert cli("train", "--resume", "r").status == 0
    assert not list((tmp_path / "r").glob(".*"))


def test_a_run_from_elsewhere_writes_nowhere_that_nobody_here_has_named(cli, stopped, tmp_path, monkeypatch):
    content = torch.load("r/last.pth", weights_only=True)
    outside = str(tmp_path / "outside.pth")
    os.rename("r", "photos/r")
    torch.save({**content, "config": {**content["config"], "model_fn": outside}}, "photos/r/last.pth")
    monkeypatch.chdir("photos")
    assert_one_line_error(cli("train", "--resume", "r"), "repeat it as --model_fn")
    assert not os.path.exists(outside)


def test_a_run_from_elsewhere_keeps_its_features_here(cli, stopped, tmp_path, monkeypatch):
    content = torch.load("r/last.pth", weights_only=True)
    (tmp_path / "here").mkdir()
    for name in ("r", "photos", "m.pth"):
        os.rename(name, f"here/{name}")
    shutil.rmtree(".cache")
    monkeypatch.chdir("here")
    config = {**content["config"], "feature_cache": str(tmp_path / "outside")}
    # a path that is another one in every working folder does not tell where the run was written
    torch.save({**content, "config": config, "folder": "/proc/self/cwd/r", "cwd": str(tmp_path)}, "r/last.pth")
    done = cli("train", "--resume", "r")
    assert done.status == 0, done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here"]
    assert os.path.exists(TrainConfig.feature_cache)


def test_a_run_folder_of_a_stranger_changes_no_file_outside_of_it(cli, stopped, tmp_path):
    (tmp_path / "thesis.txt").write_text("my thesis")
    if not on_windows:  # where only administrators may make links
        (tmp_path / "r" / "events.out.tfevents.link").symlink_to(tmp_path / "thesis.txt")
    for name in ("../thesis.txt", str(tmp_path / "thesis.txt"), "events.out.tfevents.link"):
        change("r/last.pth", events=[name, 0])  # the first version cut this file back to these bytes
        assert cli("train", "--resume", "r", "--n_epochs", 2).status == 0
        assert (tmp_path / "thesis.txt").read_text() == "my thesis"


BROKEN = {
    "no such folder": (lambda: None, ("--resume", "nowhere"), "there is no folder nowhere"),
    "no run": (lambda: None, ("--resume", "photos"), "there is no last.pth in photos"),
    "cut short": (lambda: cut("r/last.pth"), (), "is damaged or incomplete"),
    "newer": (lambda: change("r/last.pth", format_version=99), (), "has format 99"),
    "of something else": (lambda: torch.save({"a": 1}, "r/last.pth"), (), "was not written by this tool"),
    "a wrong type": (lambda: change("r/last.pth", rows=7), (), "expected array, got int (rows)"),
    "rows of something else": (lambda: change("r/last.pth", rows=[{"x": "y"}]), (), "rows do not match its epochs"),
    "a row too many": (lambda: change_rows(lambda rows: rows * 2), (), "rows do not match its epochs"),
    "a strange row": (lambda: change_rows(lambda rows: [{**rows[0], "valid_accuracy": "good"}]), (), "is not a number"),
    "a strange best": (lambda: change_state(best={"a": 1}), (), "required field epoch (trainer.best)"),
    "a best to come": (
        lambda: change_state(best={**state_of("best"), "epoch": 5}),
        (),
        "names an epoch that was never trained",
    ),
    "a strange last": (
        lambda: change_state(last={**state_of("last"), "rates": 1}),
        (),
        "expected object, got int (trainer.last.rates)",
    ),
    "strange sums": (lambda: change_state(sums={"loss": 1}), (), "sums of the epoch are of another kind"),
    "an unknown flag": (lambda: change_flags(colour="red"), (), "has the unknown flag colour"),
    "a flag of a wrong type": (lambda: change_flags(batch_size="many"), (), "does not accept its value"),
    "no state": (lambda: change("r/last.pth", trainer={}), (), "required field model (trainer)"),
    "the state of something else": (lambda: change_state(model={"head.weight": torch.ones(1)}), (), "does not fit"),
    "another optimizer": (lambda: change_optimizer(param_groups=[{"lr": "fast"}]), (), "is of another kind"),
    "another memory": (lambda: change_optimizer(state={0: {"exp_avg": torch.ones(7)}}), (), "has another shape"),
    "another schedule": (lambda: change_state(schedule={"by_epoch": {"gamma": "x"}}), (), "is of another kind"),
    "other sums": (lambda: change_state(sums={**ZEROS, "confusion": torch.ones(9, 9)}), (), "has another shape"),
    "complex weights": (lambda: change_state(model=complex_of("r/last.pth")), (), "wrong type of numbers for"),
    "a complex backbone": (
        lambda: change("r/backbone.pth", state_dict=complex_of("r/backbone.pth")),
        (),
        "type of num",
    ),
    "no best weights": (lambda: change_best(state_dict={"fc.weight": torch.ones(3, 512)}), (), "it lacks conv1"),
    "best weights of no epoch": (lambda: change_best(metrics={"epoch": 9}), (), "is not from an epoch of this run"),
    "no list of images": (lambda: os.unlink("r/samples.json"), (), "samples.json: "),
    "a broken list": (lambda: open("r/samples.json", "w").write("[" * 100_000), (), "samples.json: "),
    "no backbone": (lambda: os.unlink("r/backbone.pth"), (), "the run has lost its backbone.pth"),
}


def cut(path):
    content = open(path, "rb").read()
    open(path, "wb").write(content[: len(content) // 2])


def change(path, **values):
    torch.save({**torch.load(path, weights_only=True), **values}, path)


def change_flags(**values):
    flags = torch.load("r/last.pth", weights_only=True)["config"]
    change("r/last.pth", config={**flags, **values})


def change_state(**values):
    change("r/last.pth", trainer={**torch.load("r/last.pth", weights_only=True)["trainer"], **values})


def change_best(**values):
    """Changes the best weights, which stay the best: no later epoch can have a loss below 0."""
    best = state_of("best")
    change_state(best={**best, "valid": {**best["valid"], "loss": -1.0}})
    change("m.pth", **values)


ZEROS = {**dict.fromkeys(("loss", "n_finite"), torch.zeros(())), "n_steps": 0, "n_batches": 0, "seconds": 0.0}


def change_optimizer(**values):
    change_state(optimizer={**state_of("optimizer"), **values})


def complex_of(path):
    content = torch.load(path, weights_only=True)
    tensors = content["state_dict"] if "state_dict" in content else content["trainer"]["model"]
    return {name: tensor.to(torch.complex64) for name, tensor in tensors.items()}


def change_rows(make):
    change("r/last.pth", rows=make(torch.load("r/last.pth", weights_only=True)["rows"]))


def state_of(name):
    return torch.load("r/last.pth", weights_only=True)["trainer"][name]


@pytest.mark.parametrize("name", BROKEN)
def test_a_run_folder_that_cannot_be_used_is_refused_in_one_line(name, cli, stopped):
    spoil, argv, expected = BROKEN[name]
    spoil()
    assert_one_line_error(cli("train", *(argv or ("--resume", "r"))), expected)
