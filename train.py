"""Trains an image classifier from a folder of photos: argv -> one checkpoint."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, astuple, fields, replace
from typing import TYPE_CHECKING

from photo_classifier.config import TrainConfig, check, checkpoint_name, known_set_defaults, parse_args, ratios
from photo_classifier.runtime import distributed, launcher, signals
from photo_classifier.runtime.console import say, set_verbosity, warn
from photo_classifier.runtime.device import choose_device, choose_precision
from photo_classifier.runtime.errors import UserError
from photo_classifier.runtime.seeding import derive_seed
from photo_classifier.runtime.text import pluralize
from utils import run_main

if TYPE_CHECKING:  # torch is imported after the arguments are parsed, so that --help answers at once
    import torch

    from assemble import Strategy
    from data_loader import ImageDataset
    from photo_classifier.data.preprocess import Preprocess
    from photo_classifier.data.samples import Splits
    from photo_classifier.models.classifier import Classifier
    from photo_classifier.models.inference import Engine
    from photo_classifier.training.best_checkpoint import BestCheckpoint
    from photo_classifier.training.results import EpochResult, PhaseResult
    from photo_classifier.training.resume import StoppedRun
    from photo_classifier.training.run import Run
    from trainer import Trainer


def main(argv: list[str] | None = None) -> int:
    """Parses, checks and trains; the exit status."""
    given = parse_args(argv)
    if "resume" in given:
        with distributed.process_group(given.get("gpu_id")):
            return continue_run(given)
    config = TrainConfig(**{**known_set_defaults(given), **given, **ratios(given)})
    check(config)
    with distributed.process_group(config.gpu_id):
        if folder := run_of_this_launch(config):
            return continue_run({**given, "resume": folder})
        train(config)
    return 0


def run_of_this_launch(config: TrainConfig) -> str | None:
    """The run folder to go on with where the launcher starts its processes again."""
    if not launcher.is_launched():
        return None
    from photo_classifier.training import run_folder

    return run_folder.run_of_this_launch(config.run_dir)


def continue_run(given: dict) -> int:
    """Goes on with a run that was stopped; the exit status."""
    from photo_classifier.training.resume import enter_working_folder, load_stopped_run, merge_flags, warn_of_changes

    saved = distributed.broadcast_from_main(lambda: load_stopped_run(given["resume"]))
    config = enter_working_folder(saved, merge_flags(saved, given), given)
    check(config)
    if saved.is_finished and config.n_epochs == saved.progress.config["n_epochs"]:
        what = f"{pluralize(len(saved.progress.rows), 'epoch')}, {where_best(config, saved)}"
        say(f"{config.run_dir} is finished: {what}; a larger --n_epochs trains on")
        return 0
    set_verbosity(config.verbose)
    distributed.broadcast_from_main(lambda: warn_of_changes(saved.found, lambda: load_data(config)))
    train(config, saved)
    return 0


def where_best(config: TrainConfig, saved: StoppedRun) -> str:
    """Where the best weights of a finished run are by now."""
    from photo_classifier.models.tensor_files import is_of_run

    name = checkpoint_name(config)
    places = [place for place in (name, f"{name}.prev") if is_of_run(place, saved.progress.run_id)]
    return f"the best weights in {places[0]}" if places else f"the best weights no longer in {name}"


def train(config: TrainConfig, saved: StoppedRun | None = None) -> None:
    """One run, from the data to the checkpoint and the accuracy on the held-out images.

    Args:
        saved: a stopped run to go on with.
    """
    set_verbosity(config.verbose)
    # before the imports below: a wrong folder is told at once
    found = saved.found.splits if saved else distributed.broadcast_from_main(lambda: load_data(config))

    import assemble
    from photo_classifier.features.cache import open_cache
    from photo_classifier.training import summary
    from photo_classifier.training.best_checkpoint import BestCheckpoint

    assemble.check_names(config)
    device = choose_device(config.gpu_id)
    dtype = choose_precision(config.precision, device)
    assemble.check_ranks(config, device)
    with distributed.first_on_each_machine():
        model = assemble.build_model(config, found, saved).to(device)
    run = open_run(config, found, saved)
    with run.guarded():
        splits = found if saved else checked_once(config, found, run)
        summary.describe(config, splits, len(run.skipped), model, device, dtype)
        if not saved:
            summary.warn_of_random_layers(config)
            show_augmented(run, assemble.make_datasets(config, splits, model.preprocess)["train"])
        saver = BestCheckpoint(checkpoint_name(config), model, config, splits, run.id)
        engine = assemble.make_engine(config, model, device, dtype, saved)
        if engine.is_refused:
            say("evaluation runs unfolded: batch norm could not be folded into the convolutions", level=2)
        computing = {"device": device.type, "dtype": str(dtype), "is_folded": engine.is_folded}
        run.begin(asdict(config), splits, saver, computing)
        work = assemble.choose_strategy(config, engine)
        trainer = assemble.make_trainer(config, splits, engine, work)
        if config.dry_run:
            try_a_step(config, trainer, splits, engine, work, run)
            return
        with open_cache(config.feature_cache) as cache, signals.defer_signals():
            start_or_restore(config, saved, trainer, saver, computing, run)
            loaders = assemble.make_loaders(config, splits, engine, work, run, cache)
            best = trainer.fit(loaders["train"], loaders["valid"], run, config.n_epochs, config.early_stop)
            last_results, results, best = measure_last_and_best(trainer, loaders, run, saver, best)
        if not launcher.is_main():
            return
        judged = judge_splits(splits, results, saver.about["temperature"])
        run.report(judged)
        draw(config, model.preprocess, judged, run, best.epoch + 1)
        show(config, splits, engine, loaders["valid"], best, results, judged, run)
        run.close()
        if trainer.last is not best:
            say(f"last    {run.last_model} (epoch {run.n_logged}): {', '.join(summary.accuracies(last_results))}")
        summary.report(run, saver, best.epoch + 1, results, judged)
        run.finish()


def open_run(config: TrainConfig, found: Splits, saved: StoppedRun | None) -> Run:
    """The run's folder, the same for all processes."""
    from photo_classifier.training.run import Run
    from photo_classifier.training.run_folder import default_run_dir, note_launch

    run_dir = distributed.broadcast_from_main(
        lambda: config.run_dir or default_run_dir(config.model_name, about_run(config, found))
    )
    run = Run(run_dir, found, config.n_epochs, config.max_bad, config.verbose, 60 * config.save_every, saved)
    note_launch(run.folder)
    return run


