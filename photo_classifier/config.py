"""The flags of train.py, predict.py, export.py and compare.py, with their defaults."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, fields
from typing import ClassVar

from photo_classifier.data.image_files import MAX_PIXELS
from photo_classifier.runtime.flags import flag, group_of, number, parse_flags

NEW_PHOTOS = ("skip", "train")
NEAR_DUPLICATES = ("warn", "group", "drop")
HEADS = ("epochs", "logistic")


@dataclass(frozen=True)
class DataFlags:
    """The photos of a training, and how they are prepared."""

    title: ClassVar[str] = "data"

    data_dir: str | None = flag(
        None,
        "your photos: a folder (train/ + val/ class folders, class folders, files like cat.1.jpg, or a table), "
        "a .zip or .tar.gz of one, or a table (default: the digits)",
        "DIR",
    )
    dataset_name: str | None = flag(
        None, "known set (digits, hymenoptera, elpv) or a folder dataset/NAME (default: digits)", "NAME"
    )
    labels: str | None = flag(
        None,
        "table of paths and labels instead of class folders (.csv, .xlsx, .json, .jsonl, or a .txt list); its paths "
        "are relative to --data_dir, or to itself (default: none)",
        "TABLE",
    )
    path_column: str | None = flag(None, "a table's column of paths (default: found by its usual names)", "NAME")
    label_column: str | None = flag(None, "a table's column of labels (default: found by its usual names)", "NAME")
    group_column: str | None = flag(
        None,
        "a table's column of groups (plants, patients) that stay in one split (default: group, if there is one)",
        "NAME",
    )
    split_column: str | None = flag(
        None,
        "a table's column of splits: train, val or test, or true and false if it is called is_valid "
        "(default: found by its usual names)",
        "NAME",
    )
    splits: str | None = flag(None, "the splits.csv of an earlier run, to use the same splits (default: none)", "CSV")
    new_photos: str = flag(
        "skip",
        "skip or train: what happens to the photos that --splits does not list; its validation and test photos stay",
        "NAME",
    )
    train_ratio: float = flag(0.6, "share of images for training", "R", number(float, 0, 1))
    valid_ratio: float = flag(
        0.2, "share of images for validation, if the data has no such split", "R", number(float, 0, 1)
    )
    test_ratio: float = flag(
        0.2, "share of images for the final test, if the data has no such split", "R", number(float, 0, 1)
    )
    near_duplicates: str = flag(
        "warn",
        "warn, group or drop: name photos that show the same picture (with --freeze), keep them in one split and fold, "
        "or train on one of each",
        "NAME",
    )
    min_images: int | None = flag(
        None,
        "leave out classes with fewer images to train on, and keep the others even if they are too few for every "
        "split (default: such classes are an error)",
        "N",
        number(int, 1),
    )
    batch_size: int = flag(32, "images per step", "N", number(int, 1))
    accumulate: int = flag(
        1, "compute each step in N smaller passes, which need less memory and more time", "N", number(int, 1)
    )
    n_workers: int | None = flag(
        None, "processes that decode images (default: by number of cores)", "N", number(int, 0)
    )
    image_size: int | None = flag(None, "pixels per side (default: as the weights expect)", "N", number(int, 1))
    preferred_size: int | None = None  # for a known data set, if the backbone can take it; not a flag
    resize: int | None = flag(
        None, "pixels of the shorter side before the crop (default: as the weights expect)", "N", number(int, 1)
    )
    fit: str | None = flag(
        None,
        "how a photo becomes square: crop (its middle), squash (all of it, distorted) or pad (all of it, with margins) "
        "(default: crop, or as a checkpoint in --weights has it)",
        "NAME",
    )
    bit_depth: int | None = flag(
        None,
        "bits used in PNG and TIFF files of 16 bits a channel (default: 16, or as a checkpoint in --weights has it)",
        "N",
        number(int, 8, 16),
    )
    augment: str = flag(
        "basic",
        "none, basic (crops, mirroring), flips (crops, mirroring both ways), shifts (nearly the whole image, mirroring "
        "both ways), trivial or rand (colours too)",
        "NAME",
    )
    mixup: float = flag(
        0.0,
        "alpha of mixup, which blends pairs of images (their features with --freeze); usually 0.2",
        "A",
        number(float, 0),
    )
    cutmix: float = flag(
        0.0,
        "alpha of cutmix, which pastes part of one image into another (implies --views 0 with --freeze); usually 1",
        "A",
        number(float, 0),
    )
    class_weights: str = flag(
        "none", "none, or balanced: rare classes count as much as frequent ones in training", "NAME"
    )
    on_leak: str = flag(
        "warn", "warn, drop (the training copy) or error, if an image is in two splits or classes", "NAME"
    )
    max_bad: float = flag(0.05, "share of unreadable images above which the run stops", "R", number(float, 0, 1))
    max_pixels: int = flag(MAX_PIXELS, "width x height above which an image is refused", "N", number(int, 1))


@dataclass(frozen=True)
class ModelFlags:
    """The network, where its weights come from, and what trains."""

    title: ClassVar[str] = "model"

    model_name: str = flag(
        "resnet",
        "resnet, alexnet, vgg, squeezenet, densenet, efficientnet_lite0 (or 1, 2), any torchvision name, or timm/NAME",
        "NAME",
    )
    use_pretrained: bool = flag(False, "start from ImageNet weights (default: random)")
    weights: str | None = flag(
        None,
        "start from a local .pth or .safetensors file, whatever its head; a checkpoint or run folder of this tool also "
        "gives its classes (default: none)",
        "FILE",
    )
    weights_key: str | None = flag(
        None, "which weights to take from that file, if it holds several (default: the averaged ones)", "KEY"
    )
    freeze: bool = flag(False, "train only the new head (default: train everything)")
    freeze_until: str | None = flag(
        None, "freeze the layers up to and including this one: a dotted name or a number (default: none)", "LAYER"
    )
    freeze_bn: bool = flag(False, "freeze only batch norm (default: train it)")
    unfreeze_after: int | None = flag(
        None,
        "with --freeze: train the head alone for N epochs, then all (or what is behind --freeze_until) but batch norm "
        "(default: the head alone)",
        "N",
        number(int, 1),
    )
    sync_bn: bool = flag(False, "share batch-norm statistics between all GPUs of the launcher (default: separate ones)")
    head: str = flag(
        "epochs",
        "how the head is found: epochs (trained for --n_epochs), or logistic (with --freeze: solved exactly on all "
        "images but the test split, its penalty chosen by --folds)",
        "NAME",
    )
    folds: int | None = flag(
        None,
        "with --freeze: for each of K folds, train a head on the other folds and test it on this one; train the final "
        "head on all images but the test split (default: none, or 5 with --head logistic)",
        "K",
        number(int, 2),
    )
    head_hidden: int | None = flag(
        None, "units of a hidden layer in the head (default: no hidden layer)", "N", number(int, 1, 10**6)
    )
    dropout: float = flag(0.0, "share of features dropped in the head", "P", number(float, 0, 0.99))
    n_classes: int | None = flag(
        None, "number of classes, to check the data against (default: from the data)", "N", number(int, 2)
    )


@dataclass(frozen=True)
class OptimizationFlags:
    """How the weights learn, and which epoch is kept."""

    title: ClassVar[str] = "optimisation"

    n_epochs: int = flag(10, "passes over the images", "N", number(int, 1))
    optimizer: str = flag("adam", "adam, adamw or sgd", "NAME")
    lr: float = flag(1e-3, "learning rate", "X", number(float, above=0))
    backbone_lr: float | None = flag(
        None,
        "learning rate of all but the head (default: same as --lr; if that is not given either, 3e-4 for a pretrained "
        "backbone with adam or adamw; at most 1e-4 with --unfreeze_after)",
        "X",
        number(float, above=0),
    )
    weight_decay: float = flag(
        0.0, "how strongly weights are pulled towards zero (not norms and biases)", "X", number(float, 0)
    )
    momentum: float = flag(0.9, "momentum of sgd", "X", number(float, 0, 1))
    scheduler: str = flag("step", "learning rate schedule: step, plateau, cosine or none", "NAME")
    step_size: int = flag(7, "step: epochs between drops", "N", number(int, 1))
    gamma: float = flag(0.1, "step and plateau: factor of each drop", "X", number(float, above=0))
    patience: int = flag(4, "plateau: epochs without a lower validation loss before a drop", "N", number(int, 0))
    warmup_epochs: float = flag(0.0, "epochs over which the learning rate rises at the start", "X", number(float, 0))
    label_smoothing: float = flag(
        0.0, "label smoothing: share of each label spread over all classes, in training", "P", number(float, 0, 0.99)
    )
    monitor: str = flag(
        "accuracy", "validation measure that selects the best epoch: accuracy, loss or macro_f1", "NAME"
    )
    early_stop: int | None = flag(None, "stop after N epochs without improvement (default: off)", "N", number(int, 1))


@dataclass(frozen=True)
class RunFlags:
    """What a run writes, and what it computes on."""

    title: ClassVar[str] = "run"

    model_fn: str | None = flag(None, "the checkpoint to write (default: <model_name>.pth)", "FILE")
    run_dir: str | None = flag(
        None, "folder for TensorBoard and reports (default: runs/<model_name>-<time>-<data and recipe>)", "DIR"
    )
    resume: str | None = flag(
        None,
        "continue the run in that folder with its own flags; a few may change, such as a larger --n_epochs "
        "(default: a new run)",
        "RUN_DIR",
    )
    save_every: float = flag(
        10.0, "minutes between saves during an epoch; its end is always saved", "MINUTES", number(float, above=0)
    )
    seed: int = flag(0, "seed of all random draws", "N", number(int, 0))
    gpu_id: int | None = flag(None, "-1 is the CPU (default: GPU 0 if there is one)", "N", number(int, -1))
    precision: str = flag("auto", "auto, fp32, bf16 or fp16", "NAME")
    engine: str = flag(
        "auto",
        "what computes stored features on a CPU: torch, openvino (faster, after seconds of start; pip install "
        "openvino), or auto (openvino if it is installed and there are many images)",
        "NAME",
    )
    views: int | None = flag(
        None,
        "views to store per training image when layers are frozen; 0 draws a new one every epoch (default: 4, or 8 "
        "with --freeze_until)",
        "N",
        number(int, 0),
    )
    feature_cache: str = flag(
        ".cache/features", "folder that keeps the features of frozen backbones between runs, or none", "DIR"
    )
    dry_run: bool = flag(False, "show what would be trained, try one step and stop")
    verbose: int = flag(
        1,
        "0: only accuracies, 1: also progress, 2: also layers, learning rates, calibration and the last epoch",
        "N",
        number(int, 0, 2),
    )


@dataclass(frozen=True)
class TrainConfig(RunFlags, OptimizationFlags, ModelFlags, DataFlags):
    """The flags of train.py with their defaults; None lets the data or the weights decide."""


@functools.cache
def result_flags() -> dict[str, object]:
    """Returns the flags of train.py that can change a result, but for the data itself, with their defaults."""
    also, never = ("views", "precision", "seed"), ("data_dir", "dataset_name", "n_workers", "max_bad")
    return {
        field.name: field.default
        for field in fields(TrainConfig)
        if field.metadata and field.name not in never
        if field.name in also or group_of(TrainConfig, field.name) != "run"
    }


EXAMPLES = """examples:
  python train.py                                      random ResNet-34 on the built-in digits
  python train.py --data_dir photos --model_name efficientnet_lite0 --use_pretrained --freeze
  python train.py --data_dir photos --model_name resnet50 --use_pretrained --lr 1e-4 --n_epochs 20
