"""The steps that messages tell to take: each is provoked and taken, as a user would, or listed with why it is not."""

import ast
import dataclasses
import io
import os
import re
import shlex
import shutil
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from helpers.steps import NOT_FOLLOWED, STEPS, WORDS, change, prepare

import predict
import train
from photo_classifier.config import CompareConfig, ExportConfig, PredictConfig, TrainConfig
from photo_classifier.training.resume import MAY_CHANGE

ROOT = Path(__file__).parent.parent
FILES = {*ROOT.glob("*.py"), *(ROOT / "photo_classifier").rglob("*.py")}
FILES -= {ROOT / "photo_classifier" / "unused_flags.py"}  # tests/test_unused_flags.py follows each row
FILES -= {ROOT / "photo_classifier" / "export" / "standalone.py"}  # another program, with flags of its own
CONFIGS = (TrainConfig, PredictConfig, ExportConfig, CompareConfig)
FLAGS = {field.name for config in CONFIGS for field in dataclasses.fields(config)}
OTHERS = {"help", "logdir", "nproc_per_node", "shm", "pids"}  # of argparse, TensorBoard, torchrun and docker
VERBS = (
    "add|allow|choose|close|compute|copy|cut|delete|download|end|export|free|give|install|leave|look|make|merge|move|"
    "name|pass|predict|put|raise|remove|rename|repair|repeat|restore|run|save|see|set|split|start|store|take|train|try|"
    "type|unpack|update|use|write"
)
ADVICE = re.compile(rf"--[a-z]|\bcontinue\b|(?:[;:,(]|\bor|\band)\s+(?:{VERBS})\b|^(?:{VERBS}|next)\s")
NO_ADVICE = re.compile(r"--\w+|[\w. -]{,30}")  # the name of a flag, a key, a title


def messages(path):
    """The texts of a file but for its docstrings and the help of flags; values in an f-string become `{}`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree))
    apart = [node for node in nodes if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)]
    apart += [node for node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func) == "flag"]
    apart += [node for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "EXAMPLES"]
    left_out = {id(part) for node in apart for part in ast.walk(node)}
    left_out |= {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in nodes:
        if isinstance(node, ast.JoinedStr) and id(node) not in left_out:
            yield "".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in left_out:
            yield node.value


def plain(text):
    return " ".join(text.split())


TEXTS = {plain(text): path for path in FILES for text in messages(path)}


def flags_in(text):
    return set(re.findall(r"--([a-z][a-z0-9_]+)", text))


def text_with(words):
    """The one message of the source that has these words."""
    found = [text for text in TEXTS if text == plain(words)] or [text for text in TEXTS if plain(words) in text]
    assert len(found) == 1, (words, found)
    return found[0]


def test_messages_name_flags_that_there_are():
    wrong = {(path.name, name) for text, path in TEXTS.items() for name in flags_in(text) - FLAGS - OTHERS}
    assert not wrong


def test_every_advice_is_followed_here_or_listed_with_the_reason_why_not():
    listed = [words for group in NOT_FOLLOWED.values() for words in group]
    known = {text_with(words) for words in [*listed, *(step.says for step in STEPS)]}
    new = {text for text in TEXTS if ADVICE.search(text) and not NO_ADVICE.fullmatch(text)} - known
    assert not new, "give each a Step in tests/helpers/steps.py, or a line in NOT_FOLLOWED there"
    assert not {text_with(words) for words in listed} & {text_with(step.says) for step in STEPS}


# Modules that speak while a run trains, which may then be continued.
DURING = ("trainer.py", "training/", "features/", "runtime/limits.py")
NOT_OF_A_SAVED_RUN = {
    "run_folder.py": "a new run finds its folder taken",
    "run_state.py": "what --resume itself was given",
    "best_checkpoint.py": "two new runs at once",
    "resume.py": "what --resume itself was given",
    "overlays.py": "a prediction",
    "first_look.py": "the photos of a new run, before its first step",
    "known_photos.py": "the end of a run",
    "trainer.py": "batch norm fails in the first step, where a new run can still be begun",
    "extraction.py": "features are computed before the first step",
    "summary.py": "warnings before a run",
    "strategy.py": "what a run begins with",
    "worth.py": "what a run begins with",
}


def test_a_step_that_a_saved_run_can_be_told_is_one_that_resume_takes():
    parts = {text_with(words) for words in NOT_FOLLOWED["a part of another message here"]}
    for text, path in TEXTS.items():
        place = path.relative_to(ROOT).as_posix().removeprefix("photo_classifier/")
        is_said_then = place.startswith(DURING) and path.name not in NOT_OF_A_SAVED_RUN
        if is_said_then and text not in parts and ADVICE.search(text) and not NO_ADVICE.fullmatch(text):
            assert flags_in(text) <= {*MAY_CHANGE, *OTHERS, "resume"} or "new run" in text, (place, text)


# --- the walk ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The folder of all situations: files, a run `r` of one epoch with its `tiny.pth`, and its `result.csv`."""
    folder, here = tmp_path_factory.mktemp("steps"), Path.cwd()
    prepare(folder)
    os.chdir(folder)
    run = "--data_dir photos {S} --freeze --views 1 --n_epochs 1 --run_dir r --model_fn tiny.pth".format(**WORDS)
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        assert train.main(run.split()) == 0
        assert predict.main("{P}".format(**WORDS).split()) == 0
    os.chdir(here)
    return folder


def argv_of(command, values=()):
    return shlex.split(command.format(*values, **WORDS))


def changed(argv, then):
    """The command line with `--flag value` set and `no --flag` left out."""
    argv = list(argv)
    for part in re.split(r"(?<!no) (?=--|no --)", then):
        words = shlex.split(part.removeprefix("no "))
        while words[0] in argv:
            start = argv.index(words[0])
            end = next((n for n in range(start + 1, len(argv)) if argv[n].startswith("--")), len(argv))
            del argv[start:end]
        argv += [] if part.startswith("no ") else words
    return argv


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.says)
def test_an_advice_works_when_it_is_followed(step, cli, prepared, tmp_path, monkeypatch):
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    change("r/last.pth", cwd=str(tmp_path), folder=str(tmp_path / "r"))  # as if the run had been started here
    argv = argv_of(step.run)
    dry = ["--dry_run"] * (argv[0] == "train" and step.is_dry and "--resume" not in argv)
    with monkeypatch.context() as patch:
        if step.before:
            step.before(patch)
        done = cli(*argv, *dry)
    printed = plain(f"{done.out}\n{done.err}")
    message = text_with(step.says)
    assert re.search(".*?".join(map(re.escape, message.split("{}"))), printed), done
    found = re.search(step.take, f"{done.out}\n{done.err}") if step.take else None
    assert bool(found) == bool(step.take), done
    then = step.then.format(*(found.groups() if found else ()), **WORDS)
    if step.fix:
        step.fix()
    if then.startswith(("train", "predict", "compare")):
        argv, dry = [word.removesuffix(".py") for word in shlex.split(then)], []
    elif then:
        assert flags_in(then) <= flags_in(f"{printed} {' '.join(argv)}"), "not what was advised"
        argv = changed(argv, then)
    after = cli(*argv, *dry)
    assert after.status == 0, after.err
    assert not re.search(".*?".join(map(re.escape, message.split("{}"))), plain(after.err)), "it is said again"
