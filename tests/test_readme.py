"""Every command of the README is one that the real parsers take, and those that need nothing are run."""

import re
import shlex
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from conftest import make_class_folders, save_image

import config
import predict
from assemble import check_names
from audit import ON_LEAK
from backbones import BACKBONES, build, find_backbone
from model_loader import _modules_until
from utils import PRECISIONS, UserError, pick

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
TEXTS = README + "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md")))
COMMAND = r"(?:python|torchrun [^`\n|]*?) (train|predict)\.py((?: (?!--help)[^`\n|]+)?)"
COMMANDS = sorted(set(re.findall(COMMAND, TEXTS)))


TRAININGS = [arguments for name, arguments in COMMANDS if name == "train"]
WANTS = ("--weights", "--resume", "--dataset_name", "--model_name resnet50")  # a file, a run, time
SMALL = ("--image_size", 32, "--n_workers", 0, "--gpu_id", -1)


def needs_nothing(arguments):
    """Whether a training needs neither network nor time."""
    is_offline = "efficientnet_lite0" in arguments or "--use_pretrained" not in arguments
    return is_offline and arguments and not any(flag in arguments for flag in WANTS)


def check_training(arguments):
    """Raises what the tool would, without data, weights and work."""
    asked = config.TrainConfig(**config.parse_args(shlex.split(arguments)))
    config.check(asked)
    check_names(asked)
    pick("--precision", asked.precision, PRECISIONS)
    pick("--on_leak", asked.on_leak, ON_LEAK)
    backbone = find_backbone(asked.model_name)
    if asked.freeze_until:
        with torch.device("meta"):
            _modules_until(build(backbone, will_load=False)[0], asked.freeze_until)


@pytest.mark.parametrize("arguments", TRAININGS)
def test_a_training_of_the_readme_is_one_that_the_tool_takes(arguments):
    check_training(arguments)


@pytest.mark.parametrize(
    "wrong", ["--augment shfits", "--scheduler cosin", "--model_name resnte", "--model_name vgg --freeze_until avgpol"]
)
def test_a_wrong_word_in_the_readme_would_be_found(wrong):
    with pytest.raises(UserError, match="did you mean"):
        check_training(wrong)


@pytest.mark.parametrize("arguments", [arguments for name, arguments in COMMANDS if name == "predict"])
def test_a_prediction_of_the_readme_parses(arguments):
    predict.parse_args(shlex.split(arguments))


@pytest.fixture
def photos(tmp_path):
    """What the commands of the README speak of."""
    make_class_folders(tmp_path / "photos", 5)
    paths = sorted((tmp_path / "photos").rglob("*.png"))
    lines = [f"{path.relative_to(tmp_path / 'photos').as_posix()},{path.parent.name},{path.stem}" for path in paths]
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


def test_the_predictions_of_the_readme_run(cli, photos, monkeypatch):
    (train_line,) = set(re.findall(r"^    python train\.py (--data_dir photos .*)$", README, re.M)[:1])
    assert cli("train", *shlex.split(train_line), *SMALL, "--n_epochs", 1, "--views", 1).status == 0
    lines = [line for name, line in COMMANDS if name == "predict" and "--model_fn efficientnet_lite0.pth" in line]
    n_rows = {"": 3, "new_photos": 3, "new_photos photo.jpg": 4, "new_photos/**/*.jpg list.csv": 4}
    n_rows |= {"-": 2, "labelled_photos": 3}
    for line in lines:
        monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=[b"photo.jpg\n", b"new_photos/a/1.jpg\n"]))
        done = cli("predict", *shlex.split(line), "--n_workers", 0, "--gpu_id", -1)
        assert done.status == 0, done.err
        inputs = " ".join(predict.parse_args(shlex.split(line)).get("input", ()))
        assert f": {n_rows.pop(inputs)} rows" in done.out + done.err, line
    assert {path.name for path in Path().glob("*report/*")} >= {"report.json"}
    assert Path("result.png").exists()
    assert not n_rows


def test_the_other_commands_of_the_readme_exist(tmp_path):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:^    |`)make (\w+)", TEXTS, re.M):
        assert f"\n{target}:" in makefile
    for script in set(re.findall(r"python ([\w/]+\.py)", TEXTS)):
        assert (ROOT / script).is_file(), script
    done = subprocess.run([sys.executable, ROOT / "features.py"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0
    assert "are kept" in done.stdout


def test_files_that_the_readme_points_to_are_there():
    for name in re.findall(r"\]\(((?!http)[^)#]+)\)|`(docs/[\w.]+)`", README):
        assert (ROOT / (name[0] or name[1])).is_file(), name


def test_the_design_names_every_room():
    design = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    assert not {path.name for path in ROOT.glob("*.py") if f"`{path.name}`" not in design}


def test_the_readme_names_every_backbone_of_the_table():
    for name in BACKBONES:
        assert f"`{name}`" in README
    assert len(README.splitlines()) < 400
