import csv
import os

import pytest
import torch
from conftest import TINY
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from run import Run

KINDS = {"frozen": ("--freeze",), "partly frozen": ("--freeze_until", "layer3"), "full": ()}
TIMES = ("images_per_s", "seconds")


class Killed(BaseException):
    """As if the process had ended here: nothing is written after it."""


@pytest.fixture
def argv(split_folder):
    # mixing and dropout draw numbers in every step, the warm-up moves the rate in each
    extra = ("--dropout", 0.3, "--mixup", 0.2, "--warmup_epochs", 1.5, "--batch_size", 8, "--n_epochs", 3)
    return ("--data_dir", split_folder, *TINY, *extra)


@pytest.fixture
def killed_after(monkeypatch, cli):
    """Runs `train` until that many calls of a method of the run were made, and ends it there like kill -9."""

    def call(method, n, *argv):
        original, calls = getattr(Run, method), []

        def counting(self, *args):
            result = original(self, *args)
            calls.append(method)
            if len(calls) == n:
                raise Killed
            return result

        monkeypatch.setattr(Run, method, counting)
        with pytest.raises(Killed):
            cli("train", *argv)
        monkeypatch.setattr(Run, method, original)

    return call


def state(path):
    return torch.load(path, weights_only=True)["state_dict"]


def metrics(folder):
    rows = list(csv.DictReader(open(f"{folder}/metrics.csv", encoding="utf-8")))
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def steps(folder):
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def assert_same(a, b):
    """Two runs, as (checkpoint, run folder), came to the same."""
    first, second = state(a[0]), state(b[0])
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    last, other = (torch.load(f"{folder}/last.pth", weights_only=True)["trainer"]["model"] for folder in (a[1], b[1]))
    assert all(torch.equal(last[key], other[key]) for key in last)
    assert metrics(a[1]) == metrics(b[1])
    assert steps(a[1]) == steps(b[1])
    assert len(list(os.scandir(b[1]))) == len(list(os.scandir(a[1])))


@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_resumes_to_the_same_weights(kind, argv, cli, killed_after):
    argv = (*argv, *KINDS[kind])
    assert cli("train", *argv, "--model_fn", "a.pth", "--run_dir", "a").status == 0
    # every step is saved; ended within the second epoch, then after its line was written but not saved
    killed_after("between_steps", 7, *argv, "--model_fn", "b.pth", "--run_dir", "b", "--save_every", 1e-9)
    killed_after("log", 1, "--resume", "b")
    done = cli("train", "--resume", "b", "--n_workers", 2)
    assert done.status == 0, done.err
    assert_same(("a.pth", "a"), ("b.pth", "b"))
    assert "going on in epoch 2 of 3" in done.out
