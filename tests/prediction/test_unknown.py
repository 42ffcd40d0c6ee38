"""Photos that are unlike the training photos, and sets of classes with a promise, from one small training."""

import csv
import json
import os
import re
import shutil
from collections import Counter
from html import unescape
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import TINY, assert_one_line_error, make_class_folders, save_image
from PIL import Image

import train
from photo_classifier.prediction.predictor import Predictor
from photo_classifier.training.known_photos import KnownPhotos, refusal_text

PREDICT = ("--model_fn", "known.pth", "--n_workers", 0, "--gpu_id", -1)
REASON = "unlike the training photos"


def rows(path="result.csv"):
    with open(path, encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def known_once(tmp_path_factory):
    """A frozen training of 3 classes by colour, of 36 photos each; and photos of nothing but noise or one grey."""
    folder, here = tmp_path_factory.mktemp("known"), Path.cwd()
    make_class_folders(folder / "photos", 36)
    (folder / "others").mkdir()
    for n in range(8):
        Image.effect_noise((48, 40), 120 + n).convert("RGB").save(folder / "others" / f"{n}.png")
    argv = ("--data_dir", "photos", *TINY, "--freeze", "--head", "logistic", "--model_fn", "known.pth")
    os.chdir(folder)
    try:
        train.main([str(arg) for arg in (*argv, "--run_dir", "r")])
    finally:
        os.chdir(here)
    return folder


@pytest.fixture
def known(known_once, tmp_path):
    shutil.copytree(known_once, tmp_path, dirs_exist_ok=True)
    return SimpleNamespace(report=json.loads((tmp_path / "r" / "report.json").read_text(encoding="utf-8")))


def test_photos_unlike_the_training_photos_are_answered_unknown_where_asked(cli, known):
    assert cli("predict", *PREDICT, "--input", "others", "photos/cat").status == 0
    plain = rows()
    assert list(plain[0]) == ["file_dir", "predict", "probability", "distance", "label", "correct", "status", "reason"]
    assert {row["predict"] for row in plain} <= {"cat", "dog", "개"}
    done = cli("predict", *PREDICT, "--input", "others", "photos/cat", "--unknown", "--min_probability", 0.01)
    asked = rows()
    assert [row["distance"] for row in asked] == [row["distance"] for row in plain]
    others, cats = asked[:8], asked[8:]
    assert {(row["predict"], row["reason"], row["status"]) for row in others} == {("unknown", REASON, "ok")}
    assert all(row["best_guess"] == before["predict"] for row, before in zip(asked, plain, strict=True))
    assert sum(row["predict"] == "unknown" for row in cats) < 6
    n_refused = sum(row["predict"] == "unknown" for row in asked)
    assert (
        f"refused {n_refused} photos as unlike the training photos (answer `unknown`), far more than the 5 %"
        in done.out
    )
    done = cli("predict", *PREDICT, "--input", "photos", "--unknown", "--false_alarm", 0.5)
    assert "as happens to about 50 % of suitable photos" in done.out
    cli("predict", *PREDICT, "--input", "photos/cat", "--min_probability", 1)
    assert {(row["predict"], row["reason"]) for row in rows()} == {("unknown", "probability below 1")}


def test_the_stated_rate_of_the_held_out_photos_is_refused(known):
    known_to = Predictor("known.pth", device="cpu", unknown=True, false_alarm=0.1)
    held_out = known_to.novelty.held_out
    n_refused = int((held_out > known_to.most_distant).sum())
    assert 0.1 * len(held_out) - 2 <= n_refused <= 0.1 * len(held_out)
    strict = Predictor("known.pth", device="cpu", unknown=True, false_alarm=0.02)
    assert strict.most_distant > known_to.most_distant


def test_the_predictor_and_a_resume_say_the_same(cli, known):
    argv = [str(arg) for arg in (*PREDICT, "--input", "others", "photos", "--unknown", "--coverage", 0.9)]
    assert cli("predict", *argv).status == 0
    whole = Path("result.csv").read_bytes()
    predictor = Predictor("known.pth", device="cpu", n_workers=0, unknown=True, coverage=0.9)
    ours = predictor([row["file_dir"] for row in rows()])
    assert [(p.predict, "|".join(p.set), p.reason) for p in ours] == [
        (row["predict"], row["set"], row["reason"]) for row in rows()
    ]
    assert all(abs(p.distance - float(row["distance"])) < 1e-5 for p, row in zip(ours, rows(), strict=True))
    lines = whole.splitlines(keepends=True)
    Path("result.csv.partial").write_bytes(b"".join(lines[:20]))
    shutil.copy("result.json", "result.json.partial")
    assert cli("predict", *argv, "--resume").status == 0
    assert Path("result.csv").read_bytes() == whole


def test_sets_hold_the_true_class_as_often_as_promised(cli, known):
    cli("predict", *PREDICT, "--input", "photos", "--coverage", 0.9)
    found = rows()
    assert list(found[0])[3:6] == ["distance", "set", "label"]
    assert sum(row["label"] in row["set"].split("|") for row in found) >= 0.85 * len(found)
    n_held_out = len(torch.load("known.pth", weights_only=True)["label_scores"])
    too_much = 1 - 0.5 / (n_held_out + 1)
    assert_one_line_error(cli("predict", *PREDICT, "--coverage", too_much), f"training held out {n_held_out} photos")
    most = cli("predict", *PREDICT, "--coverage", 1).err.split()[-1]
    assert cli("predict", *PREDICT, "--coverage", most).status == 0, "what is advised works"


def test_an_impossible_rate_says_what_is_possible(cli, known):
    least = cli("predict", *PREDICT, "--unknown", "--false_alarm", 0).err.split()[-1]
    assert cli("predict", *PREDICT, "--unknown", "--false_alarm", least).status == 0


def test_the_report_says_whether_the_photos_are_like_the_training_photos(cli, known):
    done = cli("predict", *PREDICT, "--report", "rep")
    assert "inputs  your photos look like the training photos: " in done.out
    assert not json.load(open("rep/report.json", encoding="utf-8"))["drift"]["is_unlike"]
    shutil.copytree("others", "new")
    for n in range(20):
        save_image(Path("new") / f"like {n}.png", 0, 9000 + n)
    done = cli("predict", *PREDICT, "--input", "new", "--report", "rep")
    assert "inputs  your photos differ from the training photos: " in done.out
    drift = json.load(open("rep/report.json", encoding="utf-8"))["drift"]
    assert {os.path.basename(row["file_dir"]) for row in drift["most_unlike"][:8]} == {f"{n}.png" for n in range(8)}
    wrong = sorted(shutil.copy(f"others/{n}.png", "photos/cat") for n in range(4))  # labelled cat
    argv = ("--input", "new", "photos", "--unknown", "--min_probability", 0.6)
    done = cli("predict", *PREDICT, *argv, "--report", "rep")
    assert done.status == 0, "its own report may be replaced"
    found, report = rows(), json.load(open("rep/report.json", encoding="utf-8"))
    refused = Counter(row["reason"] for row in found)
    answers, n_unlike, n_unsure = report["answers"], refused[REASON], refused["probability below 0.6"]
    assert n_unlike >= 12
    assert answers["n_answered"] == len(found) - n_unlike - n_unsure
    assert answers["n_known"] == sum(bool(row["correct"]) for row in found)
    page = unescape(Path("rep/report.html").read_text(encoding="utf-8"))
    assert f"answered {answers['n_answered'] / len(found):.4f} ({answers['n_answered']}/{len(found)})" in done.out
    assert f"{answers['n_answered']} of {len(found)} photos were answered" in page
    assert f"<bdi>{answers['n_answered']} of {len(found)}</bdi>" in page
    limit = Predictor("known.pth", device="cpu", unknown=True).most_distant
    assert f"{n_unlike} for being unlike the training photos (distance above {limit:.2f})" in page
    assert (f"{n_unsure} for a probability below 0.6" in page) == bool(n_unsure)
    assert "--false_alarm</th><td><bdi>0.05" in page
    shown = {row["file_dir"]: row for row in report["input"]["examples"]}
    distances = {row["file_dir"]: float(row["distance"]) for row in found}
    why = {path: f"{REASON}: distance {distances[path]:.2f}, at most {limit:.2f}" for path in wrong}
    assert {shown[path]["refused"] == why[path] for path in wrong if path in shown} == {True}
    assert f"<b>refused</b>, {REASON}: distance " in page
    assert "; best guess <bdi>" in page
    assert "says <b><bdi>unknown" not in page
    (drift_line,) = (line for line in done.out.splitlines() if line.startswith("inputs"))
    assert drift_line.removeprefix("inputs  y") in page.replace("\N{NO-BREAK SPACE}", " ")
    assert page.count(">distance ") == 12


def test_training_reports_how_well_each_class_would_be_refused_and_what_more_photos_bring(known):
    refusal = known.report["refusal"]
    assert [row["class"] for row in refusal] == ["cat", "dog", "개"]
    assert all(row["auroc"] > 0.7 and row["n_photos"] for row in refusal)
    curve = known.report["learning_curve"]
    n = curve[3]["photos"]
    assert [row["photos"] for row in curve] == [round(n / 4), round(n / 2), round(3 * n / 4), n, 2 * n]
    assert all(row["low"] <= row["accuracy"] <= row["high"] for row in curve)
    assert curve[3]["accuracy"] <= curve[4]["accuracy"]
    assert "more photos " in known.report["more_photos"]


def test_two_classes_leave_none_to_refuse_and_few_photos_no_curve(cli, tmp_path):
    make_class_folders(tmp_path / "two", 10, classes=("cat", "dog"))
    argv = ("--data_dir", "two", *TINY, "--freeze", "--n_epochs", 1, "--run_dir", "r", "--model_fn", "two.pth")
    done = cli("train", *argv)
    assert done.status == 0, done.err
    report = json.load(open("r/report.json", encoding="utf-8"))
    assert report["refusal"] == []
    assert report["refusal_skipped"] == "of two classes only one would be left"
    assert "learning_curve" not in report
    assert_one_line_error(
        cli("predict", "--model_fn", "two.pth", "--unknown"), "--false_alarm 0.05: training held out 4"
    )
    assert cli("predict", "--model_fn", "two.pth", "--unknown", "--false_alarm", 0.5).status == 0


def test_no_figure_is_given_for_a_class_with_few_held_out_photos():
    labels = torch.arange(3).repeat(60)
    features = torch.nn.functional.one_hot(labels, 8) + 0.3 * torch.rand(180, 8, generator=torch.manual_seed(0))
    folds = torch.arange(180) // 3 % 20
    kept = (labels != 2) | (torch.arange(180) < 27)  # nine of the last class
    known = KnownPhotos(*(part[kept] for part in (features, labels, folds, features, labels, folds)))
    names = ["cat", "dog", "개"]
    assert [(row["class"], row["n_photos"]) for row in known.refusal(names)] == [("cat", 60), ("dog", 60)]
    assert known.few(names) == ["개"]
    lowest = r"AUROC [\d.]+ on average .*, lowest for (cat|dog): [\d.]+ \(60 photos\)"
    assert re.search(f"Tried with 2 classes left out in turn: {lowest}", refusal_text(known.refusal(names)))
    assert "Tried with dog left out: AUROC" in refusal_text(known.refusal(names)[1:])


def test_a_frozen_training_that_keeps_no_distances_says_why_and_so_does_its_checkpoint(cli, tmp_path):
    make_class_folders(tmp_path / "two", 5, classes=("cat", "dog"))
    for n in range(1, 5):
        shutil.copy("two/dog/00.png", f"two/dog/{n:02}.png")
    argv = (
        "--data_dir",
        "two",
        *TINY,
        "--freeze",
        "--folds",
        2,
        "--n_epochs",
        1,
        "--run_dir",
        "r",
        "--model_fn",
        "two.pth",
    )
    done = cli("train", *argv)
    assert done.status == 0, done.err
    reason = "all photos of dog were held out at once, because they are a single photo, copies or one group; add others"
    assert f"refusal photos of none of the classes cannot be refused: {reason}" in done.out
    assert json.load(open("r/report.json", encoding="utf-8"))["refusal_skipped"].startswith(reason)
    asked = ("predict", "--model_fn", "two.pth", "--input", "two")
    assert_one_line_error(cli(*asked, "--unknown"), f"{reason}, and start a new run; or use --min_probability")
    assert cli(*asked, "--min_probability", 0.5).status == 0


def test_a_checkpoint_without_distances_says_what_it_would_need(cli, trained):
    assert_one_line_error(cli("predict", "--model_fn", "tiny.pth", "--unknown"), "start a new run with --freeze, and")
    assert cli("predict", "--model_fn", "tiny.pth", "--coverage", 0.9).status == 0, "probabilities it has"
    content = torch.load("tiny.pth", weights_only=True)
    content.pop("label_scores")
    torch.save(content, "old.pth")
    assert_one_line_error(cli("predict", "--model_fn", "old.pth", "--coverage", 0.9), "train again")
    assert cli("predict", "--model_fn", "old.pth").status == 0
    content.pop("no_novelty")
    torch.save(content, "old.pth")
    assert_one_line_error(cli("predict", "--model_fn", "old.pth", "--unknown"), "with --freeze and this version")


BROKEN = {
    "a missing part": lambda novelty: novelty["space"].pop("basis"),
    "another shape": lambda novelty: novelty["space"].update(references=torch.zeros(3, 2)),
    "a number in place of a list": lambda novelty: novelty["space"].update(discriminants=torch.tensor(1.0)),
    "no distances": lambda novelty: novelty.update(held_out=torch.zeros(0)),
    "not a number": lambda novelty: novelty["held_out"].fill_(torch.nan),
    "a deviation of 0": lambda novelty: novelty.update(deviations=(1.0, 1.0, 0.0)),
    "another network": lambda novelty: novelty["space"].update(
        {name: novelty["space"][name][:9] for name in ("centre", "basis")}
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", BROKEN)
def test_broken_distances_are_refused_in_one_line(how, cli, known):
    content = torch.load("known.pth", weights_only=True)
    BROKEN[how](content["novelty"])
    torch.save(content, "known.pth")
    assert_one_line_error(cli("predict", *PREDICT, "--input", "others"), "train it again")
