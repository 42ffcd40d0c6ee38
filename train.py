"""Trains an image classifier from a folder of photos: argv -> one checkpoint."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, astuple, dataclass, fields, replace
from typing import TYPE_CHECKING

from config import TrainConfig, check, checkpoint_name, known_set_defaults, parse_args, ratios
from flags import run_main
from utils import UserError, pick, pick_device, pick_precision, warn

if TYPE_CHECKING:  # torch is imported after the arguments are parsed, so that --help answers at once
    from pathlib import Path

    import torch
    from torch import nn

    from data_loader import ImageDataset, Preprocess
    from engine import Engine
    from model_loader import Classifier
    from recipe import Recipe
    from run import Run
    from splits import Splits
    from trainer import EpochResult, PhaseResult, Trainer


def main(argv: list[str] | None = None) -> int:
    """Parses, checks and trains; the exit status."""
    given = parse_args(argv)
    config = TrainConfig(**{**known_set_defaults(given), **given, **ratios(given)})
    check(config)
    train(config)
    return 0


def train(config: TrainConfig) -> None:
    """One run, from the data to the checkpoint and the accuracy on the held-out images."""
    say = print if config.verbose else lambda *_: None
    found = load_data(config, say)  # before the imports below: a wrong folder is told at once

    from engine import Engine
    from features import open_cache
    from run import Run, default_run_dir
    from trainer import Trainer

    check_names(config)
    device = pick_device(config.gpu_id)
    dtype = pick_precision(config.precision, device)
    model = build_model(config, found).to(device)
    run_dir = config.run_dir or default_run_dir(config.model_name)
    run = Run(run_dir, found, config.n_epochs, config.max_bad, config.verbose)
    splits = checked(config, found, run, say)
    describe(config, splits, model, device, dtype, say)
    show_augmented(run, make_datasets(config, splits, model.preprocess)["train"])

    saver = Saver(checkpoint_name(config), model, config, splits)
    run.begin(asdict(config), splits, saver)
    engine = Engine(model, device, dtype, eval_batch_size(config.batch_size))
    if config.verbose > 1 and not engine.is_folded:
        say("evaluation runs unfolded: batch norm could not be joined to convolutions")
    with open_cache("none" if config.dry_run else config.feature_cache) as cache:
        work = choose_work(config, one_batch(splits, config) if config.dry_run else splits, engine, run, cache, say)
        recipe = make_recipe(config, model, splits, n_steps=len(work.loaders["train"]))
        trainer = Trainer(work.model, work.compute, work.refresh, recipe, device, dtype, config.seed, config.monitor)
        if config.dry_run:
            try_a_step(trainer, work, run, say)
            return
        best = trainer.fit(work.loaders["train"], work.loaders["valid"], run, config.n_epochs, config.early_stop)
        last_results = measure(trainer, work, run, trainer.last.valid)
        saver.finish(trainer.last.epoch, last_results, run.last_model)
        if trainer.last is not best:
            saver.restore()
        results = last_results if trainer.last is best else measure(trainer, work, run, best.valid)
        saver.finish(best.epoch, results)
    judged = judge_splits(splits, results, saver.about["temperature"])
    run.report(judged)
    show(config, splits, engine, work.loaders["valid"], best, results, judged, run)
    run.close()
    if trainer.last is not best:
        say(f"last    {run.last_model} (epoch {run.n_logged}): {', '.join(accuracies(last_results))}")
    report(run, saver, best.epoch + 1, results, judged, say)


def one_batch(splits: Splits, config: TrainConfig) -> Splits:
    """As many training images as a step takes, of all classes in turn, and nothing else."""
    n = min(config.batch_size, len(splits.train))
    chosen = [splits.train[k * len(splits.train) // n] for k in range(n)]
    return replace(splits, train=chosen, valid=[], test=[])


def try_a_step(trainer: Trainer, work: Work, run: Run, say) -> None:
    """The end of a dry run: one step of training, and no checkpoint."""
    result = trainer.train_one_epoch(work.loaders["train"], run, epoch=0, n_epochs=1)
    run.close()
    say(f"dry run: a step of {result.n_images} images, loss {result.loss:.4f}, {result.seconds:.1f} s")
    say(f"        no checkpoint was written; see {run.folder}, and leave --dry_run out to train")


def measure(trainer: Trainer, work: Work, run: Run, valid: PhaseResult) -> dict[str, PhaseResult]:
    """What the present weights achieve on each held-out split; `valid` is known, but after a resume without outputs."""
    results = {"valid": valid} if valid.outputs is not None else {}
    for name in ("valid", "test"):
        if name in work.loaders and name not in results:
            results[name] = trainer.evaluate(work.loaders[name], run, name)
    return results


def check_names(config: TrainConfig) -> None:
    """Every flag that names a row of a table, before any work is done.

    Raises:
        UserError: there is no such row.
    """
    from data_loader import AUGMENTS
    from recipe import CLASS_WEIGHTS, OPTIMIZERS, SCHEDULERS
    from trainer import MONITORS

    tables = {
        "augment": AUGMENTS,
        "class_weights": CLASS_WEIGHTS,
        "optimizer": OPTIMIZERS,
        "scheduler": SCHEDULERS,
        "monitor": MONITORS,
    }
    for name, table in tables.items():
        pick(f"--{name}", getattr(config, name), table)


def make_recipe(config: TrainConfig, model: Classifier, splits: Splits, n_steps: int) -> Recipe:
    """How the weights learn, as the flags ask for it; `n_steps` is of an epoch."""
    from collections import Counter

    from data_loader import Mixer
    from recipe import CLASS_WEIGHTS, Plan, Recipe, Schedule, TrainingLoss, make_optimizer

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
class Work:
    """What the trainer is handed: images and the whole model, or stored features and its head."""

    model: nn.Module
    compute: Callable[[torch.Tensor], torch.Tensor]
    refresh: Callable[[], None]
    loaders: dict[str, Iterable]


def choose_work(config: TrainConfig, splits: Splits, engine: Engine, run: Run, cache: Path, say: Callable) -> Work:
    """A wholly frozen backbone is computed once for all epochs; everything else runs image by image."""
    from data_loader import make_loader
    from engine import FrozenModel, HeadEngine
    from features import extract, is_wholly_frozen

    model, datasets = engine.model, make_datasets(config, splits, engine.model.preprocess)
    sizes = {name: config.batch_size if name == "train" else engine.batch_size for name in datasets}

    top = model.top() if is_wholly_frozen(model) else None
    head = HeadEngine(top, engine.device, engine.dtype, engine.batch_size) if top is not None else None
    if top is not None and config.views and not config.cutmix:  # a part of a picture has no part in its features
        n_views = 1 if config.augment == "none" else min(config.views, config.n_epochs)
        loaders = {}
        for name, dataset in datasets.items():
            recipe = (config.augment, n_views) if name == "train" else ("evaluation", 1)
            extracted = extract(engine, dataset, cache, *recipe, config.n_workers, say)
            run.skip(extracted.bad, name)
            loaders[name] = extracted.loader(sizes[name])
        return Work(top, head, head.refresh, loaders)

    pin = engine.device.type == "cuda"
    loaders = {name: make_loader(dataset, sizes[name], config.n_workers, pin) for name, dataset in datasets.items()}
    if head is not None:
        return Work(FrozenModel(engine, top), lambda images: head(engine.features(images)), head.refresh, loaders)
    return Work(model, engine, engine.refresh, loaders)


def make_datasets(config: TrainConfig, splits: Splits, preprocess: Preprocess) -> dict[str, ImageDataset]:
    """The images of each split, augmented for training alone."""
    from data_loader import ImageDataset, eval_transform, train_transform

    transforms = {name: (eval_transform(preprocess), None) for name in splits.by_name()}
    transforms["train"] = (train_transform(config.augment, preprocess), config.seed)
    return {
        name: ImageDataset(part, splits.class_names, preprocess, *transforms[name], config.max_pixels)
        for name, part in splits.by_name().items()
    }


def eval_batch_size(batch_size: int) -> int:
    """Images in a pass of evaluation, in training and prediction alike; below 32 it wastes time, above 256 memory."""
    return min(max(32, batch_size), 256)


class Saver:
    """Writes the run's checkpoint and reads its best weights back."""

    def __init__(self, path: str, model: Classifier, config: TrainConfig, splits: Splits) -> None:
        self.path, self.model = path, model
        self.is_first = True
        self.previous = f"{path}.prev" if os.path.exists(path) else None
        held_out = {
            name: [[sample.path, sample.label] for sample in part]
            for name, part in splits.by_name().items()
            if name != "train"
        }
        self.about = {
            "model_name": config.model_name,
            "class_names": splits.class_names,
            "splits": {"cwd": os.getcwd(), "held_out": splits.held_out, **held_out},
            "temperature": 1.0,
            "precision": config.precision,
            "eval_batch_size": eval_batch_size(config.batch_size),
            "config": asdict(config),
        }

    def __call__(self, metrics: dict, path: str | Path | None = None) -> None:
        from model_loader import save_checkpoint

        keep_previous = self.is_first and path is None
        save_checkpoint(path or self.path, self.model, {**self.about, "metrics": metrics}, keep_previous)
        self.is_first = self.is_first and path is not None

    def finish(self, epoch: int, results: Mapping[str, PhaseResult], path: str | Path | None = None) -> None:
        """Writes the present weights, those of that epoch, with their temperature and all that was measured."""
        from report import fit_temperature
        from run import phase_metrics

        outputs = results["valid"].outputs
        self.about["temperature"] = fit_temperature(outputs.logits, outputs.labels)
        metrics = {name: phase_metrics(result) for name, result in results.items()}
        self({"epoch": epoch + 1, **metrics}, path)

    def restore(self) -> None:
        """Puts the best weights back into the model."""
        import weights

        self.model.net.load_state_dict(weights.read(self.path)["state_dict"])


