import csv
import html
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest
import torch
from helpers import NAME, RESNET18, TINY, assert_one_line_error, board_of, make_class_folders, metrics_of, weights_of
from PIL import Image
from torch import nn

import train
from data_loader import AUGMENTS
from photo_classifier import flag_rules
from photo_classifier.data.known_datasets import DATASETS


def test_the_main_job_trains_predicts_and_says_the_same_accuracy(cli, trained, split_folder):
    assert re.search(r"validation accuracy \d\.\d{4} \(\d+/15\)\n$", trained.out)
    assert not trained.err
    predicted = cli("predict", "--model_fn", "tiny.pth", "--n_workers", 0)
    assert predicted.status == 0
    assert predicted.out.splitlines()[-1] == trained.out.splitlines()[-1]


def test_the_checkpoint_alone_is_enough_to_predict_with(trained):
    content = torch.load("tiny.pth", weights_only=True)
    keys = "format_version model_name class_names image_size resize interpolation mean std head temperature precision"
    assert set(keys.split()) | {"splits", "metrics", "config", "versions", "state_dict"} <= content.keys()
    assert content["class_names"] == ["cat", "dog", "개"]


def test_a_run_leaves_its_record(trained, split_folder):
    config = json.load(open("r/config.json", encoding="utf-8"))
    assert config["n_epochs"] == 2
    assert [row["epoch"] for row in metrics_of("r")] == ["1", "2"]
    splits = list(csv.DictReader(open("r/splits.csv", encoding="utf-8")))
    assert {row["split"] for row in splits} == {"train", "valid"}
    assert len(splits) == 39
    lines = [line for line in trained.out.splitlines() if line.startswith("epoch")]
    assert len(lines) == 2
    assert lines[0].endswith("* kept")
    page = open("r/report.html", encoding="utf-8").read()
    assert "split, timm/test_resnet: report" in page
    assert "validation photos are right" in page


def test_the_report_and_the_temperature_are_of_the_saved_weights(cli, image_folder):
    done = cli("train", "--data_dir", image_folder, *TINY, "--n_epochs", 2, "--model_fn", "m.pth", "--run_dir", "r",
               "--verbose", 2)  # fmt: skip
    report = json.load(open("r/report.json", encoding="utf-8"))
    content = torch.load("m.pth", weights_only=True)
    assert report.keys() - {"last_epoch"} == {"validation", "test", "next_steps", "refusal", "refusal_skipped"}
    assert len(re.findall("^next ", done.out, re.M)) == len(report["next_steps"])
    assert all(f"next    {step['text']}: {step['command']}\n" in done.out for step in report["next_steps"])
    for name, about in (("valid", report["validation"]), ("test", report["test"])):
        assert about["n_correct"] == content["metrics"][name]["correct"]
        assert about["n_images"] == content["metrics"][name]["n_images"] == 6
        assert about["temperature"] == content["temperature"] != 1
        calibration = rf"^{name} +accuracy .* 95 % interval .*\n.*\n +negative log-likelihood .* -> "
        assert re.search(calibration, done.out, re.M)
    cli("predict", "--model_fn", "m.pth", "--n_workers", 0)
    rows = csv.DictReader(open("result.csv", encoding="utf-8-sig"))
    loss = -sum(math.log(float(row["probability"])) for row in rows if row["predict"] == row["label"])
    wrong = {mistake["file_dir"]: mistake for mistake in report["test"]["mistakes"]}
    for row in csv.DictReader(open("result.csv", encoding="utf-8-sig")):
        if row["predict"] != row["label"]:
            assert float(row["probability"]) == pytest.approx(wrong.pop(row["file_dir"])["probability"], abs=1e-4)
    assert not wrong
    assert loss <= 6 * report["test"]["negative_log_likelihood"] + 1e-4


