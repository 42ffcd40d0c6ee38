"""The rules of the house, held by reading its source."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import predict
from photo_classifier import config

ROOT = Path(__file__).parent.parent
ROOMS = {path.stem: path for path in ROOT.glob("*.py")}


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]


def test_imports_run_one_way():
    graph = {name: set(imports_of(path)) & ROOMS.keys() for name, path in ROOMS.items()}
    assert not graph["utils"]
    assert not {name for name, used in graph.items() if used & {"train", "predict"}}
    while graph:  # a room that imports none of those left can go; a circle never can
        free = {name for name, used in graph.items() if not used & graph.keys()}
        assert free, f"a circle among {sorted(graph)}"
        graph = {name: used for name, used in graph.items() if name not in free}


PACKAGES = {"PIL": "pillow", "sklearn": "scikit_learn", "google": "protobuf"}  # where an import has another name


@pytest.mark.parametrize("files", ["requirements.txt", "requirements.txt tests/requirements.txt"])
def test_every_package_that_is_imported_is_required(files):
    tests = {path.stem: path for path in (ROOT / "tests").glob("*.py")} if "tests" in files else {}
    used = {name for path in [*ROOMS.values(), *tests.values()] for name in imports_of(path)}
    used = {PACKAGES.get(name, name) for name in used - ROOMS.keys() - tests.keys() - sys.stdlib_module_names}
    lines = "".join((ROOT / file).read_text(encoding="utf-8") for file in files.split())
    assert not used - {name.replace("-", "_") for name in re.findall(r"^[\w-]+", lines, re.M)}


@pytest.mark.parametrize("name", ["train", "predict"])
def test_help_answers_without_importing_torch(name):
    code = f"import sys; sys.argv = ['{name}', '--help']; import runpy\n"
    code += f"try: runpy.run_path('{name}.py', run_name='__main__')\nexcept SystemExit as stop: assert not stop.code\n"
    code += "heavy = {'torch', 'torchvision', 'numpy', 'pandas', 'PIL', 'timm', 'sklearn'} & set(sys.modules)\n"
    code += "assert not heavy, heavy"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "examples:" in done.stdout


@pytest.mark.parametrize("room", [config, predict])
def test_every_flag_has_a_default_and_every_default_a_flag(room, capsys):
    with pytest.raises(SystemExit):
        room.parse_args(["--help"])
    shown = capsys.readouterr().out
    table = {"config": "TrainConfig", "predict": "PredictConfig"}[room.__name__]
    for name in set(getattr(room, table).__dataclass_fields__) - {"preferred_size"}:
        assert f"--{name}" in shown


def test_nothing_reads_a_file_that_could_run_code():
    for path in ROOMS.values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "pickle.load", "eval", "exec"):
                safe = [k for k in node.keywords if k.arg == "weights_only" and getattr(k.value, "value", None) is True]
                assert safe, f"{path.name}:{node.lineno}"
