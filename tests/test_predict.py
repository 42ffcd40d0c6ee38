import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import types

import pytest
import torch
from helpers import assert_one_line_error, gallery, on_windows

import predict
from photo_classifier.evaluation.report_files import FIGURES, PAGE
from photo_classifier.prediction.predictor import Predictor


def rows(path="result.csv"):
    with open(path, encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_where_openvino_is_missing_torch_predicts_and_a_line_says_so(trained, cli, monkeypatch):
    content = torch.load("tiny.pth", weights_only=True)
    torch.save({**content, "engine": "openvino"}, "compiled.pth")
    monkeypatch.setitem(sys.modules, "openvino", None)
    done = cli("predict", "--model_fn", "compiled.pth", "--gpu_id", -1)
    assert done.status == 0, done.err
    assert "engine  --engine openvino needs openvino, which is not installed; pip install openvino; torch" in done.out


def test_one_row_for_every_input_in_input_order(cli, trained, image_folder, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"nothing")
    done = cli("predict", "--model_fn", "tiny.pth", "--input", image_folder / "dog", "bad.jpg",
               image_folder / "cat" / "00.png", "--n_workers", 0)  # fmt: skip
    assert done.status == 3
    found = rows()
    assert [row["file_dir"] for row in found] == [
        *(str(image_folder / "dog" / f"{n:02d}.png") for n in range(10)),
        "bad.jpg",
        str(image_folder / "cat" / "00.png"),
    ]
    assert [row["status"] for row in found] == ["ok"] * 10 + ["error", "ok"]
    assert (found[10]["predict"], found[10]["probability"]) == ("", "")
    assert found[10]["reason"]
    assert ", 1 could not be read" in done.out
    assert f"unread  bad.jpg: {found[10]['reason']}\n" in done.out
    (tmp_path / "bad").mkdir()
    for n in range(5):
        (tmp_path / "bad" / f"{n}.jpg").write_bytes(b"nothing")
    out = cli("predict", "--model_fn", "tiny.pth", "--input", "bad", "--n_workers", 0).out
    assert out.count("unread  bad") == 3
    assert "        and 2 more: the rows with status `error` in result.csv, each with its reason\n" in out


def test_photos_of_the_training_are_named_as_such_wherever_they_are(cli, trained, image_folder, tmp_path):
    common = ("predict", "--model_fn", "tiny.pth", "--n_workers", 0, "--report", "rep", "--input")
    out = cli(*common, image_folder).out  # 24 of the 30 were in training
    others = [row for row in rows() if row["file_dir"][-6:] in ("08.png", "09.png")]
    right = sum(int(row["correct"]) for row in others)
    flatters = (
        f"24 of 30 photos were in training: the accuracy on them looks better than it is; "
        f"on the other photos it is {right / 6:.4f}"
    )
    assert f"seen    {flatters} ({right}/6)\naccuracy " in out
    assert json.load(open("rep/report.json", encoding="utf-8"))["in_training"]["n_images"] == 24
    assert flatters in open("rep/report.html", encoding="utf-8").read()
    moved = tmp_path / "moved"
    moved.mkdir()
    for n, path in enumerate(sorted(image_folder.rglob("*.png"))):
        shutil.copy(path, moved / f"renamed {n}.png")
    assert "24 of 30 photos were in training: the model has learned their answers" in cli(*common, moved).out
    state = json.load(open("result.json", encoding="utf-8"))["counts"]
    assert (state["n_seen"], state["n_seen_labelled"]) == (24, 0)
    assert "all 1 photos" not in cli(*common, image_folder / "cat" / "00.png").out
    assert "in training" not in cli(*common, image_folder / "cat" / "08.png").out
    assert "seen" not in cli(*common[:-1]).out, "the held-out photos"


def test_the_table_opens_in_excel_and_has_the_fixed_columns(cli, trained):
    cli("predict", "--model_fn", "tiny.pth", "--n_workers", 0)
    assert open("result.csv", "rb").read(3) == b"\xef\xbb\xbf"
    header = open("result.csv", encoding="utf-8-sig").readline().strip()
    assert header == "file_dir,predict,probability,label,correct,status,reason"
    assert {row["label"] for row in rows()} == {"cat", "dog", "개"}
    assert all(0 <= float(row["probability"]) <= 1 for row in rows())


def test_folders_that_are_classes_are_labels(cli, trained, image_folder):
    done = cli("predict", "--model_fn", "tiny.pth", "--input", image_folder, "--n_workers", 0)
    assert "/30)" in done.out
    (image_folder / "wolf").mkdir()
    done = cli("predict", "--model_fn", "tiny.pth", "--input", image_folder, "--n_workers", 0)
    assert "not used as labels" in done.out
    assert "accuracy" not in done.out


def test_the_held_out_images_are_found_from_another_folder(cli, trained, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    done = cli("predict", "--model_fn", "../tiny.pth", "--n_workers", 0)
    assert done.out.splitlines()[-1] == trained.out.splitlines()[-1]


def test_a_name_with_a_newline_is_one_row(cli, trained, image_folder):
    try:
        os.rename(image_folder / "cat" / "00.png", image_folder / "cat" / "a\nb 개.png")
    except OSError:
        pytest.skip("no such names here")
    cli("predict", "--model_fn", "tiny.pth", "--input", image_folder / "cat", "--n_workers", 0)
    assert [row["file_dir"].endswith("a\nb 개.png") for row in rows()].count(True) == 1


def test_bad_images_among_many_shift_nothing(cli, trained, image_folder, tmp_path):
    good = sorted(map(str, image_folder.rglob("*.png"))) * 2
    bad = sorted(map(str, gallery.unreadable(tmp_path / "bad").values()))
    inputs = random.Random(0).sample(good + bad, len(good) + len(bad))
    with open("inputs.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["path"], *([name] for name in inputs)])
    done = cli("predict", "--model_fn", "tiny.pth", "--input", "inputs.csv", "--n_workers", 2, "--batch_size", 8)
    assert done.status == 3
    found = rows()
    assert [row["file_dir"] for row in found] == inputs
    assert [row["status"] for row in found] == ["error" if name in bad else "ok" for name in inputs]
    assert all(row["reason"] and not row["predict"] for row in found if row["status"] == "error")
    alone = {}
    predictor = Predictor("tiny.pth", device="cpu", batch_size=8)
    for name in set(good):
        (prediction,) = predictor([name])
        alone[name] = (prediction.predict, prediction.probability)
    for row in found:
        if row["status"] == "ok":
            assert row["predict"] == alone[row["file_dir"]][0]
            assert float(row["probability"]) == pytest.approx(alone[row["file_dir"]][1], abs=1e-6)


def test_an_unreadable_line_or_folder_is_a_row_and_stops_nothing(cli, trained, image_folder, monkeypatch):
    lines = ["path,label", "cat/00.png,cat", "v\0al/x.png,cat", "00.png,dog", "cat/01.png,cat"]
    (image_folder / "t.csv").write_text("\n".join(lines))
    scandir = os.scandir

    def locked(path):
        if os.path.basename(path) == "cat":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    assert cli("predict", "--model_fn", "tiny.pth", "--input", "photos/t.csv", "--n_workers", 0).status == 3
    assert [(row["status"], row["label"]) for row in rows()] == [
        ("ok", "cat"), ("error", "cat"), ("error", "dog"), ("ok", "cat")
    ]  # fmt: skip
    assert "null" in rows()[1]["reason"]
    assert "write its folder too" in rows()[2]["reason"]
    monkeypatch.setattr(os, "scandir", locked)
    for inputs, n_rows in ((["photos"], 21), (["photos/dog", "photos/cat"], 11)):
        done = cli("predict", "--model_fn", "tiny.pth", "--input", *inputs, "--n_workers", 0)
        assert (done.status, len(rows())) == (3, n_rows), done.err
        (error,) = [row for row in rows() if row["status"] == "error"]
        assert error["file_dir"] == os.path.join("photos", "cat")
        assert "cannot read the folder" in error["reason"]
        assert "Permission denied" in error["reason"]


@pytest.mark.skipif(on_windows, reason="Windows has no such signals")
def test_a_run_that_is_stopped_twice_resumes_to_the_same_file(cli, trained, image_folder, monkeypatch):
    names = [f"{path}\n".encode() for path in sorted(image_folder.rglob("*.png")) * 4]
    argv = ("--model_fn", "tiny.pth", "--input", "-", "--batch_size", 4, "--top_k", 2)

    def run(lines, *more):
        monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=lines))
        return cli("predict", *argv, "--n_workers", 0, *more)

    def terminated():
        yield from names[:41]
        signal.raise_signal(signal.SIGTERM)

    done = run(terminated())
    n_first = len(rows("result.csv.partial"))
    assert (done.status, n_first >= 32) == (143, True)
    there = f"result.csv.partial has {n_first} rows"
    assert done.err == f"stopped; {there}; run the same command with --resume to continue\n"

    command = [sys.executable, predict.__file__, *map(str, argv), "--n_workers", "1", "--resume"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    process.stdin.write(b"".join(names))  # and no end: it waits for more
    process.stdin.flush()
    while len(rows("result.csv.partial")) < 80 and process.poll() is None:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not os.path.exists("result.csv")

    assert run(iter(names), "--resume").status == 0
    resumed, counts = open("result.csv", "rb").read(), json.load(open("result.json", encoding="utf-8"))["counts"]
    run(iter(names))
    assert resumed == open("result.csv", "rb").read()
    assert counts == json.load(open("result.json", encoding="utf-8"))["counts"]
    assert counts["n_rows"] == 120


def test_the_progress_bar_has_a_total_where_the_inputs_are_soon_listed(cli, trained, image_folder, monkeypatch):
    totals, shown = [], predict.progress

    def progress(**options):
        totals.append(options["total"])
        return shown(**options)

    monkeypatch.setattr("predict.progress", progress)
    photo = image_folder / "cat" / "00.png"
    (image_folder / "t.csv").write_text("path\ncat/01.png\ncat/02.png\n")
    argv = ("predict", "--model_fn", "tiny.pth", "--n_workers", 0)
    cli(*argv)
    cli(*argv, "--input", photo, image_folder, image_folder / "t.csv")
    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=[f"{photo}\n".encode()] * 3))
    cli(*argv, "--input", "-")
    assert len(rows()) == 3, "names of stdin are not waited for"
    monkeypatch.setattr("predict.MOST_AHEAD", 5)
    cli(*argv, "--input", image_folder)
    assert (totals, len(rows())) == ([15, 33, None, None], 30)


