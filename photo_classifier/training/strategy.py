"""What is trained: the whole model on images, or its head on features that are computed once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from photo_classifier.models.classifier import is_wholly_frozen
from photo_classifier.models.inference import Engine, FrozenModel, HeadEngine
from photo_classifier.runtime import launcher
from photo_classifier.runtime.console import say


@dataclass(frozen=True)
class Strategy:
    """What the trainer gets: a model to train, how its batches are evaluated, and whether they are stored features."""

    model: nn.Module
    evaluate: Callable[[torch.Tensor], torch.Tensor]
    refresh: Callable[[], None]
    uses_stored_features: bool = False
    has_head: bool = False  # apart from the network
    has_linear_head: bool = False  # and it is all that follows the features


def choose_strategy(engine: Engine, batch_size: int, stores_features: bool, mixes_regions: bool) -> Strategy:
    """Returns how to train: a wholly frozen backbone is computed once for all epochs, anything else in every epoch.

    Args:
        batch_size: images that a training step computes at once, over all processes.
        stores_features: whether features may be kept; if not, a frozen backbone computes them in every epoch.
        mixes_regions: whether parts of one image are put into another, which their features cannot show.
    """
    is_frozen = is_wholly_frozen(engine.model)
    head = engine.model.head_module() if is_frozen else None
    if head is None:
        if is_frozen:
            say("        cannot tell what follows the head of this network, so all of it runs in every epoch")
        return Strategy(engine.model, engine, engine.refresh)
    head_engine = HeadEngine(head, engine.device, engine.dtype, engine.batch_size)
    is_linear = isinstance(head.head, nn.Linear) and len(head.tail) == 1  # its flattening
    if stores_features and mixes_regions:
        say("        --cutmix changes the pictures themselves: the backbone runs in every epoch, as with --views 0")
    if stores_features and not mixes_regions:
        return Strategy(head, head_engine, head_engine.refresh, True, True, is_linear)
    n_images = min(-(-batch_size // launcher.world_size()), engine.batch_size)
    frozen = FrozenModel(engine, head, n_images)
    return Strategy(
        frozen, lambda images: head_engine(engine.features(images)), head_engine.refresh, False, True, is_linear
    )
