"""Features computed by OpenVINO: faster than torch on most CPUs, but it takes seconds to start."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from photo_classifier.models.classifier import Classifier
from photo_classifier.models.fingerprint import hash_tensors, list_layers
from photo_classifier.runtime.console import hide_library_output
from photo_classifier.runtime.errors import UserError
from photo_classifier.runtime.limits import resource_hint
from photo_classifier.runtime.packages import require

PACKAGE = "openvino"
FOLDER = Path(".cache", "engines")  # converting a network takes seconds, reading it back a tenth of one
MOST_FILES = 4
ENGINES = ("auto", "torch", PACKAGE)
# Images from which the start pays: 16 of EfficientNet-Lite0 take 41 ms in torch and 27 in OpenVINO (bf16, 2 cores), the
# first start 2 s, and later ones 0.4.
ENOUGH_IMAGES = 2000


def is_installed() -> bool:
    """Returns whether OpenVINO is there."""
    return find_spec(PACKAGE) is not None


def not_computable(reason: str) -> UserError:
    """Returns the error that says why OpenVINO cannot compute."""
    return UserError(f"--engine openvino cannot compute here: {reason}; leave it out")


class CompiledFeatures:
    """The features of a network whose weights stay, computed in one fixed shape.

    Args:
        model: in eval mode and fp32; it is only read.
        dtype: what its convolutions compute in, and what the features are returned in.

    Raises:
        UserError: OpenVINO is missing, or cannot convert this network.
    """

    def __init__(self, model: Classifier, batch_size: int, dtype: torch.dtype) -> None:
        self.model, self.batch_size, self.dtype = model, batch_size, dtype
        self.process = -1

    @property
    def name(self) -> str:
        """What computes, with its version."""
        return f"{PACKAGE} {version(PACKAGE)}"

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Computes features, (n, ...), of images, uint8 (n, 3, size, size), with n the batch size."""
        if self.process != os.getpid():  # its threads are lost in a fork
            self.compiled, self.process = self._compile(), os.getpid()
        output = self.compiled(images.contiguous().numpy())[0]
        return torch.from_numpy(output.copy()).to(self.dtype)

    def _compile(self) -> object:
        openvino = import_openvino()
        core = openvino.Core()
        settings = {
            "INFERENCE_PRECISION_HINT": "bf16" if self.dtype == torch.bfloat16 else "f32",
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        file = FOLDER / f"{self._key()}.xml"
        try:
            network = core.read_model(file) if file.is_file() else None
        except RuntimeError:  # what an earlier run left there is broken
            network = None
        return core.compile_model(network or self._convert(openvino, file), "CPU", settings)

    def _key(self) -> str:
        head = f"{self.model.head_name}."
        net, takes_part = self.model.net, lambda name: not f"{name}.".startswith(head)
        parts = [version(PACKAGE), torch.__version__, self.batch_size, self.model.preprocess]
        parts += [hash_tensors(net, takes_part), list_layers(net, takes_part), Path(__file__).read_bytes()]
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:32]

    def _convert(self, openvino: ModuleType, file: Path) -> object:
        """Converts the network, and keeps it for the next start."""
        image = self.model.example_image()
        shape = (self.batch_size, *image.shape[1:])
        try:
            with torch.inference_mode(), torch.autocast("cpu", enabled=False), hide_library_output():
                network = openvino.convert_model(_Features(self.model), example_input=image, input=[shape])
        except Exception as error:  # its own are of no common class
            if resource_hint(error):
                raise
            reason = " ".join(str(error).split())[:200]
            raise not_computable(f"it cannot convert this network ({reason})") from error
        with contextlib.suppress(OSError, RuntimeError):  # it is only kept to save time
            _keep(openvino, network, file)
        return network


def import_openvino() -> ModuleType:
    """Imports OpenVINO without what would report its use to its makers; raises UserError if it is missing."""
    sys.modules.setdefault("openvino_telemetry", None)
    return require(PACKAGE, "--engine openvino", PACKAGE)


class _Features(nn.Module):
    """The features of a classifier as the output of a module."""

    def __init__(self, model: Classifier) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.model.features(images)


def _keep(openvino: ModuleType, network: object, file: Path) -> None:
    """Writes both files of a converted network, the one that is looked for last; removes the oldest networks."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
        written = Path(folder, file.name)
        openvino.save_model(network, written, compress_to_fp16=False)
        for suffix in (".bin", ".xml"):
            written.with_suffix(suffix).replace(file.with_suffix(suffix))
    newest = sorted(FOLDER.glob("*.xml"), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in newest[MOST_FILES:]:
        for suffix in (".xml", ".bin"):
            old.with_suffix(suffix).unlink(missing_ok=True)
