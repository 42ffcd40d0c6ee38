"""Builds and freezes a model, and loads weights into it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import torch
from torch import nn

from photo_classifier.config import TrainConfig, checkpoint_name
from photo_classifier.data.preprocess import Preprocess
from photo_classifier.models import pretrained, tensor_files
from photo_classifier.models.backbones import (
    HUB_CONFIG,
    Backbone,
    build,
    find_backbone,
    find_head,
    published_preprocess,
)
from photo_classifier.models.checkpoint import check_content, describes_itself
from photo_classifier.models.classifier import Classifier
from photo_classifier.models.foreign_weights import drop_beside, find_weights, with_head_beside
from photo_classifier.models.heads import copy_rows, replace_head
from photo_classifier.models.image_sizes import at_size, why_not_size
from photo_classifier.models.positions import fit_positions
from photo_classifier.models.state_dicts import check_fit, load_into, state_dict_of
from photo_classifier.runtime import distributed
from photo_classifier.runtime.console import say
from photo_classifier.runtime.errors import UserError, did_you_mean
from photo_classifier.runtime.files import read_json
from photo_classifier.runtime.limits import resource_hint
from photo_classifier.runtime.seeding import seeded_rng
from photo_classifier.runtime.uncompiled import import_timm
from photo_classifier.training.run_files import BACKBONE, LAST
from photo_classifier.training.run_state import StoppedRun, load_backbone, load_stopped_run


def build_model(config: TrainConfig, stopped: StoppedRun, device: torch.device) -> Classifier:
    """Returns the model on its device, frozen where the flags say so; that of a stopped run has its frozen backbone."""
    with distributed.first_on_each_machine():
        model = get_model(
            config.model_name,
            len(stopped.images.splits.class_names),
            pretrained=config.use_pretrained and stopped.is_new,
            weights_file=config.weights if stopped.is_new else None,
            image_size=config.image_size,
            preferred_size=config.preferred_size,
            resize=config.resize,
            bit_depth=config.bit_depth,
            fit=config.fit,
            head_hidden=config.head_hidden,
            dropout=config.dropout,
            seed=config.seed,
            weights_key=config.weights_key,
            class_names=[] if config.head == "logistic" else stopped.images.splits.class_names,  # that is solved anew
            preprocess=stopped.preprocess,
        )
        if config.weights and stopped.is_new and config.head == "logistic":
            say(f"head    solved anew: that of {config.weights} is not used")
        if config.freeze_until or (config.freeze and not config.unfreeze_after):
            freeze(model, config.freeze_until)
        if config.freeze_bn or config.unfreeze_after:  # batch statistics would undo what the head has learnt
            freeze_batch_norm(model)
        load_backbone(stopped, model.net)
        return model.to(device)


def freeze_at_first(config: TrainConfig, stopped: StoppedRun, model: Classifier) -> Callable[[], None] | None:
    """Freezes the backbone while the head trains alone; returns what ends that, or None if all layers train now."""
    if not config.unfreeze_after or stopped.trainer.get("first_epoch"):
        return None
    trained, frozen = [p for p in model.net.parameters() if p.requires_grad], list(model.frozen)
    freeze(model)

    def unfreeze() -> None:
        """Lets the layers train again that trained before."""
        for parameter in trained:
            parameter.requires_grad_(True)
        model.frozen = frozen
        model.train(model.training)

    return unfreeze


def get_model(
    model_name: str,
    n_classes: int,
    pretrained: bool = False,
    weights_file: str | None = None,
    image_size: int | None = None,
    preferred_size: int | None = None,
    resize: int | None = None,
    bit_depth: int | None = None,
    fit: str | None = None,
    head_hidden: int | None = None,
    dropout: float = 0.0,
    seed: int = 0,
    weights_key: str | None = None,
    class_names: Sequence[str] = (),
    preprocess: Preprocess | None = None,
) -> Classifier:
    """Builds a backbone with a new head for `n_classes`.

    Args:
        weights_file: a file of any script, or a checkpoint or a run folder of this tool, which also gives the rows of
            its head for classes of the same name.
        preferred_size: used without an `image_size`, if the backbone can take it; otherwise the weights' own is.
        weights_key: where the weights are in the file, if it holds several.
        class_names: of the new head, for the rows that are kept; none are without them.
        preprocess: how images are prepared, if that is settled: for a run that goes on.

    Raises:
        UserError: the name is unknown, weights are missing or do not fit, the backbone cannot take the size, or its
            head cannot be found.
    """
    backbone = find_backbone(model_name)
    path, content = read_weights(weights_file, model_name) if weights_file else (None, {})
    made_for = (backbone, bool(pretrained or weights_file), model_name, n_classes, head_hidden, dropout, seed)
    model, source = _new_model(*made_for)
    own_size = model.preprocess.image_size
    expected = _expected_preprocess(backbone, path, content) or model.preprocess
    given = {"bit_depth": bit_depth, "fit": fit}
    expected = replace(expected, **{name: value for name, value in given.items() if value is not None})
    prepared = preprocess or expected.at(image_size or preferred_size, resize)
    if not image_size and preferred_size and not preprocess and why_not_size(model, preferred_size, n_classes):
        prepared = expected.at(None, resize)
    # before a download, which may take a while
    net = at_size(
        model, lambda size: _new_model(*made_for, size)[0], prepared.image_size, n_classes, model_name, own_size
    ).net
    model = Classifier(net, model.head_name, prepared)
    if weights_file:
        _load_file(model, content, path, weights_key, class_names)
    elif pretrained:
        _load_pretrained(model, backbone, source, model_name)
    return model.to(memory_format=torch.channels_last)


def _new_model(
    backbone: Backbone,
    is_pretrained: bool,
    model_name: str,
    n_classes: int,
    head_hidden: int | None,
    dropout: float,
    seed: int,
    image_size: int | None = None,
) -> tuple[Classifier, pretrained.Source | None]:
    """Returns a backbone with a new head, for images of that size if it has to be known, and where its weights are."""
    with seeded_rng(seed, "init"):
        net, published, source = build(backbone, is_pretrained, image_size)
        head_name = backbone.head or find_head(net, model_name)
        replace_head(net, head_name, n_classes, head_hidden, dropout)
    return Classifier(net, head_name, published), source


def _expected_preprocess(backbone: Backbone, path: Path | None, content: Mapping) -> Preprocess | None:
    """Returns how the weights of a file want images prepared, if that is known."""
    if describes_itself(content):
        return msgspec.convert(content, Preprocess)
    return published_preprocess(backbone, path) if path else None


def freeze(model: Classifier, until: str | None = None) -> None:
    """Freezes everything but the head, or the modules up to and including `until`.

    Frozen modules have `requires_grad=False` and stay in eval mode, so that batch-norm statistics do not change.

    Args:
        until: a dotted name, or how many of the backbone's children to freeze.

    Raises:
        UserError: there is no such module (the message lists those that exist), or the head would be frozen too.
    """
    frozen = _modules_until(model.net, until) if until else _all_but(model.net, model.head_name)
    model.frozen += frozen
    for module in frozen:
        module.requires_grad_(False)
    for parameter in model.head.parameters():
        if not parameter.requires_grad:
            raise UserError(f"to freeze up to {until} would freeze the head too; choose an earlier layer")
    model.train(model.training)


def freeze_batch_norm(model: Classifier) -> None:
    """Freezes the statistics and parameters of batch norm, and nothing else."""
    norms = [m for m in model.net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    model.frozen += norms
    for norm in norms:
        norm.requires_grad_(False)
    model.train(model.training)


def _load_file(
    model: Classifier, content: dict, path: Path, weights_key: str | None, class_names: Sequence[str]
) -> None:
    """Loads the backbone, and the rows of the head for classes of the same name if the file names its classes."""
    if describes_itself(content):
        if weights_key:
            raise UserError(f"{path} is a checkpoint of this tool, with one set of weights; leave out --weights_key")
        tensors, old_names = state_dict_of(content, path), content["class_names"]
    else:
        names = model.net.state_dict().keys()
        weights = with_head_beside(find_weights(content, names, [model.head_name], path, weights_key))
        for note in weights.notes:
            say(note)
        tensors, old_names = weights.tensors, _label_names(path, class_names)
    _load_backbone(model.net, tensors, model.head_name, path)
    prefix = f"{model.head_name}."
    head = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    if class_names and head:
        _keep_rows(model, head, old_names, class_names, path)


def _label_names(path: Path, class_names: Sequence[str]) -> list[str]:
    """Returns the classes of a file by the `config.json` of timm beside it; none if it has none of `class_names`."""
    names = read_json(path.with_name(HUB_CONFIG)).get("label_names")
    is_list = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return names if is_list and set(names) & set(class_names) else []


def _keep_rows(
    model: Classifier, head: dict[str, torch.Tensor], old_names: list[str], class_names: Sequence[str], path: Path
) -> None:
    """Copies the rows of a file's head for classes of the same name, and tells which."""
    if not old_names:
        say(f"head    new: that of {path} is not used")
        return
    kept = copy_rows(model.head, head, old_names, class_names)
    new, gone = ([n for n in names if n not in others] for names, others in ((class_names, kept), (old_names, kept)))
    parts = {f"kept from {path}": kept, "new": new, "left out": gone}
    say("head    " + "; ".join(f"{what}: {', '.join(names[:20])}" for what, names in parts.items() if names))
    if not kept and set(old_names) & set(class_names):
        say(f"        none is kept, because the head of {path} has another hidden layer (--head_hidden)")


