import csv
import json
import math
import shutil
import sys
from pathlib import Path

import pytest
from helpers import assert_one_line_error

from photo_classifier.comparison.pairs import Pair
from photo_classifier.evaluation.metrics import wilson_interval

LABELS = ["cat", "dog"] * 20


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")  # lines that are looked for are not broken, wherever the tests run


def write_csv(path, rows):
    with open(path, "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, rows[0], extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)


def make_run(folder, wrong=(), labels=LABELS, first=0, title="validation", **settings):
    """Makes the folder of a finished run that is wrong on these of its held-out photos."""
    Path(folder).mkdir(parents=True)
    config = {"model_name": "resnet", "n_epochs": 10, "data_dir": "photos", "lr": 0.001, **settings}
    n, n_right = len(labels), len(labels) - len(wrong)
    measures = {
        "n_images": n,
        "n_correct": n_right,
        "accuracy": n_right / n,
        "accuracy_interval_95": wilson_interval(n_right, n),
    }
    files = {"config": config, "report": {title: {**measures, "negative_log_likelihood": 0.25}}}
    files["finished"] = {"epochs": 10, "seconds": 75.0}
    for name, content in files.items():
        (Path(folder) / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    paths = [f"photos/{index + first}.png" for index in range(n)]
    other = {"cat": "dog", "dog": "cat"}
    rows = [
        {"path": path, "label": label, "predict": other[label] if k in wrong else label, "split": title}
        for k, (path, label) in enumerate(zip(paths, labels, strict=True))
    ]
    write_csv(Path(folder) / "predictions.csv", rows)
    held_out = [{**row, "split": "test" if title == "test" else "valid"} for row in rows]
    write_csv(Path(folder) / "splits.csv", [{"path": "a.png", "label": "cat", "split": "train"}] * 7 + held_out)


def test_a_table_has_only_the_settings_that_differ_and_the_verdict_counts_shared_photos(cli):
    make_run("runs/a", wrong=[0], head_hidden=64, freeze=True)
    make_run("runs/b", wrong=range(1, 11), freeze=True)
    done = cli("compare", "--csv", "all.csv", "--html", "all.html")
    assert (done.status, done.err) == (0, "")
    a, b, _, _, first, _, _, header, *settings, _, heading = done.out.splitlines()[:12]
    assert (a, b) == ("A  runs/a", "B  runs/b")
    assert first == "A  0.9750    0.8712 to 0.9956  40 validation  0.2500  1 min 15 s"
    rows = [line.split() for line in (header, *settings)]
    assert rows == [["data", "train", "head_hidden"], ["A", "photos", "7", "64"], ["B", "photos", "7", "-"]]
    assert heading.startswith("A is first, as its interval begins highest. The other run is compared with it")
    counts = "of 40 shared photos only A is right on 10, only B on 1; this can hardly be chance (p 0.012)."
    assert f"A is better than B: {counts}" in " ".join(done.out.split())
    (best, other) = csv.DictReader(open("all.csv", encoding="utf-8"))
    assert (best["run"], best["verdict"], other["verdict"]) == ("runs/a", "", "worse")
    assert (other["n_shared"], other["run_right_best_wrong"], other["best_right_run_wrong"]) == ("40", "1", "10")
    page = open("all.html", encoding="utf-8").read()
    assert counts in page
    assert "http" not in page


def test_a_solved_head_has_none_of_the_flags_of_epochs(cli):
    make_run("runs/a", head="logistic", n_epochs=10, lr=0.001)
    make_run("runs/b", head="epochs", n_epochs=20, lr=0.001, wrong=[1])
    header, *rows = (line.split()[-3:] for line in cli("compare").out.splitlines()[7:10])
    # the defaults of the other run are no difference
    assert [header, *rows] == [["train", "head", "n_epochs"], ["7", "logistic", "-"], ["7", "epochs", "20"]]


def test_of_many_runs_each_is_compared_with_the_best_at_a_stricter_level(cli):
    make_run("runs/a")
    make_run("runs/b", wrong=range(6))  # p is 0.03
    assert "A is better than B: " in cli("compare", "runs/a", "runs/b").out
    make_run("runs/deeper/c", wrong=range(7), lr=0.1)
    done = cli("compare", "runs")
    assert "counts if p is below 0.025 (0.05 divided by 2 comparisons):" in " ".join(done.out.split())
    assert "A and B cannot be told apart: " in done.out
    assert "A is better than C: " in done.out


@pytest.mark.parametrize(("gained", "lost", "p"), [(7, 3, 352 / 1024), (0, 0, 1), (1, 1, 1), (0, 6, 2 / 64)])
def test_the_p_value_is_that_of_the_binomial(gained, lost, p):
    assert Pair(50, gained, lost).p_value == pytest.approx(p)


def test_the_p_value_of_many_photos_is_exact_and_finite():
    scipy_stats = pytest.importorskip("scipy.stats")
    for gained, lost in ((400, 300), (9000, 11000), (0, 3000)):
        assert math.isclose(
            Pair(0, gained, lost).p_value, scipy_stats.binomtest(gained, gained + lost).pvalue, rel_tol=1e-6
        )


def test_other_photos_and_other_labels_are_told_and_not_counted(cli):
    make_run("runs/a")
    make_run("runs/b", labels=["dog", "dog", *LABELS[2:30]], wrong=[4])
    done = cli("compare", "runs")
    assert "measured on other held-out photos than A: B; " in done.err
    told = "of 29 shared photos only A is right on 1, only B on 0; this can be chance (p 1)."
    assert f"{told} Not counted: 1 photo with another label in A." in " ".join(done.out.split())


def test_runs_are_ranked_only_among_those_that_share_photos(cli):
    make_run("runs/a", data_dir="leaves", labels=LABELS[:12], first=900)
    make_run("runs/b", wrong=range(6), lr=0.1)
    make_run("runs/c", wrong=range(1))
    make_run("runs/old", first=70)
    Path("runs/old/predictions.csv").unlink()
    done = cli("compare", "--csv", "all.csv", "--html", "all.html")
    assert "the 2 groups below cannot be ranked against each other" in " ".join(done.out.split())
    assert "A  runs/c" in done.out
    assert "A is first, " in done.out, "neither one of other data nor one without answers"
    assert "B cannot be told apart: of 40 shared photos only A is right on 5, only B on 0" in done.out
    assert done.out.splitlines()[-1] == "wrote all.csv and all.html"
    assert "D  runs/a" in done.out, "no letter is used twice"
    lone = "D shares no held-out photo with another run, so it is compared with none."
    assert done.out.splitlines()[-2] == lone
    rows = [(row["group"], row["run"], row["lr"]) for row in csv.DictReader(open("all.csv", encoding="utf-8"))]
    names = [("1", "runs/c", "0.001"), ("1", "runs/b", "0.1"), ("1", "runs/old", "0.001"), ("2", "runs/a", "0.001")]
    assert rows == names
    page = open("all.html", encoding="utf-8").read()
    assert page.count("<table>") == 2
    assert lone in page


def test_a_run_by_folds_shows_its_many_photos_and_shares_its_test_photos_with_other_runs(cli):
    make_run("runs/folds", wrong=[1], title="out-of-fold")
    make_run("runs/both", labels=LABELS[:12], first=40, title="test")
    folder, other = Path("runs/folds"), Path("runs/both")
    report = json.loads((folder / "report.json").read_text()) | json.loads((other / "report.json").read_text())
    (folder / "report.json").write_text(json.dumps(dict(reversed(report.items()))))
    tested = (other / "predictions.csv").read_text(encoding="utf-8").partition("\n")[2]
    with open(folder / "predictions.csv", "a", encoding="utf-8", newline="") as file:
        file.write(tested)
    out = cli("compare").out
    assert "40 out-of-fold" in out
    assert out.startswith("A  runs/folds\n"), "and not 12 of 12"
    assert "cannot be told apart: of 12 shared photos only A is right on 0, only B on 0" in out


def test_photos_that_were_moved_are_known_by_their_name_in_the_data_and_their_size(cli):
    make_run("runs/a")
    make_run("runs/b", first=1000, wrong=[4])
    for name, first in (("a", 0), ("b", 1000)):
        rows = [[f"photos/{k + first}.png", f"cat/{k}.png"] for k in range(40)]
        content = {
            "columns": ["path", "key"],
            "splits": {"valid": rows},
            "files": {"valid": [[k, 9] for k in range(40)]},
        }
        (Path("runs") / name / "samples.json").write_text(json.dumps(content))
    done = cli("compare")
    assert "of 40 shared photos only A is right on 1" in done.out
    assert not done.err
    (Path("runs") / "b" / "samples.json").write_text('{"columns": 3, "files": [1]}')
    assert "B shares no held-out photo with another run" in cli("compare").out


def spoil(name, text):
    return lambda: (Path("runs/x") / name).write_text(text, encoding="utf-8")


def measures(**changed):
    def change():
        path = Path("runs/x/report.json")
        report = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({"validation": report["validation"] | changed}), encoding="utf-8")

    return change


@pytest.mark.parametrize(
    ("spoiled", "reason"),
    [
        (lambda: shutil.rmtree("runs/x"), "there is no folder runs/x"),
        (lambda: [path.unlink() for path in Path("runs/x").iterdir()], "runs/x is not the folder of a training run"),
        (lambda: Path("runs/x/config.json").unlink(), "there is no runs/x/config.json"),
        (spoil("config.json", "[" * 100_000), "runs/x/config.json is damaged: it is not a JSON object"),
        (spoil("config.json", '{"architectures": ["bert"]}'), "runs/x is not the folder of a training run"),
        (spoil("ended.json", "{}"), "runs/x is a dry run, or a run that ended before its first save"),
        (lambda: Path("runs/x/finished.json").unlink(), "runs/x is not finished"),
        (lambda: Path("runs/x/report.json").unlink(), "there is no runs/x/report.json"),
        (spoil("report.json", "{"), "runs/x/report.json is damaged: it is not a JSON object"),
        (spoil("report.json", '{"next_steps": []}'), "runs/x/report.json has no accuracy of held-out photos"),
        (spoil("report.json", '{"test": {"n_images": "many"}}'), "is damaged: test: expected int, got str (n_images)"),
        (measures(accuracy=7.5), "report.json is damaged: validation: expected float <= 1.0 (accuracy)"),
        (measures(accuracy=0.75), "report.json is damaged: validation: accuracy is not n_correct of n_images"),
        (measures(accuracy_interval_95=[0.1, 0.2]), "is damaged: validation: accuracy is outside its interval"),
        (measures(n_images=0), "is damaged: validation: expected int >= 1 (n_images)"),
    ],
)
def test_a_folder_that_holds_no_finished_run_is_told_in_a_line(spoiled, reason, cli):
    for name in "abx":
        make_run(f"runs/{name}")
    spoiled()
    done = cli("compare", "runs/a", "runs/b", "runs/x")
    assert done.status == 0
    assert done.err.startswith("warning: left out: ")
    assert reason.replace("/", "\\" if sys.platform == "win32" else "/") in done.err
    assert done.err.count("\n") == 1
    if Path("runs/x").exists() and any(Path("runs/x").iterdir()):
        assert cli("compare", "runs").err == done.err, "it is found among the others"
    assert_one_line_error(cli("compare", "runs/a", "runs/x"), "nothing to compare: 1 finished run in runs/a runs/x; ")


ROW = "photos/1.png,cat,cat,validation\n"
NO_TABLE = "not compared photo by photo, as there is no predictions.csv (earlier versions wrote none): B"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, NO_TABLE),
        ("", "runs/b/predictions.csv is damaged: it has no column label; so runs/b is not compared photo by photo"),
        ("path,label\na.png,cat\n", "runs/b/predictions.csv is damaged: it has no column predict; so runs/b is"),
        ("path,label,predict,split\na\0,cat\n\xff", "is damaged: it cannot be read as a table in UTF-8; so runs/b is"),
        (f"path,label,predict,split\n{ROW}photos/2", "runs/b/predictions.csv is damaged: a row is cut short; so"),
        (f"path,label,predict,split\n{ROW}", "it has 1 validation answers, and report.json is of 40; so runs/b is not"),
    ],
)
def test_a_run_without_usable_answers_keeps_its_row(text, why, cli):
    make_run("runs/a")
    make_run("runs/b", wrong=[1])
    if text is None:
        Path("runs/b/predictions.csv").unlink()
    else:
        Path("runs/b/predictions.csv").write_text(text, encoding="latin-1")
    done = cli("compare")
    assert done.status == 0
    assert "A and B cannot be told apart: photo by photo there is nothing to count" in done.out
    assert done.err.startswith("warning: ")
    assert why.replace("/", "\\" if sys.platform == "win32" else "/") in done.err
    assert done.err.count("\n") == 1, "its photos are not called others"


