"""Writes checkpoints, each a single file to predict with, and reads them without trusting them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import msgspec
import torch
from msgspec import Meta
from torch import nn

from photo_classifier.data.preprocess import FITS, Preprocess
from photo_classifier.models import tensor_files
from photo_classifier.models.backbones import build, find_backbone, find_head, published_preprocess
from photo_classifier.models.classifier import Classifier
from photo_classifier.models.foreign_weights import drop_beside, find_weights, with_head_beside
from photo_classifier.models.heads import add_zero_output, head_of, last_layer
from photo_classifier.models.inference import eval_batch_size
from photo_classifier.models.novelty import Novelty
from photo_classifier.models.positions import fit_positions
from photo_classifier.models.state_dicts import check_fit, load_into, state_dict_of
from photo_classifier.runtime.device import PRECISIONS
from photo_classifier.runtime.errors import UserError
from photo_classifier.runtime.plain_values import Finite, Positive, first_failed, first_mismatch
from photo_classifier.runtime.uncompiled import v2

FORMAT_VERSION = 1
LARGEST_SIDE = 8192  # pixels; limits what a file can make a machine allocate


@dataclass
class Content:
    """What a prediction needs of a checkpoint; older ones lack what has a default.

    `novelty` are the distances of a frozen run, `no_novelty` says why there are none, and `label_scores` are those of
    `conformal.label_scores`, in ascending order. `training_files` are those of `seen_files.content_ids`.
    """

    model_name: str
    head: str
    class_names: Annotated[list[str], Meta(min_length=2)]
    precision: Literal[PRECISIONS]
    image_size: Annotated[int, Meta(ge=1, le=LARGEST_SIDE)]
    resize: Annotated[int, Meta(ge=1, le=2 * LARGEST_SIDE)]
    interpolation: v2.InterpolationMode
    mean: tuple[Finite, Finite, Finite]
    std: tuple[Positive, Positive, Positive]
    eval_batch_size: Annotated[int, Meta(ge=1, le=eval_batch_size(256))]
    splits: dict[str, Any]
    state_dict: dict[str, torch.Tensor]
    bit_depth: Annotated[int, Meta(ge=8, le=16)] = 16
    fit: Literal[FITS] = "crop"
    temperature: Positive = 1.0
    novelty: Novelty | None = None
    no_novelty: str = ""
    label_scores: torch.Tensor | None = None
    training_files: torch.Tensor | None = None
    engine: Literal["torch", "openvino"] = "torch"


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


@dataclass(frozen=True)
class Description:
    """What a plain state_dict does not tell, as its user describes it.

    Args:
        model_name: the network that it is of.
        class_names: in the order of training.
        weights_key: where its weights are in the file, if there are several.
        head_activation: what its head computes between two layers with weights, as in `heads.ACTIVATIONS`.
        image_size, resize, fit, interpolation, mean, std: how it expects its images; None takes what the published
            weights of the network expect.
    """

    model_name: str | None = None
    class_names: Sequence[str] | None = None
    weights_key: str | None = None
    head_activation: Sequence[str] = ()
    image_size: int | None = None
    resize: int | None = None
    fit: str | None = None
    interpolation: str | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None

    def preprocess(self, published: Preprocess) -> Preprocess:
        """Returns how images are prepared; raises UserError if it makes no sense."""
        given = {name: getattr(self, name) for name in ("fit", "interpolation", "mean", "std") if getattr(self, name)}
        given |= {name: tuple(given[name]) * (3 // len(given[name])) for name in ("mean", "std") if name in given}
        if wrong := first_mismatch(given, Looks):
            raise UserError(f"the preparation of images cannot be used: {wrong}")
        return replace(published.at(self.image_size, self.resize), **given)


class Looks(TypedDict, total=False):
    """The parts of `Preprocess` that are not sizes."""

    fit: Literal[FITS]
    interpolation: v2.InterpolationMode
    mean: tuple[Finite, Finite, Finite]
    std: tuple[Positive, Positive, Positive]


def load_checkpoint(path: str | Path, description: Description | None = None) -> tuple[Classifier, dict]:
    """Returns the model, in eval mode, and everything else that its checkpoint holds.

    Args:
        description: for a plain state_dict alone, which does not describe itself.

    Raises:
        UserError: the file is damaged, too new, or neither a checkpoint of this tool nor a state_dict of that network.
    """
    content, description = tensor_files.read(path), description or Description()
    if not describes_itself(content):
        return _load_plain(content, path, description)
    check_content(content, path)
    known = {name: content.get(name) for name in ("model_name", "class_names")}
    given = {name: value for name, value in vars(description).items() if value}
    if other := [name for name, value in given.items() if value not in (known.get(name), tuple(known.get(name) or ()))]:
        raise UserError(
            f"{path} names its own network and classes, and how images are prepared for it; leave out --{other[0]}"
        )
    return classifier_of(content, path), {key: value for key, value in content.items() if key != "state_dict"}


def classifier_of(content: Mapping, path: str | Path) -> Classifier:
    """Returns the model of a checkpoint of this tool, in eval mode; raises UserError if its tensors do not fit."""
    preprocess = msgspec.convert(content, Preprocess)
    tensors = state_dict_of(content, path)
    net, head, published = _build(content["model_name"])
    if head != content["head"]:
        raise UserError(
            f"{path} has {content['head']!r} as its head, but {content['model_name']} has {head!r}; train it again"
        )
    if _has_other_shapes(net, head, tensors) and preprocess.image_size != published.image_size:
        with contextlib.suppress(UserError):  # not a transformer: what does not fit is named below
            net, *_ = _build(content["model_name"], preprocess.image_size)
    activations = ("relu",) if f"{head}.0.weight" in tensors else ()
    _load(net, head, tensors, content["class_names"], activations, path)
    return _ready(net, head, preprocess)


def _load_plain(content: Mapping, path: str | Path, description: Description) -> tuple[Classifier, dict]:
    model_name, class_names = description.model_name, list(description.class_names or ())
    if not model_name or not class_names:
        raise UserError(
            f"{path} is a plain state_dict, which names neither its network nor its classes; give both: --model_name "
            "NAME --class_names A B C, in the order of training"
        )
    net, head, published = _build(model_name)
    parent = head.rpartition(".")[0]
    # scripts replace the last layer, or the whole sequence that holds it
    heads = [head, parent] if parent and isinstance(net.get_submodule(parent), nn.Sequential) else [head]
    weights = with_head_beside(find_weights(content, net.state_dict().keys(), heads, path, description.weights_key))
    tensors = drop_beside(weights.tensors, net.state_dict(), weights.head)
    size = description.image_size
    if size and size != published.image_size:
        with contextlib.suppress(UserError):  # others take any size as they are
            net, *_ = _build(model_name, size)
        tensors = _with_positions(net, weights.head, tensors)
    _load(net, weights.head, tensors, class_names, description.head_activation, path)
    # the default batch of evaluation, as that of the training is unknown
    defaults = {"precision": "auto", "eval_batch_size": eval_batch_size(1), "splits": None, "notes": weights.notes}
    published = published_preprocess(find_backbone(model_name), Path(path)) or published
    model = _ready(net, weights.head, description.preprocess(published))
    return model, {"model_name": model_name, "class_names": class_names, **defaults}


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


def _build(model_name: str, image_size: int | None = None) -> tuple[nn.Module, str, Preprocess]:
    """Returns the network without its weights, the name of its head, and how its published weights expect images."""
    backbone = find_backbone(model_name)
    net, preprocess, _ = build(backbone, True, image_size)
    return net, backbone.head or find_head(net, model_name), preprocess


def _load(
    net: nn.Module,
    head: str,
    tensors: dict[str, torch.Tensor],
    class_names: Sequence[str],
    activations: Sequence[str],
    path: str | Path,
) -> None:
    """Gives the network the head that those tensors have, and loads all of them."""
    prefix = f"{head}."
    inside = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    parent, _, child = head.rpartition(".")
    if inside:
        setattr(net.get_submodule(parent), child, head_of(inside, head, activations, path))
    last, n_classes = last_layer(net.get_submodule(head)), len(class_names)
    n_outputs = len(last.weight)
    is_sigmoid = n_outputs == 1 and n_classes == 2
    if inside and n_outputs != n_classes and not is_sigmoid:
        raise UserError(f"{path} has {n_outputs} outputs but {n_classes} class names; give one name for each output")
    check_fit(net.state_dict(), tensors, path)
    load_into(net, tensors, strict=False)  # older files have no counters of batches
    if is_sigmoid:
        add_zero_output(last)


def _with_positions(net: nn.Module, head: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns the tensors with positions interpolated for the network, and their head as it was."""
    inside = {name: value for name, value in tensors.items() if name.startswith(f"{head}.")}
    outside = {name: value for name, value in tensors.items() if name not in inside}
    return fit_positions(net, outside) | inside


