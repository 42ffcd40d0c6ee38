"""Trains an image classifier from a folder of photos: argv -> one checkpoint."""

from __future__ import annotations

import os
import time
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING

from photo_classifier.config import (
    HEADS,
    NEAR_DUPLICATES,
    TrainConfig,
    check,
    checkpoint_name,
    has_fixed_backbone,
    known_set_defaults,
    n_folds,
    n_views,
    parse_args,
    parts,
    pass_size,
    rate_defaults,
    ratios,
)
from photo_classifier.runtime import distributed, launcher, signals
from photo_classifier.runtime.console import quiet, say, say_loading, set_verbosity, warn
from photo_classifier.runtime.errors import UserError, choose
from photo_classifier.runtime.limits import check_temporary_folder
from photo_classifier.runtime.text import pluralize
from utils import check_output_path, device_from_gpu_id, run_main

if TYPE_CHECKING:  # torch is imported after the arguments are parsed, so that --help answers at once
    from pathlib import Path

    import torch
    from PIL import Image
    from torch import nn

    from photo_classifier.data.samples import Splits
    from photo_classifier.features.loader import FeatureLoader, SplitFeatures
    from photo_classifier.models.classifier import Classifier
    from photo_classifier.models.inference import Engine
    from photo_classifier.training.best_checkpoint import BestCheckpoint
    from photo_classifier.training.optimization import Recipe
    from photo_classifier.training.results import EpochResult, PhaseResult, Results
    from photo_classifier.training.run import Run, SilentRun
    from photo_classifier.training.run_state import RunState, StoppedRun
    from photo_classifier.training.strategy import Strategy
    from trainer import Trainer


def main(argv: list[str] | None = None) -> int:
    """Trains as the command line asks for; returns the exit status."""
    started = time.monotonic()
    given = parse_args(argv)
    if "resume" in given:
        set_verbosity(given.get("verbose", TrainConfig.verbose))
        say_loading()
        with distributed.process_group(lambda: device_from_gpu_id(given.get("gpu_id"))):
            return resume(given, started)
    config = TrainConfig(**{**known_set_defaults(given), **rate_defaults(given), **given, **ratios(given)})
    check_flags(config)
    set_verbosity(config.verbose)
    say_loading("reading the photos and ")
    with distributed.process_group(lambda: device_from_gpu_id(config.gpu_id)):
        if launcher.is_launched():
            from photo_classifier.training.run_folder import run_of_this_launch

            if folder := run_of_this_launch(config.run_dir):
                return resume({**given, "resume": folder}, started)
        start(config, given, started)
    return 0


def check_flags(config: TrainConfig) -> None:
    """Checks that the flags agree and that the checkpoint can be written without losing a file; raises UserError."""
    check(config)
    check_temporary_folder()
    model_fn = checkpoint_name(config)
    check_output_path(model_fn, "--model_fn")
    if os.path.exists(model_fn) and not zipfile.is_zipfile(model_fn):
        raise UserError(f"--model_fn {model_fn} exists and is not a checkpoint; give another name")


def start(config: TrainConfig, given: Mapping[str, object], started: float) -> None:
    """Starts a new run."""
    # before the slow imports: a wrong folder is reported at once
    splits = distributed.broadcast_from_main(lambda: load_data(config))

    from photo_classifier.training.run_state import new_run

    train(config, new_run(splits), given, started)


def resume(given: Mapping[str, object], started: float) -> int:
    """Continues a stopped run; returns the exit status."""
    from photo_classifier.training.resume import enter_working_folder, merge_flags, warn_of_changes, why_finished
    from photo_classifier.training.run_state import load_stopped_run

    stopped = distributed.broadcast_from_main(lambda: load_stopped_run(given["resume"]))
    config = merge_flags(stopped, given)
    set_verbosity(config.verbose)
    config = enter_working_folder(stopped, config, given)
    check_flags(config)
    if stopped.is_finished and config.head == "logistic":
        say(f"{config.run_dir} is finished: its head is solved, which takes no epochs; {where_best(config, stopped)}")
        write_page_again(config, stopped)
        return 0
    if reason := why_finished(stopped, config):
        what = f"{pluralize(len(stopped.state.rows), 'epoch')}, {where_best(config, stopped)}"
        if config.n_epochs > stopped.state.config["n_epochs"]:
            raise UserError(f"--n_epochs {config.n_epochs} would not train {config.run_dir} any further: {reason}")
        say(f"{config.run_dir} is finished: {what}; {reason}")
        write_page_again(config, stopped)
        return 0

    def load_again() -> Splits:
        with quiet():
            return load_data(replace(config, near_duplicates="warn"))  # the splits are those of the run

    distributed.broadcast_from_main(lambda: warn_of_changes(stopped.images, load_again))
    train(config, stopped, given, started)
    return 0