def judge_splits(splits: Splits, results: Mapping[str, PhaseResult], temperature: float) -> dict[str, dict]:
    """The report of each held-out split."""
    from report import judge

    judged = {}
    for name, result in results.items():
        samples, outputs = splits.by_name()[name], result.outputs
        paths = [samples[index].path for index in outputs.indices.tolist()]
        judged[name] = judge(outputs.logits, outputs.labels, paths, splits.class_names, temperature)
    return judged


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
    import display
    from features import FeatureLoader

    outputs, step = results["valid"].outputs, best.epoch + 1
    if isinstance(loader, FeatureLoader):
        reader = display.stored_reader(loader.extracted)
    else:
        engine.refresh()
        reader = display.image_reader(loader.dataset, engine)
    logits = outputs.logits / judged["valid"]["temperature"]
    display.add_curves(run.board, splits.class_names, logits, outputs.labels, step)
    paths = [sample.path for sample in splits.valid]
    display.add_embedding(run.board, splits.class_names, paths, outputs, reader, step, run.spare_seconds)
    metrics = display.final_metrics(step, results, judged)
    display.add_hyperparameters(run.board, hyperparameters(config, splits, engine.model), metrics, run.n_logged)


def hyperparameters(config: TrainConfig, splits: Splits, model: Classifier) -> dict[str, str | float]:
    """What two runs can differ in, as the HParams tab shows it: every run names all of them."""
    also = ("batch_size", "augment", "mixup", "cutmix", "class_weights", "views", "precision", "seed")
    values = {}
    for field in fields(config):
        if field.metadata.get("group") in ("model", "optimisation") or field.name in also:
            value = getattr(config, field.name)
            unset = "none" if field.metadata["type"] is str else 0
            values[field.name] = str(value) if isinstance(value, bool) else unset if value is None else value
    known = {
        "data": os.path.basename(os.path.normpath(splits.root)),
        "n_train": len(splits.train),
        "n_classes": len(splits.class_names),
        "image_size": model.preprocess.image_size,
        "backbone_lr": config.backbone_lr or config.lr,
    }
    return values | known