def test_a_pipe_gets_the_rows_alone_and_the_console_the_rest(cli, trained, image_folder):
    cli("predict", "--model_fn", "tiny.pth", "--input", image_folder, "--n_workers", 0)
    done = cli("predict", "--model_fn", "tiny.pth", "--input", image_folder, "--n_workers", 0, "--result", "-")
    assert done.out.encode() == open("result.csv", "rb").read()[3:].replace(b"\r\n", b"\n")
    assert "wrote stdout: 30 rows" in done.err
    assert "/30)" in done.err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no such device here")
def test_a_full_disk_behind_a_pipe_is_one_line(cli, trained, monkeypatch):
    monkeypatch.setattr(os, "dup", lambda _: os.open("/dev/full", os.O_WRONLY))
    done = cli("predict", "--model_fn", "tiny.pth", "--n_workers", 0, "--result", "-")
    assert_one_line_error(done, "cannot write to stdout: No space left on device, after 0 rows; make room, or")


def test_more_columns_on_request(cli, trained, image_folder):
    common = ("predict", "--model_fn", "tiny.pth", "--input", image_folder, "--n_workers", 0)
    cli(*common, "--top_k", 2, "--probabilities", "--min_probability", 0.4)
    added = "class_1,probability_1,class_2,probability_2,p_cat,p_dog,p_개"
    assert ",".join(rows()[0]) == f"file_dir,predict,probability,best_guess,{added},label,correct,status,reason"
    for row in rows():
        every = {name: float(row[f"p_{name}"]) for name in ("cat", "dog", "개")}
        assert sum(every.values()) == pytest.approx(1, abs=1e-5)
        ranked = sorted(every.values(), reverse=True)
        assert [float(row["probability_1"]), float(row["probability_2"])] == ranked[:2]
        assert every[row["class_1"]] == ranked[0] == float(row["probability"])
        assert row["predict"] == ("unknown" if ranked[0] < 0.4 else row["class_1"])
        assert row["best_guess"] == row["class_1"]