def test_a_damaged_table_of_splits_and_a_damaged_time_are_told(cli):
    make_run("runs/a")
    make_run("runs/b", wrong=[1])
    cut = "path,label,split\na.png,cat,train\nphotos/0.png,cat,valid\nphotos/1.png,dog,val"
    for text, why in ((cut, "photos are missing"), ("", "it has no column split")):
        Path("runs/b/splits.csv").write_text(text)
        done = cli("compare")
        assert f"splits.csv is damaged: {why}; so the number of training photos is not known" in done.err
        assert done.out.splitlines()[9].endswith("photos  -")
    Path("runs/a/finished.json").write_text('{"seconds": -3}')
    assert "finished.json is damaged: seconds is no time" in cli("compare").err


def test_names_cannot_put_markup_into_the_page(cli):
    make_run("runs/<script>alert(1)<", data_dir="<b>photos", labels=["cat", "dog"])
    make_run("runs/b", wrong=[0], labels=["cat", "dog"])
    assert cli("compare", "--html", "x.html").status == 0
    page = open("x.html", encoding="utf-8").read()
    assert "<script" not in page
    assert "<b>" not in page
    assert "runs/&lt;script&gt;" in page


def test_a_real_run_keeps_the_answer_for_each_held_out_photo_and_its_duration(trained, cli):
    rows = list(csv.DictReader(open("r/predictions.csv", encoding="utf-8")))
    assert list(rows[0]) == ["path", "label", "predict", "probability", "split"]
    n_right = sum(row["label"] == row["predict"] for row in rows)
    assert trained.out.endswith(f"({n_right}/{len(rows)})\n")
    assert json.loads(Path("r/finished.json").read_text())["seconds"] > 0
    shutil.copytree("r", "r2")
    done = cli("compare", "r", "r2", "r/../r2")
    assert done.status == 0, done.err
    assert "A and B cannot be told apart: of 15 shared photos only A is right on 0, only B on 0" in done.out


def test_many_runs_with_long_names_and_settings_fit_a_terminal_of_100_columns(cli):
    for n in range(8):
        settings = {"weights": f"some/long/path/to/weights-{n}.pth", "dropout": n / 10, "lr": n / 7, "resize": n + 256}
        name = f"efficientnet_lite0-20250101-12000{n}-a_folder_of_photos-frozen"
        make_run(f"runs/{name}", wrong=range(n), n_epochs=n, batch_size=n, freeze_until=f"layer{n}", **settings)
    done = cli("compare")
    lines = done.out.splitlines()
    assert max(map(len, lines)) <= 100
    assert sum(line.startswith("H  ") for line in lines) == 4, "the letter begins each part of the table"
    assert "...path/to/weights-7.pth" in done.out