def load_data(config: TrainConfig, say) -> Splits:
    """The samples in their splits, with what was found said on the console."""
    from known_sets import dataset_folder
    from samples import load_splits
    from tables import Columns

    shares = {"train": config.train_ratio, "valid": config.valid_ratio, "test": config.test_ratio}
    columns = Columns(config.path_column, config.label_column, config.group_column)
    if config.dataset_name == "digits":
        say("training on the built-in digits; for your own photos give --data_dir DIR")
    root = str(dataset_folder(config.dataset_name)) if config.dataset_name else config.data_dir
    splits = load_splits(root, shares, config.seed, config.labels, columns, config.splits, say)
    n_classes = len(splits.class_names)
    if config.n_classes not in (None, n_classes):
        names = ", ".join(splits.class_names)
        raise UserError(f"--n_classes {config.n_classes}, but {splits.root} has {n_classes} classes: {names}")
    return splits


def checked(config: TrainConfig, splits: Splits, run: Run, say) -> Splits:
    """The splits without what cannot be used, with every doubt said and listed in the run folder."""
    from audit import ON_LEAK, find_duplicates, unreadable, without
    from run import write_csv

    pick("--on_leak", config.on_leak, ON_LEAK)
    samples = [sample for part in splits.by_name().values() for sample in part]
    reasons = unreadable(samples, config.max_pixels)
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
    return without(splits, [*reasons, *dropped]) if reasons or dropped else splits