def test_an_epoch_within_the_interval_of_another_is_not_called_worse(cli, split_folder):
    # a rate of almost nothing: three epochs of one accuracy
    done = cli("train", "--data_dir", split_folder, *TINY, "--freeze_bn", "--lr", 1e-12, "--n_epochs", 3,
               "--verbose", 2)  # fmt: skip
    assert "with 15 images, 2 other epochs of 3 cannot be told apart from it" in done.out
    assert "best" not in done.out
    assert "better" not in done.out


def test_figures_are_in_the_run_folder_and_on_the_board(trained):
    board = board_of("r")
    for name in ("confusion", "calibration", "mistakes"):
        assert Image.open(f"r/{name}.png").size[0] > 100
        (shown,) = board.Images(f"Validation/{name}")
        assert shown.step == torch.load("tiny.pth", weights_only=True)["metrics"]["epoch"]


@pytest.mark.parametrize(
    "extra", [(), ("--freeze",), ("--freeze_until", "layer2"), ("--optimizer", "sgd"), ("--optimizer", "adamw")]
)
def test_the_loss_falls(extra, cli, split_folder):
    done = cli("train", "--data_dir", split_folder, *TINY, "--augment", "none", "--n_epochs", 4, *extra)
    losses = [float(loss) for loss in re.findall(r"train loss (\S+)", done.out)]
    assert losses[-1] < losses[0]


def test_training_computes_channels_last_and_in_the_precision_that_was_asked_for(cli, split_folder, monkeypatch):
    seen, real = set(), nn.Conv2d.forward

    def watched(conv, images):
        out = real(conv, images)
        if conv.training and out.requires_grad:
            last = [t.is_contiguous(memory_format=torch.channels_last) for t in (images, out, conv.weight)]
            seen.add((out.dtype, conv.weight.dtype, all(last)))
        return out

    monkeypatch.setattr(nn.Conv2d, "forward", watched)
    for precision, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        seen.clear()
        argv = ("--data_dir", split_folder, *TINY, "--precision", precision)
        assert cli("train", *argv, "--n_epochs", 1).status == 0
        assert seen == {(dtype, torch.float32, True)}


@pytest.mark.parametrize(
    ("mixing", "frozen"),
    [(("--mixup", 0.2), ("--freeze",)), (("--cutmix", 1), ("--freeze",)), (("--mixup", 0.2, "--cutmix", 1), ())],
)
def test_mixing_trains_the_same_weights_whatever_the_workers(mixing, frozen, cli, split_folder):
    found = []
    for n_workers in (0, 2):
        argv = ("--data_dir", split_folder, *TINY, *frozen, *mixing, "--n_epochs", 1, "--n_workers", n_workers)
        done = cli("train", *argv, "--model_fn", "m.pth", "--feature_cache", "none")
        assert done.status == 0, done.err
        assert ("views to compute" in done.out) == (bool(frozen) and "--cutmix" not in mixing)
        found.append(weights_of("m.pth"))
    plain = cli("train", "--data_dir", split_folder, *TINY, *frozen, "--n_epochs", 1, "--model_fn", "m.pth")
    assert plain.status == 0
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])
    assert not torch.equal(found[0]["fc.weight"], weights_of("m.pth")["fc.weight"])


def test_label_smoothing_is_in_the_training_loss_alone(cli, split_folder):
    # a rate of almost nothing and no moving statistics: both runs evaluate the same model
    argv = ("--data_dir", split_folder, *TINY, "--freeze_bn", "--lr", 1e-12, "--n_epochs", 1)
    plain = cli("train", *argv, "--model_fn", "a.pth", "--run_dir", "a")
    smooth = cli("train", *argv, "--model_fn", "b.pth", "--run_dir", "b", "--label_smoothing", 0.5)
    assert plain.status == smooth.status == 0
    first, second = (metrics_of(name)[0] for name in "ab")
    assert first["train_loss"] != second["train_loss"]
    assert first["valid_loss"] == second["valid_loss"]


@pytest.mark.parametrize("augment", AUGMENTS)
def test_every_augmentation_trains(augment, cli, split_folder):
    done = cli("train", "--data_dir", split_folder, *TINY, "--n_epochs", 1, "--augment", augment)
    assert done.status == 0, done.err


