"""One export of the small training, for all tests of this folder."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

import export


@pytest.fixture(scope="session")
def exported_once(trained_once, tmp_path_factory) -> SimpleNamespace:
    """The folder with `tiny.pth`, `tiny.onnx`, `tiny_onnx.py` and `export.json`, and what the command printed."""
    folder, out, here = tmp_path_factory.mktemp("exported"), io.StringIO(), Path.cwd()
    shutil.copy(trained_once.folder / "tiny.pth", folder)
    (folder / "tiny_int8.onnx").write_text("of an earlier model", encoding="utf-8")
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out):
            status = export.main(["--model_fn", "tiny.pth"])
    finally:
        os.chdir(here)
    return SimpleNamespace(status=status, out=out.getvalue(), folder=folder)


@pytest.fixture
def exported(exported_once, tmp_path) -> SimpleNamespace:
    """These files in the working folder."""
    shutil.copytree(exported_once.folder, tmp_path, dirs_exist_ok=True)
    return exported_once
