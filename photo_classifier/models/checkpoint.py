"""The checkpoint, the one file that is enough to predict with: written, and read with doubt."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torchvision.transforms.v2 import InterpolationMode

from photo_classifier.data.preprocess import Preprocess
from photo_classifier.models import tensor_files
from photo_classifier.models.backbones import build, find_backbone, find_head
from photo_classifier.models.classifier import Classifier, replace_head
from photo_classifier.models.inference import eval_batch_size
from photo_classifier.models.tensor_files import check_fit
from photo_classifier.runtime.device import PRECISIONS
from photo_classifier.runtime.errors import UserError
from photo_classifier.runtime.plain_values import first_failed, first_mismatch

FORMAT_VERSION = 1
LARGEST_SIDE = 8192  # pixels; a file must not make a machine allocate what nobody meant


def save_checkpoint(
    path: str | Path, model: Classifier, about: Mapping[str, object], keep_previous: bool = False
) -> None:
    """Writes the one file that is enough to predict with: plain values and the state_dict.

    Args:
        about: what else belongs to it: `model_name, class_names, splits, metrics, config, ...`.
        keep_previous: move an existing file to `<path>.prev`.
    """
    content = {
        "format_version": FORMAT_VERSION,
        **about,
        **asdict(model.preprocess),
        "mean": list(model.preprocess.mean),
        "std": list(model.preprocess.std),
        "head": model.head_name,
        "versions": {"torch": str(torch.__version__)},
        "state_dict": {key: value.detach().cpu().clone() for key, value in model.net.state_dict().items()},
    }
    tensor_files.write(path, content, previous=f"{path}.prev" if keep_previous else None)


CONTENT = {
    **dict.fromkeys(("model_name", "interpolation", "head", "precision"), str),
    **dict.fromkeys(("image_size", "resize", "eval_batch_size"), int),
    "class_names": [str],
    "mean": [float],
    "std": [float],
    "splits": {str: object},
    "state_dict": {str: torch.Tensor},
}


def load_checkpoint(
    path: str | Path, model_name: str | None = None, class_names: Sequence[str] | None = None
) -> tuple[Classifier, dict]:
    """Restores a model, in eval mode, and what its checkpoint tells of it.

    Args:
        model_name, class_names: of a plain state_dict, which does not tell; the names in the order of its training.

    Raises:
        UserError: neither a checkpoint of this tool nor a state_dict of that network, a newer one, or a broken file.
    """
    content = tensor_files.read(path)
    if "format_version" not in content:
        return _load_plain(content, path, model_name, class_names)
    _check(content, path)
    if model_name not in (None, content["model_name"]) or list(class_names or ()) not in ([], content["class_names"]):
        raise UserError(f"{path} knows its own network and classes; leave --model_name and --class_names out")
    numbers = (content["image_size"], content["resize"], content["interpolation"])
    scales = (tuple(content["mean"]), tuple(content["std"]))
    preprocess = Preprocess(*numbers, *scales, content.get("bit_depth", 16))
    tensors = tensor_files.state_dict_of(content, path)
    model = _with_tensors(content["model_name"], len(content["class_names"]), tensors, path, preprocess)
    if model.head_name != content["head"]:
        raise UserError(f"{path} names another head than {content['model_name']} has: {model.head_name}")
    return model, {key: value for key, value in content.items() if key != "state_dict"}


def _with_tensors(
    model_name: str,
    n_classes: int,
    tensors: Mapping[str, torch.Tensor],
    path: str | Path,
    preprocess: Preprocess | None = None,
) -> Classifier:
    backbone = find_backbone(model_name)
    net, own_preprocess, _ = build(backbone, will_load=True)
    head = backbone.head or find_head(net, model_name)
    first, last = (tensors.get(f"{head}.{name}weight") for name in ("0.", "3."))
    hidden = len(first) if first is not None and last is not None and first.dim() and last.dim() else None
    output = last if hidden else tensors.get(f"{head}.weight")
    if output is not None and output.dim() and len(output) != n_classes:
        raise UserError(f"{path} has {len(output)} outputs, and there are {n_classes} class names; give one for each")
    replace_head(net, head, n_classes, hidden, 0.0, model_name)
    check_fit(net.state_dict(), tensors, path)
    tensor_files.load_into(net, tensors)
    return Classifier(net, head, preprocess or own_preprocess).to(memory_format=torch.channels_last).eval()


def _check(content: Mapping, path: str | Path) -> None:
    """Checks what a checkpoint says before anything is done with it."""
    if "trainer" in content:
        last_model = Path(path).with_name("last_model.pth")
        hint = f"the checkpoint that training named in its line 'saved', or {last_model}"
        raise UserError(f"{path} is what train.py --resume goes on from; predict with {hint}")
    if not tensor_files.has_format(content, FORMAT_VERSION, path) or any(key not in content for key in CONTENT):
        raise UserError(f"{path} is not a checkpoint of this tool; give the .pth file of train.py's line 'saved'")
    if wrong := first_mismatch(content, CONTENT) or _first_wrong(content):
        raise UserError(f"{path} cannot be used: {wrong}; train it again")


def _first_wrong(content: Mapping) -> str:
    """What has the right type and no sense, or nothing."""
    names, splits = content["class_names"], content["splits"]
    modes = [mode.value for mode in InterpolationMode]
    held_out = splits.get(str(splits.get("held_out"))) if splits else []
    named = {"cwd": str, "held_out": str} if splits else {}
    right = {
        "class_names are not two or more different names": 2 <= len(set(names)) == len(names),
        f"image_size is not from 1 to {LARGEST_SIDE}": 1 <= content["image_size"] <= LARGEST_SIDE,
        "resize is not from image_size on": content["image_size"] <= content["resize"] <= 2 * LARGEST_SIDE,
        "bit_depth is not from 10 to 16": content.get("bit_depth", 16) in range(10, 17),
        f"interpolation is none of {', '.join(modes)}": content["interpolation"] in modes,
        f"precision is none of {', '.join(PRECISIONS)}": content["precision"] in PRECISIONS,
        "mean and std are not three numbers each, std above 0": len(content["mean"]) == len(content["std"]) == 3
        and min(content["std"]) > 0,
        "eval_batch_size is not from 1 to 256": 1 <= content["eval_batch_size"] <= eval_batch_size(256),
        "temperature is no number above 0": not first_mismatch(content.get("temperature", 1.0), float)
        and content.get("temperature", 1.0) > 0,
        "splits has no list of paths and labels": not first_mismatch(splits, named)
        and not first_mismatch(held_out, [[str]])
        and all(len(pair) == 2 for pair in held_out),
    }
    return first_failed(right)


# --- plain state_dicts ------------------------------------------------------------------------


def _load_plain(
    content: Mapping, path: str | Path, model_name: str | None, class_names: Sequence[str] | None
) -> tuple[Classifier, dict]:
    tensors = tensor_files.state_dict_of(content, path)
    if not model_name or not class_names:
        raise UserError(
            f"{path} is a plain state_dict, which tells neither its network nor its classes; give both: --model_name "
            "NAME --class_names A B C, in the order of its training"
        )
    model = _with_tensors(model_name, len(class_names), tensors, path)
    # the usual batch of evaluation, as nothing is known of the training's
    told = {"precision": "auto", "eval_batch_size": eval_batch_size(1), "splits": None}
    return model, {"model_name": model_name, "class_names": list(class_names), **told}


def read_class_names(words: Sequence[str]) -> list[str]:
    """Class names as they are given on the command line, or the lines of a text file.

    Raises:
        UserError: the file cannot be read, or there are not two or more different names.
    """
    names = list(words)
    if len(words) == 1:
        if not os.path.isfile(words[0]):
            raise UserError(f"--class_names {words[0]}: give two or more names, or a text file with a name a line")
        try:
            text = Path(words[0]).read_text(encoding="utf-8-sig")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is no text in UTF-8"
            raise UserError(f"--class_names {words[0]} cannot be read: {reason}") from error
        names = [line.strip() for line in text.splitlines() if line.strip()]
    if len(names) < 2 or len(set(names)) < len(names):
        raise UserError(f"--class_names: {len(names)} names, {len(set(names))} different; give two or more, each once")
    return names
