"""Writes a model as the folder that timm and model hubs expect: config.json, model.safetensors and a model card."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from photo_classifier.data.preprocess import Preprocess
from photo_classifier.models.backbones import find_backbone
from photo_classifier.models.classifier import REFUSALS, Classifier
from photo_classifier.models.inference import Engine
from photo_classifier.prediction.predictor import Predictor
from photo_classifier.runtime.errors import UserError
from photo_classifier.runtime.limits import resource_hint

CROP_MODES = {"crop": "center", "squash": "squash", "pad": "border"}  # timm's names


def write_hub_folder(folder: Path, predictor: Predictor) -> None:
    """Writes `config.json` and `model.safetensors` into a folder; the temperature becomes a part of the head.

    Raises:
        UserError: timm has no such network.
    """
    import timm

    model, name = predictor.engine.model, predictor.metadata["model_name"]
    architecture = find_backbone(name).name.partition(".")[0]
    if not timm.is_model(architecture):
        raise UserError(f"timm has no network {architecture}, so that it cannot load {name}; export it with --to onnx")
    net, options = _timm_network(architecture, model, len(predictor.class_names), name)
    for tensor in net.get_submodule(net.pretrained_cfg["classifier"]).parameters():
        tensor.data /= predictor.temperature
    config = {"label_names": predictor.class_names, "pretrained_cfg": _pretrained_cfg(model.preprocess)}
    timm.models.save_for_hf(net, folder, model_config=config, model_args=options or None, safe_serialization=True)


def read_hub_folder(folder: Path, predictor: Predictor) -> Predictor:
    """Returns a predictor like that of the checkpoint, whose network timm loads from the folder."""
    import timm

    net = timm.create_model(f"local-dir:{folder}", pretrained=True)
    loaded = copy.copy(predictor)
    model = Classifier(net, net.pretrained_cfg["classifier"], predictor.engine.model.preprocess).eval()
    loaded.engine = Engine(model, predictor.engine.device, torch.float32, predictor.engine.batch_size)
    loaded.temperature = 1.0
    return loaded


def _timm_network(architecture: str, model: Classifier, n_classes: int, name: str) -> tuple[nn.Module, dict]:
    """Returns timm's network with the weights of a model, and the options that it was built with."""
    import timm

    tensors = model.net.state_dict()
    for options in ({}, {"img_size": model.preprocess.image_size}):
        try:
            net = timm.create_model(architecture, pretrained=False, num_classes=n_classes, **options)
            net.get_submodule(net.pretrained_cfg["classifier"])  # some networks have two heads
            net.load_state_dict(_with_names_of(net, tensors))
            return net.eval(), options
        except REFUSALS as error:
            if resource_hint(error):
                raise
    raise UserError(
        f"{name}, with this head, is built differently in timm, which cannot load it; export it with --to onnx"
    )


def _with_names_of(net: nn.Module, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns tensors under the names of timm's network, which may keep torchvision's layers in the same order."""
    own = net.state_dict()
    if own.keys() == tensors.keys():
        return dict(tensors)
    return {name: value.reshape(own[name].shape) for name, value in zip(own, tensors.values(), strict=True)}


def _pretrained_cfg(p: Preprocess) -> dict[str, object]:
    size = p.image_size
    share = size / p.resize if p.fit == "crop" else 1.0
    while p.fit == "crop" and math.floor(size / share) != p.resize:  # as timm computes the resize
        share = math.nextafter(share, 0.0)
    return {
        "input_size": [3, size, size],
        "interpolation": p.interpolation,
        "crop_pct": share,
        "crop_mode": CROP_MODES[p.fit],
        "mean": list(p.mean),
        "std": list(p.std),
    }
