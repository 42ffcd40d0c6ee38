"""Trains an image classifier from a folder of photos: argv -> one checkpoint."""

from __future__ import annotations

import os
import time
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING

from photo_classifier.config import (
    HEADS,
    NEAR_DUPLICATES,
    TrainConfig,
    checkpoint_name,
    has_fixed_backbone,
    n_folds,
    n_views,
    parse_args,
    parts,
    pass_size,
)
from photo_classifier.flag_rules import check, make_config
from photo_classifier.runtime import distributed, launcher, signals
from photo_classifier.runtime.console import quiet, say, say_loading, set_verbosity, warn
from photo_classifier.runtime.errors import UserError, choose
from photo_classifier.runtime.limits import check_temporary_folder
from photo_classifier.runtime.text import pluralize
from utils import check_output_path, device_from_gpu_id, run_main

if TYPE_CHECKING:  # torch is imported after the arguments are parsed, so that --help answers at once
    from pathlib import Path

    import torch

    from photo_classifier.data.preprocess import Preprocess
    from photo_classifier.data.samples import Splits
    from photo_classifier.features.loader import FeatureLoader, SplitFeatures
    from photo_classifier.models.classifier import Classifier
    from photo_classifier.models.inference import Engine
    from photo_classifier.training.best_checkpoint import BestCheckpoint
    from photo_classifier.training.results import FinalResults, PhaseResult
    from photo_classifier.training.run import Run, SilentRun
    from photo_classifier.training.run_state import StoppedRun
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
    config = make_config(given)
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
    from photo_classifier.training.resume import (
        enter_working_folder,
        finished_text,
        merge_flags,
        warn_of_changes,
        write_page_again,
    )
    from photo_classifier.training.run_state import load_stopped_run

    stopped = distributed.broadcast_from_main(lambda: load_stopped_run(given["resume"]))
    config = merge_flags(stopped, given)
    set_verbosity(config.verbose)
    config = enter_working_folder(stopped, config, given)
    check_flags(config)
    if text := finished_text(stopped, config):
        say(text)
        if launcher.is_main():
            say(f"report  {write_page_again(config, stopped)}")
        return 0

    def load_again() -> Splits:
        with quiet():
            return load_data(replace(config, near_duplicates="warn"))  # the splits are those of the run

    distributed.broadcast_from_main(lambda: warn_of_changes(stopped.images, load_again))
    train(config, stopped, given, started)
    return 0


# --- the stages -------------------------------------------------------------------------------


def train(config: TrainConfig, stopped: StoppedRun, given: Mapping[str, object], started: float) -> None:
    """Trains one run, from its data to the checkpoint and the accuracy on the held-out images.

    `given` are the flags that the user typed, `started` is when the command began (`time.monotonic`).
    """
    from model_loader import build_model
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
        session = open_session(config, stopped, splits, engine, run)
        if config.dry_run:
            try_one_step(session)
            return
        distributed.broadcast_from_main(lambda: note_answers_before(session, splits))
        with open_cache(config.feature_cache) as cache, signals.defer_signals():
            start_or_restore(session)
            session = train_head_first(session, cache)
            loaders, final = fit(session, cache)
        if launcher.is_main():  # which alone has the outputs of all images
            report(session, given, loaders, final)


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


def open_session(
    config: TrainConfig, stopped: StoppedRun, splits: Splits, engine: Engine, run: Run | SilentRun
) -> Session:
    """Begins the record of the run, and chooses what its first epochs train and how."""
    from model_loader import freeze_at_first

    model = engine.model
    folds, used = divide(config, splits)
    checkpoint = open_checkpoint(config, model, used, stopped)
    computing = {
        "device": engine.device.type,
        "dtype": str(engine.dtype),
        "is_folded": engine.is_folded,
        "preprocess": asdict(model.preprocess),
    }
    run.begin(asdict(config), splits, used, checkpoint, computing)
    unfreeze = freeze_at_first(config, stopped, model)
    is_stored = None if stopped.is_new else stopped.state.has_backbone
    epochs = parts(config)[0 if unfreeze else -1]
    strategy = make_strategy(config, engine, used, is_stored, epochs)
    trainer = new_trainer(config, used, engine, strategy, stopped, epochs)
    return Session(config, stopped, used, folds, engine, strategy, trainer, checkpoint, run, unfreeze, epochs)


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
    found, preprocess = stopped.images.splits, model.preprocess
    return distributed.broadcast_from_main(lambda: look_at_photos(config, found, run, preprocess))


def look_at_photos(config: TrainConfig, splits: Splits, run: Run, preprocess: Preprocess) -> Splits:
    """Returns the splits of a new run without unusable photos, warns of doubtful ones and shows augmented ones."""
    from data_loader import make_datasets
    from photo_classifier.data.survey import survey
    from photo_classifier.training import summary
    from photo_classifier.training.first_look import drop_unusable, show_augmented

    splits = drop_unusable(splits, run, config.max_pixels, config.on_leak)
    summary.warn_of_random_layers(config)
    for line in survey(splits.train, preprocess, config.max_pixels):
        warn(line)
    show_augmented(run, make_datasets(config, splits, preprocess)["train"])
    return splits


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
    say(f"folds   {pluralize(len(pooled.train), 'image')} in {k} folds: each is tested by a head trained without it")
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
        """Returns a name that tells the run from others."""
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
        """Returns why the outputs at the engine's cut are not stored, or an empty text."""
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


