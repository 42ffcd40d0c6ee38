"""`pip install .` gives other programs the package, wherever they are."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROGRAM = """
import sys
import photo_classifier
assert "torch" not in sys.modules
from photo_classifier import Prediction, Predictor, UserError

if __name__ == "__main__":
    (prediction,) = Predictor("tiny.pth", device="cpu", n_workers=0)(["a.png"])
    assert isinstance(prediction, Prediction)
    print(photo_classifier.__file__, prediction.predict, prediction.status, sep="|")
    try:
        Predictor("none.pth", device="cuda:99")
    except UserError as error:
        print(error)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built offline from a copy so that the checkout stays clean."""
    copy, folder = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    for name in ("photo_classifier", "tests", "benchmarks"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "fixtures"))
    for script in ROOT.glob("*.py"):
        shutil.copy(script, copy)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", folder]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, copy], check=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_the_package_alone(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    files = [path for path in (ROOT / "photo_classifier").rglob("*") if path.suffix in (".py", ".html", ".css", ".js")]
    assert names == {path.relative_to(ROOT).as_posix() for path in files}


def test_the_wheel_depends_on_what_requirements_lists(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode())
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    listed = [re.sub(r"\s", "", line.partition("#")[0]) for line in lines]
    assert sorted(map(specifiers, metadata.get_all("Requires-Dist"))) == sorted(map(specifiers, filter(None, listed)))
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["License-Expression"] == "MIT"


def specifiers(requirement):
    """Returns the name and the set of version bounds, whose order setuptools may change."""
    name, bounds = re.fullmatch(r"([\w.-]+)(.*)", requirement).groups()
    return name, sorted(bounds.split(","))


def test_a_program_in_another_folder_predicts_with_the_installed_package(wheel, trained, tmp_path):
    venv.create(tmp_path / "env", with_pip=False, symlinks=os.name != "nt")
    python = tmp_path / "env" / ("Scripts" if os.name == "nt" else "bin") / "python"
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.check_output([python, "-c", ask], text=True).strip())
    options = ["--quiet", "--no-deps", "--no-index", "--target", site]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, wheel], check=True)
    # the dependencies are those of the running environment
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    foreign = tmp_path / "elsewhere"
    foreign.mkdir()
    shutil.copy("tiny.pth", foreign)
    shutil.copy(next((trained.folder.parent / "split" / "val" / "cat").glob("*.png")), foreign / "a.png")
    (foreign / "program.py").write_text(PROGRAM, encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([python, "program.py"], cwd=foreign, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, error = done.stdout.splitlines()
    path, predicted, status = first.split("|")
    assert Path(path).is_relative_to(site)
    assert (bool(predicted), status) == (True, "ok")
    assert error.startswith("there is no device 'cuda:99' on this machine; choose from cpu")
