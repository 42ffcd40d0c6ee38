"""Predicts the classes of images: checkpoint + images -> result.csv."""

from __future__ import annotations

import glob
import os
import time
from dataclasses import dataclass

from flags import flag, number, parse_flags, run_main
from utils import MAX_PIXELS, UserError, check_target, pick_device, pick_precision


@dataclass(frozen=True)
class PredictConfig:
    """Every flag and its one default; None means that the checkpoint decides."""

    model_fn: str = flag("resnet.pth", "a checkpoint that train.py wrote", "FILE", group="input")
    input: tuple[str, ...] = flag(
        (),
        "images, folders, archives and tables (default: the held-out images of training)",
        "PATH",
        group="input",
        many=True,
    )
    path_column: str | None = flag(
        None, "a table's column of paths (default: by the usual names)", "NAME", group="input"
    )
    label_column: str | None = flag(None, "its column of labels (default: by the usual names)", "NAME", group="input")
    result: str = flag("result.csv", "the table to write", "FILE", group="output")
    gpu_id: int | None = flag(None, "-1 is the CPU (default: GPU 0 where there is one)", "N", number(int, -1), "run")
    batch_size: int | None = flag(None, "images a pass (default: as in training)", "N", number(int, 1), "run")
    n_workers: int | None = flag(
        None, "processes that decode images (default: by the cores)", "N", number(int, 0), "run"
    )
    precision: str | None = flag(None, "auto, fp32, bf16 or fp16 (default: as in training)", "NAME", group="run")
    max_pixels: int = flag(MAX_PIXELS, "width x height above which an image is refused", "N", number(int, 1), "run")


EXAMPLES = """examples:
  python predict.py --model_fn resnet.pth                     the held-out images of its training
  python predict.py --model_fn resnet.pth --input photos a.jpg
"""


def parse_args(argv: list[str] | None = None) -> dict:
    """The flags that were given, and only those."""
    about = "Predicts the classes of images."
    return parse_flags(PredictConfig, argv, paths_flag="--input", prog="predict.py", description=about, epilog=EXAMPLES)


def main(argv: list[str] | None = None) -> int:
    """Parses and predicts; the exit status: 3 where some inputs could not be read."""
    return predict(PredictConfig(**parse_args(argv)))


def predict(config: PredictConfig) -> int:
    """Writes one row for every input and says what came out."""
    from listing import is_image_name
    from samples import input_samples

    if not os.path.isfile(config.model_fn):
        here = ", ".join(sorted(glob.glob("*.pth")))
        hint = f"this folder has {here}" if here else "train one with python train.py"
        raise UserError(f"there is no checkpoint {config.model_fn}; {hint}; name it with --model_fn FILE")
    check_target(config.result, "--result")
    if config.result.endswith(".pth") or is_image_name(config.result):
        raise UserError(f"--result {config.result} would overwrite a model or a photo; give a name like result.csv")
    from data_loader import ImageDataset, eval_transform, make_loader
    from engine import Engine
    from model_loader import load_checkpoint
    from results import predict_samples, write_predictions
    from tables import Columns

    device = pick_device(config.gpu_id)
    model, about = load_checkpoint(config.model_fn)
    dtype = pick_precision(config.precision or about["precision"], device)
    batch_size = config.batch_size or about["eval_batch_size"]
    class_names = about["class_names"]
    columns = Columns(config.path_column, config.label_column)
    if config.input:
        samples, title = input_samples(config.input, class_names, columns), "accuracy"
    else:
        samples, title = held_out_samples(about["splits"])
    engine = Engine(model, device, dtype, batch_size)
    prepare = eval_transform(model.preprocess)
    dataset = ImageDataset(samples, class_names, model.preprocess, prepare, max_pixels=config.max_pixels)
    loader = make_loader(dataset, batch_size, config.n_workers, pin_memory=device.type == "cuda")
    start = time.perf_counter()
    temperature = about.get("temperature", 1.0)
    counts = write_predictions(predict_samples(engine, loader, samples, class_names, temperature), config.result)
    speed = counts.n_rows / (time.perf_counter() - start)
    errors = f", {counts.n_errors} of them could not be read (status `error`)" if counts.n_errors else ""
    print(f"wrote {config.result}: {counts.n_rows} rows{errors}; {speed:.1f} images/s")
    if counts.n_labelled:
        print(f"{title} {counts.accuracy_text}")
    return 3 if counts.n_errors else 0


def held_out_samples(splits: dict) -> tuple[list, str]:
    """The images that training kept apart, and the name under which it reported their accuracy."""
    from report import split_title
    from splits import Sample

    name = splits["held_out"]

    def here(path: str) -> str:
        # the folder of the training first: another one can hold other photos of the same names
        there = os.path.join(splits["cwd"], path)
        return there if os.path.exists(there) and os.getcwd() != splits["cwd"] else path

    samples = [Sample(here(path), label) for path, label in splits[name]]
    return samples, f"{split_title(name)} accuracy"


if __name__ == "__main__":
    run_main(main)
