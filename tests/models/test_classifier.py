import os
import subprocess
import sys

import pytest
import torch
from helpers import gradients
from helpers.families import FURTHER

from photo_classifier.models.backbones import BACKBONES


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() == "AVX512",
    reason="only without AVX-512, as .ci/run imitates",
)
def test_convolutions_of_every_family_have_the_gradients_of_contiguous_fp64_without_avx512():
    # in a process of its own, as wrong ones may bring it down; threads that wait must not take the time of others
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, gradients.__file__, *BACKBONES, *FURTHER]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr[-500:]) == (0, "", "")
