"""The files of an ONNX export: written beside their place, proven, and only then put there."""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from types import ModuleType

from photo_classifier.data.samples import Sample
from photo_classifier.export.bundle import one_file
from photo_classifier.export.graph import write_onnx
from photo_classifier.export.proof import Proof, load_file, prove
from photo_classifier.prediction.predictor import Predictor
from photo_classifier.prediction.results import Prediction
from photo_classifier.runtime.errors import WriteError
from photo_classifier.runtime.files import keep_previous, write_text

LIBRARIES = ("numpy", "pillow", "onnxruntime")
TITLE = """Predicts the classes of photos with {model}, which export.py wrote.

Needs {pins} (and pillow-heif for HEIC photos, pandas for tables). It was proven with these versions;
another pillow may decode a JPEG a little differently.

    python {script} --input photos
"""

Quantize = Callable[[Path, ModuleType, Sequence[Prediction]], dict]


def script_name(output: Path) -> str:
    """Returns the name of the one-file predictor, which other programs can import: `resnet_onnx.py`."""
    name = re.sub(r"\W", "_", output.stem)
    return f"{'' if name[:1].isidentifier() else 'model_'}{name}_onnx.py"


def int8_name(model: Path) -> Path:
    """Returns the name of the model of 8 bits beside a model: `resnet_int8.onnx`."""
    return model.with_name(f"{model.stem}_int8.onnx")


def export_onnx(
    predictor: Predictor,
    samples: Sequence[Sample],
    output: Path,
    about: Mapping[str, object],
    quantize: Quantize | None = None,
) -> dict:
    """Writes `output`, its one-file predictor and `export.json`; returns the content of the latter.

    Args:
        predictor: computes in fp32 on the CPU, with `probabilities`.
        samples: what the proof predicts.
        about: metadata of the model.
        quantize: makes a second model of 8 bits beside the first, from it, its one-file predictor and the checkpoint's
            predictions; returns what is said of it.

    Raises:
        UserError: the network cannot be exported, or answers differently; what was there before stays as it was.
    """
    with new_folder(output) as folder:
        model, script = folder / output.name, folder / script_name(output)
        write_onnx(model, predictor.engine.model, predictor.class_names, predictor.temperature, about)
        pins = ", ".join(f"{name}=={version(name)}" for name in LIBRARIES)
        title = TITLE.format(model=model.name, script=script.name, pins=pins)
        write_text(script, one_file("photo_classifier.export.standalone", {"MODEL": repr(model.name)}, title))
        file = load_file(script)
        exported = file.Predictor(probabilities=True, min_probability=0.0)
        proof, ours = prove(chain.from_iterable(predictor.stream(samples)), exported.stream(samples))
        report = _report(proof, about, [model, script])
        if quantize:
            report["int8"] = quantize(model, file, ours)
        write_text(folder / "export.json", json.dumps(report, indent=1, ensure_ascii=False) + "\n")
        int8 = int8_name(output)
        if int8.exists() and not int8_name(model).exists():  # it has the answers of an earlier export
            os.replace(int8, f"{int8}.prev")
        publish(folder, output.parent)
    return report


def _report(proof: Proof, about: Mapping[str, object], files: Sequence[Path]) -> dict:
    return {
        "checkpoint": {name: about[name] for name in ("checkpoint", "checkpoint_sha256", "model_name")},
        "proof": asdict(proof),
        "precision": "fp32",
        "bytes": {"checkpoint": about["checkpoint_bytes"]} | {path.name: path.stat().st_size for path in files},
        "versions": {name: version(name) for name in (*LIBRARIES, "onnx", "torch")},
    }


@contextlib.contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """Yields a folder on the disk of the output, which is removed at the end."""
    try:
        with tempfile.TemporaryDirectory(prefix=f".{output.stem[:40]}.", dir=output.parent) as folder:
            yield Path(folder)
    except OSError as error:
        raise WriteError(f"cannot write {output}: {error.strerror or error}") from error


def publish(folder: Path, target: Path) -> None:
    """Moves the files to their place; an earlier one of the same name is kept as `.prev`."""
    target.mkdir(exist_ok=True)
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        keep_previous(target / path.name)
        os.replace(path, target / path.name)
