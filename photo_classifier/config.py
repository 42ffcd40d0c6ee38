"""What a training is asked for: every flag with its one default, argv -> TrainConfig."""

from __future__ import annotations

from dataclasses import dataclass

from photo_classifier.data.image_files import MAX_PIXELS
from photo_classifier.runtime.errors import UserError
from photo_classifier.runtime.flags import flag, number, parse_flags


@dataclass(frozen=True)
class TrainConfig:
    """Every flag and its one default; None means that the data or the weights decide."""

    data_dir: str | None = flag(
        None,
        "your photos: a folder (train/ + val/ class folders, class folders, files like cat.1.jpg, or a table), "
        "a .zip or .tar.gz of one, or a .csv (default: the digits)",
        "DIR",
        group="data",
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
    group_column: str | None = flag(
        None,
        "its column whose images stay together in one split: a plant, a patient (default: group, if it is there)",
        "NAME",
        group="data",
    )
    splits: str | None = flag(
        None, "a splits.csv of an earlier run: the same images in the same splits (default: none)", "CSV", group="data"
    )
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
        "basic",
        "none, basic (crops, mirrored), flips (crops, mirrored both ways), shifts (nearly the whole image, both ways), "
        "trivial or rand (colours too)",
        "NAME",
        group="data",
    )
    mixup: float = flag(
        0.0,
        "mixes pairs of images (with --freeze their features); the alpha of mixup, 0.2 is usual",
        "A",
        number(float, 0),
        "data",
    )
    cutmix: float = flag(
        0.0,
        "puts a part of one image into another (with --freeze it implies --views 0); the alpha of cutmix, 1 is usual",
        "A",
        number(float, 0),
        "data",
    )
    class_weights: str = flag(
        "none", "none, or balanced: rare classes count as much as frequent ones in training", "NAME", group="data"
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
    sync_bn: bool = flag(
        False, "batch norm counts over all GPUs of the launcher (default: each over its own)", group="model"
    )
    head_hidden: int | None = flag(
        None, "units of a hidden layer in the head (default: no such layer)", "N", number(int, 1, 10**6), "model"
    )
    dropout: float = flag(0.0, "share of features dropped in the head", "P", number(float, 0, 0.99), "model")
    n_classes: int | None = flag(
        None, "checked against the data (default: from the data)", "N", number(int, 2), "model"
    )
    n_epochs: int = flag(10, "passes over the images", "N", number(int, 1), "optimisation")
    optimizer: str = flag("adam", "adam, adamw or sgd", "NAME", group="optimisation")
    lr: float = flag(1e-3, "learning rate", "X", number(float, above=0), "optimisation")
    backbone_lr: float | None = flag(
        None, "learning rate of all but the head (default: as --lr)", "X", number(float, above=0), "optimisation"
    )
    weight_decay: float = flag(0.0, "pull of the weights to zero", "X", number(float, 0), "optimisation")
    momentum: float = flag(0.9, "of sgd", "X", number(float, 0, 1), "optimisation")
    scheduler: str = flag("step", "of the learning rate: step, plateau, cosine or none", "NAME", group="optimisation")
    step_size: int = flag(7, "of step: epochs between two drops", "N", number(int, 1), "optimisation")
    gamma: float = flag(0.1, "of step and plateau: factor of a drop", "X", number(float, above=0), "optimisation")
    patience: int = flag(
        4, "of plateau: epochs without a lower validation loss before a drop", "N", number(int, 0), "optimisation"
    )
    warmup_epochs: float = flag(
        0.0, "epochs in which the learning rate grows, step by step", "X", number(float, 0), "optimisation"
    )
    label_smoothing: float = flag(
        0.0, "share of each label given to all classes, in training", "P", number(float, 0, 0.99), "optimisation"
    )
    monitor: str = flag(
        "accuracy",
        "what chooses the epoch that is kept: accuracy, loss or macro_f1 of validation",
        "NAME",
        group="optimisation",
    )
    early_stop: int | None = flag(
        None, "end after N epochs without a better one (default: off)", "N", number(int, 1), "optimisation"
    )
    model_fn: str | None = flag(None, "the checkpoint to write (default: <model_name>.pth)", "FILE", group="run")
    run_dir: str | None = flag(
        None, "TensorBoard and reports (default: runs/<model_name>-<time>-<data and recipe>)", "DIR", group="run"
    )
    resume: str | None = flag(
        None,
        "continue the run of that folder with its own flags; --n_epochs may grow (default: a new run)",
        "RUN_DIR",
        group="run",
    )
    save_every: float = flag(
        10.0, "minutes between two saves within an epoch, besides its end", "MINUTES", number(float, above=0), "run"
    )
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
    dry_run: bool = flag(False, "show what would be trained, try one step and stop", group="run")
    verbose: int = flag(1, "0 accuracies alone, 1 lines, 2 every layer of the model too", "N", number(int, 0, 2), "run")


EXAMPLES = """examples:
  python train.py                                      random ResNet-34 on the built-in digits
  python train.py --data_dir photos --model_name efficientnet_lite0 --use_pretrained --freeze
  python train.py --data_dir photos --model_name resnet50 --use_pretrained --lr 1e-4 --n_epochs 20
"""


def parse_args(argv: list[str] | None = None) -> dict:
    """The flags that were given, and only those."""
    about = "Trains an image classifier from a folder of photos."
    return parse_flags(TrainConfig, argv, paths_flag="--data_dir", prog="train.py", description=about, epilog=EXAMPLES)


def known_set_defaults(given: dict) -> dict:
    """What a known data set brings, where the user says nothing else."""
    from photo_classifier.data.known_datasets import DATASETS

    is_own = given.keys() & {"data_dir", "labels", "splits"}
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
    if config.scheduler == "plateau" and config.gamma >= 1:
        raise UserError(f"--scheduler plateau needs a --gamma below 1, not {config.gamma:g}; 0.1 is usual")
    if config.freeze and config.freeze_until:
        raise UserError("--freeze and --freeze_until were both given; --freeze alone freezes all but the head")


def checkpoint_name(config: TrainConfig) -> str:
    """`--model_fn`, or a name after the model."""
    return config.model_fn or f"{config.model_name.replace('/', '_')}.pth"


@dataclass(frozen=True)
class PredictConfig:
    """Every flag of predict.py with its default; None lets the checkpoint decide."""

    model_fn: str = flag("resnet.pth", "a checkpoint that train.py wrote, or a plain state_dict", "FILE", group="input")
    model_name: str | None = flag(
        None, "network of a plain state_dict (default: from the checkpoint)", "NAME", group="input"
    )
    class_names: tuple[str, ...] = flag(
        (),
        "classes of a plain state_dict in the order of its training, or a text file with one per line "
        "(default: from the checkpoint)",
        "NAME",
        group="input",
        many=True,
    )
    input: tuple[str, ...] = flag(
        (),
        "images, folders, archives and tables (default: the held-out images of training)",
        "PATH",
        group="input",
        many=True,
    )
    path_column: str | None = flag(
        None, "a table's column of paths (default: found by its usual names)", "NAME", group="input"
    )
    label_column: str | None = flag(
        None, "its column of labels (default: found by its usual names)", "NAME", group="input"
    )
    result: str = flag(
        "result.csv", "the table to write: .csv, .jsonl or .parquet, or - for CSV on stdout", "FILE", group="output"
    )
    resume: bool = flag(False, "continue a stopped run after its last row (default: start again)", group="output")
    top_k: int | None = flag(
        None, "add columns for the K most probable classes (default: none)", "K", number(int, 1), "output"
    )
    probabilities: bool = flag(False, "add a column for the probability of every class", group="output")
    min_probability: float = flag(0.0, "answer `unknown` if the model is less sure", "P", number(float, 0, 1), "output")
    sheet: str | None = flag(
        None,
        "a .png of photos with their predictions, a sample if there are many (default: none)",
        "FILE",
        group="output",
    )
    report: str | None = flag(
        None, "a folder for report.json and figures, if labels are known (default: none)", "DIR", group="output"
    )
    gpu_id: int | None = flag(None, "-1 is the CPU (default: GPU 0 if there is one)", "N", number(int, -1), "run")
    batch_size: int | None = flag(None, "images per pass (default: as in training)", "N", number(int, 1), "run")
    n_workers: int | None = flag(
        None, "processes that decode images (default: chosen by the cores)", "N", number(int, 0), "run"
    )
    precision: str | None = flag(None, "auto, fp32, bf16 or fp16 (default: as in training)", "NAME", group="run")
    max_pixels: int = flag(MAX_PIXELS, "width x height above which an image is refused", "N", number(int, 1), "run")