def test_backbone_and_head_learn_at_their_own_rates_and_both_are_logged(cli, split_folder):
    argv = ("--data_dir", split_folder, *TINY, "--n_epochs", 2, "--step_size", 1, "--optimizer", "sgd", "--momentum", 0)
    done = cli("train", *argv, "--lr", 0.1, "--backbone_lr", 1e-12, "--run_dir", "r", "--model_fn", "m.pth",
               "--verbose", 2)  # fmt: skip
    assert done.status == 0, done.err
    assert re.search(r"lr 0\.1 +\(backbone 1e-12\)", done.out)
    assert [(row["lr"], row["backbone_lr"]) for row in metrics_of("r")] == [("0.1", "1e-12"), ("0.01", "1e-13")]
    board = board_of("r")
    for part, rate in (("head", 0.1), ("backbone", 1e-12)):
        points = board.Scalars(f"LearningRate/{part}")
        assert [point.value for point in points] == pytest.approx([rate, rate / 10])
    from model_loader import get_model

    before = get_model(NAME, 3, image_size=32).net.state_dict()
    moved = {key for key, value in weights_of("m.pth").items() if not torch.allclose(value, before[key], atol=1e-6)}
    parameters = {key for key in moved if "running" not in key and "batches" not in key}
    assert parameters == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize("frozen", [(), ("--freeze",)])
@pytest.mark.parametrize("scheduler", ["plateau", "cosine"])
def test_the_schedule_of_the_flags_is_the_one_that_runs(scheduler, frozen, cli, split_folder):
    # a rate of almost nothing: the validation loss never falls by what a plateau asks for
    argv = ("--data_dir", split_folder, *TINY, *frozen, "--freeze_bn", "--lr", 1e-12, "--n_epochs", 4)
    done = cli("train", *argv, "--scheduler", scheduler, "--patience", 1, "--gamma", 0.5, "--run_dir", "r")
    factors = [float(row["lr"]) / 1e-12 for row in metrics_of("r")]
    expected = {"plateau": [1, 1, 1, 0.5], "cosine": [1, 0.853553, 0.5, 0.146447]}[scheduler]
    assert factors == pytest.approx(expected, abs=1e-4)
    assert done.out.count("plateau: validation loss not below") == (scheduler == "plateau")


def test_balanced_weights_change_the_training_loss_alone(cli, split_folder):
    for n in range(1, 8):
        (split_folder / "train" / "cat" / f"{n:02d}.png").unlink()
    argv = ("--data_dir", split_folder, *TINY, "--freeze_bn", "--lr", 1e-12, "--n_epochs", 1, "--batch_size", 17)
    rows = []
    for weights in ("none", "balanced"):
        assert cli("train", *argv, "--class_weights", weights, "--run_dir", weights).status == 0
        rows += metrics_of(weights)
    assert rows[0]["train_loss"] != rows[1]["train_loss"]
    assert rows[0]["valid_loss"] == rows[1]["valid_loss"]


CATS_AND_DOGS = "--freeze_until global_pool --head_hidden 8 --scheduler plateau --early_stop 1"


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_best_and_the_last_weights_are_both_kept_and_measured(optimizer, cli, image_folder):
    argv = ("--data_dir", image_folder, *TINY, *CATS_AND_DOGS.split(), "--optimizer", optimizer, "--views", 0)
    rate = ("--lr", 1, "--monitor", "loss")  # so high that the loss soon rises
    done = cli("train", *argv, *rate, "--n_epochs", 30, "--model_fn", "best.pth", "--run_dir", "r", "--verbose", 2)
    assert done.status == 0, done.err
    n_epochs, best = len(metrics_of("r")), torch.load("best.pth", weights_only=True)
    assert best["metrics"]["epoch"] == n_epochs - 1 < 29, "the early stop came one epoch after the best"
    last = torch.load("r/last_model.pth", weights_only=True)
    assert last["metrics"]["epoch"] == n_epochs
    assert not torch.equal(last["state_dict"]["fc.3.weight"], best["state_dict"]["fc.3.weight"])
    said = re.search(r"^last    r/last_model.pth, epoch \d+: .*(test accuracy \S+ \(\d+/6\))$", done.out, re.MULTILINE)
    assert cli("predict", "--model_fn", "r/last_model.pth", "--n_workers", 0).out.splitlines()[-1] == said[1]
    kept = json.load(open("r/report.json", encoding="utf-8"))["last_epoch"]
    assert kept["text"] in html.unescape(open("r/report.html", encoding="utf-8").read())
    assert (kept["epoch"], kept["test"]["correct"]) == (n_epochs, last["metrics"]["test"]["correct"])
    assert cli("predict", "--model_fn", "best.pth", "--n_workers", 0).out.splitlines()[-1] == done.out.splitlines()[-1]