def write_page_again(config: TrainConfig, stopped: StoppedRun) -> None:
    """Writes the page of a finished run, which may have been lost or be of an earlier version."""
    if not launcher.is_main():
        return
    from photo_classifier.evaluation.thumbnails import MANY, Thumbnails
    from photo_classifier.runtime.files import read_json
    from photo_classifier.training.run_files import FINISHED

    splits = stopped.images.splits.pooled() if n_folds(config) else stopped.images.splits
    bit_depth = stopped.preprocess.bit_depth if stopped.preprocess else 16
    open_photo = Thumbnails(config.max_pixels, bit_depth, MANY + 1)
    kept, seconds = stopped.trainer["best"]["epoch"] + 1, read_json(stopped.folder / FINISHED).get("seconds")
    path = write_run_page(config, stopped.folder, stopped.state, splits, kept, seconds, open_photo)
    say(f"report  {path}")


def where_best(config: TrainConfig, stopped: StoppedRun) -> str:
    """Returns where the best weights of a finished run are now."""
    from photo_classifier.models.tensor_files import is_of_run

    name = checkpoint_name(config)
    files = [file for file in (name, f"{name}.prev") if is_of_run(file, stopped.state.run_id)]
    return f"the best weights are in {files[0]}" if files else f"the best weights are no longer in {name}"


# --- the stages -------------------------------------------------------------------------------


def train(config: TrainConfig, stopped: StoppedRun, given: Mapping[str, object], started: float) -> None:
    """Trains one run, from its data to the checkpoint and the accuracy on the held-out images.

    `given` are the flags that the user typed, `started` is when the command began (`time.monotonic`).
    """
    from photo_classifier.features.cache import open_cache
    from photo_classifier.training import summary
    from photo_classifier.training.early_end import explain_early_end

    device, dtype = choose_computing(config)
    model = build_model(config, stopped, device)
    run = open_run(config, stopped, given, started)
    with explain_early_end(run):
        splits = prepare_data(config, stopped, run, model)
        summary.describe(config, splits, run.n_skipped, model, device, dtype)
        warn_of_unused(config, given, splits, model)
        engine = make_engine(config, model, device, dtype, stopped)
        config = choose_engine(config, stopped, splits, engine)
        folds, used = divide(config, splits)
        checkpoint = open_checkpoint(config, model, used, stopped)
        computing = {
            "device": device.type,
            "dtype": str(dtype),
            "is_folded": engine.is_folded,
            "preprocess": asdict(model.preprocess),
        }
        run.begin(asdict(config), splits, used, checkpoint, computing)
        unfreeze = freeze_at_first(config, stopped, model)
        is_stored = None if stopped.is_new else stopped.state.has_backbone
        epochs = parts(config)[0 if unfreeze else -1]
        strategy = make_strategy(config, engine, used, is_stored, epochs)
        trainer = make_trainer(config, used, engine, strategy, stopped, epochs)
        session = Session(config, stopped, used, folds, engine, strategy, trainer, checkpoint, run, unfreeze, epochs)
        if config.dry_run:
            try_one_step(session)
            return
        distributed.broadcast_from_main(lambda: note_answers_before(session, splits))
        with open_cache(config.feature_cache) as cache, signals.defer_signals():
            start_or_restore(session)
            session = train_head_first(session, cache)
            loaders, last_results, results, best = fit(session, cache)
        if launcher.is_main():  # which alone has the outputs of all images
            report(session, given, loaders, last_results, results, best)


@dataclass(frozen=True)
class Session:
    """All that takes part in training one run."""

    config: TrainConfig
    stopped: StoppedRun
    splits: Splits
    folds: list[int]  # of each training image in a run by folds
    engine: Engine
    strategy: Strategy
    trainer: Trainer
    checkpoint: BestCheckpoint
    run: Run | SilentRun
    unfreeze: Callable[[], None] | None  # ends the part of the run that trains the head alone
    epochs: range  # of this part


# --- data -------------------------------------------------------------------------------------


def load_data(config: TrainConfig) -> Splits:
    """Returns the samples in their splits; raises UserError if they cannot be used or `--n_classes` is wrong."""
    from photo_classifier.data.discovery import load_splits
    from photo_classifier.data.known_datasets import dataset_folder
    from photo_classifier.data.table_columns import Columns

    shares = {"train": config.train_ratio, "valid": config.valid_ratio, "test": config.test_ratio}
    columns = Columns(config.path_column, config.label_column, config.group_column, config.split_column)
    if config.dataset_name == "digits":
        say("training on the built-in digits; for your own photos give --data_dir DIR")
    root = str(dataset_folder(config.dataset_name)) if config.dataset_name else config.data_dir
    train_new, found = config.new_photos == "train", []
    what = choose("--near_duplicates", config.near_duplicates, NEAR_DUPLICATES)
    settled = None
    if what != "warn":
        from photo_classifier.curation.clusters import settle

        settled = settle(what, config.max_pixels, found)
    splits = load_splits(
        root, shares, config.seed, config.labels, columns, config.splits, config.min_images, train_new, settled
    )
    n_classes = len(splits.class_names)
    if config.n_classes not in (None, n_classes):
        names = ", ".join(splits.class_names)
        came = f"--n_classes {config.n_classes}, but {splits.root} has {n_classes} classes: {names}"
        raise UserError(f"{came}; leave it out")
    return replace(splits, near_duplicates=tuple(found))


