"""The rules of the structure, held by reading the source."""

import ast
import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest

from photo_classifier import config

ROOT = Path(__file__).parent.parent
SCRIPTS = {path.stem: path for path in ROOT.glob("*.py")}
PACKAGE = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "photo_classifier").rglob("*.py")
}
MODULES = SCRIPTS | PACKAGE
# A sub-package may import those before it and those beside it only where the same number says so.
ORDER = {
    "runtime": 0,
    "data": 1,
    "config": 2,
    "evaluation": 2,
    "models": 2,
    "flag_rules": 3,
    "unused_flags": 3,
    "features": 3,
    "prediction": 3,
    "curation": 4,
    "training": 5,
    "export": 5,
    "comparison": 6,
}
READ_A_CONFIG = {
    "photo_classifier.config",
    "photo_classifier.flag_rules",
    "photo_classifier.unused_flags",
    "photo_classifier.training.resume",
    "photo_classifier.training.summary",
    "photo_classifier.training.next_steps",
    "photo_classifier.comparison.runs",
}


def imports_of(path):
    """The modules and names that a file imports, also those for annotations alone."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from (f"{node.module}.{name.name}" for name in node.names)


def modules_imported_by(name):
    """The modules of this repository that one of them imports."""
    used = {part for word in imports_of(MODULES[name]) for part in (word, word.rpartition(".")[0])}
    return {module for module in used & MODULES.keys() if module not in (name, "photo_classifier")}


def test_the_package_imports_no_script():
    assert not {(name, used) for name in PACKAGE for used in modules_imported_by(name) & SCRIPTS.keys()}


def test_of_the_scripts_train_alone_imports_others():
    for name in SCRIPTS.keys() - {"train"}:
        assert modules_imported_by(name) & SCRIPTS.keys() <= {"utils"}, name


def test_sub_packages_import_in_one_direction():
    wrong = []
    for name in PACKAGE.keys() - {"photo_classifier"}:
        own = name.split(".")[1]
        others = {used.split(".")[1] for used in modules_imported_by(name) & PACKAGE.keys()} - {own}
        wrong += [(name, other) for other in others if ORDER[other] >= ORDER[own]]
    assert not wrong


def test_no_modules_import_each_other():
    graph = {name: modules_imported_by(name) for name in MODULES}
    while graph:  # a module that imports none of those left can go; one in a circle never can
        free = {name for name, used in graph.items() if not used & graph.keys()}
        assert free, f"a circle among {sorted(graph)}"
        graph = {name: used for name, used in graph.items() if name not in free}


def test_only_scripts_and_the_modules_about_flags_read_a_config():
    # as an object, as the file in a run folder, or as a dict that was read from one
    reads = r"\b(TrainConfig|PredictConfig)\b|read_json\([^\n]*config\.json|\.config(\[|\.get\()"
    readers = {name for name, path in PACKAGE.items() if re.search(reads, path.read_text(encoding="utf-8"))}
    assert readers <= READ_A_CONFIG


PACKAGES = {"PIL": "pillow", "sklearn": "scikit_learn", "google": "protobuf"}  # where an import has another name


@pytest.mark.parametrize(
    "files",
    [
        "requirements.txt",
        "requirements.txt requirements-export.txt",
        "requirements.txt requirements-export.txt tests/requirements.txt",
    ],
)
def test_every_package_that_is_imported_is_required(files):
    tests = {path.stem: path for path in (ROOT / "tests").rglob("*.py")} if "tests" in files else {}
    modules = [path for name, path in MODULES.items() if "export" in files or ".export" not in name]
    used = {name.split(".")[0] for path in [*modules, *tests.values()] for name in imports_of(path)}
    own = {"photo_classifier", "helpers", *SCRIPTS, *tests}
    used = {PACKAGES.get(name, name) for name in used - own - sys.stdlib_module_names}
    lines = "".join((ROOT / file).read_text(encoding="utf-8") for file in files.split())
    assert not used - {name.replace("-", "_") for name in re.findall(r"^[\w-]+", lines, re.M)}


@pytest.mark.parametrize("name", ["train", "predict", "export", "compare"])
def test_help_answers_without_importing_torch(name):
    code = f"import sys; sys.argv = ['{name}', '--help']; import runpy\n"
    code += f"try: runpy.run_path('{name}.py', run_name='__main__')\nexcept SystemExit as stop: assert not stop.code\n"
    code += "heavy = {'torch', 'torchvision', 'numpy', 'pandas', 'PIL', 'timm', 'sklearn'} & set(sys.modules)\n"
    code += "assert not heavy, heavy"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "examples:" in done.stdout


def test_a_run_and_a_prediction_import_neither_the_compiler_nor_what_they_do_not_use(split_folder, tmp_path):
    argv = ["--data_dir", split_folder, "--model_name", "timm/test_resnet", "--freeze", "--n_epochs", "1"]
    argv = [*map(str, argv), "--n_workers", "0", "--gpu_id", "-1", "--model_fn", "m.pth"]
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import train, predict\n"
    code += f"train.main({argv}); predict.main(['--model_fn', 'm.pth', '--n_workers', '0', '--gpu_id', '-1'])\n"
    code += "assert 'timm' in sys.modules\n"
    needless = {"torch._dynamo", "sympy", "pandas", "scipy", "sklearn", "openpyxl", "pyarrow"}
    code += f"found = {needless} & set(sys.modules)\nassert not found, found"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("script", "table"),
    [
        ("train", config.TrainConfig),
        ("predict", config.PredictConfig),
        ("export", config.ExportConfig),
        ("compare", config.CompareConfig),
    ],
)
def test_every_flag_has_a_default_and_every_default_a_flag(script, table):
    done = subprocess.run([sys.executable, ROOT / f"{script}.py", "--help"], capture_output=True, text=True, check=True)
    for name in {field.name for field in dataclasses.fields(table)} - {"preferred_size"}:
        assert f"--{name}" in done.stdout or "DIR ..." in done.stdout


def test_nothing_reads_a_file_that_could_run_code():
    for path in MODULES.values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("torch.load", "pickle.load", "eval", "exec"):
                safe = [k for k in node.keywords if k.arg == "weights_only" and getattr(k.value, "value", None) is True]
                assert safe, f"{path.name}:{node.lineno}"