def test_the_mean_of_the_column_correct_is_the_accuracy_of_the_answers(cli, trained, image_folder, tmp_path):
    def mean():
        values = [int(row["correct"]) for row in rows() if row["correct"]]
        return f"{sum(values) / len(values):.4f} ({sum(values)}/{len(values)})"

    (image_folder / "cat" / "bad.png").write_bytes(b"nothing")
    common = ("predict", "--model_fn", "tiny.pth", "--input", image_folder, "--n_workers", 0)
    assert cli(*common).out.splitlines()[-1] == f"accuracy {mean()}"
    middle = sorted(float(row["probability"]) for row in rows() if row["probability"])[15]
    done = cli(*common, "--min_probability", middle)
    assert f"accuracy of those {mean()}" in done.out
    for row in rows():
        assert (row["correct"] == "") == (row["predict"] in ("unknown", ""))
        assert bool(row["best_guess"]) == (row["status"] == "ok")
    cli("predict", "--model_fn", "tiny.pth", "--input", image_folder / "cat" / "00.png", "--n_workers", 0)
    assert rows()[0]["correct"] == "", "no label is known"


def test_unknown_answers_do_not_change_the_accuracy_of_the_model(cli, trained):
    sure = cli("predict", "--model_fn", "tiny.pth", "--n_workers", 0)
    unsure = cli("predict", "--model_fn", "tiny.pth", "--n_workers", 0, "--min_probability", 1)
    assert {row["predict"] for row in rows()} == {"unknown"}
    assert "answered 0.0000 (0/15)" in unsure.out
    assert "refused 15 photos with a probability below 1 (answer `unknown`)" in unsure.out
    assert unsure.out.splitlines()[-1] == sure.out.splitlines()[-1]


