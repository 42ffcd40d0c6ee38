"""Each flag acts, or a line says what it would need."""

import dataclasses
import re

import pytest
from helpers import TINY

from photo_classifier.config import ExportConfig, PredictConfig, TrainConfig, parse_args
from photo_classifier.data.samples import Sample, Splits
from photo_classifier.unused_flags import (
    EPOCHS_ALONE,
    EXPORT,
    PREDICTION,
    SOLVED,
    TRAINING,
    Predicting,
    Training,
    warn_of_unused_flags,
)

# Flags that always act, or are refused where they cannot.
ALWAYS = {
    TrainConfig: "data_dir dataset_name labels splits min_images batch_size n_workers image_size resize fit bit_depth "
    "on_leak max_bad max_pixels model_name use_pretrained weights freeze freeze_until head folds "
    "head_hidden n_classes model_fn run_dir resume seed gpu_id precision engine dry_run verbose",
    PredictConfig: "model_fn model_name class_names input result resume top_k probabilities min_probability sheet "
    "report explain gpu_id batch_size n_workers precision engine max_pixels weights_key head_activation image_size "
    "resize fit interpolation mean std",
    ExportConfig: "model_fn model_name class_names input weights_key head_activation image_size resize fit "
    "interpolation mean std to output",
}
ROWS = {TrainConfig: TRAINING, PredictConfig: PREDICTION, ExportConfig: EXPORT}

