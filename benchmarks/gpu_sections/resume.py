"""A run that is killed within an epoch and continued, against an undisturbed one."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import torch
from common import NAME, command

from gpu_sections import Bench


def resume(bench: Bench) -> None:
    """Two undisturbed runs, and one that is killed within an epoch and continued."""
    network = "resnet18" if bench.on_gpu else NAME  # on a CPU a small one, whose saves are short
    recipe = ("--model_name", network, "--dropout", 0.2, "--n_epochs", 3, "--batch_size", bench.scaled(32, 2))
    flags = (*bench.data, *recipe, "--save_every", 0.01, "--run_dir", "run", "--model_fn", "m.pth")
    folders = [Path(name) for name in ("whole", "again", "killed")]
    for folder in folders:
        folder.mkdir()
    for folder in folders[:2]:
        bench.run("train", *flags, cwd=folder)
    n_done = kill_in_an_epoch(flags, folders[2])
    bench.run("train", "--resume", "run", cwd=folders[2])
    again, killed = (difference(folders[0], other) for other in folders[1:])
    note = f"killed after {n_done} batches of epoch 2; undisturbed again: {again:.1e}"
    wrong = bench.expect(killed <= 10 * again)
    bench.row("--resume after kill -9: largest difference of a weight", bench.dtype, "", f"{wrong}{killed:.1e}", note)


def kill_in_an_epoch(flags: tuple, folder: Path) -> int:
    """Kills a run once it has saved within its second epoch; the batches of that epoch that it had saved."""
    process = subprocess.Popen(command("train", *flags), cwd=folder, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        if (n := batches_of_epoch(folder / "run" / "last.pth", 1)) > 0:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return max(n, batches_of_epoch(folder / "run" / "last.pth", 1))
        time.sleep(0.01)
    raise RuntimeError("the run ended before it was killed")


def batches_of_epoch(path: Path, epoch: int) -> int:
    """How many batches of that epoch, counted from 0, a saved state has seen; 0 in any other epoch."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True, map_location="cpu")["trainer"]
    return state["sums"]["n_batches"] if state["epoch"] == epoch and state["sums"] else 0


def difference(one: Path, other: Path) -> float:
    """The largest difference of a number in the last weights of two runs."""
    loaded = [torch.load(folder / "run" / "last.pth", weights_only=True)["trainer"]["model"] for folder in (one, other)]
    return max((loaded[0][name].double() - loaded[1][name].double()).abs().max().item() for name in loaded[0])
