import dataclasses
import re
import shlex
from pathlib import Path

import numpy as np
import pytest

import train
from photo_classifier import config, flag_rules
from photo_classifier.evaluation.learning_curve import UNTOLD, advice, rare_class
from photo_classifier.evaluation.report import main_report
from photo_classifier.training import next_steps
from photo_classifier.training.next_steps import Measured

ROOT = Path(__file__).parents[2]
CLASSES = [{"name": "cat", "recall": 0.9, "support": 50}, {"name": "dog", "recall": 0.9, "support": 50}]
REPORT = {"accuracy": 0.9, "accuracy_interval_95": [0.86, 0.94], "n_images": 100, "classes": CLASSES}
PLAIN = Measured(Path("runs/my run"), "my photos", "", [0.5, 0.4, 0.3, 0.3], 0.9, REPORT, {"cat": 90, "dog": 80})
FROZEN = "--data_dir 'my photos' --use_pretrained --freeze"
STORED = {"stores_features": True, "has_linear_head": True}
FEW = {**REPORT, "accuracy_interval_95": [0.7, 0.98], "n_images": 20}
RARE = {**REPORT, "classes": [CLASSES[0], {"name": "dog", "recall": 0.4, "support": 5}]}
UNLIKE = {"train_accuracy": 0.999, "report": {**REPORT, "accuracy": 0.8, "accuracy_interval_95": [0.75, 0.85]}}

# what was typed, what was measured, what is said, and what it changes
CASES = {
    "check_labels": (
        FROZEN,
        {"suspects": "2 of 9 labels look wrong"},
        "2 of 9 labels",
        "--labels 'runs/my run/suspects.csv'",
    ),
    "start_from_pretrained": (
        "--model_name vgg --lr 0.1 --freeze_bn",
        {},
        "random weights",
        "--model_name efficientnet_lite0 --use_pretrained --freeze",
    ),
    "train_longer": ("--n_epochs 4", {"losses": [0.5, 0.4, 0.3, 0.2]}, "still improving", "--n_epochs 8"),
    "learn_less_by_heart": ("--use_pretrained --lr 1e-4", UNLIKE, "accuracy 1.00 is far above the 0.80", "--freeze"),
    "weigh_rare_class": (
        FROZEN,
        {"report": RARE, "training_counts": {"cat": 90, "dog": 7}},
        "dog has only 7 training photos, and 2 of 5 were recognised",
        "--class_weights balanced",
    ),
    "test_by_folds": (FROZEN, {"report": FEW, **STORED}, "with only 20 held-out photos", "--folds 5"),
    "fine_tune": (
        f"{FROZEN} --head logistic",
        {"seconds_per_view": 0.2},
        "try fine-tuning (about 10 minutes)",
        "--freeze --unfreeze_after 3 --n_epochs 8",
    ),
    "solve_head": (f"{FROZEN} --n_epochs 20 --dropout 0.1", STORED, "solve the head exactly", "--head logistic"),
}


def made_by(words):
    """The flags and the config of a command line, which the tool has to take."""
    given = config.parse_args(words)
    made = flag_rules.make_config(given)
    flag_rules.check(made)
    train.check_choices(made)
    return made, given


def steps_of(words, measured):
    made, given = made_by(words)
    return [(step["text"], shlex.split(step["command"])) for step in next_steps.next_steps(made, given, measured)]


def test_no_advice_lacks_a_case():
    assert [advise.__name__ for advise in next_steps.ADVICE] == list(CASES)


@pytest.mark.parametrize("name", CASES)
def test_what_was_measured_gives_the_advice_and_its_command_is_one_that_the_tool_takes(name):
    typed, facts, text, change = CASES[name]
    measured = dataclasses.replace(PLAIN, **facts)
    (command,) = [words for said, words in steps_of(shlex.split(typed), measured) if text in said]
    assert command[:2] == ["python", "train.py"]
    assert change in shlex.join(command)
    if "--resume" in command:
        assert command[command.index("--resume") + 1] == "runs/my run"
        return
    after, _ = made_by(command[2:])
    before, _ = made_by(shlex.split(typed))
    assert (after.data_dir, after.run_dir) == (before.data_dir, None)
    assert after.model_fn != config.checkpoint_name(before), "the weights stay"
    followed = steps_of(command[2:], measured)
    if name != "learn_less_by_heart":  # which tries one thing after the other
        assert not [said for said, _ in followed if text in said], "it was taken"