FROZEN, NO_NORM, ONE, SPLIT, TABLE = "frozen", "no batch norm", "one process", "in splits", "a table"
EVEN = "classes of one size"
# command line, what else holds, the flag that does nothing, and a part of what is said
UNUSED = [
    ("--path_column a", "", "path_column", "give it with --labels"),
    ("--label_column a", "", "label_column", "give it with --labels"),
    ("--group_column a", "", "group_column", "give it with --labels"),
    ("--split_column a", "", "split_column", "give it with --labels"),
    ("--new_photos skip", "", "new_photos", "without --splits"),
    ("--weights_key model", "", "weights_key", "without --weights"),
    ("--train_ratio 0.8", SPLIT, "train_ratio", "is in splits already"),
    ("--valid_ratio 0.1", SPLIT, "valid_ratio", "is in splits already"),
    ("--test_ratio 0.1", SPLIT, "test_ratio", "is in splits already"),
    ("--accumulate 64", "", "accumulate", "64 is more than the --batch_size of 32"),
    ("--split_column a --splits s.csv", TABLE, "split_column", "with --splits"),
    ("--class_weights balanced", EVEN, "class_weights", "equally many"),
    ("--augment flips --freeze --head logistic --views 1", FROZEN, "augment", "raise --views"),
    ("--mixup 0.2 --batch_size 1", "", "mixup", "larger --batch_size"),
    ("--cutmix 1 --batch_size 1", "", "cutmix", "larger --batch_size"),
    ("--freeze_bn", NO_NORM, "freeze_bn", "resnet has no batch norm"),
    ("--freeze_bn --freeze", FROZEN, "freeze_bn", "all batch norm is frozen"),
    ("--freeze --unfreeze_after 3 --freeze_until fc", FROZEN, "unfreeze_after", "keeps the whole backbone frozen"),
    ("--sync_bn", NO_NORM, "sync_bn", "resnet has no batch norm"),
    ("--sync_bn --freeze_bn", "", "sync_bn", "all batch norm is frozen"),
    ("--sync_bn", ONE, "sync_bn", "start several with torchrun"),
    ("--backbone_lr 1e-4 --freeze", FROZEN, "backbone_lr", "--freeze_until LAYER"),
    ("--momentum 0.5", "", "momentum", "has no effect with --optimizer adam; it needs --optimizer sgd"),
    ("--scheduler step --n_epochs 7", "", "scheduler", "in 7 epochs the learning rate never drops"),
    ("--step_size 3 --scheduler cosine", "", "step_size", "it needs --scheduler step"),
    ("--step_size 10", "", "step_size", "in 10 epochs the learning rate never drops"),
    ("--gamma 0.5 --scheduler cosine", "", "gamma", "with --scheduler cosine; it needs --scheduler step or plateau"),
    ("--gamma 0.5 --n_epochs 5", "", "gamma", "in 5 epochs the learning rate never drops"),
    ("--patience 3", "", "patience", "what ends a run without progress is --early_stop N"),
    ("--patience 9 --scheduler plateau", "", "patience", "in 10 epochs the learning rate never drops"),
    (
        "--warmup_epochs 11",
        "",
        "warmup_epochs",
        "longer than the 10 epochs there are, so the learning rate never reaches --lr; give at most that",
    ),
    ("--warmup_epochs 0.2", "", "warmup_epochs", "ends with the first of the 5 steps"),
    ("--n_epochs 1 --monitor loss", "", "monitor", "a single epoch"),
    ("--early_stop 9", "", "early_stop", "a run of 10 epochs ends before"),
    ("--views 2", "", "views", "it needs --freeze"),
    ("--views 2 --freeze --cutmix 1", FROZEN, "views", "with --cutmix"),
    ("--views 2 --freeze --augment none", FROZEN, "views", "with --augment none"),
    ("--views 8 --freeze --n_epochs 5", FROZEN, "views", "more than the 5 epochs"),
    ("--feature_cache none", "", "feature_cache", "kept with --freeze"),
    *((f"--freeze --head logistic --{name}", FROZEN, name, "with --head logistic") for name in EPOCHS_ALONE[:4]),
]
# the command lines above as they are when what they were told is done
TAKEN = {
    "--path_column a": ("--path_column a", TABLE),
    "--label_column a": ("--label_column a", TABLE),
    "--group_column a": ("--group_column a", TABLE),
    "--split_column a": ("--split_column a", TABLE),
    "--new_photos skip": ("--new_photos skip --splits s.csv", ""),
    "--weights_key model": ("--weights_key model --weights w.pth", ""),
    "--accumulate 64": ("--accumulate 32", ""),
    "--augment flips --freeze --head logistic --views 1": (
        "--augment flips --freeze --head logistic --views 2",
        FROZEN,
    ),
    "--mixup 0.2 --batch_size 1": ("--mixup 0.2 --batch_size 2", ""),
    "--cutmix 1 --batch_size 1": ("--cutmix 1 --batch_size 2", ""),
    "--freeze --unfreeze_after 3 --freeze_until fc": ("--freeze --unfreeze_after 3 --freeze_until layer1", ""),
    "--backbone_lr 1e-4 --freeze": ("--backbone_lr 1e-4 --freeze_until layer1", ""),
    "--momentum 0.5": ("--momentum 0.5 --optimizer sgd", ""),
    "--scheduler step --n_epochs 7": ("--scheduler step --n_epochs 8", ""),
    "--step_size 3 --scheduler cosine": ("--step_size 3 --scheduler step", ""),
    "--step_size 10": ("--step_size 10 --n_epochs 11", ""),
    "--gamma 0.5 --scheduler cosine": ("--gamma 0.5 --scheduler plateau", ""),
    "--gamma 0.5 --n_epochs 5": ("--gamma 0.5 --n_epochs 8", ""),
    "--patience 3": ("--patience 3 --scheduler plateau --early_stop 3", ""),
    "--patience 9 --scheduler plateau": ("--patience 9 --scheduler plateau --n_epochs 12", ""),
    "--warmup_epochs 11": ("--warmup_epochs 10", ""),
    "--warmup_epochs 0.2": ("--warmup_epochs 0.4", ""),
    "--n_epochs 1 --monitor loss": ("--n_epochs 2 --monitor loss", ""),
    "--early_stop 9": ("--early_stop 9 --n_epochs 11", ""),
    "--views 2": ("--views 2 --freeze", FROZEN),
    "--feature_cache none": ("--feature_cache none --freeze", FROZEN),
    "--sync_bn": ("--sync_bn", ""),
}
ACTS = [
    ("--path_column a --label_column b --group_column c --split_column d", TABLE),
    ("--train_ratio 0.8 --valid_ratio 0.1 --test_ratio 0.1 --sync_bn", ""),
    ("--optimizer sgd --momentum 0.5 --step_size 3 --gamma 0.5 --warmup_epochs 1 --early_stop 3", ""),
    ("--scheduler plateau --patience 2 --gamma 0.5 --backbone_lr 1e-4 --accumulate 4 --mixup 0.2 --cutmix 1", ""),
    ("--freeze --views 2 --feature_cache none --scheduler cosine", FROZEN),
    ("--freeze --unfreeze_after 2 --views 2 --feature_cache none --backbone_lr 1e-4 --early_stop 7", ""),
    ("--freeze --unfreeze_after 2 --warmup_epochs 2 --step_size 7 --freeze_until layer1", ""),
]