def test_an_equal_accuracy_with_a_lower_loss_is_kept_and_does_not_put_off_the_early_stop(cli, image_folder):
    argv = ("--data_dir", image_folder, *TINY, *CATS_AND_DOGS.split(), "--lr", 1e-2, "--monitor", "accuracy")
    assert cli("train", *argv, "--n_epochs", 30, "--run_dir", "r").status == 0
    accuracies, losses = ([float(row[name]) for row in metrics_of("r")] for name in ("valid_accuracy", "valid_loss"))
    assert accuracies[-1] <= max(accuracies[:-1]), "it stopped at the first epoch that was no better"
    assert len(accuracies) < 30
    assert losses == sorted(losses, reverse=True), "the loss was lower"


def test_where_the_last_epoch_is_the_best_both_files_hold_it(cli, split_folder):
    done = cli("train", "--data_dir", split_folder, *TINY, "--n_epochs", 1, "--model_fn", "m.pth", "--run_dir", "r")
    assert "\nlast " not in done.out
    best, last = torch.load("m.pth", weights_only=True), torch.load("r/last_model.pth", weights_only=True)
    assert best["metrics"] == last["metrics"]
    assert all(torch.equal(value, last["state_dict"][key]) for key, value in best["state_dict"].items())


def test_before_training_the_run_shows_its_classes_and_augmented_images(trained, split_folder):
    assert re.search(r"^classes 3 +train  valid\n +cat +8 +5\n +dog +8 +5\n +개 +8 +5\n", trained.out, re.MULTILINE)
    (shown,) = board_of("r").Images("Train/images")
    with Image.open("r/augmented.png") as sheet:
        assert (shown.width, shown.height) == sheet.size == (6 * 152, 3 * (152 + 17)), "18 images, 6 in a row"
        reds = sheet.convert("RGB").crop((10, 10, 140, 140)).resize((1, 1)).getpixel((0, 0))
    assert reds[0] > max(reds[1:]) + 50, "the first image is of the class of red images"


@pytest.mark.parametrize("frozen", [(), ("--freeze",)])
def test_a_dry_run_takes_one_step_and_writes_no_checkpoint(frozen, cli, trained, split_folder):
    before = open("tiny.pth", "rb").read()
    argv = ("--data_dir", split_folder, *TINY, *frozen, "--dry_run", "--run_dir", "dry", "--batch_size", 10)
    done = cli("train", *argv, "--model_fn", "tiny.pth")
    assert done.status == 0, done.err
    assert re.search(r"^dry run: a step of 10 images, loss \d", done.out, re.MULTILINE)
    assert not re.search("^epoch", done.out, re.MULTILINE)
    assert os.path.exists("dry/augmented.png")
    assert not os.path.exists("dry/report.html")
    assert open("tiny.pth", "rb").read() == before
    assert not os.path.exists("tiny.pth.prev")
    assert not [name for _, _, names in os.walk(".") for name in names if name.endswith(".bin")], "nothing is cached"
    assert not list(split_folder.parent.glob("dry/*.pth"))