def prepare_data(config: TrainConfig, stopped: StoppedRun, run: Run | SilentRun, model: Classifier) -> Splits:
    """Returns the samples to train on: those that a stopped run began with, or those of a new one that are usable."""
    if not stopped.is_new:
        return stopped.images.splits
    from data_loader import make_datasets
    from photo_classifier.data.survey import survey
    from photo_classifier.training import summary
    from photo_classifier.training.finish import show_augmented
    from photo_classifier.training.photo_check import write_duplicates

    def prepare() -> Splits:
        splits = drop_unusable(config, stopped.images.splits, run)
        if found := stopped.images.splits.near_duplicates:
            write_duplicates(run.folder, splits, found)
            splits = replace(splits, near_duplicates=())
        summary.warn_of_random_layers(config)
        for line in survey(splits.train, model.preprocess, config.max_pixels):
            warn(line)
        show_augmented(run, make_datasets(config, splits, model.preprocess)["train"])
        return splits

    return distributed.broadcast_from_main(prepare)


def drop_unusable(config: TrainConfig, splits: Splits, run: Run) -> Splits:
    """Returns the splits without unusable images, and lists what is doubtful in the run folder.

    Raises:
        UserError: too many images cannot be read, or some are in two splits or classes and `--on_leak` is `error`.
    """
    from photo_classifier.data.checks import drop_samples, find_duplicates, find_unreadable
    from photo_classifier.training.run_folder import write_table

    samples = [sample for part in splits.by_name().values() for sample in part]
    reasons = {**splits.unread, **find_unreadable(samples, config.max_pixels)}
    run.skipped.add(reasons)
    duplicates = find_duplicates(splits)
    if duplicates.copies:
        path = run.folder / "duplicates.csv"
        write_table(path, duplicates.rows())
        text = f"{duplicates.text()}; all are listed in {path}"
        if config.on_leak == "error":
            raise UserError(f"{text}; remove one of each, or use --on_leak drop or warn")
        hint = "; --on_leak drop leaves out the training copies" if config.on_leak == "warn" else ", dropped"
        warn(f"{text}{hint}")
    dropped = duplicates.to_drop() if config.on_leak == "drop" else []
    return drop_samples(splits, [*reasons, *dropped]) if reasons or dropped else splits


def warn_of_unused(config: TrainConfig, given: Mapping[str, object], splits: Splits, model: Classifier) -> None:
    """Warns of flags that were given and do nothing in this run."""
    from photo_classifier.models.classifier import has_batch_norm, is_wholly_frozen
    from photo_classifier.unused_flags import TRAINING, Training, warn_of_unused_flags

    situation = Training(config, splits, is_wholly_frozen(model), has_batch_norm(model), launcher.world_size())
    warn_of_unused_flags(TRAINING, given, situation)


def divide(config: TrainConfig, splits: Splits) -> tuple[list[int], Splits]:
    """Returns the folds of a run by folds, and the splits as the run uses them."""
    from photo_classifier.data.checks import group_copies
    from photo_classifier.data.folds import assign_folds

    k = n_folds(config)
    if not k:
        return [], splits
    pooled = splits.pooled()
    say(f"folds   {k} of {pluralize(len(pooled.train), 'image')}: each is tested by a head that has not seen it")
    return distributed.broadcast_from_main(lambda: assign_folds(group_copies(pooled.train), k, config.seed)), pooled


# --- model and run ----------------------------------------------------------------------------


def choose_computing(config: TrainConfig) -> tuple[torch.device, torch.dtype]:
    """Returns where and in which precision to compute; raises UserError if that is not possible here."""
    from photo_classifier.runtime.device import choose_precision

    check_choices(config)
    device = device_from_gpu_id(config.gpu_id)
    dtype = choose_precision(config.precision, device)
    if config.batch_size < launcher.world_size():
        raise UserError(
            f"--batch_size {config.batch_size} is the batch of all {launcher.world_size()} processes; give at least "
            "one image for each"
        )
    if config.sync_bn and device.type != "cuda":
        raise UserError(f"--sync_bn needs GPUs, and this runs on {device}; leave it out, or freeze it with --freeze_bn")
    return device, dtype


