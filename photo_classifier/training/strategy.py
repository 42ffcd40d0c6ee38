"""What is trained: the whole model on images, or what follows its frozen layers on outputs that are computed once."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from photo_classifier.models.classifier import is_wholly_frozen
from photo_classifier.models.cut import LayersBehind, find_cut
from photo_classifier.models.inference import Engine, FrozenModel, HeadEngine
from photo_classifier.runtime import launcher
from photo_classifier.runtime.console import say

INDENT = " " * 8


@dataclass(frozen=True)
class Strategy:
    """What the trainer gets: a model to train, how its batches are evaluated, and whether they are stored features."""

    model: nn.Module
    evaluate: Callable[[torch.Tensor], torch.Tensor]
    refresh: Callable[[], None]
    uses_stored_features: bool = False
    has_head: bool = False  # apart from the network
    has_linear_head: bool = False  # and it is all that follows the features


def choose_strategy(
    engine: Engine,
    batch_size: int,
    stores_features: bool,
    mixes_regions: bool,
    why_not_store: Callable[[Engine], str] = lambda _engine: "",
) -> Strategy:
    """Returns how to train: frozen layers are computed once for all epochs, anything else in every epoch.

    Args:
        batch_size: images that a training step computes at once, over all processes.
        stores_features: whether features may be kept; if not, a frozen backbone computes them in every epoch.
        mixes_regions: whether parts of one image are put into another, which their features cannot show.
        why_not_store: says why the outputs at the engine's cut should not be kept, where only a part is frozen.
    """
    is_frozen = is_wholly_frozen(engine.model)
    if stores_features and mixes_regions and (is_frozen or _has_frozen_layers(engine)):
        say(f"{INDENT}--cutmix changes the pictures themselves: the backbone runs in every epoch, as with --views 0")
        stores_features = False
    if is_frozen:
        return _train_head(engine, batch_size, stores_features)
    if stores_features and _has_frozen_layers(engine) and _cut(engine, why_not_store):
        return Strategy(LayersBehind(engine.model, engine.cut), engine.from_features, engine.refresh, True)
    return Strategy(engine.model, engine, engine.refresh)


def with_new_head(strategy: Strategy, engine: Engine, seed: int, fold: int) -> Strategy:
    """Returns how to train another head on the same features, its first weights drawn for that fold."""
    head = copy.deepcopy(strategy.model)
    head.reset(seed, fold)
    head_engine = HeadEngine(head, engine.device, engine.dtype, engine.batch_size)
    return replace(strategy, model=head, evaluate=head_engine, refresh=head_engine.refresh)


def _train_head(engine: Engine, batch_size: int, stores_features: bool) -> Strategy:
    head = engine.model.head_module()
    if head is None:
        say(f"{INDENT}cannot tell what follows the head of this network, so all of it runs in every epoch")
        return Strategy(engine.model, engine, engine.refresh)
    head_engine = HeadEngine(head, engine.device, engine.dtype, engine.batch_size)
    is_linear = isinstance(head.head, nn.Linear) and len(head.tail) == 1  # its flattening
    if stores_features:
        return Strategy(head, head_engine, head_engine.refresh, True, True, is_linear)
    n_images = min(-(-batch_size // launcher.world_size()), engine.batch_size)
    frozen = FrozenModel(engine, head, n_images)
    return Strategy(
        frozen, lambda images: head_engine(engine.features(images)), head_engine.refresh, False, True, is_linear
    )


def _has_frozen_layers(engine: Engine) -> bool:
    """Returns whether more than batch norm is frozen."""
    return any(not isinstance(module, nn.modules.batchnorm._BatchNorm) for module in engine.model.frozen)


def _cut(engine: Engine, why_not_store: Callable[[Engine], str]) -> bool:
    """Cuts the engine behind its frozen layers and returns True, or says why all of them run in every epoch."""
    if cut := find_cut(engine.model, engine.pairs):
        engine.cut_at(cut)
        reason = why_not_store(engine)
    else:
        reason = "the other layers need more than one output of the frozen ones"
    if reason:
        say(f"{INDENT}{reason}: nothing is stored, and all layers run in every epoch")
        engine.cut_at(None)
    return not reason