def test_a_dry_run_names_the_right_file_that_cannot_be_read(cli, split_folder):
    dog = split_folder / "train" / "dog" / "00.png"  # the first of four
    dog.write_bytes(dog.read_bytes()[:-200])
    for _ in range(2):  # the second uses the same folder, which is not among the runs
        done = cli("train", "--data_dir", split_folder, *TINY, "--dry_run", "--batch_size", 3)
        assert done.status == 0, done.err
        (row,) = list(csv.reader(open("dry_run/skipped.csv", encoding="utf-8")))[1:]
        assert row[0] == str(dog)
    assert not [path for path in split_folder.parent.iterdir() if path.name.startswith(("runs", "dry_run-"))]


def test_a_run_that_its_checks_ended_is_started_again_by_the_same_command(cli, split_folder):
    shutil.copy(split_folder / "train" / "cat" / "00.png", split_folder / "val" / "cat" / "copy.png")
    argv = ("--data_dir", split_folder, *TINY, "--n_epochs", 1, "--run_dir", "r", "--on_leak", "error")
    for _ in range(2):
        assert_one_line_error(cli("train", *argv), "listed in r/duplicates.csv".replace("/", os.sep))
    os.unlink(split_folder / "val" / "cat" / "copy.png")
    os.unlink("r/ended.json")
    assert_one_line_error(cli("train", *argv), "the run folder r is not empty")  # it may be of a run that lives
    (split_folder.parent / "r" / "ended.json").touch()
    assert cli("train", *argv).status == 0
    assert not os.path.exists("r/duplicates.csv")


def test_what_a_frozen_run_does_otherwise_is_said(cli, split_folder, monkeypatch):
    argv = ("--data_dir", split_folder, *TINY, "--freeze", "--n_epochs", 1)
    assert "the backbone runs in every epoch, as with --views 0" in cli("train", *argv, "--cutmix", 1).out
    monkeypatch.setattr("photo_classifier.models.classifier.Classifier.head_module", lambda self: None)
    done = cli("train", *argv)
    assert "all of it runs in every epoch" in done.out
    assert "views to compute" not in done.out


def test_a_dry_run_without_that_flag_trains_in_its_folder(cli, split_folder):
    argv = ("train", "--data_dir", split_folder, *TINY, "--n_epochs", 1, "--run_dir", "r", "--model_fn", "m.pth")
    for _ in range(2):
        assert "leave --dry_run out to train" in cli(*argv, "--dry_run").out
    (split_folder / "train" / "cat" / "00.png").unlink()
    open("r/mine.txt", "w").close()
    assert_one_line_error(cli(*argv), "the run folder r is not empty")
    os.unlink("r/mine.txt")
    done = cli(*argv)
    assert done.status == 0, done.err
    assert len(open("r/splits.csv", encoding="utf-8").readlines()) == 39
    assert len([name for name in os.listdir("r") if "tfevents" in name and not name.endswith(".report")]) == 1
    assert_one_line_error(cli(*argv), "the run folder r is not empty")


def test_the_commands_to_type_next_work_with_spaces_in_names(cli, split_folder):
    names = ("--model_fn", "my model.pth", "--run_dir", "runs 2/x")
    done = cli("train", "--data_dir", split_folder, *TINY, "--freeze", "--n_epochs", 1, *names)
    predict, board = re.search(r"^use +(python .*)\n +(tensorboard .*)$", done.out, re.MULTILINE).groups()
    assert shlex.split(predict) == ["python", "predict.py", "--model_fn", "my model.pth"]
    assert shlex.split(board) == ["tensorboard", "--logdir", "runs 2"]
    assert cli("predict", *shlex.split(predict)[2:], "--n_workers", 0).status == 0


def test_the_whole_model_is_printed_on_demand(cli, split_folder):
    argv = ("--data_dir", split_folder, *RESNET18, "--dry_run")
    details = cli("train", *argv, "--verbose", 2).out
    assert "(bn1): BatchNorm2d(64" in details
    assert re.search(r"^ +conv1 +64 x 16 x 16 +9,408  trains$", details, re.MULTILINE)
    assert not re.search(r"BatchNorm2d|conv1|adam|computes in", cli("train", *argv).out)
    assert not cli("train", *argv, "--verbose", 0).out


