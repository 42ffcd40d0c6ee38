"""Trains an image classifier from a folder of photos: argv -> one checkpoint."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, astuple, dataclass
from typing import TYPE_CHECKING

from flags import flag, number, parse_flags, run_main
from utils import MAX_PIXELS, UserError, check_target, pick, pick_device, pick_precision, warn

if TYPE_CHECKING:  # torch is imported after the arguments are parsed, so that --help answers at once
    from pathlib import Path

    import torch
    from torch import nn

    from data_loader import Mixer, Preprocess
    from engine import Engine
    from model_loader import Classifier
    from run import Run
    from samples import Splits


@dataclass(frozen=True)
class TrainConfig:
    """Every flag and its one default; None means that the data or the weights decide."""

    data_dir: str | None = flag(
        None, "folder with train/ + val/ class folders, or class folders (default: the digits)", "DIR", group="data"
    )
    dataset_name: str | None = flag(
        None, "known set (digits, hymenoptera, elpv) or a folder dataset/NAME (default: digits)", "NAME", group="data"
    )
    labels: str | None = flag(
        None,
        "table of paths and labels in place of class folders; its paths are relative to --data_dir, or to itself "
        "(default: none)",
        "CSV",
        group="data",
    )
    path_column: str | None = flag(None, "its column of paths (default: by the usual names)", "NAME", group="data")
    label_column: str | None = flag(None, "its column of labels (default: by the usual names)", "NAME", group="data")
    train_ratio: float = flag(0.6, "share of images for training", "R", number(float, 0, 1), "data")
    valid_ratio: float = flag(
        0.2, "share for validation, if the data has no such split", "R", number(float, 0, 1), "data"
    )
    test_ratio: float = flag(
        0.2, "share kept for the end, if the data has no such split", "R", number(float, 0, 1), "data"
    )
    batch_size: int = flag(32, "images a step", "N", number(int, 1), "data")
    n_workers: int | None = flag(
        None, "processes that decode images (default: by the cores)", "N", number(int, 0), "data"
    )
    image_size: int | None = flag(None, "pixels a side (default: as the weights want)", "N", number(int, 1), "data")
    preferred_size: int | None = None  # a known set's own, where the backbone can take it; no flag
    resize: int | None = flag(
        None, "pixels of the shorter side before the crop (default: as the weights want)", "N", number(int, 1), "data"
    )
    bit_depth: int = flag(16, "bits that hold the picture in 16-bit greyscale files", "N", number(int, 10, 16), "data")
    augment: str = flag(
        "basic", "none, basic (crops, mirrored), flips (both ways), trivial or rand (colours too)", "NAME", group="data"
    )
    mixup: float = flag(0.0, "mixes pairs of images; the alpha of mixup, 0.2 is usual", "A", number(float, 0), "data")
    cutmix: float = flag(
        0.0, "puts a part of one image into another; the alpha of cutmix, 1 is usual", "A", number(float, 0), "data"
    )
    on_leak: str = flag(
        "warn",
        "warn, drop (the training copy) or error, where one image stands in two splits or classes",
        "NAME",
        group="data",
    )
    max_bad: float = flag(
        0.05, "share of unreadable images above which the run stops", "R", number(float, 0, 1), "data"
    )
    max_pixels: int = flag(MAX_PIXELS, "width x height above which an image is refused", "N", number(int, 1), "data")
    model_name: str = flag(
        "resnet",
        "resnet, alexnet, vgg, squeezenet, densenet, efficientnet_lite0, any torchvision name, or timm/NAME",
        "NAME",
        group="model",
    )
    use_pretrained: bool = flag(False, "start from ImageNet weights (default: random)", group="model")
    weights: str | None = flag(
        None, "start from a local .pth or .safetensors file, whatever its head (default: none)", "FILE", group="model"
    )
    freeze: bool = flag(False, "train the new head alone (default: train all)", group="model")
    freeze_until: str | None = flag(
        None,
        "freeze the layers up to and with this one: a dotted name or a number (default: none)",
        "LAYER",
        group="model",
    )
    freeze_bn: bool = flag(False, "freeze batch norm alone (default: it trains)", group="model")
    head_hidden: int | None = flag(
        None, "units of a hidden layer in the head (default: no such layer)", "N", number(int, 1), "model"
    )
    dropout: float = flag(0.0, "share of features dropped in the head", "P", number(float, 0, 0.99), "model")
    n_classes: int | None = flag(
        None, "checked against the data (default: from the data)", "N", number(int, 2), "model"
    )
    n_epochs: int = flag(10, "passes over the images", "N", number(int, 1), "optimisation")
    optimizer: str = flag("adam", "adam, adamw or sgd", "NAME", group="optimisation")
    lr: float = flag(1e-3, "learning rate", "X", number(float, above=0), "optimisation")
    weight_decay: float = flag(0.0, "pull of the weights to zero", "X", number(float, 0), "optimisation")
    momentum: float = flag(0.9, "of sgd", "X", number(float, 0, 1), "optimisation")
    scheduler: str = flag("step", "step or none", "NAME", group="optimisation")
    step_size: int = flag(7, "epochs between two drops of the learning rate", "N", number(int, 1), "optimisation")
    gamma: float = flag(0.1, "factor of such a drop", "X", number(float, above=0), "optimisation")
    label_smoothing: float = flag(
        0.0, "share of each label given to all classes, in training", "P", number(float, 0, 0.99), "optimisation"
    )
    early_stop: int | None = flag(
        None, "end after N epochs without a better one (default: off)", "N", number(int, 1), "optimisation"
    )
    model_fn: str | None = flag(None, "the checkpoint to write (default: <model_name>.pth)", "FILE", group="run")
    run_dir: str | None = flag(None, "TensorBoard and reports (default: runs/<model_name>-<time>)", "DIR", group="run")
    seed: int = flag(0, "of every random draw", "N", number(int, 0), "run")
    gpu_id: int | None = flag(None, "-1 is the CPU (default: GPU 0 where there is one)", "N", number(int, -1), "run")
    precision: str = flag("auto", "auto, fp32, bf16 or fp16", "NAME", group="run")
    views: int = flag(
        4,
        "augmented views of an image to store when the backbone is frozen; 0 makes a new one every epoch",
        "N",
        number(int, 0),
        "run",
    )
    feature_cache: str = flag(
        ".cache/features", "keeps the features of frozen backbones between runs, or none", "DIR", group="run"
    )
    verbose: int = flag(1, "0 result, 1 lines, 2 more", "N", number(int, 0, 2), "run")


EXAMPLES = """examples:
  python train.py                                      random ResNet-34 on the built-in digits
  python train.py --data_dir photos --model_name efficientnet_lite0 --use_pretrained --freeze
  python train.py --data_dir photos --model_name resnet50 --use_pretrained --lr 1e-4 --n_epochs 20