def check_choices(config: TrainConfig) -> None:
    """Checks every flag that names a row of a table; raises UserError if there is no such row."""
    from data_loader import AUGMENTS
    from photo_classifier.data.checks import ON_LEAK
    from photo_classifier.data.preprocess import FITS
    from photo_classifier.models.compiled import ENGINES
    from photo_classifier.training.optimization import CLASS_WEIGHTS, OPTIMIZERS, SCHEDULERS
    from trainer import MONITORS

    tables = {
        "head": HEADS,
        "on_leak": ON_LEAK,
        "fit": FITS,
        "augment": AUGMENTS,
        "class_weights": CLASS_WEIGHTS,
        "optimizer": OPTIMIZERS,
        "scheduler": SCHEDULERS,
        "monitor": MONITORS,
        "engine": ENGINES,
    }
    for name, table in tables.items():
        if getattr(config, name) is not None:
            choose(f"--{name}", getattr(config, name), table)


def build_model(config: TrainConfig, stopped: StoppedRun, device: torch.device) -> Classifier:
    """Returns the model on its device, frozen where the flags say so; that of a stopped run has its frozen backbone."""
    from model_loader import freeze, freeze_batch_norm, get_model
    from photo_classifier.training.run_state import load_backbone

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
    from model_loader import freeze_for_a_while

    is_over = not config.unfreeze_after or stopped.trainer.get("first_epoch")
    return None if is_over else freeze_for_a_while(model)


def make_engine(
    config: TrainConfig, model: Classifier, device: torch.device, dtype: torch.dtype, stopped: StoppedRun
) -> Engine:
    """Returns what evaluates the model; that of a stopped run stays as it was."""
    from photo_classifier.models.inference import Engine, eval_batch_size

    engine = Engine(model, device, dtype, eval_batch_size(config.batch_size))
    if stopped.state.is_folded not in (None, engine.is_folded):  # the trial on the present weights may end otherwise
        engine.is_folded = stopped.state.is_folded
        engine.refresh()
    if engine.is_refused:
        say("evaluation runs unfolded: batch norm could not be folded into the convolutions", level=2)
    return engine


def choose_engine(config: TrainConfig, stopped: StoppedRun, splits: Splits, engine: Engine) -> TrainConfig:
    """Lets OpenVINO compute the features where that is asked for, or pays; returns the flags with what computes.

    Raises:
        UserError: it is asked for, and cannot compute here.
    """
    from photo_classifier.models.compiled import ENOUGH_IMAGES, PACKAGE, is_installed

    n_images = len(splits.train) * n_views(config) + len(splits.valid) + len(splits.test)
    pays = has_fixed_backbone(config) and n_images >= ENOUGH_IMAGES and engine.device.type == "cpu"
    # a stopped run that is not told otherwise goes on with torch
    is_auto = config.engine == "auto" and stopped.is_new and not config.dry_run
    if config.engine == PACKAGE:
        engine.compile()
    elif is_auto and pays and all(distributed.all_gather(is_installed())):
        try:
            engine.compile()
        except UserError as error:
            say(f"{error}; torch computes instead", level=2)
    if not all(distributed.all_gather(engine.compiled is not None)):
        engine.compiled = None
    say(f"features are computed by {engine.computed_by}", level=2)
    return replace(config, engine=PACKAGE) if engine.compiled else config


def open_run(config: TrainConfig, stopped: StoppedRun, given: Mapping[str, object], started: float) -> Run | SilentRun:
    """Opens the folder of the run on the main process; the others record nothing."""
    from photo_classifier.training import summary
    from photo_classifier.training.run import Run, SilentRun
    from photo_classifier.training.run_folder import default_run_dir, dry_run_dir, note_launch

    def new_folder() -> str:
        words = summary.run_name_words(config, stopped.images.splits, given)
        return dry_run_dir() if config.dry_run else default_run_dir(config.model_name, words)

    run_dir = distributed.broadcast_from_main(lambda: config.run_dir or new_folder())
    if launcher.is_main():
        run = Run(run_dir, stopped, config.n_epochs, config.max_bad, 60 * config.save_every, started)
    else:
        run = SilentRun(run_dir)
    note_launch(run_dir)
    return run


def open_checkpoint(config: TrainConfig, model: Classifier, splits: Splits, stopped: StoppedRun) -> BestCheckpoint:
    """Returns what keeps the best weights of the run, with all that a prediction needs to know."""
    from photo_classifier.models.inference import eval_batch_size
    from photo_classifier.training.best_checkpoint import BestCheckpoint

    metadata = {
        "model_name": config.model_name,
        "precision": config.precision,
        "eval_batch_size": eval_batch_size(config.batch_size),
        "engine": config.engine if config.engine == "openvino" else "torch",
        "config": asdict(config),
    }
    return BestCheckpoint(checkpoint_name(config), model, splits, stopped.state.run_id, metadata)