@pytest.mark.parametrize("frozen", [(), ("--freeze",)])
def test_training_ends_early_without_a_better_epoch(frozen, cli, split_folder):
    # a rate of almost nothing: no epoch betters the first
    argv = ("--data_dir", split_folder, *TINY, *frozen, "--freeze_bn", "--lr", 1e-12, "--n_epochs", 9)
    done = cli("train", *argv, "--early_stop", 2)
    assert len(re.findall(r"^epoch", done.out, re.MULTILINE)) == 3
    assert "(epoch 1 of 3)" in done.out


def test_the_test_split_is_measured_with_the_best_weights(cli, image_folder):
    done = cli("train", "--data_dir", image_folder, *TINY, "--n_epochs", 2, "--model_fn", "m.pth")
    assert re.search(r"test accuracy \d\.\d{4} \(\d/6\)\n$", done.out)
    metrics = torch.load("m.pth", weights_only=True)["metrics"]
    assert metrics["test"]["n_images"] == 6
    predicted = cli("predict", "--model_fn", "m.pth", "--n_workers", 0)
    assert predicted.out.splitlines()[-1] == done.out.splitlines()[-1]


def test_an_earlier_checkpoint_stays_as_prev(cli, trained, split_folder):
    earlier = weights_of("tiny.pth")
    done = cli("train", "--data_dir", split_folder, *TINY, "--n_epochs", 3, "--seed", 1, "--model_fn", "tiny.pth")
    assert "the earlier tiny.pth is now tiny.pth.prev" in done.out
    kept = weights_of("tiny.pth.prev")
    assert all(torch.equal(earlier[key], kept[key]) for key in earlier)


def test_freezing_random_weights_warns(cli, split_folder):
    done = cli("train", "--data_dir", split_folder, *TINY, "--n_epochs", 1, "--freeze")
    assert done.err == (
        "warning: the frozen layers have random weights; "
        "give them trained ones with --use_pretrained or --weights FILE\n"
    )


def test_images_that_cannot_be_read_are_left_out_and_listed(cli, split_folder):
    bad = [split_folder / "train" / "cat" / "00.png", split_folder / "val" / "dog" / "01.png"]
    for path in bad:
        path.write_bytes(b"no image")
    argv = ("--data_dir", split_folder, *TINY, "--n_epochs", 2, "--run_dir", "r", "--n_workers", 2, "--max_bad", 0.1)
    done = cli("train", *argv)
    assert done.status == 0
    rows = list(csv.DictReader(open("r/skipped.csv", encoding="utf-8")))
    assert [row["path"] for row in rows] == sorted(map(str, bad))
    assert "left out 2 images" in done.out
    assert done.out.strip().endswith("/14)")
    assert [path.read_bytes() for path in bad] == [b"no image"] * 2


def test_without_a_data_folder_the_first_line_says_so(cli, monkeypatch):
    monkeypatch.setattr(train, "train", lambda *_: None)
    assert cli("train").out.splitlines()[0] == (
        "training on the built-in digits; for your own photos give --data_dir DIR"
    )


def test_a_known_set_brings_its_own_defaults_but_flags_win(monkeypatch):
    seen = []
    monkeypatch.setattr(train, "start", lambda config, _given, _started: seen.append(config))
    train.main([])
    train.main(["--dataset_name", "digits", "--image_size", "64"])
    train.main(["--data_dir", "photos"])
    assert [config.image_size for config in seen] == [None, 64, None]
    assert [config.preferred_size for config in seen] == [DATASETS["digits"].defaults["preferred_size"]] * 2 + [None]
    assert [config.augment for config in seen] == ["none", "none", "basic"]


