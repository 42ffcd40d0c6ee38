"""Backbones by name: the library's network, its preprocessing and the source of its pretrained weights."""

from __future__ import annotations

import contextlib
import re
import warnings
from dataclasses import dataclass

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from photo_classifier.data.preprocess import Preprocess
from photo_classifier.models import pretrained
from photo_classifier.runtime.errors import UserError, did_you_mean
from photo_classifier.runtime.signals import resource_hint


@dataclass(frozen=True)
class Backbone:
    """A network of a library, by the library's own name.

    `head` is the dotted name of its last linear (or 1x1 convolution) layer; None searches for it.
    `packaged` weights come from a pip package and need no download.
    """

    library: str
    name: str
    head: str | None = None
    packaged: bool = False


BACKBONES = {
    "resnet": Backbone("torchvision", "resnet34", head="fc"),
    "alexnet": Backbone("torchvision", "alexnet", head="classifier.6"),
    "vgg": Backbone("torchvision", "vgg16_bn", head="classifier.6"),
    "squeezenet": Backbone("torchvision", "squeezenet1_0", head="classifier.1"),
    "densenet": Backbone("torchvision", "densenet121", head="classifier"),
    "efficientnet_lite0": Backbone("timm", "tf_efficientnet_lite0", head="classifier", packaged=True),
}


RANDOM_FILLS = frozenset("normal_ uniform_ trunc_normal_ kaiming_normal_ kaiming_uniform_ xavier_uniform_".split())


def find_backbone(name: str) -> Backbone:
    """Returns the backbone of that name: a row of `BACKBONES`, any torchvision model, or `timm/NAME`.

    Raises:
        UserError: there is none; the message names the closest.
    """
    if name in BACKBONES:
        return BACKBONES[name]
    if name.startswith("timm/"):
        import timm

        short = name.removeprefix("timm/")
        if not timm.is_model(short):
            near = did_you_mean(short, timm.list_models()).replace("did you mean ", "did you mean timm/")
            raise UserError(f"--model_name {name!r}: timm has no model {short!r}; write it as in timm/resnet18{near}")
        return Backbone("timm", short)
    from torchvision import models

    known = models.list_models(module=models)
    if name in known:
        return Backbone("torchvision", name)
    raise UserError(
        f"--model_name {name!r} is unknown; choose from {', '.join(BACKBONES)}, a torchvision model (resnet18, "
        f"convnext_tiny, ...) or timm/NAME{did_you_mean(name, [*BACKBONES, *known])}"
    )


def build(backbone: Backbone, will_load: bool) -> tuple[nn.Module, Preprocess, pretrained.Source | None]:
    """Builds the library's network, and returns it with its preprocessing and the source of its pretrained weights.

    Args:
        will_load: weights are loaded next, so that none need to be drawn.
    """
    with warnings.catch_warnings(), _NoRandomFills() if will_load else contextlib.nullcontext():
        warnings.simplefilter("ignore")  # libraries warn about their own deprecations
        return BUILDERS[backbone.library](backbone)


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


def _build_torchvision(backbone: Backbone) -> tuple[nn.Module, Preprocess, pretrained.Source]:
    from torchvision import models

    options = {}
    if backbone.name in ("inception_v3", "googlenet"):
        # Auxiliary heads only help training from scratch; the pretrained weights expect the library's rescaling
        # of the input.
        options = {"aux_logits": False, "transform_input": True, "init_weights": False}
    enum = models.get_model_weights(backbone.name).DEFAULT
    preset = enum.transforms()
    if backbone.name.startswith("vit_"):
        options = {"image_size": preset.crop_size[0]}  # vit_h_14 has a default size that differs from its weights'
    net = models.get_model(backbone.name, weights=None, **options)
    file_name = enum.url.rpartition("/")[2]
    preprocess = Preprocess(
        preset.crop_size[0], preset.resize_size[0], preset.interpolation.value, tuple(preset.mean), tuple(preset.std)
    )
    hashed = re.search(r"-([0-9a-f]{8,})\.", file_name)
    return net, preprocess, pretrained.Source(enum.url, file_name, hashed and hashed[1])


def _build_timm(backbone: Backbone) -> tuple[nn.Module, Preprocess, pretrained.Source | None]:
    import timm

    try:
        net = timm.create_model(backbone.name, pretrained=False)
        if not net.num_classes:  # built without a head
            net = timm.create_model(backbone.name, pretrained=False, num_classes=1000)
    except (RuntimeError, ValueError, TypeError) as error:
        if resource_hint(error):
            raise
        raise UserError(f"timm cannot build timm/{backbone.name}: {error}") from error
    config = net.pretrained_cfg
    size = config["input_size"][-1]
    preprocess = Preprocess(
        size,
        int(size / (config.get("crop_pct") or 0.875)),
        config.get("interpolation") or "bicubic",
        tuple(config["mean"]),
        tuple(config["std"]),
    )
    if repository := config.get("hf_hub_id"):
        from huggingface_hub import constants

        url = f"{constants.ENDPOINT}/{repository}/resolve/main/model.safetensors"
        name = repository.replace("/", "--") + ".safetensors"
        return net, preprocess, pretrained.Source(url, name, hub_id=repository)
    if url := config.get("url"):
        return net, preprocess, pretrained.Source(url, url.rpartition("/")[2])
    return net, preprocess, None


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