def new_trainer(
    config: TrainConfig, splits: Splits, engine: Engine, strategy: Strategy, stopped: StoppedRun, epochs: range
) -> Trainer:
    """Returns the trainer of what trains in these epochs of the run."""
    from data_loader import Mixer
    from trainer import make_trainer

    mixes = config.mixup or config.cutmix
    mix = Mixer(config.mixup, config.cutmix, len(splits.class_names)) if mixes else None
    return make_trainer(config, splits, engine.model, strategy, stopped, epochs, engine.device, engine.dtype, mix)


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
    trainer = new_trainer(config, session.splits, engine, strategy, session.stopped, epochs)
    trainer.continue_from(session.trainer)
    return replace(session, strategy=strategy, trainer=trainer, unfreeze=None, epochs=epochs)


def fit(session: Session, cache: Path) -> tuple[dict[str, Iterable], FinalResults]:
    """Trains the epochs that are left; returns the loaders, and what the weights of the last and the best come to."""
    from photo_classifier.training.finish import measure_last_and_best
    from photo_classifier.training.known_photos import known_distances
    from photo_classifier.training.resume import early_stop_text

    config, trainer, run, loaders = session.config, session.trainer, session.run, open_loaders(session, cache)
    if launcher.is_main():
        session.checkpoint.novelty, session.checkpoint.no_novelty = known_distances(
            session.splits, stored_features(session, loaders), config.seed
        )
    if config.head == "logistic":
        return loaders, solve_head(session, loaders)
    by_folds = train_folds(session, loaders) if session.folds else ()
    best = trainer.fit(loaders["train"], loaders["valid"], run, config.n_epochs, config.early_stop, by_folds)
    if trainer.epoch < config.n_epochs:
        text = early_stop_text(
            replace(config, run_dir=str(run.folder)), trainer.epoch, trainer.improved, config.n_epochs
        )
        say(f"stopped after {trainer.epoch} of {config.n_epochs} epochs: {text}")
    final = measure_last_and_best(trainer.evaluate, loaders, run, session.checkpoint, trainer.last, best)
    return loaders, final


def stored_features(session: Session, loaders: Mapping[str, Iterable]) -> dict[str, SplitFeatures]:
    """Returns the stored inputs of the head by split, none where the backbone trains or nothing is stored."""
    is_frozen = session.strategy.uses_stored_features and session.strategy.has_head
    return {name: loader.features for name, loader in loaders.items()} if is_frozen else {}


def train_folds(session: Session, loaders: Mapping[str, FeatureLoader]) -> list[PhaseResult]:
    """Trains a head on all but each fold; returns the validation of every epoch."""
    from photo_classifier.training.by_folds import validate_by_folds
    from photo_classifier.training.strategy import with_new_head

    config, engine, splits = session.config, session.engine, session.splits

    def trainer_of(fold: int, seen: Sequence[int]) -> Trainer:
        """Returns the trainer of a head that sees these images alone."""
        part = replace(splits, train=[splits.train[index] for index in seen])
        strategy = with_new_head(session.strategy, engine, config.seed, fold)
        return new_trainer(config, part, engine, strategy, session.stopped, session.epochs)

    return validate_by_folds(session.folds, loaders, trainer_of, config.n_epochs)


def solve_head(session: Session, loaders: Mapping[str, FeatureLoader]) -> FinalResults:
    """Solves the head in place of training it; returns what it comes to."""
    from photo_classifier.training.optimization import CLASS_WEIGHTS
    from photo_classifier.training.solved_head import solve_and_measure

    weights = CLASS_WEIGHTS[session.config.class_weights](session.splits.training_counts())
    head = session.engine.model.head
    return solve_and_measure(session.trainer, head, loaders, session.folds, weights, session.run)


def note_answers_before(session: Session, splits: Splits) -> None:
    """Notes what a checkpoint of this tool, from which a new run starts, says of the held-out photos."""
    from model_loader import read_weights
    from photo_classifier.training.changed_answers import write_answers_before

    config = session.config
    if config.weights and session.stopped.is_new:
        path, content = read_weights(config.weights, config.model_name)
        write_answers_before(
            session.run.folder, path, content, session.engine, splits, config.max_pixels, config.n_workers
        )


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


def report(session: Session, given: Mapping[str, object], loaders: Mapping[str, Iterable], final: FinalResults) -> None:
    """Writes and says how good the saved weights are, and what to try next."""
    from photo_classifier.training import summary
    from photo_classifier.training.changed_answers import report_changed_answers
    from photo_classifier.training.next_steps import next_steps
    from photo_classifier.training.reports import (
        TrainedRun,
        measured_for_advice,
        say_findings,
        write_report_file,
        write_reports,
    )
    from photo_classifier.training.run_page import write_run_page

    config, splits, run, engine = session.config, session.splits, session.run, session.engine
    features = stored_features(session, loaders)
    trained = TrainedRun(run, splits, session.folds, engine, session.strategy, session.checkpoint, features, final)
    hyperparameters = summary.hyperparameters(config, splits, engine.model.preprocess)
    found = write_reports(
        trained, loaders["valid"], hyperparameters, config.seed, config.max_pixels, config.near_duplicates
    )
    steps = next_steps(config, given, measured_for_advice(trained, found))
    write_report_file(trained, found, steps)
    report_changed_answers(run.folder, splits, final.results, config.weights)
    say_findings(found)
    state = replace(run.state, rows=run.epochs.rows, skipped=run.skipped.reasons)
    training = summary.finished_training(config, final.best.epoch + 1, run.seconds)
    write_run_page(run.folder, state, splits, training, found.open_photo, run.spare_seconds)
    summary.summarize(run, session.checkpoint, final.best, final.results, found.by_split, trained.spread(), steps)
    run.finish()


if __name__ == "__main__":
    run_main(main)
