"""What the flags ask for, put together: model, optimizer, trainer, batches of each split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from data_loader import AUGMENTS, ImageDataset, Mixer, train_transform
from model_loader import freeze, freeze_batch_norm, get_model
from photo_classifier.config import TrainConfig
from photo_classifier.data.batches import AddressedSampler, make_loader
from photo_classifier.data.checks import ON_LEAK
from photo_classifier.data.preprocess import Preprocess, eval_transform
from photo_classifier.data.samples import Splits
from photo_classifier.features.extraction import FeatureRequest, extract
from photo_classifier.models.classifier import Classifier, is_wholly_frozen
from photo_classifier.models.inference import Engine, FrozenModel, HeadEngine, eval_batch_size
from photo_classifier.runtime import launcher
from photo_classifier.runtime.console import say
from photo_classifier.runtime.errors import UserError, choose
from photo_classifier.training.optimization import (
    CLASS_WEIGHTS,
    OPTIMIZERS,
    SCHEDULERS,
    Plan,
    Recipe,
    Schedule,
    TrainingLoss,
    make_optimizer,
)
from photo_classifier.training.resume import StoppedRun, load_backbone
from photo_classifier.training.run import Run
from trainer import MONITORS, Trainer


def check_names(config: TrainConfig) -> None:
    """Every flag that names a row of a table, before any work is done.

    Raises:
        UserError: there is no such row.
    """
    tables = {
        "on_leak": ON_LEAK,
        "augment": AUGMENTS,
        "class_weights": CLASS_WEIGHTS,
        "optimizer": OPTIMIZERS,
        "scheduler": SCHEDULERS,
        "monitor": MONITORS,
    }
    for name, table in tables.items():
        choose(f"--{name}", getattr(config, name), table)


def check_ranks(config: TrainConfig, device: torch.device) -> None:
    """What several processes, or only one, cannot do.

    Raises:
        UserError: batches that are too small to be shared out, or synchronised batch norm on the CPU.
    """
    if config.batch_size < launcher.world_size():
        raise UserError(
            f"--batch_size {config.batch_size} is the batch of all {launcher.world_size()} processes; give at least "
            "one image for each"
        )
    if config.sync_bn and device.type != "cuda":
        raise UserError(f"--sync_bn needs GPUs, and this runs on {device}; leave it out, or freeze it with --freeze_bn")


def make_engine(
    config: TrainConfig, model: Classifier, device: torch.device, dtype: torch.dtype, saved: StoppedRun | None = None
) -> Engine:
    """What evaluates the model; the engine of a stopped run stays as it was."""
    engine = Engine(model, device, dtype, eval_batch_size(config.batch_size))
    if saved and saved.progress.is_folded != engine.is_folded:  # what it sees of the weights may differ by now
        engine.is_folded = saved.progress.is_folded
        engine.refresh()
    return engine


def make_trainer(config: TrainConfig, splits: Splits, engine: Engine, work: Strategy) -> Trainer:
    """The trainer of what trains."""
    n_steps = len(AddressedSampler(len(splits.train), config.batch_size, config.seed))
    recipe = make_recipe(config, engine.model, splits, n_steps)
    parts = (work.model, work.compute, work.refresh, recipe)
    return Trainer(*parts, engine.device, engine.dtype, config.seed, config.monitor, config.sync_bn)


def make_recipe(config: TrainConfig, model: Classifier, splits: Splits, n_steps: int) -> Recipe:
    """How the weights learn, as the flags ask for it; `n_steps` is of an epoch."""
    rates = {"backbone": config.backbone_lr or config.lr, "head": config.lr}
    parameters = model.parameters_by_part()
    optimizer = make_optimizer(config.optimizer, parameters, rates, config.momentum, config.weight_decay)
    plan = Plan(config.n_epochs, config.step_size, config.gamma, config.patience)
    schedule = Schedule(config.scheduler, optimizer, plan, round(config.warmup_epochs * n_steps))
    counts = Counter(sample.label for sample in splits.train)
    weights = CLASS_WEIGHTS[config.class_weights]([counts[name] for name in splits.class_names])
    loss = TrainingLoss(weights, config.label_smoothing)
    mixes = config.mixup or config.cutmix
    mix = Mixer(config.mixup, config.cutmix, len(splits.class_names)) if mixes else None
    return Recipe(optimizer, schedule, loss, mix)


@dataclass(frozen=True)
class Strategy:
    """What the trainer is handed: the whole model for images, or its head for features, which may be stored."""

    model: nn.Module
    compute: Callable[[torch.Tensor], torch.Tensor]
    refresh: Callable[[], None]
    is_stored: bool = False


def choose_strategy(config: TrainConfig, engine: Engine) -> Strategy:
    """A wholly frozen backbone is computed once for all epochs; everything else runs image by image."""
    is_frozen = is_wholly_frozen(engine.model)
    top = engine.model.head_module() if is_frozen else None
    if top is None:
        if is_frozen:
            say("        this network does more behind its head than can be told: all of it runs in every epoch")
        return Strategy(engine.model, engine, engine.refresh)
    head = HeadEngine(top, engine.device, engine.dtype, engine.batch_size)
    if config.views and config.cutmix:
        say("        --cutmix changes the pictures themselves: the backbone runs in every epoch, as with --views 0")
    # a part of a picture has no part in its features, and a dry run leaves none behind
    if config.views and not config.cutmix and not config.dry_run:
        return Strategy(top, head, head.refresh, is_stored=True)
    n_images = min(-(-config.batch_size // launcher.world_size()), engine.batch_size)
    frozen = FrozenModel(engine, top, n_images)
    return Strategy(frozen, lambda images: head(engine.features(images)), head.refresh)


def make_loaders(
    config: TrainConfig, splits: Splits, engine: Engine, work: Strategy, run: Run, cache: Path | None
) -> dict[str, Iterable]:
    """Batches of each split: images, or their features, of which those that the cache lacks are computed here.

    Args:
        cache: where features are kept, if the work is on stored ones.
    """
    datasets = make_datasets(config, splits, engine.model.preprocess)
    # in evaluation every process computes whole passes of the engine
    sizes = {name: engine.batch_size * launcher.world_size() for name in datasets} | {"train": config.batch_size}
    if not work.is_stored:
        pin = engine.device.type == "cuda"
        return {
            name: make_loader(dataset, sizes[name], config.n_workers, pin, launcher.rank_and_world_size())
            for name, dataset in datasets.items()
        }
    n_views = 1 if config.augment == "none" else min(config.views, config.n_epochs)
    parts = {name: FeatureRequest(dataset, "evaluation") for name, dataset in datasets.items()}
    parts["train"] = FeatureRequest(datasets["train"], config.augment, n_views)
    loaders = {}
    for name, extracted in extract(engine, parts, cache, config.n_workers):
        run.skip(extracted.bad, name)
        loaders[name] = extracted.loader(sizes[name])
    return loaders


def make_datasets(config: TrainConfig, splits: Splits, preprocess: Preprocess) -> dict[str, ImageDataset]:
    """The images of each split, augmented for training alone."""
    transforms = {name: (eval_transform(preprocess), None) for name in splits.by_name()}
    transforms["train"] = (train_transform(config.augment, preprocess), config.seed)
    return {
        name: ImageDataset(part, splits.class_names, preprocess, *transforms[name], config.max_pixels)
        for name, part in splits.by_name().items()
    }


def build_model(config: TrainConfig, splits: Splits, saved: StoppedRun | None = None) -> Classifier:
    """The model as the flags ask for it, frozen where they say so; of a stopped run, with its frozen backbone."""
    model = get_model(
        config.model_name,
        len(splits.class_names),
        pretrained=config.use_pretrained and not saved,
        weights_file=None if saved else config.weights,
        image_size=config.image_size,
        preferred_size=config.preferred_size,
        resize=config.resize,
        bit_depth=config.bit_depth,
        head_hidden=config.head_hidden,
        dropout=config.dropout,
        seed=config.seed,
    )
    if config.freeze or config.freeze_until:
        freeze(model, config.freeze_until)
    if config.freeze_bn:
        freeze_batch_norm(model)
    if saved:
        load_backbone(saved, model.net)
    return model