# --- strategy ---------------------------------------------------------------------------------


def make_strategy(
    config: TrainConfig, engine: Engine, splits: Splits, is_stored: bool | None, epochs: range
) -> Strategy:
    """Returns what is trained: the whole model, or what follows its frozen layers on their stored outputs.

    Args:
        is_stored: whether a stopped run keeps these outputs; it goes on as it began.
    """
    from data_loader import feature_requests, make_datasets
    from photo_classifier.features.cache import place_of
    from photo_classifier.features.worth import why_not_store
    from photo_classifier.training.strategy import choose_strategy

    def why_not(engine: Engine) -> str:
        if is_stored is not None:
            return "" if is_stored else "this run began without stored outputs"
        requests = feature_requests(config, make_datasets(config, splits, engine.model.preprocess), len(epochs))
        return why_not_store(engine, requests, place_of(config.feature_cache))

    stores_features = bool(n_views(config)) and not config.dry_run  # a dry run leaves none behind
    n_images = pass_size(config) or config.batch_size
    strategy = choose_strategy(engine, n_images, stores_features, bool(config.cutmix), why_not)
    if n_folds(config) and not strategy.has_head:
        raise UserError(
            f"--folds needs a network whose head can be told apart, unlike {config.model_name}; leave it out"
        )
    if config.head == "logistic" and not strategy.has_linear_head:
        raise UserError(
            f"--head logistic needs a linear last layer, which {config.model_name} does not have; leave it out"
        )
    return strategy


def make_trainer(
    config: TrainConfig, splits: Splits, engine: Engine, strategy: Strategy, stopped: StoppedRun, epochs: range
) -> Trainer:
    """Returns the trainer of what trains in these epochs of the run."""
    from trainer import Trainer

    by_part = engine.model.parameters_by_part()
    stores_head_inputs = strategy.uses_stored_features and strategy.has_head
    parameters = {"head": list(strategy.model.parameters())} if stores_head_inputs else by_part
    return Trainer(
        strategy.model,
        strategy.evaluate,
        strategy.refresh,
        make_recipe(config, parameters, splits, stopped, epochs),
        engine.device,
        engine.dtype,
        config.seed,
        config.monitor,
        config.sync_bn,
        epochs.start,
    )


def make_recipe(
    config: TrainConfig,
    parameters: Mapping[str, list[nn.Parameter]],
    splits: Splits,
    stopped: StoppedRun,
    epochs: range,
) -> Recipe:
    """Returns how the weights learn in these epochs: optimizer, schedule, loss and mixing."""
    from data_loader import Mixer
    from photo_classifier.data.batches import AddressedSampler
    from photo_classifier.training.optimization import (
        CLASS_WEIGHTS,
        Plan,
        Recipe,
        Schedule,
        TrainingLoss,
        make_optimizer,
    )
    from photo_classifier.training.restore import decays_all

    rates = {"backbone": config.backbone_lr or config.lr, "head": config.lr}
    optimizer = make_optimizer(
        config.optimizer, parameters, rates, config.momentum, config.weight_decay, decays_all(stopped)
    )
    n_steps = len(AddressedSampler(len(splits.train), config.batch_size, config.seed))
    plan = Plan(len(epochs), config.step_size, config.gamma, config.patience)
    schedule = Schedule(config.scheduler, optimizer, plan, round(config.warmup_epochs * n_steps))
    weights = CLASS_WEIGHTS[config.class_weights](splits.training_counts())
    mixes = config.mixup or config.cutmix
    mix = Mixer(config.mixup, config.cutmix, len(splits.class_names)) if mixes else None
    # DistributedDataParallel would average the gradients of a head that trains first in later epochs too
    at_once = pass_size(config) or (config.batch_size if epochs.stop < config.n_epochs else None)
    return Recipe(optimizer, schedule, TrainingLoss(weights, config.label_smoothing), mix, at_once)


