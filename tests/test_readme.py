"""Every command of the README and of docs/ is one that the real parsers take, and what both point to is there."""

import dataclasses
import re
import shlex
from pathlib import Path

import pytest
import torch

import compare
import export
import predict
import train
from model_loader import _modules_until
from photo_classifier import config, flag_rules
from photo_classifier.data.checks import ON_LEAK
from photo_classifier.models.backbones import BACKBONES, build, find_backbone
from photo_classifier.runtime.device import PRECISIONS
from photo_classifier.runtime.errors import UserError, choose

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = "".join(page.read_text(encoding="utf-8") for page in PAGES)
COMMAND = r"(?:python|torchrun [^`\n|]*?) (train|predict|export|compare)\.py((?: (?!--help)[^`\n|]+)?)"
COMMANDS = sorted(set(re.findall(COMMAND, TEXTS)))


TRAININGS = [arguments for name, arguments in COMMANDS if name == "train"]


def check_training(arguments):
    """Raises what the tool would, without data, weights and work."""
    asked = config.TrainConfig(**config.parse_args(shlex.split(arguments)))
    flag_rules.check(asked)
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


@pytest.mark.parametrize("arguments", [arguments for name, arguments in COMMANDS if name == "compare"])
def test_a_comparison_of_the_readme_parses(arguments):
    assert compare.parse_args(shlex.split(arguments))


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_a_file_and_a_heading_that_are_there(page):
    text = page.read_text(encoding="utf-8")
    for link, image, code in re.findall(r"\]\(((?!http)[^)]+)\)|src=\"(.*?)\"|`(docs/[\w.]+)`", text):
        name, _, heading = (link or image or code).partition("#")
        target = (ROOT if code else page.parent) / name if name else page
        assert target.is_file(), link
        assert not heading or heading in headings(target), link


def test_the_readme_leads_to_every_page():
    assert not [page.name for page in PAGES[1:] if f"](docs/{page.name})" not in README]


def headings(page):
    """The anchors that GitHub gives to the headings of a page."""
    titles = re.findall(r"^#+ (.*)", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


def test_the_page_of_flags_holds_the_help_of_every_flag():
    page = " ".join((ROOT / "docs" / "flags.md").read_text(encoding="utf-8").split())
    for flags in (config.TrainConfig, config.PredictConfig, config.ExportConfig, config.CompareConfig):
        for field in filter(lambda field: field.metadata, dataclasses.fields(flags)):
            assert f"--{field.name} " in page or "bare" in field.metadata
            assert field.metadata["help"] in page, "write the page anew: python benchmarks/readme.py --only flags"


def test_make_demo_types_the_first_commands_of_the_readme():
    demo = (ROOT / "Makefile").read_text(encoding="utf-8").split("\ndemo:")[1].split("\n\n")[0]
    first = re.findall(r"^    python (\w+\.py .*)", README, re.M)[:2]
    assert [line.split("python ")[1] for line in demo.splitlines() if ".py" in line] == first


def test_the_design_names_every_script():
    design = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    assert not {path.name for path in ROOT.glob("*.py") if f"`{path.name}`" not in design}


def test_the_readme_is_as_wide_as_the_code():
    lines = [line for line in TEXTS.splitlines() if not line.startswith(("|", "    "))]  # but for tables and commands
    assert not [line for line in lines if len(line) > 120]


def test_no_page_is_too_long_to_be_read():
    assert len(README.splitlines()) < 250
    assert not [page.name for page in PAGES if len(page.read_text(encoding="utf-8").splitlines()) >= 400]


def test_the_page_of_weights_names_every_backbone_of_the_table():
    page = (ROOT / "docs" / "weights.md").read_text(encoding="utf-8")
    assert not [name for name in BACKBONES if f"`{name}`" not in page]
