"""The steps that messages tell to take: their flags are there, and a run that goes on takes them."""

import ast
import dataclasses
import re
import shlex
from pathlib import Path

import pytest
from helpers import TINY

from photo_classifier.config import PredictConfig, TrainConfig
from photo_classifier.training.resume import MAY_CHANGE

ROOT = Path(__file__).parent.parent
FILES = sorted([*ROOT.glob("*.py"), *(ROOT / "photo_classifier").rglob("*.py")])
FLAGS = {field.name for config in (TrainConfig, PredictConfig) for field in dataclasses.fields(config)}
OTHERS = {"help", "logdir", "nproc_per_node", "shm", "pids"}  # of argparse, TensorBoard, torchrun and docker
STEP = re.compile(r"\b(continue with|train on with|type|try|add|give|use|raise|leave|allow|choose|store|train with)\b")
# Modules that speak while a run trains, which may then be continued.
DURING = ("trainer.py", "training/", "features/", "runtime/limits.py")
NOT_OF_A_SAVED_RUN = {
    "run_folder.py": "a new run finds its folder taken",
    "run_state.py": "what --resume itself was given",
    "best_checkpoint.py": "two new runs at once",
    "resume.py": "what --resume itself was given",
    "trainer.py": "batch norm fails in the first step, where a new run can still be begun",
    "extraction.py": "features are computed before the first step",
    "summary.py": "warnings before a run",
}


def messages(path):
    """The texts of a file but for its docstrings; values in an f-string become `{}`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inner = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner | documentation:
            yield node.value


def flags_in(text):
    return set(re.findall(r"--([a-z][a-z0-9_]+)", text))


def test_messages_name_flags_that_there_are():
    wrong = {(path.name, name) for path in FILES for text in messages(path) for name in flags_in(text) - FLAGS - OTHERS}
    assert not wrong


def test_a_step_that_a_saved_run_can_be_told_is_one_that_resume_takes():
    for path in FILES:
        place = path.relative_to(ROOT).as_posix().removeprefix("photo_classifier/")
        if not place.startswith(DURING) or path.name in NOT_OF_A_SAVED_RUN:
            continue
        for text in filter(STEP.search, messages(path)):
            assert flags_in(text) <= {*MAY_CHANGE, *OTHERS, "resume"} or "new run" in text, (place, text)


# a run that has ended, what it or its resume says, and the step as it is typed then
WALK = {
    "stopped early": (
        "--lr 1e-12 --n_epochs 5 --early_stop 1 --freeze_bn",
        r"train on with: python train\.py (.*)",
    ),
    "ended with its last epoch": ("--n_epochs 1 --freeze_bn", r"(raise --n_epochs) to train longer"),
    "a frozen backbone without weights": ("--n_epochs 1 --freeze", r"(--weights) FILE"),
    "a dry run": ("--n_epochs 1 --dry_run", r"(leave --dry_run out) to train"),
    "what to do next": ("--n_epochs 1", r"next    python (predict\.py .*)"),
}


@pytest.mark.parametrize("name", WALK)
def test_a_step_that_a_run_ends_with_works_when_it_is_taken(name, cli, split_folder, trained):
    flags, pattern = WALK[name]
    argv = ["--data_dir", split_folder, *TINY, *flags.split(), "--run_dir", "run", "--model_fn", "m.pth"]
    done = cli("train", *argv)
    if name == "ended with its last epoch":
        done = cli("train", "--resume", "run")
    step = re.search(pattern, done.out + done.err)[1]
    taken = {
        "raise --n_epochs": ("train", "--resume", "run", "--n_epochs", 2),
        "leave --dry_run out": ("train", *argv[: argv.index("--dry_run")], *argv[argv.index("--dry_run") + 1 :])
        if "--dry_run" in argv
        else (),
        "--weights": ("train", *argv[:-4], "--weights", "tiny.pth", "--run_dir", "again"),
    }
    words = shlex.split(step)
    command = taken.get(step) or (("predict", *words[1:]) if words[0] == "predict.py" else ("train", *words))
    after = cli(*command)
    assert after.status == 0, after.err
    assert "continuing after" in after.out or name not in ("stopped early", "ended with its last epoch")
    assert "random weights; give" not in after.err