"""


def parse_args(argv: list[str] | None = None) -> dict:
    """Returns the flags that were given, and no defaults."""
    about = "Trains an image classifier from a folder of photos."
    return parse_flags(TrainConfig, argv, paths_flag="--data_dir", prog="train.py", description=about, epilog=EXAMPLES)


def has_fixed_backbone(config: TrainConfig) -> bool:
    """Returns whether the features of the whole backbone are stored and serve until the end of the run."""
    return config.freeze and not config.unfreeze_after and not config.cutmix and n_views(config) > 0


def n_folds(config: TrainConfig) -> int | None:
    """Returns the number of folds, or None for a run without."""
    return config.folds or (5 if config.head == "logistic" else None)


def parts(config: TrainConfig) -> list[range]:
    """Returns the epochs of each part of a run, from 0: those of the head alone come first with `unfreeze_after`."""
    if config.unfreeze_after:
        return [range(config.unfreeze_after), range(config.unfreeze_after, config.n_epochs)]
    return [range(config.n_epochs)]


def n_views(config: TrainConfig) -> int:
    """Returns the augmented views to store of each training image; 0 stores none.

    What follows a cut has more weights than a head, and learns the same few views by heart.
    """
    default = 8 if config.freeze_until else 4
    return default if config.views is None else config.views


def pass_size(config: TrainConfig) -> int | None:
    """Returns the images that a step computes at once, or None if that is its whole batch."""
    return -(-config.batch_size // config.accumulate) if config.accumulate > 1 else None


def checkpoint_name(config: TrainConfig) -> str:
    """Returns `--model_fn`, or a name derived from the model."""
    return config.model_fn or f"{re.sub('[/:]+', '_', config.model_name)}.pth"


@dataclass(frozen=True)
class InputFlags:
    """The model, and what to predict."""

    title: ClassVar[str] = "input"

    model_fn: str = flag("resnet.pth", "a checkpoint that train.py wrote, or a plain state_dict", "FILE")
    model_name: str | None = flag(None, "network of a plain state_dict (default: from the checkpoint)", "NAME")
    class_names: tuple[str, ...] = flag(
        (),
        "class names of a plain state_dict in the order of training, or a text file with one per line "
        "(default: from the checkpoint)",
        "NAME",
        many=True,
    )
    weights_key: str | None = flag(
        None,
        "which weights to take from a file of another script, if it holds several (default: the averaged ones)",
        "KEY",
    )
    head_activation: tuple[str, ...] = flag(
        (),
        "activations in the head of a plain state_dict, if it has several layers: relu, tanh, ... (default: none)",
        "NAME",
        many=True,
    )
    image_size: int | None = flag(
        None,
        "pixels per side that a plain state_dict takes (default: as the published weights)",
        "N",
        number(int, 1, 8192),
    )
    resize: int | None = flag(
        None,
        "pixels of the shorter side before the crop (default: in proportion to --image_size)",
        "N",
        number(int, 1, 16384),
    )
    fit: str | None = flag(
        None, "how photos become square for a plain state_dict: crop, squash or pad (default: crop)", "NAME"
    )
    interpolation: str | None = flag(
        None, "resizing for a plain state_dict: bilinear, bicubic, ... (default: as the published weights)", "NAME"
    )
    mean: tuple[float, ...] = flag(
        (),
        "mean of red, green and blue, or one for all, that a plain state_dict expects (default: as the published "
        "weights)",
        "X",
        number(float, -10, 10),
        many=True,
    )
    std: tuple[float, ...] = flag(
        (),
        "standard deviation of red, green and blue, or one for all (default: as the published weights)",
        "X",
        number(float, above=0),
        many=True,
    )
    input: tuple[str, ...] = flag(
        (),
        "images, folders, archives and tables to predict (default: the held-out images of training)",
        "PATH",
        many=True,
    )
    path_column: str | None = flag(None, "a table's column of paths (default: found by its usual names)", "NAME")
    label_column: str | None = flag(None, "a table's column of labels (default: found by its usual names)", "NAME")


@dataclass(frozen=True)
class OutputFlags:
    """What a prediction writes."""

    title: ClassVar[str] = "output"

    result: str = flag(
        "result.csv", "the table to write: .csv, .jsonl, .parquet or .xlsx, or - for CSV on stdout", "FILE"
    )
    resume: bool = flag(False, "continue a stopped run after its last row (default: start over)")
    top_k: int | None = flag(None, "add columns for the K most probable classes (default: none)", "K", number(int, 1))
    probabilities: bool = flag(False, "add a column for the probability of every class")
    min_probability: float = flag(0.0, "answer `unknown` below this probability", "P", number(float, 0, 1))
    unknown: bool = flag(
        False, "also answer `unknown` to photos unlike the training photos (needs a checkpoint trained with --freeze)"
    )
    false_alarm: float = flag(
        0.05, "share of photos like the training photos that --unknown may refuse by mistake", "R", number(float, 0, 1)
    )
    coverage: float | None = flag(
        None,
        "add a column with a set of classes, which contains the true one for this share of photos, such as 0.9 "
        "(default: none)",
        "R",
        number(float, at_most=1, above=0),
    )
    sheet: str | None = flag(
        None, "a .png of photos with their predictions, a sample if there are many (default: none)", "FILE"
    )
    report: str | None = flag(
        None, "a folder for report.html, and for report.json and figures if labels are known (default: none)", "DIR"
    )
    explain: str | None = flag(
        None, "a folder for a heat map of each photo, which marks what led to the answer (default: none)", "DIR"
    )


@dataclass(frozen=True)
class ComputeFlags:
    """What a prediction computes on."""

    title: ClassVar[str] = "run"

    gpu_id: int | None = flag(None, "-1 is the CPU (default: GPU 0 if there is one)", "N", number(int, -1))
    batch_size: int | None = flag(None, "images per pass (default: as in training)", "N", number(int, 1))
    n_workers: int | None = flag(
        None, "processes that decode images (default: by number of cores)", "N", number(int, 0)
    )
    precision: str | None = flag(None, "auto, fp32, bf16 or fp16 (default: as in training)", "NAME")
    engine: str = flag("auto", "torch, openvino (faster on a CPU), or auto (that of training)", "NAME")
    max_pixels: int = flag(MAX_PIXELS, "width x height above which an image is refused", "N", number(int, 1))


@dataclass(frozen=True)
class PredictConfig(ComputeFlags, OutputFlags, InputFlags):
    """The flags of predict.py with their defaults; None lets the checkpoint decide."""


@dataclass(frozen=True)
class ExportFlags:
    """What an export writes."""

    title: ClassVar[str] = "export"

    to: str = flag(
        "onnx", "onnx (a file, and a script that predicts with it), or hub_folder (for timm and hubs)", "NAME"
    )
    output: str | None = flag(
        None, "the file or folder to write (default: named after the checkpoint, beside it)", "PATH"
    )
    min_probability: float = flag(
        0.0, "below this probability the exported model answers `unknown`", "P", number(float, 0, 1)
    )
    int8: bool = flag(False, "also write an 8-bit model, if it is faster here and loses less than a point of accuracy")
    splits: str | None = flag(
        None, "the run folder or splits.csv that names the training photos (default: that of its training)", "CSV"
    )


@dataclass(frozen=True)
class ExportConfig(ExportFlags, InputFlags):
    """The flags of export.py with their defaults; None lets the checkpoint decide."""


@dataclass(frozen=True)
class CompareConfig:
    """The flags of compare.py with their defaults."""

    title: ClassVar[str] = "comparison"

    runs: tuple[str, ...] = flag(
        ("runs",),
        "run folders; any other folder stands for all runs below it (default: runs)",
        "DIR",
        many=True,
        bare=True,
    )
    csv: str | None = flag(None, "also write the table as CSV (default: none)", "FILE")
    html: str | None = flag(None, "also write a page (default: none)", "FILE")
