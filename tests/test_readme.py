"""Every command of the README is one that the real parsers take, and those that need nothing are run."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import make_class_folders

import config
import predict
from backbones import BACKBONES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
TEXTS = README + "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md")))
COMMAND = r"(?:python|torchrun [^`\n|]*?) (train|predict)\.py((?: (?!--help)[^`\n|]+)?)"
COMMANDS = sorted(set(re.findall(COMMAND, TEXTS)))


@pytest.mark.parametrize(("name", "arguments"), COMMANDS)
def test_a_command_of_the_readme_parses(name, arguments):
    given = {"train": config, "predict": predict}[name].parse_args(shlex.split(arguments))
    if name == "train":
        config.check(config.TrainConfig(**given))


def test_the_two_commands_of_the_readme_run(cli, tmp_path):
    (train_line,) = set(re.findall(r"^    python train\.py (--data_dir photos .*)$", README, re.M)[:1])
    predict_line = re.search(r"^    python predict\.py (.* --input new_photos)$", README, re.M)[1]
    make_class_folders(tmp_path / "photos", 5)
    make_class_folders(tmp_path / "new_photos", 1, seed=7)
    done = cli("train", *shlex.split(train_line), "--n_epochs", 1, "--image_size", 32, "--views", 1)
    assert done.status == 0, done.err
    assert cli("predict", *shlex.split(predict_line)).status == 0
    assert len((tmp_path / "result.csv").read_text(encoding="utf-8-sig").splitlines()) == 4


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