def _has_other_shapes(net: nn.Module, head: str, tensors: Mapping[str, torch.Tensor]) -> bool:
    """Returns whether a layer before the head has another shape, as a transformer's positions at another image size."""
    own = net.state_dict()
    common = [name for name in own if name in tensors and not name.startswith(f"{head}.")]
    return any(own[name].shape != tensors[name].shape for name in common)


def _ready(net: nn.Module, head: str, preprocess: Preprocess) -> Classifier:
    return Classifier(net, head, preprocess).to(memory_format=torch.channels_last).eval()


def describes_itself(content: Mapping) -> bool:
    """Returns whether a file is a checkpoint of this tool, in whatever state."""
    return "format_version" in content


def check_content(content: Mapping, path: str | Path) -> None:
    """Checks the values of a checkpoint before any of them is used; raises UserError."""
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
        "its distances do not fit together": (novelty := novelty_of(content)) is None or novelty.is_sound,
        "its label_scores are not a list of numbers": (s := content.get("label_scores")) is None or _is_list(s),
        "its training_files are not a list of 64 bits": (s := content.get("training_files")) is None
        or (s.dim() == 1 and s.dtype == torch.int64),
    }
    return first_failed(claims)


def novelty_of(content: Mapping) -> Novelty | None:
    """Returns the distances that a checkpoint keeps, or None if it keeps none."""
    return msgspec.convert(content.get("novelty"), Novelty | None)


def _is_list(values: torch.Tensor) -> bool:
    return values.dim() == 1 and values.is_floating_point() and bool(values.isfinite().all())


def _has_held_out(splits: Mapping) -> bool:
    pairs = list[tuple[str, str]]
    return not (first_mismatch(splits, HeldOut) or first_mismatch(splits.get(splits["held_out"]), pairs))
