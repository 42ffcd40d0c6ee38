"""What the sections of gpu.py share: a device, photos and the table."""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import ROOT, command, make_photos, must

from photo_classifier.runtime.device import choose_device, choose_precision


class Bench:
    """Photos, a device, and the table."""

    def __init__(self, options: argparse.Namespace, scratch: Path) -> None:
        self.device = choose_device()
        self.on_gpu = self.device.type == "cuda"
        self.dtype = choose_precision("auto", self.device)
        self.size, self.scratch = options.size or (1.0 if self.on_gpu else 0.02), scratch
        self.network, self.image_size = ("resnet50", 224) if self.on_gpu else ("resnet18", 64)
        n_train, n_val = self.scaled(2048, 32), self.scaled(256, 16)
        self.photos = options.data_dir or make_photos(scratch / "photos", n_train, n_val, (640, 480))
        self.data = ("--data_dir", self.photos, "--image_size", self.image_size)
        self.batch_size = self.scaled(128)
        self.is_wrong = False

    def scaled(self, n: int, least: int = 8) -> int:
        """That many, times --size."""
        return max(least, round(n * self.size))

    def row(self, what: str, dtype: torch.dtype | str = "", plain: str = "", ours: str = "", note: str = "") -> None:
        """Prints a row of the table."""
        cells = (what, str(dtype).removeprefix("torch."), plain, ours, note)
        print(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |", flush=True)

    def expect(self, is_so: bool) -> str:
        """Returns what to write beside a figure that is not as it should be."""
        self.is_wrong |= not is_so
        return "" if is_so else "WRONG: "

    def wait(self) -> None:
        """Waits until the device has done what it was given."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def speed(self, work: Callable[[], object], n_images: int, rounds: int = 5, n_times: int = 10) -> float:
        """Images per second of work that takes that many images: the median of rounds after two to warm up.

        Args:
            n_times: how often a round repeats the work; without a GPU there is one round of one.
        """
        n_times, n_warm, rounds = (n_times, 2, rounds) if self.on_gpu else (1, 1, 1)
        seconds = []
        for _ in range(n_warm + rounds):
            self.wait()
            start = time.perf_counter()
            for _ in range(n_times):
                work()
            self.wait()
            seconds.append(time.perf_counter() - start)
        return n_times * n_images / statistics.median(seconds[n_warm:])

    def run(self, script: str, *arguments: object, cwd: Path | None = None) -> tuple[str, float]:
        """Runs a command of the repository: its output and seconds from start to exit."""
        start = time.perf_counter()
        done = subprocess.run(command(script, *arguments), cwd=cwd, capture_output=True, text=True)
        seconds = time.perf_counter() - start
        sys.stderr.write(done.stderr)  # warnings that only a GPU brings
        return must(done), seconds

    def train_wrapped(self, before: str, after: str, *arguments: object) -> subprocess.CompletedProcess:
        """Runs train.py with code of ours before and after it, in the same process."""
        code = WRAPPED.format(paths=[str(ROOT), str(ROOT / "benchmarks")], argv=list(map(str, arguments)))
        code = code.replace("BEFORE", before).replace("AFTER", after)
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


WRAPPED = """
import sys, torch
sys.path[:0] = {paths!r}
BEFORE
import train
from utils import run_main
try:
    run_main(train.main, {argv!r})
finally:
    AFTER
"""


def free_memory(bench: Bench) -> None:
    """Returns what earlier measurements have left on the GPU."""
    if bench.on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_memory(bench: Bench) -> int:
    """The most bytes of the GPU in use; 0 without one."""
    return torch.cuda.max_memory_allocated() if bench.on_gpu else 0