def _load_pretrained(model: Classifier, backbone: Backbone, source: pretrained.Source | None, model_name: str) -> None:
    if source is None:
        raise UserError(
            f"timm has no pretrained weights for {model_name}; choose another model, or give --weights FILE"
        )
    if backbone.package:
        path = pretrained.packaged_file(backbone.package, model_name)
    else:
        path = pretrained.cached_or_downloaded(source, model_name)
    content = tensor_files.read(path)
    tensors = state_dict_of(content, path)
    if backbone.package:
        # matched by order: the package has other names for the same layers
        names = [name for name in model.net.state_dict() if not name.startswith(f"{model.head_name}.")]
        tensors = dict(zip(names, tensors.values(), strict=False))  # the head's come last
    elif backbone.library == "timm":
        tensors = _timm_with(backbone.name, path).state_dict()
    else:
        tensors = find_weights(content, model.net.state_dict().keys(), [model.head_name], path).tensors
    _load_backbone(model.net, tensors, model.head_name, path)


def _timm_with(name: str, path: Path) -> nn.Module:
    """Loads a file from timm's hub with timm, which renames or reshapes the tensors of some models."""
    timm = import_timm()

    try:
        # the hub's files are plain state_dicts, even for models whose loader expects another format
        overlay = {"file": str(path), "custom_load": False}
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay)
    except (RuntimeError, ValueError, KeyError) as error:
        if resource_hint(error):
            raise
        raise UserError(f"{path} does not fit timm/{name}: {error}; delete it to download it again") from error