def test_what_was_learnt_by_heart_is_fought_by_one_thing_after_the_other_until_none_is_left():
    words, tried = ["--use_pretrained"], []
    measured = dataclasses.replace(PLAIN, **UNLIKE)
    for _ in range(3):
        text, command = next(step for step in steps_of(words, measured) if "far above" in step[0])
        words = command[2:]
        tried.append(text.rpartition("more photos may help, or try ")[2])
    assert tried == ["--freeze", "--augment trivial", "--dropout 0.3"]
    assert not [text for text, _ in steps_of(words, measured) if "far above" in text]


def test_a_good_run_gets_no_advice_and_a_bad_one_three_at_most():
    good = {**REPORT, "accuracy": 0.99, "accuracy_interval_95": [0.97, 1.0]}
    assert not steps_of(shlex.split(FROZEN), dataclasses.replace(PLAIN, report=good, train_accuracy=1.0, **STORED))
    bad = {
        "report": {**FEW, **UNLIKE["report"]},
        "train_accuracy": 1.0,
        "losses": [2, 1],
        "suspects": "labels",
        **STORED,
    }
    assert len(steps_of(["--n_epochs", "2"], dataclasses.replace(PLAIN, **bad))) == 3


def test_the_split_with_the_most_held_out_photos_decides():
    many, few = ({**REPORT, "n_images": n} for n in (90, 12))
    assert main_report({"valid": many, "test": few}, "test") is many
    equal = {**many}
    assert main_report({"valid": many, "test": equal}, "test") is equal


@pytest.mark.parametrize(
    ("more_photos", "advised"),
    [
        ("more photos of dog help most", "; more photos of dog help most, or try --freeze"),
        ("more photos will hardly help", "held-out photos; try --freeze"),
        (f"{UNTOLD} 80 photos", "; more photos may help, or try --freeze"),
    ],
)
def test_the_advice_against_learning_by_heart_says_of_more_photos_what_the_learning_curve_says(more_photos, advised):
    measured = dataclasses.replace(PLAIN, more_photos=more_photos, **UNLIKE)
    ((text, _),) = steps_of(["--use_pretrained", "--lr", "1e-4"], measured)
    assert text.endswith(advised)


def test_the_learning_curve_and_the_advice_on_a_rare_class_name_the_same_class():
    counts, labels, is_right = {"cat": 90, "dog": 7}, np.repeat([0, 1], [90, 7]), np.ones((2, 97))
    is_right[0, :40] = 0  # the mistakes that photos have mended are of the large class
    measured = dataclasses.replace(PLAIN, report=RARE, training_counts=counts)
    ((text, _), *_) = steps_of(shlex.split(FROZEN), measured)
    assert text.startswith("dog has only 7 training photos")
    rare = rare_class(RARE, counts)["name"]
    for gain, said in ((0.1, "more photos help, above all those of dog"), (0, "will hardly help, except those of dog")):
        rows = [{"photos": 97, "accuracy": 0.8}, {"photos": 194, "low": 0.8 + gain, "high": 0.8 + gain}]
        assert said in advice(rows, is_right, labels, ["cat", "dog"], rare)
    assert "cat help most" in advice([{**rows[0], "accuracy": 0.7}, rows[1]], is_right, labels, ["cat", "dog"])


def test_a_continued_run_gives_the_command_of_the_whole_run():
    made, _ = made_by(shlex.split(f"{FROZEN} --n_epochs 20 --train_ratio 0.8 --n_workers 0"))
    (step,) = next_steps.next_steps(
        made, {"resume": "r"}, dataclasses.replace(PLAIN, report=FEW, stores_features=True)
    )[:1]
    again, _ = made_by(shlex.split(step["command"])[2:])
    assert (again.data_dir, again.freeze, again.n_epochs, again.folds) == ("my photos", True, 20, 5)
    assert again.n_workers == 0
    assert again.resume is None


def test_the_table_of_the_docs_has_a_row_for_each_advice():
    text = (ROOT / "docs" / "next_steps.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|", text, re.M)
    assert rows == list(CASES)