def test_photos_that_are_refused_are_told_from_those_of_a_class_that_is_called_unknown(cli, trained, image_folder):
    torch.save({**torch.load("tiny.pth", weights_only=True), "class_names": ["unknown", "dog", "개"]}, "u.pth")
    (image_folder / "cat").rename(image_folder / "unknown")
    argv = ("predict", "--model_fn", "u.pth", "--input", image_folder, "--n_workers", 0)
    assert not cli(*argv).err
    middle = sorted(row["probability"] for row in rows() if row["predict"] == "unknown")[2]
    done = cli(*argv, "--min_probability", middle)
    assert "a class is called 'unknown', like the answer to photos that are refused; the column `reason`" in done.err
    answered = [row for row in rows() if not row["reason"]]
    assert "unknown" in {row["predict"] for row in answered}, "that is the class"
    assert all(row["correct"] for row in answered if row["label"])
    refused = [row for row in rows() if row["reason"]]
    assert {(row["reason"], row["correct"]) for row in refused} == {(f"probability below {float(middle):g}", "")}
    assert "unknown" in {row["best_guess"] for row in refused}
    assert f"answered {len(answered) / 30:.4f} ({len(answered)}/30)" in done.out


def test_the_model_and_the_command_are_beside_the_result(cli, trained, image_folder):
    cli("predict", "--model_fn", "tiny.pth", "--input", image_folder, "gone.png", "--result", "out/a.jsonl")
    about = json.load(open("out/a.json", encoding="utf-8"))
    assert about["checkpoint"]["class_names"] == ["cat", "dog", "개"]
    assert len(about["checkpoint"]["sha256"]) == 64
    assert "python predict.py --model_fn tiny.pth --input" in about["command"]
    assert about["counts"]["n_rows"] == 31
    assert about["counts"]["n_errors"] == 1
    lines = [json.loads(line) for line in open("out/a.jsonl", encoding="utf-8")]
    assert lines[-1]["probability"] is None
    assert lines[0]["label"] == "cat"


