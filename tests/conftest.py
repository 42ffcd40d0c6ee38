"""Tiny generated images, and the entry points as a user calls them."""

from __future__ import annotations

import contextlib
import csv
import http.server
import io
import os
import shutil
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

import predict
import train
from utils import run_main

if TYPE_CHECKING:  # some tests look at what is imported, and when
    import torch
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

CLASSES = ("cat", "dog", "개")


def save_image(path: Path, hue: int, seed: int, size: tuple[int, int] = (48, 40)) -> Path:
    """A noisy image whose colour tells its class."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 120, (size[1], size[0], 3))
    pixels[..., hue % 3] += 120
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype("uint8")).save(path)
    return path


def make_class_folders(root: Path, n_images: int, classes=CLASSES, seed: int = 0) -> Path:
    for hue, name in enumerate(classes):
        for n in range(n_images):
            save_image(root / name / f"{n:02d}.png", hue, seed + 100 * hue + n)
    return root


# --- what a run leaves --------------------------------------------------------------------------


def weights_of(path: str | Path) -> dict[str, torch.Tensor]:
    """The state_dict in a checkpoint."""
    import torch

    return torch.load(path, weights_only=True)["state_dict"]


def metrics_of(run_dir: str | Path) -> list[dict[str, str]]:
    """The lines of `metrics.csv`, one an epoch."""
    with open(Path(run_dir) / "metrics.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def board_of(run_dir: str | Path) -> EventAccumulator:
    """The curves and pictures that TensorBoard reads in a run folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(run_dir), size_guidance={"images": 0})  # all of them
    board.Reload()
    return board


def is_alive(pid: int) -> bool:
    """Whether a process (of Linux) runs; one that ended and that nobody has asked for yet does not."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


# --- fixtures -----------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    """Every test works in its own folder, with its own cache of weights and no proxy."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def image_folder(tmp_path) -> Path:
    """Class folders alone: 3 classes of 10 images."""
    return make_class_folders(tmp_path / "photos", 10)


@pytest.fixture
def split_folder(tmp_path) -> Path:
    """`train/` with 8 and `val/` with 5 images a class."""
    make_class_folders(tmp_path / "split" / "train", 8)
    make_class_folders(tmp_path / "split" / "val", 5, seed=1000)
    return tmp_path / "split"


@pytest.fixture
def cli(capfd):
    """Runs `train` or `predict` like the command line: `cli("train", "--lr", 1e-3).out`."""

    def call(name: str, *args: object) -> SimpleNamespace:
        capfd.readouterr()
        main = {"train": train.main, "predict": predict.main}[name]
        with pytest.raises(SystemExit) as stop:
            run_main(main, [str(arg) for arg in args])
        out, err = capfd.readouterr()
        return SimpleNamespace(status=stop.value.code, out=out, err=err)

    return call


def assert_one_line_error(done: SimpleNamespace, expected: str) -> None:
    """A mistake of the user ends with status 2 and one line on stderr."""
    assert done.status == 2
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert expected in done.err


NAME = "timm/test_resnet"  # half a million parameters: ResNet-18 would write 200 MB an epoch
TINY = ("--model_name", NAME, "--image_size", 32, "--n_workers", 0, "--gpu_id", -1)
RESNET18 = ("--model_name", "resnet18", *TINY[2:])


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory) -> SimpleNamespace:
    """One small training of two epochs, in a folder of its own."""
    folder = tmp_path_factory.mktemp("trained")
    make_class_folders(folder / "split" / "train", 8)
    make_class_folders(folder / "split" / "val", 5, seed=1000)
    (folder / "work").mkdir()
    argv = ("--data_dir", folder / "split", *TINY, "--n_epochs", 2, "--model_fn", "tiny.pth", "--run_dir", "r")
    out, err, here = io.StringIO(), io.StringIO(), Path.cwd()
    os.chdir(folder / "work")
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = train.main([str(arg) for arg in argv])
    finally:
        os.chdir(here)
    return SimpleNamespace(status=status, out=out.getvalue(), err=err.getvalue(), folder=folder / "work")


@pytest.fixture
def narrow_classifiers(monkeypatch):
    """AlexNet and VGG as they are, but for the width of their classifiers, which take a minute to save."""
    from torch import nn

    from photo_classifier.models import backbones

    def build(backbone, will_load):
        is_wide = backbone.name in ("alexnet", "vgg16_bn")
        net, *about = backbones.build(backbone, will_load or is_wide)
        if is_wide:
            for layer in net.features:
                if isinstance(layer, nn.Conv2d):
                    nn.init.kaiming_normal_(layer.weight)
            first, second, last = (k for k, layer in enumerate(net.classifier) if isinstance(layer, nn.Linear))
            net.classifier[first] = nn.Linear(net.classifier[first].in_features, 64)
            net.classifier[second], net.classifier[last] = nn.Linear(64, 64), nn.Linear(64, 9)
        return net, *about

    for room in ("model_loader", "photo_classifier.models.checkpoint"):
        monkeypatch.setattr(f"{room}.build", build)


@pytest.fixture
def trained(trained_once, tmp_path) -> SimpleNamespace:
    """That training's `tiny.pth` and run folder `r` in the working folder."""
    shutil.copytree(trained_once.folder, tmp_path, dirs_exist_ok=True)
    return trained_once


@pytest.fixture
def file_server(tmp_path):
    """Serves `tmp_path/served`; `.requests` lists the paths that were asked for."""
    folder, requests = tmp_path / "served", []
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def do_GET(self):
            requests.append(self.path)
            if self.path.startswith("http://"):  # asked as a proxy
                self.path = "/" + self.path.rpartition("/")[2]
            super().do_GET()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield SimpleNamespace(url=f"http://127.0.0.1:{server.server_port}", folder=folder, requests=requests)
    server.shutdown()
    server.server_close()


on_windows = sys.platform == "win32"