"""


def parse_args(argv: list[str] | None = None) -> dict:
    """The flags that were given, and only those."""
    about = "Trains an image classifier from a folder of photos."
    return parse_flags(TrainConfig, argv, paths_flag="--data_dir", prog="train.py", description=about, epilog=EXAMPLES)


def main(argv: list[str] | None = None) -> int:
    """Parses, checks and trains; the exit status."""
    given = parse_args(argv)
    config = TrainConfig(**{**known_set_defaults(given), **given, **ratios(given)})
    check(config)
    train(config)
    return 0


def known_set_defaults(given: dict) -> dict:
    """What a known data set brings, where the user says nothing else."""
    from known_sets import DATASETS

    is_own = "data_dir" in given or "labels" in given
    name = given.get("dataset_name", None if is_own else "digits")
    return {"dataset_name": name, **DATASETS[name].defaults} if name in DATASETS else {}


def ratios(given: dict) -> dict:
    """The three shares; those that were not given divide what is left, as their defaults do.

    Raises:
        UserError: the shares do not sum to 1, or leave nothing to train or to validate on.
    """
    names = ("train_ratio", "valid_ratio", "test_ratio")
    shares = {name: given.get(name, getattr(TrainConfig, name)) for name in names}
    open_names = [name for name in names if name not in given]
    left = 1 - sum(given.get(name, 0) for name in names)
    if open_names and len(open_names) < 3:
        default = sum(getattr(TrainConfig, name) for name in open_names)
        shares |= {name: max(0.0, left) * getattr(TrainConfig, name) / default for name in open_names}
    if abs(sum(shares.values()) - 1) > 1e-6 or shares["train_ratio"] <= 0 or shares["valid_ratio"] <= 0:
        text = " ".join(f"--{name} {share:g}" for name, share in shares.items())
        raise UserError(f"{text} must sum to 1, with train and valid above 0; for example 0.8 0.1 0.1")
    return shares


def check(config: TrainConfig) -> None:
    """Flags that exclude or need each other."""
    if config.data_dir and config.dataset_name:
        raise UserError("--data_dir and --dataset_name were both given; give one of them")
    if config.labels and config.dataset_name:
        raise UserError("--labels and --dataset_name were both given; give one of them")
    if config.use_pretrained and config.weights:
        raise UserError("--use_pretrained and --weights were both given; give one of them")
    if config.freeze and config.freeze_until:
        raise UserError("--freeze and --freeze_until were both given; --freeze alone freezes all but the head")
    model_fn = checkpoint_name(config)
    check_target(model_fn, "--model_fn")
    if os.path.exists(model_fn) and not zipfile.is_zipfile(model_fn):
        raise UserError(f"--model_fn {model_fn} is there and no checkpoint; give another name")


def checkpoint_name(config: TrainConfig) -> str:
    """`--model_fn`, or a name after the model."""
    return config.model_fn or f"{config.model_name.replace('/', '_')}.pth"


def train(config: TrainConfig) -> None:
    """One run, from the data to the checkpoint and the accuracy on the held-out images."""
    say = print if config.verbose else lambda *_: None
    found = load_data(config, say)  # before the imports below: a wrong folder is told at once

    from engine import Engine
    from features import open_cache
    from run import Run, default_run_dir, phase_metrics
    from trainer import Trainer, make_optimizer, make_scheduler

    device = pick_device(config.gpu_id)
    dtype = pick_precision(config.precision, device)
    model = build_model(config, found).to(device)
    run_dir = config.run_dir or default_run_dir(config.model_name)
    run = Run(run_dir, found, config.n_epochs, config.max_bad, config.verbose)
    splits = checked(config, found, run, say)
    describe(config, splits, model, device, dtype, say)

    optimizer = make_optimizer(config.optimizer, model.parameters(), config.lr, config.momentum, config.weight_decay)
    scheduler = make_scheduler(config.scheduler, optimizer, config.step_size, config.gamma)
    saver = Saver(checkpoint_name(config), model, config, splits)
    run.begin(asdict(config), splits, saver)
    engine = Engine(model, device, dtype, eval_batch_size(config.batch_size))
    if config.verbose > 1 and not engine.is_folded:
        say("evaluation runs unfolded: batch norm could not be joined to convolutions")
    with open_cache(config.feature_cache) as cache:
        work = choose_work(config, splits, engine, run, cache, say)
        mix = make_mixer(config, len(splits.class_names))
        trainer = Trainer(
            work.model,
            work.compute,
            work.refresh,
            optimizer,
            scheduler,
            device,
            dtype,
            config.seed,
            mix,
            config.label_smoothing,
        )
        best = trainer.fit(work.loaders["train"], work.loaders["valid"], run, config.n_epochs, config.early_stop)
        results = {"valid": best.valid}
        if splits.test:
            saver.restore()
            results["test"] = trainer.evaluate(work.loaders["test"], run, "test")
            saver({"epoch": best.epoch + 1, **{name: phase_metrics(result) for name, result in results.items()}})
    run.close()
    report(run, saver, best.epoch + 1, results, say)


def make_mixer(config: TrainConfig, n_classes: int) -> Mixer | None:
    """What mixes the images of a batch, where the flags ask for it."""
    from data_loader import Mixer

    return Mixer(config.mixup, config.cutmix, n_classes) if config.mixup or config.cutmix else None


@dataclass(frozen=True)
class Work:
    """What the trainer is handed: images and the whole model, or stored features and its head."""

    model: nn.Module
    compute: Callable[[torch.Tensor], torch.Tensor]
    refresh: Callable[[], None]
    loaders: dict[str, Iterable]


def choose_work(config: TrainConfig, splits: Splits, engine: Engine, run: Run, cache: Path, say: Callable) -> Work:
    """A wholly frozen backbone is computed once for all epochs; everything else runs image by image."""
    from data_loader import ImageDataset, eval_transform, make_loader, train_transform
    from engine import FrozenModel, HeadEngine
    from features import extract, is_wholly_frozen

    model, preprocess = engine.model, engine.model.preprocess
    transforms = {name: (eval_transform(preprocess), None) for name in splits.by_name()}
    transforms["train"] = (train_transform(config.augment, preprocess), config.seed)
    datasets = {
        name: ImageDataset(part, splits.class_names, preprocess, *transforms[name], config.max_pixels)
        for name, part in splits.by_name().items()
    }
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

    def __call__(self, metrics: dict) -> None:
        from model_loader import save_checkpoint

        save_checkpoint(self.path, self.model, {**self.about, "metrics": metrics}, keep_previous=self.is_first)
        self.is_first = False

    def restore(self) -> None:
        """Puts the best weights back into the model."""
        import weights

        self.model.net.load_state_dict(weights.read(self.path)["state_dict"])


def load_data(config: TrainConfig, say) -> Splits:
    """The samples in their splits, with what was found said on the console."""
    from known_sets import dataset_folder
    from samples import load_splits, load_table

    shares = {"train": config.train_ratio, "valid": config.valid_ratio, "test": config.test_ratio}
    if config.labels:
        columns = (config.path_column, config.label_column)
        splits = load_table(config.labels, shares, config.seed, config.data_dir, *columns)
    else:
        if config.dataset_name == "digits":
            say("training on the built-in digits; for your own photos give --data_dir DIR")
        splits = load_splits(config.data_dir or dataset_folder(config.dataset_name), shares, config.seed)
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
    from model_loader import count_parameters
    from samples import others_text

    names, counts = splits.class_names, ", ".join(f"{len(part)} {name}" for name, part in splits.by_name().items())
    shown = ", ".join(names[:10]) + (f", ... ({len(names) - 10} more)" if len(names) > 10 else "")
    n_all, n_trained = count_parameters(model)
    preprocess: Preprocess = model.preprocess
    made = f" ({' and '.join(splits.made)} cut from train)" if splits.made else ""
    say(f"data    {splits.root}: {splits.layout}; {counts} images{made}")
    if splits.passed_over:
        say(f"        {others_text(splits.passed_over)}")
    say(f"classes {len(names)}: {shown}")
    start = "pretrained" if config.use_pretrained else config.weights or "random"
    say(
        f"model   {config.model_name} ({start} weights), {n_trained:,} of {n_all:,} parameters train; "
        f"{preprocess.image_size} x {preprocess.image_size} pixels, {device}, {str(dtype).removeprefix('torch.')}"
    )
    if (config.freeze or config.freeze_until) and start == "random":
        warn("the frozen layers have random weights; --use_pretrained or --weights FILE gives them a meaning")


def report(run: Run, saver: Saver, best_epoch: int, results: dict, say) -> None:
    """What came out, and what to type next; the last line is the accuracy that predict repeats."""
    if run.skipped:
        path, reason = next(iter(run.skipped.items()))
        n = len(run.skipped)
        say(f"left out {n} image{'s' * (n != 1)} that could not be read, listed in {run.folder / 'skipped.csv'},")
        say(f"        for example {path}: {reason}")
    say(f"saved   {saver.path} (best epoch {best_epoch} of {run.n_logged}) and {run.folder}")
    if saver.previous:
        say(f"        the earlier {saver.path} is now {saver.previous}")
    say(f"next    python predict.py --model_fn {saver.path}")
    say(f"        tensorboard --logdir {run.folder.parent}")
    for name, result in results.items():
        word = {"valid": "validation"}.get(name, name)
        print(f"{word} accuracy {result.accuracy:.4f} ({result.correct}/{result.n_images})")


if __name__ == "__main__":
    run_main(main)