def test_a_report_says_what_training_said_and_a_sheet_shows_the_photos(cli, trained):
    done = cli("predict", "--model_fn", "tiny.pth", "--n_workers", 0, "--report", "rep", "--sheet", "s.png")
    assert done.status == 0, done.err
    ours = json.load(open("rep/report.json", encoding="utf-8"))["validation"]
    theirs = json.load(open("r/report.json", encoding="utf-8"))["validation"]
    for name in ("n_correct", "confusion_matrix", "classes", "accuracy_interval_95"):
        assert ours[name] == theirs[name]
    for name in ("negative_log_likelihood", "expected_calibration_error"):
        assert ours[name] == pytest.approx(theirs[name], abs=1e-5)
    assert [m["file_dir"] for m in ours["mistakes"]] == [m["file_dir"] for m in theirs["mistakes"]]
    assert set(os.listdir("rep")) == {PAGE, "report.json", *(f"{figure}.png" for figure in FIGURES)}
    assert "s.png: 15 of 15 photos" in done.out
    assert "95 % interval" in done.out
    assert cli("predict", "--model_fn", "tiny.pth", "--n_workers", 0, "--sheet", "s.png").status == 0


@pytest.mark.parametrize("name", [*(f"{figure}.png" for figure in FIGURES), "report.json", PAGE])
def test_a_report_overwrites_those_of_an_earlier_run_and_no_file_of_the_user(name, cli, trained):
    argv = ("predict", "--model_fn", "tiny.pth", "--n_workers", 0, "--report", "rep")
    os.mkdir("rep")
    with open(f"rep/{name}", "w") as file:
        file.write('{"mine": 1}')
    assert_one_line_error(cli(*argv), f"{name} was not written by this tool; give another folder")
    assert os.listdir("rep") == [name]
    if name == "report.json":
        os.unlink("rep/report.json")
        assert cli(*argv).status == 0
        assert cli(*argv).status == 0


def test_a_report_without_labels_shows_the_answers_and_says_where_labels_come_from(cli, trained, image_folder):
    os.mkdir("rep")
    shutil.copy("r/report.json", "rep")  # of an earlier prediction
    name = image_folder / "cat" / "09.png"
    done = cli("predict", "--model_fn", "tiny.pth", "--input", name, "--report", "rep", "--n_workers", 0)
    assert "no labels are known, so it shows only the answers; give class folders or a table with labels" in done.out
    assert os.listdir("rep") == [PAGE]
    page = open(f"rep/{PAGE}", encoding="utf-8").read()
    assert "1 photos were" not in page
    assert "1 photo has no known label" in page
    assert "09.png" in page
    open("broken.jpg", "w").close()
    done = cli("predict", "--model_fn", "tiny.pth", "--input", "broken.jpg", "--report", "rep", "--explain", "heat")
    assert "heat    none: no photo could be read" in done.out
    assert "report  no photo could be read" in done.out
    assert "No photo could be read, so there is no answer." in open(f"rep/{PAGE}", encoding="utf-8").read()