def checked_once(config: TrainConfig, found: Splits, run: Run) -> Splits:
    """The images that are left after the checks, which one process makes for all."""
    splits, run.skipped = distributed.broadcast_from_main(lambda: (checked(config, found, run), run.skipped))
    return splits


def try_a_step(config: TrainConfig, trainer: Trainer, splits: Splits, engine: Engine, work: Strategy, run: Run) -> None:
    """The end of a dry run: one step of training, and no checkpoint."""
    from assemble import make_loaders

    run.splits = one_batch(splits, config)  # an image that cannot be read is told by its place among these
    loaders = make_loaders(config, run.splits, engine, work, run, None)
    result = trainer.train_one_epoch(loaders["train"], run, n_epochs=1)
    run.close()
    n_images = pluralize(result.n_images, "image")
    say(f"dry run: a step of {n_images}, loss {result.loss:.4f}, {result.seconds:.1f} s")
    say(f"        no checkpoint was written; see {run.folder}, and leave --dry_run out to train")


def one_batch(splits: Splits, config: TrainConfig) -> Splits:
    """As many training images as a step takes, at even distances over all of them, and nothing else."""
    n = min(config.batch_size, len(splits.train))
    chosen = [splits.train[k * len(splits.train) // n] for k in range(n)]
    return replace(splits, train=chosen, valid=[], test=[])


def start_or_restore(
    config: TrainConfig,
    saved: StoppedRun | None,
    trainer: Trainer,
    saver: BestCheckpoint,
    computing: Mapping[str, object],
    run: Run,
) -> None:
    """Puts back what a stopped run had saved, or makes a new run one that can be continued."""
    from photo_classifier.training.resume import restore_training_state

    if not saved:
        run.save_first(trainer.state_dict(), None if trainer.model is saver.model else saver.backbone())
        return
    restore_training_state(saved, trainer, saver, computing)
    say(f"going on after {trainer.epoch} of {config.n_epochs} epochs: {run.folder}")
    if config.n_epochs != saved.progress.config["n_epochs"]:  # the next resume need not be told again
        run.save_last(trainer.state_dict())


Results = dict[str, "PhaseResult"]  # by split


def measure_last_and_best(
    trainer: Trainer, loaders: dict, run: Run, saver: BestCheckpoint, best: EpochResult
) -> tuple[Results, Results, EpochResult]:
    """What the weights of the last and of the best epoch achieve; both are written, and the best are put back.

    Returns:
        Both, and the epoch that the best weights are of.
    """
    last_results = results = measure(trainer, loaders, run, trainer.last.valid)
    saver.finish(trainer.last.epoch, last_results, run.last_model)
    if trainer.last is not best:
        best = saver.restore(best, run.n_logged)
        results = measure(trainer, loaders, run, best.valid)
    saver.finish(best.epoch, results)
    return last_results, results, best


def measure(trainer: Trainer, loaders: dict, run: Run, valid: PhaseResult) -> dict[str, PhaseResult]:
    """What the present weights achieve on each held-out split; `valid` is known, but after a resume without outputs."""
    results = {"valid": valid} if valid.outputs is not None else {}
    for name in ("valid", "test"):
        if name in loaders and name not in results:
            results[name] = trainer.evaluate(loaders[name], run, name)
    return results


def judge_splits(splits: Splits, results: Mapping[str, PhaseResult], temperature: float) -> dict[str, dict]:
    """The report of each held-out split."""
    from photo_classifier.evaluation.report import evaluation_report

    judged = {}
    for name, result in results.items():
        samples, outputs = splits.by_name()[name], result.outputs
        paths = [samples[index].path for index in outputs.indices.tolist()]
        judged[name] = evaluation_report(outputs.logits, outputs.labels, paths, splits.class_names, temperature)
    return judged


def draw(config: TrainConfig, preprocess: Preprocess, judged: Mapping[str, Mapping], run: Run, step: int) -> None:
    """The figures of the report, in the run folder and in TensorBoard."""
    from photo_classifier.data.samples import split_title
    from photo_classifier.evaluation.contact_sheet import photo_opener
    from photo_classifier.evaluation.figures import figures_of

    open_photo = photo_opener(config.max_pixels, preprocess.bit_depth)
    seconds = run.spare_seconds / len(judged)
    for name, about in judged.items():
        title = split_title(name)
        for what, picture in figures_of(about, open_photo, seconds).items():
            prefix = "" if name == "valid" else f"{title}_"
            run.picture(f"{prefix}{what}", f"{title.capitalize()}/{what}", picture, step)


def show(
    config: TrainConfig,
    splits: Splits,
    engine: Engine,
    loader: Iterable,
    best: EpochResult,
    results: dict[str, PhaseResult],
    judged: dict[str, dict],
    run: Run,
) -> None:
    """What TensorBoard shows of the saved weights, beside the curves."""
    from photo_classifier.features.loader import FeatureLoader
    from photo_classifier.training import tensorboard

    outputs, step = results["valid"].outputs, best.epoch + 1
    if isinstance(loader, FeatureLoader):
        reader = tensorboard.stored_reader(loader.extracted)
    else:
        engine.refresh()
        reader = tensorboard.image_reader(loader.dataset, engine)
    logits = outputs.logits / judged["valid"]["temperature"]
    tensorboard.add_curves(run.board, splits.class_names, logits, outputs.labels, step)
    paths = [sample.path for sample in splits.valid]
    tensorboard.add_embedding(run.board, splits.class_names, paths, outputs, reader, step, run.spare_seconds)
    metrics = tensorboard.final_metrics(step, results, judged)
    tensorboard.add_hyperparameters(run.board, hyperparameters(config, splits, engine.model), metrics, run.n_logged)


def hyperparameters(config: TrainConfig, splits: Splits, model: Classifier) -> dict[str, str | float]:
    """What two runs can differ in, as the HParams tab shows it: every run names all of them."""
    # the data has a name below, and the others change no number
    left_out = ("data_dir", "dataset_name", "n_workers", "max_bad")
    also = ("views", "precision", "seed")
    values = {}
    for field in fields(config):
        of_the_result = field.metadata.get("group") in ("data", "model", "optimisation") or field.name in also
        if of_the_result and field.name not in left_out:
            value = getattr(config, field.name)
            unset = "none" if field.metadata["type"] is str else 0
            values[field.name] = str(value) if isinstance(value, bool) else unset if value is None else value
    known = {
        "data": os.path.basename(os.path.normpath(splits.root)),
        "n_train": len(splits.train),
        "n_classes": len(splits.class_names),
        "image_size": model.preprocess.image_size,
        "resize": model.preprocess.resize,
        "backbone_lr": config.backbone_lr or config.lr,
    }
    return values | known


def about_run(config: TrainConfig, splits: Splits) -> list[str]:
    """What tells this run from others, in a few short words for its name."""
    data = os.path.splitext(os.path.basename(os.path.normpath(splits.root)))[0][:24]
    start = "finetuned" if config.use_pretrained or config.weights else "scratch"
    how = "frozen" if config.freeze else f"until_{config.freeze_until}" if config.freeze_until else start
    return [data, how, f"lr{config.lr:g}"]


def load_data(config: TrainConfig) -> Splits:
    """The samples in their splits, with what was found said on the console."""
    from photo_classifier.data.discovery import load_splits
    from photo_classifier.data.known_datasets import dataset_folder
    from photo_classifier.data.tables import Columns

    shares = {"train": config.train_ratio, "valid": config.valid_ratio, "test": config.test_ratio}
    columns = Columns(config.path_column, config.label_column, config.group_column)
    if config.dataset_name == "digits":
        say("training on the built-in digits; for your own photos give --data_dir DIR")
    root = str(dataset_folder(config.dataset_name)) if config.dataset_name else config.data_dir
    splits = load_splits(root, shares, config.seed, config.labels, columns, config.splits)
    n_classes = len(splits.class_names)
    if config.n_classes not in (None, n_classes):
        names = ", ".join(splits.class_names)
        came = f"--n_classes {config.n_classes}, but {splits.root} has {n_classes} classes: {names}"
        raise UserError(f"{came}; leave it out")
    return splits


def checked(config: TrainConfig, splits: Splits, run: Run) -> Splits:
    """The splits without what cannot be used, with every doubt said and listed in the run folder."""
    from photo_classifier.data.checks import drop_samples, find_duplicates, find_unreadable
    from photo_classifier.training.run import write_csv

    samples = [sample for part in splits.by_name().values() for sample in part]
    reasons = find_unreadable(samples, config.max_pixels)
    run.leave_out(reasons)
    duplicates = find_duplicates(splits)
    if duplicates.copies:
        fields = ("group", "path", "label", "split")
        write_csv(run.folder / "duplicates.csv", fields, [astuple(copy) for copy in duplicates.copies])
        text = f"{duplicates.text()}; all are listed in {run.folder / 'duplicates.csv'}"
        if config.on_leak == "error":
            raise UserError(f"{text}; remove one of each, or use --on_leak drop or warn")
        hint = "; --on_leak drop leaves out the training copies" if config.on_leak == "warn" else ", dropped"
        warn(f"{text}{hint}")
    dropped = duplicates.to_drop() if config.on_leak == "drop" else []
    return drop_samples(splits, [*reasons, *dropped]) if reasons or dropped else splits


@launcher.main_only
def show_augmented(run: Run, dataset: ImageDataset) -> None:
    """A labelled grid of training images as the first epoch sees them, for the run folder and TensorBoard."""
    from photo_classifier.data.decoding import BadImage
    from photo_classifier.evaluation.contact_sheet import Tile, contact_sheet, map_until, picture_of

    def decoded(index: int) -> torch.Tensor | None:
        with contextlib.suppress(BadImage):
            return dataset.decoded(index)

    n = len(dataset)
    chosen = {k * n // N_SHOWN for k in range(N_SHOWN)}  # spread over the classes: samples come by class
    # in any order but theirs, so that the clock does not cut off the last classes
    images = dict(map_until(decoded, sorted(chosen, key=lambda index: derive_seed("grid", index)), run.spare_seconds))
    tiles = [
        # views are drawn one after another: threads would share the generator
        Tile(picture_of(dataset.views(index, [0], images[index])[0]), dataset.samples[index].label)
        for index in sorted(images)
        if images[index] is not None
    ]
    if tiles:
        run.picture("augmented", "Train/images", contact_sheet(tiles, n_columns=6))


N_SHOWN = 18  # images of the grid, three rows


if __name__ == "__main__":
    run_main(main)