def _load_backbone(net: nn.Module, tensors: Mapping[str, torch.Tensor], head_name: str, path: str | Path) -> None:
    """Loads everything but the head, whatever head the file has; raises UserError if the tensors do not fit."""

    def without_head(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: value for name, value in state.items() if not name.startswith(f"{head_name}.")}

    loaded = fit_positions(net, without_head(drop_beside(tensors, net.state_dict(), head_name)))
    check_fit(without_head(net.state_dict()), loaded, path)
    load_into(net, loaded, strict=False)


# --- weights of an earlier run ----------------------------------------------------------------


def read_weights(path: str | Path, model_name: str) -> tuple[Path, dict]:
    """Returns the file that a path leads to and its content; that of a run is its checkpoint.

    A run folder leads to the run's best weights, `last.pth` to those of its last save, and a folder of the Hugging
    Face hub to its file of weights.

    Raises:
        UserError: the file is missing or broken, or a checkpoint of another network.
    """
    path = Path(path)
    hub_files = [path / name for name in ("model.safetensors", "pytorch_model.bin") if (path / name).is_file()]
    path = hub_files[0] if hub_files else path
    if path.is_dir():
        path, content = _best_of_run(load_stopped_run(path, "--weights"))
    elif path.name == LAST and "trainer" in tensor_files.read(path):
        stopped = load_stopped_run(path.parent, "--weights")
        _, content = _best_of_run(stopped)
        content = {**content, "state_dict": _last_weights(stopped, content["head"])}
    else:
        content = tensor_files.read(path)
    if describes_itself(content):
        check_content(content, path)
        inside = content["model_name"]
        if inside != model_name and find_backbone(inside).network != find_backbone(model_name).network:
            raise UserError(
                f"{path} is a checkpoint of {inside}; take that model (--model_name) or another file (--weights)"
            )
    return path, content


