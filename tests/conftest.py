"""Fixtures: folders of tiny images, the entry points as a user calls them, one small training, a server of files."""

from __future__ import annotations

import contextlib
import http.server
import io
import os
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import TINY, make_class_folders
from PIL import Image

import export
import predict
import train
from utils import run_main


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    """Every test works in its own folder, with its own cache of weights and no proxy."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch_home"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _blank_figures(request, monkeypatch):
    """Leaves figures blank, except in the tests of figures: drawing them takes half the time of a small run."""
    if not request.node.path.is_relative_to(Path(__file__).parent / "evaluation"):
        for name in ("evaluation.figures.confusion_figure", "evaluation.figures.calibration_figure"):
            monkeypatch.setattr(f"photo_classifier.{name}", lambda *_: Image.new("RGB", (8, 8)))
        monkeypatch.setattr("photo_classifier.training.finish.curves_figure", lambda *_: Image.new("RGB", (8, 8)))


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
    """Runs `train`, `predict` or `export` like the command line: `cli("train", "--lr", 1e-3).out`."""

    def call(name: str, *args: object) -> SimpleNamespace:
        capfd.readouterr()
        main = {"train": train.main, "predict": predict.main, "export": export.main}[name]
        with pytest.raises(SystemExit) as stop:
            run_main(main, [str(arg) for arg in args])
        out, err = capfd.readouterr()
        return SimpleNamespace(status=stop.value.code, out=out, err=err)

    return call


class Killed(BaseException):
    """As if the process had ended here: nothing is written after it."""


@pytest.fixture
def killed_after(monkeypatch, cli):
    """Runs `train` until that many calls of a method were made, and ends it there like kill -9."""

    def call(owner, method, n, *argv):
        original, calls = getattr(owner, method), []

        def counting(self, *args):
            result = original(self, *args)
            calls.append(method)
            if len(calls) == n:
                raise Killed
            return result

        monkeypatch.setattr(owner, method, counting)
        with pytest.raises(Killed):
            cli("train", *argv)
        monkeypatch.setattr(owner, method, original)

    return call


@pytest.fixture
def two_threads():
    """Computes with two threads, which forked processes lack."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


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

    def build(backbone, will_load, image_size=None):
        is_wide = backbone.name in ("alexnet", "vgg16_bn")
        net, *about = backbones.build(backbone, will_load or is_wide, image_size)
        if is_wide:
            for layer in net.features:
                if isinstance(layer, nn.Conv2d):
                    nn.init.kaiming_normal_(layer.weight)
            first, second, last = (k for k, layer in enumerate(net.classifier) if isinstance(layer, nn.Linear))
            net.classifier[first] = nn.Linear(net.classifier[first].in_features, 64)
            net.classifier[second], net.classifier[last] = nn.Linear(64, 64), nn.Linear(64, 9)
        return net, *about

    for module in ("model_loader", "photo_classifier.models.checkpoint"):
        monkeypatch.setattr(f"{module}.build", build)


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
