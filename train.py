"""Trains an image classifier from a folder of photos: argv -> one checkpoint."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import asdict, astuple, dataclass
from typing import TYPE_CHECKING

from utils import MAX_PIXELS, Parser, UserError, check_target, number, pick, pick_device, pick_precision, run_main, warn

if TYPE_CHECKING:  # torch is imported after the arguments are parsed, so that --help answers at once
    from pathlib import Path

    import torch
    from torch import nn

    from data_loader import Preprocess
    from engine import Engine
    from model_loader import Classifier
    from run import Run
    from samples import Splits


@dataclass(frozen=True)
class TrainConfig:
    """Every flag and its one default; None means that the data or the weights decide."""

    data_dir: str | None = None
    dataset_name: str | None = None
    labels: str | None = None
    path_column: str | None = None
    label_column: str | None = None
    train_ratio: float = 0.6
    valid_ratio: float = 0.2
    test_ratio: float = 0.2
    batch_size: int = 32
    n_workers: int | None = None
    image_size: int | None = None
    preferred_size: int | None = None  # a known set's own, where the backbone can take it; no flag
    resize: int | None = None
    bit_depth: int = 16
    augment: str = "basic"
    on_leak: str = "warn"
    max_bad: float = 0.05
    max_pixels: int = MAX_PIXELS
    model_name: str = "resnet"
    use_pretrained: bool = False
    weights: str | None = None
    freeze: bool = False
    freeze_until: str | None = None
    freeze_bn: bool = False
    head_hidden: int | None = None
    dropout: float = 0.0
    n_classes: int | None = None
    n_epochs: int = 10
    optimizer: str = "adam"
    lr: float = 1e-3
    weight_decay: float = 0.0
    momentum: float = 0.9
    scheduler: str = "step"
    step_size: int = 7
    gamma: float = 0.1
    early_stop: int | None = None
    model_fn: str | None = None
    run_dir: str | None = None
    seed: int = 0
    gpu_id: int | None = None
    precision: str = "auto"
    views: int = 4
    feature_cache: str = ".cache/features"
    verbose: int = 1


EXAMPLES = """examples:
  python train.py                                      random ResNet-34 on the built-in digits
  python train.py --data_dir photos --model_name efficientnet_lite0 --use_pretrained --freeze
  python train.py --data_dir photos --model_name resnet50 --use_pretrained --lr 1e-4 --n_epochs 20
