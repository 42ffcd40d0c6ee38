"""Builds and freezes a model, and loads weights into it."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import nn

import weights
from backbones import Backbone, build, find_backbone, find_head
from data_loader import Preprocess
from utils import UserError, addressed_rng, did_you_mean

# --- the classifier ---------------------------------------------------------------------------


class _Float32Head:
    """Computes in fp32 whatever the precision, after a dropout that adds no names of its own."""

    dropout = 0.0

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return super().forward(nn.functional.dropout(features.float(), self.dropout, self.training))


class LinearHead(_Float32Head, nn.Linear):
    """A linear head."""


class ConvHead(_Float32Head, nn.Conv2d):
    """A 1x1 convolution as head, as SqueezeNet has it."""


class HiddenHead(_Float32Head, nn.Sequential):
    """Linear - ReLU - Dropout - Linear."""


class _AtTheHead(Exception):
    """The forward pass has come to the head."""


class Top(nn.Module):
    """The head and what follows it (SqueezeNet: its last ReLU and pooling): features in, fp32 logits out."""

    def __init__(self, head: nn.Module, tail: nn.Module) -> None:
        super().__init__()
        self.head, self.tail = head, tail

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """What `Classifier.features` gives, (n, ...) -> logits, fp32 (n, classes)."""
        return self.tail(self.head(features)).float()


# What a network raises that is asked for what it cannot do: each library refuses in its own way.
REFUSALS = (RuntimeError, AssertionError, ValueError, TypeError, IndexError, AttributeError)


class Classifier(nn.Module):
    """A backbone with a new head: uint8 images in, fp32 logits out.

    `net` keeps the library's own names, so its state_dict loads there. It is cut at the head:
    `logits = tail(head(features(images)))`.
    """

    def __init__(self, net: nn.Module, head_name: str, preprocess: Preprocess) -> None:
        super().__init__()
        self.net = net
        self.head_name = head_name
        self.preprocess = preprocess
        self.frozen: list[nn.Module] = []
        _train_depthwise_in_fp32(net)
        for name, values in (("_mean", preprocess.mean), ("_std", preprocess.std)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1) * 255, persistent=False)

    @property
    def head(self) -> nn.Module:
        """The layer that was replaced."""
        return self.net.get_submodule(self.head_name)

    def parameters_by_part(self) -> dict[str, list[nn.Parameter]]:
        """Those of `backbone` and `head`, each in its order."""
        head = list(self.head.parameters())
        others = {id(p) for p in head}
        return {"backbone": [p for p in self.net.parameters() if id(p) not in others], "head": head}

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (n, 3, h, w) -> fp32 in the scale that the weights were trained with."""
        return (images.float() - self._mean) / self._std

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images, uint8 (n, 3, size, size) -> logits, fp32 (n, classes)."""
        return self.net(self.normalize(images)).float()

    def example_image(self, size: int | None = None) -> torch.Tensor:
        """A grey image, uint8 (1, 3, size, size) on the model's device, to see what runs and what shape comes out."""
        size = size or self.preprocess.image_size
        return torch.full((1, 3, size, size), 128, dtype=torch.uint8, device=self._mean.device)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Images, uint8 (n, 3, size, size) -> what the head takes, (n, ...); nothing behind it is computed."""
        found: list[torch.Tensor] = []

        def stop(_module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
            found.append(inputs[0])
            raise _AtTheHead

        handle = self.head.register_forward_pre_hook(stop)
        try:
            self.net(self.normalize(images))
        except _AtTheHead:
            pass
        finally:
            handle.remove()
        return found[0]

    def top(self) -> Top | None:
        """The head and what follows it, sharing their weights, or None where this cannot be told.

        What follows is looked up (the rest of the head's own sequence) and then checked by computing.
        """
        parent, _, child = self.head_name.rpartition(".")
        siblings = self.net.get_submodule(parent)
        names = [name for name, _ in siblings.named_children()]
        rest = list(siblings)[names.index(child) + 1 :] if isinstance(siblings, nn.Sequential) else []
        top = Top(self.head, nn.Sequential(*rest, nn.Flatten(1)))
        image, was_training = self.example_image(), self.training
        self.eval()
        with torch.no_grad():
            expected, found = self(image), top(self.features(image))
        self.train(was_training)
        return top if found.shape == expected.shape and torch.allclose(found, expected, atol=1e-4) else None

    def train(self, mode: bool = True) -> Classifier:
        """Training mode for what trains; frozen modules stay in eval mode."""
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self


def _train_depthwise_in_fp32(net: nn.Module) -> None:
    """Makes depthwise convolutions train in fp32 on the CPU: their backward pass in bf16 takes four times as long."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
            module.forward = functools.partial(_forward_in_fp32, module, type(module).forward)


def _forward_in_fp32(module: nn.Module, forward: Callable, inputs: torch.Tensor) -> torch.Tensor:
    if not module.training or inputs.device.type != "cpu":
        return forward(module, inputs)
    with torch.autocast("cpu", enabled=False):
        return forward(module, inputs.float())


def get_model(
    model_name: str,
    n_classes: int,
    pretrained: bool = False,
    weights_file: str | None = None,
    image_size: int | None = None,
    preferred_size: int | None = None,
    resize: int | None = None,
    bit_depth: int = 16,
    head_hidden: int | None = None,
    dropout: float = 0.0,
    seed: int = 0,
) -> Classifier:
    """Builds a backbone with a new head for `n_classes`.

    Args:
        preferred_size: taken without an `image_size`, where the backbone can; else it is the weights' own.

    Raises:
        UserError: an unknown name, weights that are missing or do not fit, a size it cannot take, or a
            model whose head cannot be found.
    """
    backbone = find_backbone(model_name)
    with addressed_rng(seed, "init"):
        net, preprocess, source = build(backbone, will_load=pretrained or bool(weights_file))
        head_name = backbone.head or find_head(net, model_name)
        replace_head(net, head_name, n_classes, head_hidden, dropout, model_name)
    model = Classifier(net, head_name, preprocess.at(image_size or preferred_size, resize, bit_depth))
    if not image_size and preferred_size and _try_size(model, preferred_size, n_classes):
        model.preprocess = preprocess.at(None, resize, bit_depth)
    _check_size(model, n_classes, model_name, preprocess.image_size)  # before a download, which may take long
    if weights_file:
        _load_file(net, weights_file, head_name, model_name)
    elif pretrained:
        _load_pretrained(net, backbone, source, head_name, model_name)
    return model.to(memory_format=torch.channels_last)


def replace_head(
    net: nn.Module, name: str, n_classes: int, hidden: int | None, dropout: float, model_name: str
) -> None:
    """Puts a new head for `n_classes` in the place of that name, with a hidden layer where `hidden` gives its units.

    Raises:
        UserError: a hidden layer is asked for where the head is a convolution.
    """
    old = net.get_submodule(name)
    if isinstance(old, nn.Conv2d):
        if hidden:
            raise UserError(f"--head_hidden needs a linear head; that of {model_name} is a convolution")
        head: nn.Module = ConvHead(old.in_channels, n_classes, 1)
    elif hidden:
        head = HiddenHead(
            nn.Linear(old.in_features, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, n_classes)
        )
    else:
        head = LinearHead(old.in_features, n_classes)
    if not hidden:  # with a hidden layer it acts there
        head.dropout = dropout
    parent, _, child = name.rpartition(".")
    setattr(net.get_submodule(parent), child, head)


SIZES_TO_TRY = (32, 48, 64, 96, 128, 160, 192, 224, 256, 299, 320, 384, 448, 512)


def _check_size(model: Classifier, n_classes: int, model_name: str, own_size: int) -> None:
    size = model.preprocess.image_size
    error = _try_size(model, size, n_classes)
    if error is None:
        return
    if size == own_size:
        raise UserError(f"--model_name {model_name} cannot be used as a classifier here: {error}")
    works = [str(s) for s in sorted({own_size, *SIZES_TO_TRY}) if _try_size(model, s, n_classes) is None]
    raise UserError(
        f"{model_name} cannot take --image_size {size}; of the usual sizes it takes {', '.join(works)} "
        f"(without --image_size: {own_size})"
    )


def _try_size(model: Classifier, size: int, n_classes: int) -> str | None:
    """Whether the model takes images of that size: the reason if not."""
    model.eval()
    try:
        with torch.no_grad():
            logits = model(model.example_image(size))
    except REFUSALS as error:
        return str(error) or type(error).__name__
    return None if logits.shape == (1, n_classes) else f"its output has the shape {tuple(logits.shape)}"


# --- weights into the backbone ----------------------------------------------------------------


def _load_file(net: nn.Module, path: str | Path, head_name: str, model_name: str) -> None:
    content = weights.read(path)
    inside = content.get("model_name", model_name)
    if inside != model_name:
        raise UserError(f"{path} is a checkpoint of {inside}; use --model_name {inside}, or another --weights FILE")
    _load_backbone(net, weights.state_dict_of(content, path), head_name, path)


def _load_pretrained(
    net: nn.Module, backbone: Backbone, source: weights.Source | None, head_name: str, model_name: str
) -> None:
    if source is None:
        raise UserError(f"timm has no pretrained weights for {model_name}; choose another or give --weights FILE")
    path = weights.lite0_file() if backbone.packaged else weights.cached_or_downloaded(source, model_name)
    tensors = weights.state_dict_of(weights.read(path), path)
    if backbone.packaged:
        # tensor by tensor in order: the package names the same layers otherwise
        names = [name for name in net.state_dict() if not name.startswith(f"{head_name}.")]
        tensors = dict(zip(names, tensors.values(), strict=False))  # the head's own are the last
    elif backbone.library == "timm":
        tensors = _timm_with(backbone.name, path).state_dict()
    _load_backbone(net, tensors, head_name, path)


def _timm_with(name: str, path: Path) -> nn.Module:
    """timm's own loading of a file from its hub: some of its models rename or reshape tensors there."""
    import timm

    try:
        # the hub's files are plain state_dicts, also of models whose own loader reads another format
        overlay = {"file": str(path), "custom_load": False}
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)
    except (RuntimeError, ValueError, KeyError) as error:
        raise UserError(f"{path} does not fit timm/{name}: {error}; delete it, and it is downloaded again") from error


