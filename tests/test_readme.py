"""Every command of the README is one that the real parsers take."""

import re
import shlex
from pathlib import Path

import pytest

import config
import predict
from backbones import BACKBONES

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
COMMANDS = sorted(set(re.findall(r"python (train|predict)\.py((?: (?!--help)[^`\n|]+)?)", README)))


@pytest.mark.parametrize(("name", "arguments"), COMMANDS)
def test_a_command_of_the_readme_parses(name, arguments):
    given = {"train": config, "predict": predict}[name].parse_args(shlex.split(arguments))
    if name == "train":
        config.check(config.TrainConfig(**given))


def test_the_readme_names_every_backbone_of_the_table():
    for name in BACKBONES:
        assert f"`{name}`" in README
    assert len(README.splitlines()) < 400
