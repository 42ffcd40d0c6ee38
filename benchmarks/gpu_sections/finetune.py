"""Full fine-tuning against the loop that people write by hand: images/s and memory."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import torch
from common import must
from torch import nn

from gpu_sections import Bench, free_memory, peak_memory
from photo_classifier.runtime.device import n_cores


class Repeated:
    """A loader that yields a batch, which is on the device already, again and again."""

    def __init__(self, batch: tuple, n: int) -> None:
        self.batch, self.n, self.batch_sampler = batch, n, SimpleNamespace(epoch=0, start=0)

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[tuple]:
        return itertools.repeat(self.batch, self.n)


def finetune(bench: Bench) -> None:
    """With data on the device, then with photos through the loaders."""
    for n in sorted({bench.scaled(32), bench.batch_size}):
        what = f"{bench.network} fine-tuning, data on the device, batch {n}"
        tell_training(bench, what, steps_of_plain_loop(bench, n), steps_of_trainer(bench, n))
    if bench.on_gpu:
        for flag in ("benchmark", "deterministic"):
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=True, **{flag: True}):
                ours = steps_of_trainer(bench, bench.batch_size)
            bench.row(f"the same with cudnn.{flag}", bench.dtype, "", f"{ours[0]:,.0f} images/s")
    ours = epochs_of_command(bench)
    for n_workers in sorted({min(4, n_cores()), n_cores()}):
        what = f"{bench.network} fine-tuning, plain loop with {n_workers} workers"
        tell_training(bench, what, epochs_of_plain_loop(bench, n_workers), ours)


def tell_training(bench: Bench, what: str, theirs: tuple[float, int], ours: tuple[float, int]) -> None:
    """Both sides, each images/s and bytes of the GPU."""
    told = [f"{speed:,.0f} images/s" + (f", {size / 1e9:.1f} GB" if size else "") for speed, size in (theirs, ours)]
    note = f"{ours[0] / theirs[0]:.2f}x" + (f", memory {ours[1] / theirs[1]:.2f}x" if theirs[1] else "")
    bench.row(what, f"float32 / {str(bench.dtype).removeprefix('torch.')}", *told, note)


def steps_of_plain_loop(bench: Bench, n: int) -> tuple[float, int]:
    """Images/s and peak memory of steps in fp32, on a batch that is on the device."""
    from torchvision.models import get_model

    free_memory(bench)
    model = get_model(bench.network, num_classes=2).to(bench.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    images, labels = torch.randn(n, 3, 224, 224, device=bench.device), torch.arange(n, device=bench.device) % 2

    def step() -> None:
        """Takes a step as a loop written by hand does."""
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return bench.speed(step, n, 3), peak_memory(bench)


def steps_of_trainer(bench: Bench, n: int) -> tuple[float, int]:
    """Images/s and peak memory of `Trainer`, on a batch that is on the device."""
    from model_loader import get_model
    from photo_classifier.data.batches import Batch
    from photo_classifier.training.optimization import Plan, Recipe, Schedule, make_optimizer
    from photo_classifier.training.run import SilentRun
    from trainer import Trainer

    free_memory(bench)
    model = get_model(bench.network, 2).to(bench.device)
    optimizer = make_optimizer("sgd", model.parameters_by_part(), {"backbone": 1e-3, "head": 1e-3})
    recipe = Recipe(optimizer, Schedule("step", optimizer, Plan(10)))
    trainer = Trainer(model, model, lambda: None, recipe, bench.device, bench.dtype)
    images = torch.randint(0, 256, (n, 3, 224, 224), dtype=torch.uint8, device=bench.device)
    labels = torch.arange(n, device=bench.device) % 2
    batch = Batch(images.to(memory_format=torch.channels_last), labels, labels, [])
    n_steps = 10 if bench.on_gpu else 1

    def steps() -> None:
        trainer.sums = None
        trainer.train_one_epoch(Repeated(batch, n_steps), SilentRun(bench.scratch))

    return bench.speed(steps, n_steps * n, 3, 1), peak_memory(bench)


def epochs_of_plain_loop(bench: Bench, n_workers: int) -> tuple[float, int]:
    """Images/s of training in the second epoch of the plain loop, and its peak memory."""
    flags = ("--arch", bench.network, "--n_epochs", 2, "--batch_size", bench.batch_size, "--device", bench.device)
    out, _ = bench.run("benchmarks/plain", "train", bench.photos, *flags, "--n_workers", n_workers)
    found = json.loads(out.splitlines()[-1])
    return found["train_images_per_s"][-1], found["gpu_bytes"]


def epochs_of_command(bench: Bench) -> tuple[float, int]:
    """Images/s of training in the second epoch of train.py, and its peak memory."""
    peak = "print('peak', torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0)"
    flags = ("--data_dir", bench.photos, "--model_name", bench.network, "--optimizer", "sgd", "--n_epochs", 2)
    out = must(bench.train_wrapped("", peak, *flags, "--batch_size", bench.batch_size, "--run_dir", "finetune"))
    return last_epoch("finetune"), int(re.findall(r"^peak (\d+)$", out, re.MULTILINE)[-1])


def last_epoch(folder: str) -> float:
    """The images/s of the last line of a run's metrics.csv."""
    import csv

    with open(Path(folder) / "metrics.csv", encoding="utf-8") as file:
        return float(list(csv.DictReader(file))[-1]["images_per_s"])
