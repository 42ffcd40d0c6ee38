"""Tiny generated images, the flags of a small run, and readers of what a run leaves."""

from __future__ import annotations

import contextlib
import csv
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:  # some tests check what is imported, and when
    import torch
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

on_windows = sys.platform == "win32"
CLASSES = ("cat", "dog", "개")
NAME = "timm/test_resnet"  # half a million parameters: ResNet-18 would write 200 MB an epoch
TINY = ("--model_name", NAME, "--image_size", 32, "--n_workers", 0, "--gpu_id", -1)
RESNET18 = ("--model_name", "resnet18", *TINY[2:])


def save_image(path: Path, hue: int, seed: int, size: tuple[int, int] = (48, 40)) -> Path:
    """Saves a noisy image whose dominant channel shows its class."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 120, (size[1], size[0], 3))
    pixels[..., hue % 3] += 120
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype("uint8")).save(path)
    return path


def make_class_folders(root: Path, n_images: int, classes=CLASSES, seed: int = 0) -> Path:
    """Makes a folder per class with that many images each."""
    for hue, name in enumerate(classes):
        for n in range(n_images):
            save_image(root / name / f"{n:02d}.png", hue, seed + 100 * hue + n)
    return root


def weights_of(path: str | Path) -> dict[str, torch.Tensor]:
    """Returns the state_dict of a checkpoint."""
    import torch

    return torch.load(path, weights_only=True)["state_dict"]


def metrics_of(run_dir: str | Path) -> list[dict[str, str]]:
    """Returns the rows of `metrics.csv`, one per epoch."""
    with open(Path(run_dir) / "metrics.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def board_of(run_dir: str | Path) -> EventAccumulator:
    """Returns the curves and images that TensorBoard reads from a run folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(run_dir), size_guidance={"images": 0})  # all of them
    board.Reload()
    return board


def is_alive(pid: int) -> bool:
    """Returns whether a Linux process is running; a zombie is not."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def assert_one_line_error(done: SimpleNamespace, expected: str) -> None:
    """Checks that a mistake of the user ended with status 2 and one line on stderr."""
    assert done.status == 2, done
    assert done.err.startswith("error: "), done
    assert done.err.count("\n") == 1, done.err
    assert expected in done.err, done.err