def _load_backbone(net: nn.Module, tensors: Mapping[str, torch.Tensor], head_name: str, path: str | Path) -> None:
    """Loads all but the head, whatever head the file has, and says what does not fit."""

    def is_head(name: str) -> bool:
        return name.startswith(head_name + ".")

    # DenseNet's published files call "norm.1" what the library calls "norm1"
    renamed = {re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)", r"\1\2", key): value for key, value in tensors.items()}
    own = {key: value for key, value in net.state_dict().items() if not is_head(key)}
    found = {
        key: value for key, value in renamed.items() if not is_head(key) and not re.match(r"(AuxLogits|aux\d)\.", key)
    }
    check_fit(own, found, path)
    weights.load_into(net, found, strict=False)


def check_fit(own: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor], path: str | Path) -> None:
    """Checks that tensors of a file are those of the model.

    Raises:
        UserError: names, shapes or kinds of numbers differ, or a value is not finite.
    """
    # older files have no counter of batches, which nothing here reads
    missing = [key for key in own if key not in found and not key.endswith("num_batches_tracked")]
    unknown = [key for key in found if key not in own]
    wrong = [key for key in own if key in found and own[key].shape != found[key].shape]
    odd = [key for key in own if key in found and not _is_like(found[key].dtype, own[key].dtype)]
    mistakes = {"lacks": missing, "has the unknown": unknown, "has another shape for": wrong, "has odd numbers in": odd}
    for what, keys in mistakes.items():
        if keys:
            raise UserError(
                f"{path} does not fit the model: it {what} {', '.join(keys[:3])}"
                f"{f' and {len(keys) - 3} more' if len(keys) > 3 else ''}; is it of another --model_name?"
            )
    broken = [key for key, value in found.items() if not value.float().isfinite().all()]  # in fp32, as they are kept
    if broken:
        raise UserError(f"{path} has values that are not finite in {', '.join(broken[:3])}; it cannot be used")


