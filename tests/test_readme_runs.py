"""The commands of the README and of docs/ that need neither network nor time, run as they are typed, on tiny images."""

import ast
import re
import runpy
import shlex
import shutil
import textwrap
import types
from pathlib import Path

import pytest
from helpers import NAME, make_class_folders, save_image
from test_readme import COMMANDS, README, TRAININGS

import predict

WANTS = ("--weights", "--splits", "--resume", "--dataset_name", "--model_name resnet50")  # a file, a run, time
SMALL = ("--image_size", 32, "--n_workers", 0, "--gpu_id", -1)


def needs_nothing(arguments):
    """Whether a training needs neither network nor time."""
    is_offline = "efficientnet_lite0" in arguments or "--use_pretrained" not in arguments
    return is_offline and arguments and not any(flag in arguments for flag in WANTS)


@pytest.fixture
def photos(tmp_path):
    """What the commands of the README speak of."""
    make_class_folders(tmp_path / "photos", 9)
    paths = sorted((tmp_path / "photos").rglob("*.png"))
    names = [path.relative_to(tmp_path / "photos").as_posix() for path in paths]
    lines = [f"{name},{name.split('/')[0]},plant {n % 5 // 2} of {name[0]}" for n, name in enumerate(names)]
    (tmp_path / "photos" / "labels.csv").write_text("\n".join(["path,label,plant", *lines]), encoding="utf-8")
    shutil.make_archive("photos", "zip", tmp_path / "photos")
    make_class_folders(tmp_path / "labelled_photos", 1, seed=9)
    for n in range(3):
        save_image(tmp_path / "new_photos" / "a" / f"{n}.jpg", n, n)
    save_image(tmp_path / "photo.jpg", 0, 7)
    (tmp_path / "list.csv").write_text("path\nphoto.jpg\n")


@pytest.mark.parametrize("arguments", [*filter(needs_nothing, TRAININGS)])
def test_a_training_of_the_readme_that_needs_nothing_runs(arguments, cli, photos):
    done = cli("train", *shlex.split(arguments), *SMALL, "--views", 1, "--dry_run")
    assert done.status == 0, done.err


def test_the_lines_that_keep_what_was_learnt_run_with_more_photos_and_one_class_more(cli, photos, tmp_path):
    begun = re.compile("--weights (resnet|efficientnet_lite0).pth")
    lines = sorted(begun.sub("--weights resnet.pth", line) for line in TRAININGS if begun.search(line))
    (same_test,) = [line for line in TRAININGS if "--splits runs/first" in line and not begun.search(line)]
    assert len(lines) == 4
    tiny = ("--model_name", NAME, *SMALL, "--n_epochs", 1)
    first = ("--data_dir", "photos", *tiny, "--run_dir", "runs/first", "--model_fn", "resnet.pth")
    assert cli("train", *first).status == 0
    done = cli("train", *shlex.split(same_test), *SMALL, "--dry_run")
    assert done.status == 0, done.err
    for n, line in enumerate(lines):
        save_image(tmp_path / "photos" / "cat" / f"more{n}.png", 0, 50 + n)
        if line.endswith("--freeze"):
            make_class_folders(tmp_path / "photos", 5, ("horse",))
        done = cli("train", *shlex.split(line), *tiny, "--model_fn", "second.pth")
        assert done.status == 0, done.err
        assert "head    kept from resnet.pth: cat, dog, 개" + "; new: horse" * line.endswith("--freeze") in done.out
        assert "held-out photos of the earlier classes" in done.out


def shapes(text):
    """The lines of a text without what depends on the photos and the machine."""
    return {re.sub(r"runs/\S+|\d[\d.,]*(?:e[-+]\d+)?", "#", line) for line in text.splitlines()}


def printed_shapes():
    """Those of the output in the README, without the lines that only some runs print, and those of predict.py."""
    (block,) = re.findall(r"\(the main lines\):\n\n((?:    .*\n)+)", README)
    lines = textwrap.dedent(block).replace("dataset/digits", "photos").splitlines()
    return shapes("\n".join(line for line in lines if not line.startswith(("labels", "next", "wrote", "sheet", "out"))))


def test_the_predictions_of_the_readme_run(cli, photos, monkeypatch):
    (train_line,) = set(re.findall(r"^    python train\.py (--data_dir photos .*)$", README, re.M)[:1])
    done = cli("train", *shlex.split(train_line), *SMALL, "--views", 1)
    assert done.status == 0, done.err
    assert printed_shapes() <= shapes(done.out), "renew it: python benchmarks/readme.py --only first_run"
    lines = [line for name, line in COMMANDS if name == "predict" and "--model_fn efficientnet_lite0.pth" in line]
    n_rows = {"": 6, "new_photos": 3, "new_photos photo.jpg": 4, "new_photos/**/*.jpg list.csv": 4}
    n_rows |= {"-": 2, "labelled_photos": 3}
    for line in sorted(lines):
        monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=[b"photo.jpg\n", b"new_photos/a/1.jpg\n"]))
        done = cli("predict", *shlex.split(line), "--n_workers", 0, "--gpu_id", -1)
        assert done.status == 0, done.err
        inputs = " ".join(predict.parse_args(shlex.split(line)).get("input", ()))
        assert f": {n_rows[inputs]} rows" in done.out + done.err, line
    assert {path.name for path in Path().glob("*report/*")} >= {"report.html", "report.json"}
    assert len([*Path("heat").iterdir()]) == 3
    assert Path("result.png").exists()
    assert n_rows.keys() == {" ".join(predict.parse_args(shlex.split(line)).get("input", ())) for line in lines}


def test_the_program_of_the_readme_runs_and_only_when_it_is_the_main_one(trained, tmp_path, capsys):
    (program,) = re.findall(r"^    from photo_classifier import .*\n(?:(?:    .*)?\n)+", README, re.M)
    (tmp_path / "mine.py").write_text(textwrap.dedent(program), encoding="utf-8")
    shutil.copy("tiny.pth", "efficientnet_lite0.pth")
    save_image(tmp_path / "a.jpg", 0, 0)
    runpy.run_path("mine.py", run_name="__mp_main__")  # as a process that decodes does where it is spawned
    assert not capsys.readouterr().out
    runpy.run_path("mine.py", run_name="__main__")
    (_, probability, reason), (*_, why) = ast.literal_eval(capsys.readouterr().out)
    assert probability > 0
    assert not reason
    assert "No such file" in why
