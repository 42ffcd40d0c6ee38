"""Writes checkpoints, each a single file to predict with, and reads them without trusting them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import msgspec
import torch
from msgspec import Meta
from torchvision.transforms.v2 import InterpolationMode

from photo_classifier.data.preprocess import FITS, Preprocess
from photo_classifier.models import tensor_files
from photo_classifier.models.backbones import build, find_backbone, find_head
from photo_classifier.models.classifier import Classifier
from photo_classifier.models.heads import replace_head
from photo_classifier.models.inference import eval_batch_size
from photo_classifier.models.state_dicts import check_fit, load_into, state_dict_of
from photo_classifier.runtime.device import PRECISIONS
from photo_classifier.runtime.errors import UserError
from photo_classifier.runtime.plain_values import Finite, Positive, first_failed, first_mismatch

FORMAT_VERSION = 1
LARGEST_SIDE = 8192  # pixels; limits what a file can make a machine allocate


@dataclass
class Content:
    """What a prediction needs of a checkpoint; older ones have no bit depth and no temperature."""

    model_name: str
    head: str
    class_names: Annotated[list[str], Meta(min_length=2)]
    precision: Literal[PRECISIONS]
    image_size: Annotated[int, Meta(ge=1, le=LARGEST_SIDE)]
    resize: Annotated[int, Meta(ge=1, le=2 * LARGEST_SIDE)]
    interpolation: InterpolationMode
    mean: tuple[Finite, Finite, Finite]
    std: tuple[Positive, Positive, Positive]
    eval_batch_size: Annotated[int, Meta(ge=1, le=eval_batch_size(256))]
    splits: dict[str, Any]
    state_dict: dict[str, torch.Tensor]
    bit_depth: Annotated[int, Meta(ge=8, le=16)] = 16
    fit: Literal[FITS] = "crop"
    temperature: Positive = 1.0


class HeldOut(TypedDict):
    """The part of `splits` that names the split to predict by default; `cwd` is the folder of its relative paths."""

    cwd: str
    held_out: str


def save_checkpoint(
    path: str | Path, model: Classifier, metadata: Mapping[str, object], keep_existing: bool = False
) -> None:
    """Writes the file that prediction needs: plain values and the state_dict.

    `metadata` is what the model itself does not know: `model_name, class_names, splits, metrics, config, ...`.
    With `keep_existing`, an existing file is kept as `<path>.prev`.
    """
    content = {
        "format_version": FORMAT_VERSION,
        **metadata,
        **asdict(model.preprocess),
        "mean": list(model.preprocess.mean),
        "std": list(model.preprocess.std),
        "head": model.head_name,
        "versions": {"torch": str(torch.__version__)},
        "state_dict": {key: value.detach().cpu().clone() for key, value in model.net.state_dict().items()},
    }
    tensor_files.write(path, content, keep_existing)


def load_checkpoint(
    path: str | Path, model_name: str | None = None, class_names: Sequence[str] | None = None
) -> tuple[Classifier, dict]:
    """Returns the model, in eval mode, and everything else that its checkpoint holds.

    Args:
        model_name, class_names: for a plain state_dict alone, which holds neither; the names in the order of training.

    Raises:
        UserError: the file is damaged, too new, or neither a checkpoint of this tool nor a state_dict of that network.
    """
    content = tensor_files.read(path)
    if "format_version" not in content:
        return _load_plain(content, path, model_name, class_names)
    _check(content, path)
    if model_name not in (None, content["model_name"]) or list(class_names or ()) not in ([], content["class_names"]):
        raise UserError(f"{path} names its own network and classes; leave out yours (--model_name, --class_names)")
    preprocess = msgspec.convert(content, Preprocess)
    tensors = state_dict_of(content, path)
    model = _build_with(content["model_name"], len(content["class_names"]), tensors, path, preprocess)
    if model.head_name != content["head"]:
        raise UserError(
            f"{path} has {content['head']!r} as its head, but {content['model_name']} has {model.head_name!r}; "
            "train it again"
        )
    return model, {key: value for key, value in content.items() if key != "state_dict"}


def _load_plain(
    content: Mapping, path: str | Path, model_name: str | None, class_names: Sequence[str] | None
) -> tuple[Classifier, dict]:
    tensors = state_dict_of(content, path)
    if not model_name or not class_names:
        raise UserError(
            f"{path} is a plain state_dict, which names neither its network nor its classes; give both: --model_name "
            "NAME --class_names A B C, in the order of training"
        )
    model = _build_with(model_name, len(class_names), tensors, path)
    # the default batch of evaluation, as that of the training is unknown
    defaults = {"precision": "auto", "eval_batch_size": eval_batch_size(1), "splits": None}
    return model, {"model_name": model_name, "class_names": list(class_names), **defaults}


def read_class_names(words: Sequence[str]) -> list[str]:
    """Returns class names given as words, or as the lines of a file; raises UserError unless two or more differ."""
    names = list(words)
    if len(words) == 1:
        if not os.path.isfile(words[0]):
            raise UserError(f"class_names {words[0]}: give two or more names, or a text file with one name per line")
        try:
            text = Path(words[0]).read_text(encoding="utf-8-sig")
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise UserError(f"class_names {words[0]} cannot be read: {reason}") from error
        names = [line.strip() for line in text.splitlines() if line.strip()]
    if len(names) < 2 or len(set(names)) < len(names):
        raise UserError(f"class_names: {len(names)} names, {len(set(names))} different; give two or more, each once")
    return names


def _build_with(
    model_name: str,
    n_classes: int,
    tensors: Mapping[str, torch.Tensor],
    path: str | Path,
    preprocess: Preprocess | None = None,
) -> Classifier:
    """Builds the network for those tensors, with or without a hidden layer in its head, and loads them."""
    backbone = find_backbone(model_name)
    net, own_preprocess, _ = build(backbone, will_load=True)
    head = backbone.head or find_head(net, model_name)
    first, last = (tensors.get(f"{head}.{name}weight") for name in ("0.", "3."))
    hidden = len(first) if first is not None and last is not None and first.dim() and last.dim() else None
    output = last if hidden else tensors.get(f"{head}.weight")
    if output is not None and output.dim() and len(output) != n_classes:
        raise UserError(f"{path} has {len(output)} outputs but {n_classes} class names; give one name for each output")
    replace_head(net, head, n_classes, hidden, dropout=0.0)
    check_fit(net.state_dict(), tensors, path)
    load_into(net, tensors)
    return Classifier(net, head, preprocess or own_preprocess).to(memory_format=torch.channels_last).eval()


def _check(content: Mapping, path: str | Path) -> None:
    """Checks the values of a checkpoint before any of them is used."""
    if "trainer" in content:
        last_model = Path(path).with_name("last_model.pth")
        hint = f"the checkpoint that train.py named in its line 'saved', or {last_model}"
        raise UserError(f"{path} is the state of a run for train.py --resume, not a checkpoint; predict with {hint}")
    if not tensor_files.has_format(content, FORMAT_VERSION, path) or "class_names" not in content:
        raise UserError(
            f"{path} is not a checkpoint of this tool; give the .pth file that train.py named in its line 'saved'"
        )
    if wrong := first_mismatch(content, Content) or _first_wrong(content):
        raise UserError(f"{path} cannot be used: {wrong}; train it again")


def _first_wrong(content: Mapping) -> str:
    """Describes the first value of the right type that makes no sense, or returns ""."""
    names, splits = content["class_names"], content["splits"]
    claims = {
        "class_names are not different": len(set(names)) == len(names),
        "resize is less than image_size": content["image_size"] <= content["resize"],
        "splits has no list of paths and labels": not splits or _has_held_out(splits),
    }
    return first_failed(claims)


def _has_held_out(splits: Mapping) -> bool:
    pairs = list[tuple[str, str]]
    return not (first_mismatch(splits, HeldOut) or first_mismatch(splits.get(splits["held_out"]), pairs))