WEIGHT_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def _is_like(dtype: torch.dtype, own: torch.dtype) -> bool:
    """Whether numbers of a file can stand for those of the model."""
    return dtype == own or (dtype in WEIGHT_TYPES and own in WEIGHT_TYPES)


# --- freezing ---------------------------------------------------------------------------------


def freeze(model: Classifier, until: str | None = None) -> None:
    """Freezes all but the head, or the modules up to and with the one named `until`.

    Frozen means `requires_grad=False` and eval mode for good: batch-norm statistics do not move.

    Args:
        until: a dotted name, or a number that counts the backbone's children.

    Raises:
        UserError: no such module; the message lists those there are.
    """
    frozen = _modules_until(model.net, until) if until else _all_but(model.net, model.head_name)
    model.frozen += frozen
    for module in frozen:
        module.requires_grad_(False)
    for parameter in model.head.parameters():
        if not parameter.requires_grad:
            raise UserError(f"--freeze_until {until} would freeze the head too, and nothing would be left to train")
    model.train(model.training)


def freeze_batch_norm(model: Classifier) -> None:
    """Freezes batch norm alone, its statistics and its parameters."""
    norms = [m for m in model.net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    model.frozen += norms
    for norm in norms:
        norm.requires_grad_(False)
    model.train(model.training)


def _all_but(module: nn.Module, name: str) -> list[nn.Module]:
    """The largest modules that do not hold the one of that name."""
    first, _, rest = name.partition(".")
    _freeze_own(module)
    frozen: list[nn.Module] = []
    for child_name, child in module.named_children():
        if child_name != first:
            frozen.append(child)
        elif rest:
            frozen += _all_but(child, rest)
    return frozen


def _freeze_own(module: nn.Module) -> None:
    """Parameters that a module holds itself, as ViT's class token, freeze with its first child."""
    for parameter in module.parameters(recurse=False):
        parameter.requires_grad_(False)


def _modules_until(module: nn.Module, until: str, above: str = "") -> list[nn.Module]:
    _freeze_own(module)
    children = dict(module.named_children())
    if not above and until.isdecimal() and until not in children and 1 <= int(until) <= len(children):
        return list(children.values())[: int(until)]
    first, _, rest = until.partition(".")
    if first not in children:
        names = [above + name for name in children]
        known = ", ".join(names) or above.rstrip(".")
        raise UserError(
            f"--freeze_until: there is no layer {above + first!r}; choose from {known}, or a dotted name below one of "
            f"them{did_you_mean(above + first, names)}"
        )
    names = list(children)
    before = [children[name] for name in names[: names.index(first)]]
    return before + (_modules_until(children[first], rest, f"{above}{first}.") if rest else [children[first]])


def is_wholly_frozen(model: Classifier) -> bool:
    """Whether nothing but the head trains or moves, so that the backbone is a function."""
    head = {id(p) for p in model.head.parameters()} | {id(m) for m in model.head.modules()}
    if any(p.requires_grad and id(p) not in head for p in model.net.parameters()):
        return False
    was_training = model.training
    model.train()
    leaves = [m for m in model.net.modules() if not list(m.children())]
    moving = [m for m in leaves if m.training and id(m) not in head and _acts_in_training(m)]
    model.train(was_training)
    return not moving


def _acts_in_training(module: nn.Module) -> bool:
    """Whether a layer computes otherwise in training mode: it keeps statistics or draws numbers."""
    return isinstance(module, nn.modules.batchnorm._NormBase) or "drop" in type(module).__name__.lower()


def count_parameters(model: Classifier) -> tuple[int, int]:
    """Parameters in all, and those that train."""
    sizes = [(p.numel(), p.requires_grad) for p in model.net.parameters()]
    return sum(n for n, _ in sizes), sum(n for n, trains in sizes if trains)