def try_one_step(session: Session) -> None:
    """Ends a dry run: takes one step of each part of the training, and writes no checkpoint."""
    from data_loader import make_datasets, make_loaders

    config, samples, run = session.config, session.splits.train, session.run
    n = min(config.batch_size, len(samples))
    chosen = [samples[k * len(samples) // n] for k in range(n)]  # evenly spread over all of them
    # an unreadable image is named by its index in these
    run.splits = replace(session.splits, train=chosen, valid=[], test=[])
    datasets = make_datasets(config, run.splits, session.engine.model.preprocess)
    loaders = make_loaders(config, datasets, session.engine)
    steps = {", the head alone" * bool(session.unfreeze): session.trainer.train_one_epoch(loaders["train"], run)}
    if session.unfreeze:
        steps[", all layers"] = unfreeze(session).trainer.train_one_epoch(loaders["train"], run)
    run.close()
    for what, result in steps.items():
        n_images = pluralize(result.n_images, "image")
        say(f"dry run: a step of {n_images}{what}, loss {result.loss:.4f}, {result.seconds:.1f} s")
    say(f"        no checkpoint was written; see {run.folder}, and leave --dry_run out to train")


# --- fit --------------------------------------------------------------------------------------


def open_loaders(session: Session, cache: Path) -> dict[str, Iterable]:
    """Returns the loaders of all splits: of images, or of stored features where the epochs train on those."""
    from data_loader import make_datasets, make_feature_loaders, make_loaders

    config, engine = session.config, session.engine
    datasets = make_datasets(config, session.splits, engine.model.preprocess)
    if session.unfreeze:
        datasets.pop("test", None)  # it is for the weights at the end
    if session.strategy.uses_stored_features:
        return make_feature_loaders(config, datasets, engine, cache, session.run.skip, len(session.epochs))
    return make_loaders(config, datasets, engine)


def train_head_first(session: Session, cache: Path) -> Session:
    """Trains the head alone for the epochs that are left of that; returns the session that trains the other layers."""
    if not session.unfreeze:
        return session
    if session.trainer.epoch < session.epochs.stop:
        loaders = open_loaders(session, cache)
        session.trainer.fit(loaders["train"], loaders["valid"], session.run, session.epochs.stop)
    session = unfreeze(session)
    save_beginning(session)
    return session


def unfreeze(session: Session) -> Session:
    """Returns the session that goes on with all layers, or with those that are not frozen for good."""
    session.unfreeze()
    config, engine, epochs = session.config, session.engine, parts(session.config)[-1]
    strategy = make_strategy(config, engine, session.splits, None, epochs)
    trainer = make_trainer(config, session.splits, engine, strategy, session.stopped, epochs)
    trainer.continue_from(session.trainer)
    return replace(session, strategy=strategy, trainer=trainer, unfreeze=None, epochs=epochs)


def fit(session: Session, cache: Path) -> tuple[dict[str, Iterable], Results, Results, EpochResult]:
    """Trains the epochs that are left, and measures the weights of the last and of the best.

    Returns:
        The loaders, the results of the last and of the best weights, and the epoch of the best.
    """
    from photo_classifier.training.finish import measure_last_and_best
    from photo_classifier.training.known_photos import known_distances
    from photo_classifier.training.resume import early_stop_text

    config, trainer, run, loaders = session.config, session.trainer, session.run, open_loaders(session, cache)
    if launcher.is_main():
        session.checkpoint.novelty, session.checkpoint.no_novelty = known_distances(
            session.splits, stored_features(session, loaders), config.seed
        )
    if config.head == "logistic":
        return loaders, *solve_head(session, loaders)
    by_folds = validate_by_folds(session, loaders) if session.folds else ()
    best = trainer.fit(loaders["train"], loaders["valid"], run, config.n_epochs, config.early_stop, by_folds)
    if trainer.epoch < config.n_epochs:
        text = early_stop_text(
            replace(config, run_dir=str(run.folder)), trainer.epoch, trainer.improved, config.n_epochs
        )
        say(f"stopped after {trainer.epoch} of {config.n_epochs} epochs: {text}")
    measured = measure_last_and_best(trainer.evaluate, loaders, run, session.checkpoint, trainer.last, best)
    return loaders, *measured


def stored_features(session: Session, loaders: Mapping[str, Iterable]) -> dict[str, SplitFeatures]:
    """Returns the stored inputs of the head by split, none where the backbone trains or nothing is stored."""
    is_frozen = session.strategy.uses_stored_features and session.strategy.has_head
    return {name: loader.features for name, loader in loaders.items()} if is_frozen else {}


def validate_by_folds(session: Session, loaders: Mapping[str, FeatureLoader]) -> list[PhaseResult]:
    """Trains a head on all but each fold; returns the validation of every epoch, each image by the one without it."""
    import copy

    from photo_classifier.models.inference import HeadEngine
    from photo_classifier.training.by_folds import FoldRecorder, joined

    config, engine, by_fold = session.config, session.engine, []
    for fold in sorted(set(session.folds)):
        held_out = {index for index, other in enumerate(session.folds) if other == fold}
        seen = [index for index in range(len(session.folds)) if index not in held_out]
        head = copy.deepcopy(session.strategy.model)
        head.reset(config.seed, fold)
        head_engine = HeadEngine(head, engine.device, engine.dtype, engine.batch_size)
        strategy = replace(session.strategy, model=head, evaluate=head_engine, refresh=head_engine.refresh)
        part = replace(session.splits, train=[session.splits.train[index] for index in seen])
        trainer = make_trainer(config, part, engine, strategy, session.stopped, session.epochs)
        recorder = FoldRecorder()
        train, valid = (
            loaders[name].features.loader(loaders[name].batch_sampler.batch_size, only)
            for name, only in (("train", seen), ("valid", sorted(held_out)))
        )
        with quiet():  # its epochs are not those of the run
            trainer.fit(train, valid, recorder, config.n_epochs)
        by_fold.append(recorder.validations)
    # the outputs of all images are on the main process alone
    return distributed.broadcast_from_main(lambda: [joined(parts) for parts in zip(*by_fold, strict=True)])


def solve_head(session: Session, loaders: Mapping[str, FeatureLoader]) -> tuple[Results, Results, EpochResult]:
    """Solves the head in place of training it; returns what `measure_last_and_best` does."""
    from photo_classifier.runtime import data_parallel
    from photo_classifier.training.optimization import CLASS_WEIGHTS
    from photo_classifier.training.solved_head import head_data, solve

    config, splits, run, trainer = session.config, session.splits, session.run, session.trainer
    head = session.engine.model.head
    weights = CLASS_WEIGHTS[config.class_weights](splits.training_counts())
    features = [loaders[name].features for name in ("train", "valid")]

    def solve_on_main() -> tuple[EpochResult, int]:
        return solve(head, *head_data(*features, session.folds, weights, len(splits.class_names)), run.log)

    best, trainer.epoch = distributed.broadcast_from_main(solve_on_main)
    data_parallel.broadcast_model(head)
    trainer.last = trainer.best = best
    results = {"valid": best.valid}
    if "test" in loaders:
        results["test"] = trainer.evaluate(loaders["test"], run, "test")
    run.save_measured(best.epoch, results, is_best=True)
    run.save_last(trainer.state_dict())
    return results, results, best


def note_answers_before(session: Session, splits: Splits) -> None:
    """Notes what a checkpoint of this tool, from which a new run starts, says of the held-out photos."""
    from model_loader import read_weights
    from photo_classifier.models.checkpoint import classifier_of, describes_itself
    from photo_classifier.models.inference import Engine
    from photo_classifier.training.changed_answers import write_answers_before

    config, engine, names = session.config, session.engine, []
    if config.weights and session.stopped.is_new:
        path, content = read_weights(config.weights, config.model_name)
        names = content["class_names"] if describes_itself(content) else []
    if set(names) & set(splits.class_names):
        before = Engine(classifier_of(content, path).to(engine.device), engine.device, engine.dtype, engine.batch_size)
        write_answers_before(session.run.folder, before, names, splits, config.max_pixels, config.n_workers)


def start_or_restore(session: Session) -> None:
    """Restores what a stopped run had saved, or saves a new one for the first time."""
    from photo_classifier.training.restore import restore_training_state

    config, stopped, trainer, run = session.config, session.stopped, session.trainer, session.run
    if stopped.is_new:
        schedule = trainer.recipe.schedule
        save_beginning(session, schedule.rates if schedule.warmup else None)
        return
    restore_training_state(stopped, trainer, session.checkpoint.path, trainer.device.type, str(trainer.dtype))
    if config.head == "logistic":
        say(f"solving the head again: {config.run_dir}")
    else:
        say(f"continuing after {trainer.epoch} of {config.n_epochs} epochs: {config.run_dir}")
    kept = ("n_epochs", "early_stop", "accumulate")  # so that the next resume need not repeat them
    if any(getattr(config, name) != stopped.state.config.get(name) for name in kept):
        run.save_last(trainer.state_dict())


def save_beginning(session: Session, warmup: Mapping[str, float] | None = None) -> None:
    """Saves the run before the first step of a part of it; `warmup` are the learning rates of that step."""
    trainer, checkpoint = session.trainer, session.checkpoint
    backbone = None if trainer.model is checkpoint.model else checkpoint.tensors_beside(trainer.model)
    session.run.save_first(trainer.state_dict(), backbone, warmup)


# --- report -----------------------------------------------------------------------------------


def report(
    session: Session,
    given: Mapping[str, object],
    loaders: Mapping[str, Iterable],
    last_results: Results,
    results: Results,
    best: EpochResult,
) -> None:
    """Writes and says how good the saved weights are, and what to try next."""
    from photo_classifier.evaluation.report import main_report, write_report
    from photo_classifier.evaluation.thumbnails import Thumbnails
    from photo_classifier.training import summary
    from photo_classifier.training.by_folds import spread_text, write_folds
    from photo_classifier.training.changed_answers import report_changed_answers
    from photo_classifier.training.explain import explain_mistakes
    from photo_classifier.training.findings import findings_of
    from photo_classifier.training.finish import report_splits, show_in_tensorboard, write_figures, write_predictions
    from photo_classifier.training.label_check import check_labels
    from photo_classifier.training.photo_check import check_photos
    from photo_classifier.training.run_files import PREDICTIONS, REPORT

    config, splits, run, last = session.config, session.splits, session.run, session.trainer.last
    preprocess = session.engine.model.preprocess
    temperature = session.checkpoint.temperature
    reports = report_splits(splits, results, temperature)
    hyperparameters = summary.hyperparameters(config, splits, preprocess)
    run.epochs.begin_report()
    if session.folds:
        write_folds(run.folder / "folds.csv", splits, session.folds, results["valid"].outputs, temperature)
    n_photos = sum(len(report["examples"]) for report in reports.values())
    open_photo = Thumbnails(config.max_pixels, preprocess.bit_depth, n_photos)
    features = stored_features(session, loaders)
    main = main_report(reports, splits.held_out)  # chooses what is said of the run
    findings = findings_of(splits, features, config.seed, session.checkpoint.no_novelty, main)
    explain_mistakes(reports, splits, session.engine, features, config.max_pixels, run.spare_seconds)
    write_figures(run, reports, best.epoch + 1, open_photo)
    write_predictions(run.folder / PREDICTIONS, splits, results, temperature)
    show_in_tensorboard(run, splits, session.engine, loaders["valid"], best.epoch, results, reports, hyperparameters)
    suspects = check_labels(run, findings.by_folds, results, temperature, open_photo)
    what = config.near_duplicates
    oddities = check_photos(run, features, session.folds, what, open_photo) if features else []
    run.epochs.close()
    steps = choose_steps(session, given, best, main, features, suspects, findings.report.get("more_photos", ""))
    content = {splits.title(name): report for name, report in reports.items()} | findings.report
    content["next_steps"] = steps
    if last is not best:
        text = f"epoch {last.epoch + 1}: {', '.join(summary.accuracy_texts(splits, last_results))}"
        measured = {splits.title(name): result.metrics() for name, result in last_results.items()}
        content["last_epoch"] = {"epoch": last.epoch + 1, "text": text, **measured}
        say(f"last    {run.last_model}, {text}", level=2)
    write_report(run.folder / REPORT, content)
    report_changed_answers(run.folder, splits, results, config.weights)
    for line in findings.lines:
        say(line)
    for line in oddities:
        say(f"photos  {line}")
    spread = spread_text(session.folds, results["valid"].outputs) if session.folds else ""
    state = replace(run.state, rows=run.epochs.rows, skipped=run.skipped.reasons)
    write_run_page(config, run.folder, state, splits, best.epoch + 1, run.seconds, open_photo, run.spare_seconds)
    summary.summarize(run, session.checkpoint, best, results, reports, spread, steps)
    run.finish()


def choose_steps(
    session: Session,
    given: Mapping[str, object],
    best: EpochResult,
    report: Mapping,
    features: Mapping[str, SplitFeatures],
    suspects: str,
    more_photos: str,
) -> list[dict[str, str]]:
    """Returns what to try next, chosen by what the run has measured."""
    from photo_classifier.training.next_steps import Measured, next_steps

    config, splits, strategy = session.config, session.splits, session.strategy
    times = [part.seconds_per_view for part in features.values() if part.seconds_per_view]
    measured = Measured(
        session.run.folder,
        splits.root,
        suspects,
        [] if config.head == "logistic" else [float(row["valid_loss"]) for row in session.run.epochs.rows],
        best.train.accuracy,
        report,
        splits.counts_by_class(),
        strategy.uses_stored_features and strategy.has_head,
        strategy.has_linear_head,
        max(times, default=None),
        more_photos,
    )
    return next_steps(config, given, measured)


def write_run_page(
    config: TrainConfig,
    folder: Path,
    state: RunState,
    splits: Splits,
    kept: int,
    seconds: float | None,
    open_photo: Callable[[str], Image.Image],
    spare_seconds: float | None = None,
) -> Path:
    """Writes `report.html` from what lies in the run folder; returns its path.

    Args:
        kept: the epoch of the saved weights, counted from 1.
        seconds: how long the run took, if that is known.
        spare_seconds: how long reading photos may take.
    """
    from photo_classifier.evaluation.page import write_page
    from photo_classifier.runtime.files import read_json
    from photo_classifier.training.run_files import REPORT
    from photo_classifier.training.run_page import about_run

    settings = {field.name: getattr(config, field.name) for field in fields(config) if field.metadata}
    changed = {name: value for name, value in settings.items() if value != getattr(TrainConfig, name)}
    last = read_json(folder / REPORT).get("last_epoch")
    about = about_run(state, splits, changed, config.model_name, checkpoint_name(config), kept, last, seconds)
    return write_page(folder, about, open_photo, spare_seconds)


if __name__ == "__main__":
    run_main(main)
