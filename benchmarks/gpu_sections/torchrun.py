"""One process of the launcher, and the collectives of several in a group of one (NCCL on a GPU)."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

from common import ROOT, must, weights

from gpu_sections import WRAPPED, Bench

SOLE_NETWORK = {"NCCL_SOCKET_IFNAME": "lo", "GLOO_SOCKET_IFNAME": "lo", "NCCL_DEBUG": "VERSION"}
GROUP_OF_ONE = """
from photo_classifier.runtime import launcher
class GroupOfOne(int):  # is not taken for a run without a group
    def __eq__(self, other): return False
    __hash__ = int.__hash__
launcher.world_size = lambda: GroupOfOne(1)
"""


def torchrun(bench: Bench) -> None:
    """The same training without the launcher, with it, and through all that several processes need."""
    flags = [*bench.data, "--model_name", "resnet18", "--n_epochs", 1]
    bench.run("train", *flags, "--model_fn", "alone.pth", "--run_dir", "alone")
    wrapped = WRAPPED.format(
        paths=[str(ROOT)], argv=[*map(str, flags), "--model_fn", "group.pth", "--run_dir", "group"]
    )
    Path("group.py").write_text(wrapped.replace("BEFORE", GROUP_OF_ONE).replace("AFTER", "pass"), encoding="utf-8")
    launched = {
        "one process": (ROOT / "train.py", *flags, "--model_fn", "one.pth", "--run_dir", "one"),
        "collectives in a group of one": ("group.py",),
    }
    for (what, argv), name in zip(launched.items(), ("one", "group"), strict=True):
        start = time.perf_counter()
        out = must(launch(*argv))
        seconds = time.perf_counter() - start
        one, other = weights("alone.pth"), weights(f"{name}.pth")
        apart = max((one[key].double() - other[key].double()).abs().max().item() for key in one)
        nccl = re.search(r"NCCL version [\w.+]+", out)
        told = f"weights within {apart:.1e} of those without it, {seconds:.1f} s"
        bench.row(f"torchrun, {what}", bench.dtype, "", told, nccl[0] if nccl else "")


def launch(*argv: object) -> subprocess.CompletedProcess:
    """Runs a script in one process of PyTorch's launcher."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1"]
    env = {**os.environ, **SOLE_NETWORK}
    return subprocess.run([*start, *map(str, argv)], capture_output=True, text=True, env=env)