"""


def parse_args(argv: list[str] | None = None) -> dict:
    """The flags that were given, and only those."""
    parser = Parser(
        "--data_dir",
        prog="train.py",
        description="Trains an image classifier from a folder of photos.",
        epilog=EXAMPLES,
    )
    default = TrainConfig
    data = parser.add_argument_group("data")
    data.add_argument("--data_dir", metavar="DIR", help="folder with train/ + val/ class folders, or class folders")
    data.add_argument(
        "--dataset_name",
        metavar="NAME",
        help="known set (digits, hymenoptera, elpv) or a folder dataset/NAME (default: digits)",
    )
    data.add_argument(
        "--labels",
        metavar="CSV",
        help="table of paths and labels, in place of class folders; its paths are relative to --data_dir, or to itself",
    )
    data.add_argument("--path_column", metavar="NAME", help="its column of paths (default: by the usual names)")
    data.add_argument("--label_column", metavar="NAME", help="its column of labels (default: by the usual names)")
    for split in ("train", "valid", "test"):
        share = getattr(default, f"{split}_ratio")
        data.add_argument(
            f"--{split}_ratio",
            type=number(float, 0, 1),
            metavar="R",
            help=f"share of images for {split}, where the folder has no such split (default: {share}, or what the "
            "others leave)",
        )
    data.add_argument(
        "--batch_size", type=number(int, 1), metavar="N", help=f"images a step (default: {default.batch_size})"
    )
    data.add_argument(
        "--n_workers", type=number(int, 0), metavar="N", help="processes that decode images (default: by the cores)"
    )
    data.add_argument(
        "--image_size", type=number(int, 1), metavar="N", help="pixels a side (default: what the weights want)"
    )
    data.add_argument(
        "--resize",
        type=number(int, 1),
        metavar="N",
        help="pixels of the shorter side before the crop (default: as the weights)",
    )
    data.add_argument(
        "--bit_depth",
        type=number(int, 10, 16),
        metavar="N",
        help=f"bits that hold the picture in 16-bit greyscale files (default: {default.bit_depth})",
    )
    data.add_argument(
        "--on_leak",
        metavar="NAME",
        help="warn, drop (the training copy) or error, where one image stands in two splits or two classes "
        f"(default: {default.on_leak})",
    )
    data.add_argument(
        "--max_bad",
        type=number(float, 0, 1),
        metavar="R",
        help=f"share of unreadable images above which the run stops (default: {default.max_bad:g})",
    )
    data.add_argument(
        "--max_pixels",
        type=number(int, 1),
        metavar="N",
        help=f"width x height above which an image is refused (default: {default.max_pixels})",
    )
    data.add_argument("--augment", metavar="NAME", help=f"none or basic: crops and flips (default: {default.augment})")

    model = parser.add_argument_group("model")
    model.add_argument(
        "--model_name",
        metavar="NAME",
        help="resnet, alexnet, vgg, squeezenet, densenet, efficientnet_lite0, any torchvision name, or timm/NAME "
        f"(default: {default.model_name})",
    )
    model.add_argument("--use_pretrained", action="store_true", help="start from ImageNet weights (default: random)")
    model.add_argument(
        "--weights", metavar="FILE", help="start from a local .pth or .safetensors file, whatever its head"
    )
    model.add_argument("--freeze", action="store_true", help="train the new head alone (default: train all)")
    model.add_argument(
        "--freeze_until", metavar="LAYER", help="freeze the layers up to and with this one: a dotted name or a number"
    )
    model.add_argument("--freeze_bn", action="store_true", help="freeze batch norm alone (default: it trains)")
    model.add_argument(
        "--head_hidden", type=number(int, 1), metavar="N", help="units of a hidden layer in the head (default: none)"
    )
    model.add_argument(
        "--dropout",
        type=number(float, 0, 0.99),
        metavar="P",
        help=f"share of features dropped in the head (default: {default.dropout:g})",
    )
    model.add_argument(
        "--n_classes", type=number(int, 2), metavar="N", help="checked against the data (default: from the data)"
    )

    optimisation = parser.add_argument_group("optimisation")
    optimisation.add_argument(
        "--n_epochs", type=number(int, 1), metavar="N", help=f"passes over the images (default: {default.n_epochs})"
    )
    optimisation.add_argument("--optimizer", metavar="NAME", help=f"adam or sgd (default: {default.optimizer})")
    optimisation.add_argument(
        "--lr", type=number(float, above=0), metavar="X", help=f"learning rate (default: {default.lr:g})"
    )
    optimisation.add_argument(
        "--weight_decay", type=number(float, 0), metavar="X", help=f"pull to zero (default: {default.weight_decay:g})"
    )
    optimisation.add_argument(
        "--momentum", type=number(float, 0, 1), metavar="X", help=f"of sgd (default: {default.momentum:g})"
    )
    optimisation.add_argument("--scheduler", metavar="NAME", help=f"step or none (default: {default.scheduler})")
    optimisation.add_argument(
        "--step_size",
        type=number(int, 1),
        metavar="N",
        help=f"epochs between two drops of the learning rate (default: {default.step_size})",
    )
    optimisation.add_argument(
        "--gamma", type=number(float, above=0), metavar="X", help=f"factor of such a drop (default: {default.gamma:g})"
    )

    optimisation.add_argument(
        "--early_stop", type=number(int, 1), metavar="N", help="end after N epochs without a better one (default: off)"
    )

    run = parser.add_argument_group("run")
    run.add_argument("--model_fn", metavar="FILE", help="the checkpoint to write (default: <model_name>.pth)")
    run.add_argument("--run_dir", metavar="DIR", help="TensorBoard and reports (default: runs/<model_name>-<time>)")
    run.add_argument("--seed", type=number(int, 0), metavar="N", help=f"of every random draw (default: {default.seed})")
    run.add_argument(
        "--gpu_id", type=number(int, -1), metavar="N", help="-1 is the CPU (default: GPU 0 where there is one)"
    )
    run.add_argument("--precision", metavar="NAME", help=f"auto, fp32, bf16 or fp16 (default: {default.precision})")
    run.add_argument(
        "--views",
        type=number(int, 0),
        metavar="N",
        help="augmented views of an image to store when the backbone is frozen; 0 makes a new one every epoch "
        f"(default: {default.views})",
    )
    run.add_argument(
        "--feature_cache",
        metavar="DIR",
        help=f"keeps the features of frozen backbones between runs, or none (default: {default.feature_cache})",
    )
    run.add_argument(
        "--verbose", type=number(int, 0, 2), metavar="N", help=f"0 result, 1 lines, 2 more (default: {default.verbose})"
    )
    return vars(parser.parse_args(argv))


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
        trainer = Trainer(work.model, work.compute, work.refresh, optimizer, scheduler, device, dtype, config.seed)
        best = trainer.fit(work.loaders["train"], work.loaders["valid"], run, config.n_epochs, config.early_stop)
        results = {"valid": best.valid}
        if splits.test:
            saver.restore()
            results["test"] = trainer.evaluate(work.loaders["test"], run, "test")
            saver({"epoch": best.epoch + 1, **{name: phase_metrics(result) for name, result in results.items()}})
    run.close()
    report(run, saver, best.epoch + 1, results, say)


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
    if top is not None and config.views:
        n_views = 1 if config.augment == "none" else min(config.views, config.n_epochs)
        loaders = {}
        for name, dataset in datasets.items():
            recipe = (config.augment, n_views) if name == "train" else ("evaluation", 1)
            extracted = extract(engine, dataset, cache, *recipe, config.n_workers, say)
            run.skip(extracted.bad, name)
            loaders[name] = extracted.loader(sizes[name])
        head = HeadEngine(top, engine.device, engine.dtype, engine.batch_size)
        return Work(top, head, head.refresh, loaders)

    pin = engine.device.type == "cuda"
    loaders = {name: make_loader(dataset, sizes[name], config.n_workers, pin) for name, dataset in datasets.items()}
    if top is not None:
        head = HeadEngine(top, engine.device, engine.dtype, engine.batch_size)
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