MISTAKES = {
    "sheet ending": (["--model_fn", "tiny.pth", "--sheet", "a.jpg"], "does not end in .png"),
    "sheet over a photo": (["--model_fn", "tiny.pth", "--sheet", "mine.png"], "mine.png was not written by this tool"),
    "report into a run": (["--model_fn", "tiny.pth", "--report", "r"], "--report r is the folder of a training run"),
    "top_k": (["--model_fn", "tiny.pth", "--top_k", "4"], "--top_k 4: tiny.pth has 3 classes"),
    "ending": (["--model_fn", "tiny.pth", "--result", "result.xls"], "choose from .csv, .jsonl, .parquet, .xlsx"),
    "pipe and resume": (["--model_fn", "tiny.pth", "--result", "-", "--resume"], "--resume needs a file"),
    "over the user's table": (
        ["--model_fn", "tiny.pth", "--result", "mine.csv"],
        "mine.csv exists and was not written",
    ),
    "no checkpoint": (["--model_fn", "nowhere.pth"], "there is no checkpoint nowhere.pth; this folder has"),
    "no input": (["--model_fn", "tiny.pth", "--input", "nowhere"], "--input nowhere does not exist"),
    "empty folder": (["--model_fn", "tiny.pth", "--input", "empty"], "no images were found"),
    "no model": (["--model_fn", "text.pth"], "text.pth"),
    "device": (["--model_fn", "tiny.pth", "--gpu_id", "7"], "--gpu_id 7 does not exist on this machine"),
    "flag": (["--model_file", "tiny.pth"], "did you mean --model_fn?"),
    "result": (["--model_fn", "tiny.pth", "--result", "tiny.pth/result.csv"], "cannot be written"),
    "result into a folder": (["--model_fn", "tiny.pth", "--result", "empty"], "--result empty is a folder"),
    "result over the model": (["--model_fn", "tiny.pth", "--result", "tiny.pth"], "would overwrite a model"),
    "another model": (["--model_fn", "resnet.pth"], "this folder has text.pth, tiny.pth; name it with --model_fn"),
    "no flag": (["photos"], "did you mean --input photos?"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_ends_in_one_line_that_says_what_to_do(name, cli, trained, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "mine.png").write_bytes(b"a photo")
    (tmp_path / "mine.csv").write_text("path,label\na.png,cat\n")
    (tmp_path / "text.pth").write_text("hello")
    argv, expected = MISTAKES[name]
    done = cli("predict", *argv)
    assert_one_line_error(done, expected)


# what makes a training of seconds find more than one class
# of every family tests/test_model_loader.py shows that the saved model computes the same
SOME = ("resnet", "efficientnet_lite0", "squeezenet")
LEARNS = dict.fromkeys([*SOME, "timm/resnet10t"], ("--image_size", 32, "--freeze", "--lr", 0.03))
LEARNS["alexnet"] = ("--image_size", 64, "--freeze", "--lr", 3e-2)
LEARNS["squeezenet"] = ("--image_size", 32, "--lr", 3e-4, "--n_epochs", 8)
LEARNS["efficientnet_lite0"] += ("--use_pretrained",)
CHEAP = ("squeezenet", "alexnet", "timm/resnet10t")


@pytest.mark.parametrize(("name", "precision"), [*((n, "auto") for n in SOME), *((n, "fp32") for n in CHEAP)])
def test_any_family_predicts_the_recorded_accuracy(name, precision, cli, split_folder, narrow_classifiers):
    argv = ("--data_dir", split_folder, "--model_name", name, "--views", 1, "--augment", "none", "--batch_size", 4)
    argv = (*argv, "--n_workers", 0, "--gpu_id", -1, "--precision", precision, "--n_epochs", 1, *LEARNS[name])
    done = cli("train", *argv, "--model_fn", "m.pth")
    assert done.status == 0, done.err
    metrics = torch.load("m.pth", weights_only=True)["metrics"]["valid"]
    predicted = cli("predict", "--model_fn", "m.pth", "--n_workers", 0, "--gpu_id", -1)
    assert predicted.out.splitlines()[-1] == done.out.splitlines()[-1]
    assert f"({metrics['correct']}/15)" in predicted.out
    assert len({row["predict"] for row in rows()}) > 1, "one answer for all would prove nothing"