def situation(words, facts):
    values = {"mixup": 0.2, "cutmix": 1, "dropout": 0.1, "accumulate": 2}
    last = words.split()[-1].removeprefix("--")
    argv = [*words.split(), *([str(values[last])] if last in values else [])]
    given = parse_args(argv)
    made = () if facts == SPLIT else ("valid", "test")
    train = [Sample(f"{n}.jpg", "a" if n % 2 or (facts != EVEN and n % 3) else "b") for n in range(160)]
    layout = "a table of paths" if facts == TABLE else "class folders"
    splits = Splits(layout, "photos", ["a", "b"], train, [], [], made)
    config = TrainConfig(**given)
    return given, Training(config, splits, facts == FROZEN, facts != NO_NORM, 1 if facts == ONE else 2)


@pytest.mark.parametrize("config", ROWS)
def test_every_flag_has_a_row_or_always_acts(config):
    flags = {field.name for field in dataclasses.fields(config) if field.metadata}
    always, rows = set(ALWAYS[config].split()), {row.flag for row in ROWS[config]}
    assert not always & (rows - set(EPOCHS_ALONE))
    assert always | rows == flags


@pytest.mark.parametrize(("words", "facts", "name", "expected"), UNUSED)
def test_a_flag_without_effect_is_told_once_with_what_it_would_need(words, facts, name, expected, capfd):
    warn_of_unused_flags(TRAINING, *situation(words, facts))
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith(f"warning: --{name} ")]
    assert len(lines) == 1
    assert expected in lines[0]


def test_each_row_is_provoked_above():
    rows = [(row.flag, row.text) for row in TRAINING]
    assert len(set(rows)) == len(rows)
    solved = sum(text == SOLVED for _, text in rows)
    assert len(UNUSED) == len(rows) - solved + 4, (
        "a case for each row; four of the flags of a solved head stand for all"
    )
    assert {name for _, _, name, _ in UNUSED} >= {name for name, text in rows if text != SOLVED}


def test_what_a_flag_needs_makes_it_act():
    advised = {
        words for words, _, _, expected in UNUSED if re.search(r"\b(give|raise|it needs|start|larger)\b", expected)
    }
    assert not advised - TAKEN.keys()


@pytest.mark.parametrize(("words", "facts"), [*ACTS, *TAKEN.values()])
def test_a_flag_that_acts_is_not_warned_of(words, facts, capfd):
    warn_of_unused_flags(TRAINING, *situation(words, facts))
    assert not capfd.readouterr().err


def test_a_table_column_without_a_table_is_told_in_prediction(capfd):
    given = {"path_column": "file", "label_column": "name", "input": ("photos",)}
    warn_of_unused_flags(PREDICTION, given, Predicting(PredictConfig(**given)))
    assert capfd.readouterr().err.count("no table is among the inputs") == 2
    warn_of_unused_flags(PREDICTION, given, Predicting(PredictConfig(**{**given, "input": ("a.csv",)})))
    assert not capfd.readouterr().err


def test_flags_without_effect_on_an_export_are_told(capfd):
    given = {"to": "hub_folder", "int8": True, "min_probability": 0.5}
    warn_of_unused_flags(EXPORT, given, Predicting(ExportConfig(**given)))
    assert capfd.readouterr().err.count("has no effect with --to hub_folder") == 2
    warn_of_unused_flags(EXPORT, {"splits": "r"}, Predicting(ExportConfig(splits="r")))
    assert "--splits r has no effect: training photos are used by --int8" in capfd.readouterr().err
    given = {"splits": "r", "int8": True, "min_probability": 0.5}
    warn_of_unused_flags(EXPORT, given, Predicting(ExportConfig(**given)))
    assert not capfd.readouterr().err


def test_runs_warn_of_the_flags_that_were_typed_also_on_resume(cli, split_folder):
    argv = ("--data_dir", split_folder, *TINY, "--freeze", "--n_epochs", 2, "--backbone_lr", 1e-4, "--run_dir", "r")
    done = cli("train", *argv, "--patience", 3, "--early_stop", 5, "--freeze_bn")
    assert done.status == 0, done.err
    told = [line.split()[1] for line in done.err.splitlines() if "effect" in line]
    assert told == ["--freeze_bn", "--backbone_lr", "--patience", "--early_stop"]
    assert "(backbone" not in done.out
    done = cli("train", "--resume", "r", "--n_epochs", 3, "--momentum", 0.9, "--early_stop", 6)
    assert [line.split()[1] for line in done.err.splitlines()] == ["--momentum", "--early_stop"]
