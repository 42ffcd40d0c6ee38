"""Keys of the feature cache: hashes of everything that a row depends on, except its file."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch

from photo_classifier.data.batches import ImageSource
from photo_classifier.models.fingerprint import hash_tensors, list_layers
from photo_classifier.models.inference import Engine
from photo_classifier.runtime.uncompiled import torchvision

# The modules that compute rows: when their code changes, rows are computed again.
PACKAGE = Path(__file__).parents[1]
CODE = (
    "data/batches",
    "data/colours",
    "data/decoding",
    "data/pixels",
    "data/preprocess",
    "data/unended_jpeg",
    "models/backbones",
    "models/classifier",
    "models/cut",
    "models/compiled",
    "models/folding",
    "models/inference",
    "runtime/device",
    "runtime/seeding",
)


def engine_key(engine: Engine, processors: Sequence[str] = ()) -> str:
    """Hashes what computes every row: weights, layers, precision, batch size, code, libraries and processors."""
    model, cut = engine.model, engine.cut
    head = f"{model.head_name}."

    def takes_part(name: str) -> bool:
        return cut.has_before(name) if cut else not f"{name}.".startswith(head)

    return _hash_json({
        "backbone": hash_tensors(model.net, takes_part),
        "cut": cut and cut.name,
        "dtype": str(engine.dtype),
        "device": engine.device.type,
        "folded": engine.is_folded,
        "batch_size": engine.batch_size,
        "processors": list(processors),
        # timm is not imported just for its version: that takes most of a second
        "versions": [str(torch.__version__), str(torchvision.__version__)]
        + [version(name) for name in ("timm", "pillow", "pillow_heif")],
        "code": [_hash_file(PACKAGE / f"{name}.py") for name in CODE],
        "layers": list_layers(model.net, takes_part),
        "computed_by": engine.computed_by,
    })  # fmt: skip


def recipe_key(engine: str, dataset: ImageSource, recipe: str) -> str:
    """Hashes everything that every row depends on, except its file; `recipe` names the augmentation."""
    content = {
        **asdict(dataset.preprocess),
        "engine": engine,
        "recipe": [recipe, repr(dataset.transform)],
        "draws": _hash_file(inspect.getsourcefile(type(dataset))),
        "seed": dataset.seed,
        "max_pixels": dataset.max_pixels,
    }
    return _hash_json(content)[:32]


def processor_name(device: torch.device) -> str:
    """Returns what determines the rounding of numbers: the GPU's name, or the CPU's instruction set."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()


def _hash_file(path: str | Path) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _hash_json(content: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
