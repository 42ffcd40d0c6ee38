"""Every command of the README is one that the real parsers take, and those that need nothing are run."""

import re
import shlex
from pathlib import Path

import pytest
import torch

import export
import predict
import train
from model_loader import _modules_until
from photo_classifier import config
from photo_classifier.data.checks import ON_LEAK
from photo_classifier.models.backbones import BACKBONES, build, find_backbone
from photo_classifier.runtime.device import PRECISIONS
from photo_classifier.runtime.errors import UserError, choose

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
TEXTS = README + "".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md")))
COMMAND = r"(?:python|torchrun [^`\n|]*?) (train|predict|export)\.py((?: (?!--help)[^`\n|]+)?)"
COMMANDS = sorted(set(re.findall(COMMAND, TEXTS)))


TRAININGS = [arguments for name, arguments in COMMANDS if name == "train"]


def check_training(arguments):
    """Raises what the tool would, without data, weights and work."""
    asked = config.TrainConfig(**config.parse_args(shlex.split(arguments)))
    config.check(asked)
    train.check_choices(asked)
    choose("--precision", asked.precision, PRECISIONS)
    choose("--on_leak", asked.on_leak, ON_LEAK)
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


@pytest.mark.parametrize("arguments", [arguments for name, arguments in COMMANDS if name == "export"])
def test_an_export_of_the_readme_parses(arguments):
    assert export.parse_args(shlex.split(arguments)).get("to", "onnx") in export.EXPORTS


def test_the_other_commands_of_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"(?:^    |`)make (\w+)", TEXTS, re.M):
        assert f"\n{target}:" in makefile
    for script in set(re.findall(r"python ([\w/]+(?<!_onnx)\.py)", TEXTS)):
        assert (ROOT / script).is_file(), script
    shared = (ROOT / "benchmarks" / "common" / "__init__.py").read_text(encoding="utf-8")
    for script, flags in re.findall(r"python (benchmarks/\w+\.py)((?: [\w-]+)+)", TEXTS):
        known = (ROOT / script).read_text(encoding="utf-8") + shared
        assert all(f'"{flag}"' in known for flag in re.findall(r"--\w+", flags)), script + flags


def test_files_that_the_readme_points_to_are_there():
    for name in re.findall(r"\]\(((?!http)[^)#]+)\)|`(docs/[\w.]+)`", README):
        assert (ROOT / (name[0] or name[1])).is_file(), name


def test_the_design_names_every_script():
    design = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    assert not {path.name for path in ROOT.glob("*.py") if f"`{path.name}`" not in design}


def test_the_readme_is_as_wide_as_the_code():
    lines = [line for line in TEXTS.splitlines() if not line.startswith(("|", "    "))]  # but for tables and commands
    assert not [line for line in lines if len(line) > 120]


def test_the_readme_names_every_backbone_of_the_table():
    for name in BACKBONES:
        assert f"`{name}`" in README
    assert len(README.splitlines()) < 400