def build_model(config: TrainConfig, splits: Splits) -> Classifier:
    """The model as the flags ask for it, frozen where they say so."""
    from model_loader import freeze, freeze_batch_norm, get_model

    model = get_model(
        config.model_name,
        len(splits.class_names),
        pretrained=config.use_pretrained,
        weights_file=config.weights,
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
    return model


def describe(
    config: TrainConfig, splits: Splits, model: Classifier, device: torch.device, dtype: torch.dtype, say
) -> None:
    """What was found and what will be done."""
    from listing import others_text
    from model_loader import count_parameters
    from summary import class_lines, model_lines

    counts = ", ".join(f"{len(part)} {name}" for name, part in splits.by_name().items())
    n_all, n_trained = count_parameters(model)
    preprocess: Preprocess = model.preprocess
    made = f" ({' and '.join(splits.made)} cut from train)" if splits.made else ""
    say(f"data    {splits.root}: {splits.layout}; {counts} images{made}")
    for note in splits.notes:
        say(f"        {note}")
    if splits.passed_over:
        say(f"        {others_text(splits.passed_over)}")
    say("\n".join(class_lines(splits)))
    start = "pretrained" if config.use_pretrained else config.weights or "random"
    say(
        f"model   {config.model_name} ({start} weights), {n_trained:,} of {n_all:,} parameters train; "
        f"{preprocess.image_size} x {preprocess.image_size} pixels, {device}, {str(dtype).removeprefix('torch.')}"
    )
    if config.verbose:
        say("\n".join(model_lines(model)))
    if config.verbose > 1:
        say(model.net)
    if (config.freeze or config.freeze_until) and start == "random":
        warn("the frozen layers have random weights; --use_pretrained or --weights FILE gives them a meaning")


def show_augmented(run: Run, dataset: ImageDataset) -> None:
    """A labelled grid of training images as the first epoch sees them, for the run folder and TensorBoard."""
    from data_loader import BadImage
    from pictures import Tile, contact_sheet, picture_of

    n = len(dataset)
    tiles = []
    for index in sorted({k * n // N_SHOWN for k in range(N_SHOWN)}):  # spread over the classes: samples come by class
        with contextlib.suppress(BadImage):
            tiles.append(Tile(picture_of(dataset.views(index, [0])[0]), dataset.samples[index].label))
    if tiles:
        run.picture("augmented", "Train/images", contact_sheet(tiles, n_columns=6))


N_SHOWN = 18  # images of the grid, three rows


def report(run: Run, saver: Saver, best_epoch: int, results: dict, judged: dict, say) -> None:
    """What came out, and what to type next; the last line is the accuracy that predict repeats."""
    from report import report_lines

    if run.skipped:
        path, reason = next(iter(run.skipped.items()))
        n = len(run.skipped)
        say(f"left out {n} image{'s' * (n != 1)} that could not be read, listed in {run.folder / 'skipped.csv'},")
        say(f"        for example {path}: {reason}")
    for name, about in judged.items():
        say("\n".join(report_lines(name, about)))
    say(f"saved   {saver.path} (best epoch {best_epoch} of {run.n_logged}) and {run.folder}")
    if saver.previous:
        say(f"        the earlier {saver.path} is now {saver.previous}")
    say(f"next    python predict.py --model_fn {saver.path}")
    say(f"        tensorboard --logdir {run.folder.parent}")
    print("\n".join(accuracies(results)))


def accuracies(results: Mapping[str, PhaseResult]) -> list[str]:
    """`test accuracy 0.9412 (144/153)` for each split."""
    from report import split_title

    return [f"{split_title(name)} accuracy {r.accuracy:.4f} ({r.correct}/{r.n_images})" for name, r in results.items()]


if __name__ == "__main__":
    run_main(main)
