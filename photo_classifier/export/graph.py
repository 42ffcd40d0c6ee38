"""Writes a model as ONNX: RGB images of 8 bits in, probabilities and logits out."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from photo_classifier.models.classifier import REFUSALS, Classifier
from photo_classifier.models.inference import Engine
from photo_classifier.runtime.console import hide_library_output
from photo_classifier.runtime.errors import UserError
from photo_classifier.runtime.limits import resource_hint
from photo_classifier.runtime.packages import require

NEEDS = "-r requirements-export.txt"
OPSET = 18  # onnxruntime 1.14 and later
LARGEST = 2**31 - 2**24  # bytes that a protobuf can hold, with room for the graph
COLOURS = "RGB in sRGB, upright (EXIF, XMP), profiles converted, transparency on white, 16 bits scaled by bit_depth"


class ExportedModel(nn.Module):
    """A classifier with all that surrounds it in a prediction but decoding and resizing.

    Normalisation is the classifier's own, batch norm is folded as in the evaluation engine.
    """

    def __init__(self, engine: Engine, temperature: float) -> None:
        super().__init__()
        self.classifier, self.temperature = copy.deepcopy(engine.evaluated), temperature
        self.classifier.to(memory_format=torch.contiguous_format)
        for module in self.classifier.modules():  # what only training needs
            vars(module).pop("forward", None)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns probabilities and logits, fp32 (n, classes), of images, uint8 (n, size, size, 3)."""
        logits = self.classifier(images.permute(0, 3, 1, 2))
        return (logits / self.temperature).softmax(1), logits


def write_onnx(
    path: Path, model: Classifier, class_names: list[str], temperature: float, about: Mapping[str, object]
) -> None:
    """Writes a model in one file, with what a program needs to prepare images and to name the classes.

    Args:
        about: further metadata, such as the hash of the checkpoint.

    Raises:
        UserError: a package is missing, or the network cannot be exported.
    """
    for name in ("onnx", "onnxscript", "onnxruntime"):
        require(name, "an export", NEEDS)
    import onnx

    if sum(tensor.nbytes for tensor in model.state_dict().values()) > LARGEST:
        raise UserError(f"{about.get('model_name')} has more than 2 GB of weights, which no ONNX file can hold")
    exported = ExportedModel(Engine(model, torch.device("cpu"), torch.float32, 2), temperature).eval()
    side = model.preprocess.image_size
    # two images, as torch.export takes a size of 1 for a constant
    images = torch.full((2, side, side, 3), 128, dtype=torch.uint8)
    proto = _traced(exported, images, about.get("model_name", "the network"))
    metadata = {
        "class_names": class_names,
        "preprocess": asdict(model.preprocess),
        "colours": COLOURS,
        "temperature": temperature,
        **about,
    }
    onnx.helper.set_model_props(proto, {name: _text(value) for name, value in metadata.items()})
    onnx.save(proto, str(path))


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _traced(model: nn.Module, images: torch.Tensor, name: object) -> object:
    try:
        with hide_library_output(), torch.no_grad():
            program = torch.onnx.export(
                model,
                (images,),
                dynamo=True,
                opset_version=OPSET,
                input_names=["images"],
                output_names=["probabilities", "logits"],
                dynamic_shapes=({0: torch.export.Dim("n", min=1)},),
                verbose=False,
            )
        return program.model_proto
    except (*REFUSALS, torch.onnx.errors.OnnxExporterError) as error:
        if resource_hint(error):
            raise
        reason = " ".join(str(error.__cause__ or error).split())[:200]
        raise UserError(
            f"{name} cannot be exported: torch.onnx refuses it ({reason}); choose another network"
        ) from error