def test_a_table_of_labels_trains_and_predicts(cli, image_folder, tmp_path):
    images = sorted(image_folder.rglob("*.png"))
    lines = [f"photos/{path.parent.name}/{path.name},{path.parent.name}" for path in images]
    (tmp_path / "labels.csv").write_text("\n".join(["image,class", *lines, "photos/gone.png,cat"]), encoding="utf-8")
    done = cli("train", "--labels", "labels.csv", *TINY, "--n_epochs", 1, "--run_dir", "r", "--model_fn", "m.pth")
    assert done.status == 0, done.err
    assert [row["path"] for row in csv.DictReader(open("r/skipped.csv", encoding="utf-8"))] == ["photos/gone.png"]
    assert cli("predict", "--model_fn", "m.pth", "--n_workers", 0).out.splitlines()[-1] == done.out.splitlines()[-1]


MISTAKES = {
    "no such folder": (["--data_dir", "nowhere"], "nowhere does not exist"),
    "both data flags": (["--data_dir", "photos", "--dataset_name", "digits"], "both given"),
    "unknown set": (["--dataset_name", "digit"], "did you mean digits?"),
    "unknown model": (["--data_dir", "photos", "--model_name", "resnet19"], "did you mean resnet"),
    "misspelt flag": (["--data_dirr", "photos"], "did you mean --data_dir?"),
    "empty value": (["--data_dir", "photos", "--weights", ""], "--weights was given an empty value"),
    "no number": (["--lr", "fast"], "needs a number above 0, not 'fast'"),
    "negative": (["--batch_size", "-1"], "needs a whole number at least 1, not '-1'"),
    "ratios": (["--train_ratio", "0.9", "--valid_ratio", "0.2"], "must sum to 1"),
    "no ratio left": (["--train_ratio", "1"], "must sum to 1"),
    "half a flag": (["--model", "resnet"], "did you mean --model_name or --model_fn?"),
    "no flag": (["photos"], "'photos' has no flag before it; did you mean --data_dir photos?"),
    "model into a folder": (["--data_dir", "photos", "--model_fn", "photos"], "--model_fn photos is a folder"),
    "model over a photo": (
        ["--data_dir", "photos", "--model_fn", "photos/cat/00.png"],
        "exists and is not a checkp",
    ),
    "classes": (["--data_dir", "photos", "--n_classes", "5"], "has 3 classes: cat, dog, 개"),
    "device": (
        ["--data_dir", "photos", "--gpu_id", "99"],
        "--gpu_id 99 does not exist on this machine; choose from",
    ),
    "precision": (["--data_dir", "photos", "--precision", "fp8"], "choose from auto, fp32, bf16, fp16"),
    "optimizer": ([*TINY, "--data_dir", "photos", "--optimizer", "adan"], "did you mean adam?"),
    "augment": ([*TINY, "--data_dir", "photos", "--augment", "basics"], "did you mean basic?"),
    "scheduler": ([*TINY, "--data_dir", "photos", "--scheduler", "cosin"], "did you mean cosine?"),
    "monitor": ([*TINY, "--data_dir", "photos", "--monitor", "f1"], "choose from accuracy, loss, macro_f1"),
    "class weights": ([*TINY, "--data_dir", "photos", "--class_weights", "equal"], "choose from none, balanced"),
    "no drop": (["--data_dir", "photos", "--scheduler", "plateau", "--gamma", "1"], "needs a --gamma below 1"),
    "layer": ([*TINY, "--data_dir", "photos", "--freeze_until", "layr1"], "did you mean layer1?"),
    "both freezes": (["--freeze", "--freeze_until", "layer1"], "both given"),
    "weights": ([*TINY, "--data_dir", "photos", "--weights", "no.pth"], "there is no file no.pth"),
    "run folder": ([*TINY, "--data_dir", "photos", "--run_dir", "photos/cat/00.png"], "cannot write the run folder"),
    "run among photos": ([*TINY, "--data_dir", "photos", "--run_dir", "photos"], "run folder photos is not empty"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_ends_in_one_line_that_says_what_to_do(name, cli, image_folder):
    argv, expected = MISTAKES[name]
    done = cli("train", *argv)
    assert_one_line_error(done, expected)


def test_a_checkpoint_that_cannot_be_written_stops_with_one_line(cli, split_folder):
    inside_a_file = split_folder / "train" / "cat" / "00.png" / "m.pth"
    done = cli("train", "--data_dir", split_folder, *TINY, "--n_epochs", 1, "--model_fn", inside_a_file)
    assert done.status == 2
    assert "cannot be written" in done.err
    assert "epoch" not in done.out, "it is known before the work"


@pytest.mark.parametrize("frozen", [(), ("--freeze",)])
def test_a_bad_image_in_the_test_split_is_the_one_that_is_listed(frozen, cli, image_folder):
    cli("train", "--data_dir", image_folder, *TINY, "--n_epochs", 1, "--run_dir", "r0")
    rows = csv.DictReader(open("r0/splits.csv", encoding="utf-8"))
    victim = next(row["path"] for row in rows if row["split"] == "test")
    content = open(victim, "rb").read()
    open(victim, "wb").write(content[:-100])
    done = cli("train", "--data_dir", image_folder, *TINY, *frozen, "--n_epochs", 1, "--run_dir", "r1")
    assert done.status == 0
    assert [row["path"] for row in csv.DictReader(open("r1/skipped.csv", encoding="utf-8"))] == [victim]
    assert re.search(r"test accuracy .*/5\)\n$", done.out)


def test_a_split_of_which_nothing_can_be_read_is_an_error(cli, split_folder):
    for path in (split_folder / "val").rglob("*.png"):
        path.write_bytes(path.read_bytes()[:-200])
    for frozen in ((), ("--freeze",)):
        done = cli("train", "--data_dir", split_folder, *TINY, *frozen, "--n_epochs", 1, "--max_bad", 1)
        assert done.status == 2
        assert "no image of the valid split could be read" in done.err


def test_a_lone_last_image_joins_the_batch_before(cli, split_folder):
    done = cli("train", "--data_dir", split_folder, *TINY, "--n_epochs", 1, "--batch_size", 23)  # 24 images
    assert done.status == 0
    done = cli("train", "--data_dir", split_folder, *TINY, "--n_epochs", 1, "--batch_size", 1)
    assert done.status == 2
    assert "larger batches (--batch_size)" in done.err


def test_a_console_without_korean_letters_is_no_reason_to_stop(split_folder):
    argv = [sys.executable, train.__file__, "--data_dir", str(split_folder), *map(str, TINY), "--n_epochs", "1"]
    environment = {**os.environ, "PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    done = subprocess.run(argv, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert b"        \\uac1c" in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
def test_a_name_that_is_no_unicode_is_no_reason_to_stop(cli, split_folder):
    os.rename(split_folder / "train" / "cat" / "00.png", os.fsencode(split_folder / "train" / "cat") + b"/caf\xe9.png")
    done = cli("train", "--data_dir", split_folder, *TINY, "--n_epochs", 1, "--run_dir", "r")
    assert done.status == 0
    assert "caf\\udce9.png" in open("r/splits.csv", encoding="utf-8").read()


def test_ratios_that_are_not_given_divide_what_is_left():
    assert flag_rules.ratios({}) == {"train_ratio": 0.6, "valid_ratio": 0.2, "test_ratio": 0.2}
    shares = flag_rules.ratios({"train_ratio": 0.8})
    assert shares["valid_ratio"] == shares["test_ratio"] == pytest.approx(0.1)
    assert flag_rules.ratios({"test_ratio": 0.0})["train_ratio"] == pytest.approx(0.75)


def test_classes_that_differ_between_splits_are_listed(cli, split_folder):
    shutil.move(split_folder / "val" / "dog", split_folder / "val" / "wolf")
    done = cli("train", "--data_dir", split_folder, *TINY)
    assert done.status == 2
    assert "wolf" in done.err


def test_a_hundred_classes_keep_the_console_short(cli, tmp_path):
    make_class_folders(tmp_path / "many", 3, classes=[f"class{n:03d}" for n in range(100)])
    done = cli("train", "--data_dir", tmp_path / "many", *TINY, "--n_epochs", 1)
    assert "... (80 more, with 1 to 1 training images)" in done.out
