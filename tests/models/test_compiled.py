import subprocess
import sys
from pathlib import Path

import pytest


def test_openvino_computes_as_torch_does():
    # in a process of its own: OpenVINO stays loaded, and a test that starts programs later on crashed beside it
    pytest.importorskip("openvino")
    checks = Path(__file__).with_name("compiled_checks.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(checks)]
    done = subprocess.run(command, cwd=checks.parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