def _best_of_run(stopped: StoppedRun) -> tuple[Path, dict]:
    """Returns the best weights of a run: its checkpoint, wherever it is now, or else its `last_model.pth`."""
    state = stopped.state
    name = Path(state.cwd, checkpoint_name(TrainConfig(**state.config)))
    for path in (name, Path(f"{name}.prev"), stopped.folder.parent / name.name, stopped.folder / "last_model.pth"):
        if tensor_files.is_of_run(path, state.run_id):
            return path, tensor_files.read(path)
    raise UserError(f"the run in {stopped.folder} has no checkpoint any more: {name} is gone; give another (--weights)")


def _last_weights(stopped: StoppedRun, head_name: str) -> dict[str, torch.Tensor]:
    """Returns the weights of a run's last save, by the network's names."""
    # what a run with stored features trains is the network behind its cut, `net.layer4.0.conv1.weight`, or ends in its
    # head: `head.weight` or `top.head.weight`
    trained = {
        name.removeprefix("net.") if name.startswith("net.") else head_name + name[name.index("head.") + 4 :]: value
        for name, value in stopped.trainer["model"].items()
        if name.startswith("net.") or "head." in name
    }
    if not stopped.state.has_backbone:
        return trained
    path = stopped.folder / BACKBONE
    return state_dict_of(tensor_files.read(path), path) | trained


# --- freezing ---------------------------------------------------------------------------------


def _all_but(module: nn.Module, name: str) -> list[nn.Module]:
    """Returns the largest modules that do not contain the one of that name, and freezes the parameters beside them."""
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
    """Freezes the parameters that a module holds itself, such as ViT's class token."""
    for parameter in module.parameters(recurse=False):
        parameter.requires_grad_(False)


def _modules_until(module: nn.Module, until: str, above: str = "") -> list[nn.Module]:
    """Returns the children of a module up to and including `until`; `above` is the prefix of its name."""
    _freeze_own(module)
    children = dict(module.named_children())
    if not above and until.isdecimal() and until not in children and 1 <= int(until) <= len(children):
        return list(children.values())[: int(until)]
    first, _, rest = until.partition(".")
    if first not in children:
        names = [above + name for name in children]
        known = ", ".join(names) or above.rstrip(".")
        raise UserError(
            f"there is no layer {above + first!r} (--freeze_until); choose from {known}, or a dotted name below one of "
            f"them{did_you_mean(above + first, names)}"
        )
    names = list(children)
    before = [children[name] for name in names[: names.index(first)]]
    return before + (_modules_until(children[first], rest, f"{above}{first}.") if rest else [children[first]])
