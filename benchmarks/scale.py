"""Measures what a large set costs: the parts per image and core, and whether time per image grows with the set.

    python benchmarks/scale.py                  all of it, some minutes
    python benchmarks/scale.py --only parts
    python benchmarks/scale.py --only growth --sizes 1000 10000
    python benchmarks/scale.py --only names --n_names 1000000

docs/scale.md computes from these figures what a million and a billion images take.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from common import described
from PIL import Image

from model_loader import get_model
from photo_classifier.data.checks import find_duplicates, find_unreadable
from photo_classifier.data.decoding import decode
from photo_classifier.data.discovery import load_splits
from photo_classifier.data.image_files import MAX_PIXELS, walk_images
from photo_classifier.data.preprocess import eval_transform
from photo_classifier.models.checkpoint import save_checkpoint
from photo_classifier.models.inference import Engine
from photo_classifier.prediction.result_file import ResultFile
from photo_classifier.prediction.results import Prediction, Totals, columns_of, row_of
from predict import main as predict

SHARES = {"train": 0.6, "valid": 0.2, "test": 0.2}


def seconds_of(work, n_times: int = 3) -> float:
    """Returns the seconds of the shortest of some calls, after one to warm up."""
    times = []
    for _ in range(n_times + 1):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def tell(what: str, value: float, unit: str) -> None:
    print(f"{what:44} {value:14,.1f} {unit}", flush=True)


def parts(folder: Path, _options: argparse.Namespace) -> None:
    """Measures decoding, the forward pass and writing on one core, and the bytes of an image in between."""
    torch.set_num_threads(1)
    photo = photo_of(np.random.default_rng(0), (500, 375), 8)
    photo.save(folder / "photo.jpg", quality=90)
    kinds = [("efficientnet_lite0", torch.float32), ("resnet50", torch.float32), ("resnet50", torch.bfloat16)]
    for name, dtype in kinds:
        model = get_model(name, 10)
        prepare = eval_transform(model.preprocess)

        def read(prepare=prepare, side=model.preprocess.decode_side) -> torch.Tensor:
            return prepare(decode(folder / "photo.jpg", side))

        engine, images = Engine(model, torch.device("cpu"), dtype, 32), torch.stack([read()] * 32)
        if dtype == torch.float32:
            seconds = seconds_of(lambda read=read: [read() for _ in range(50)])
            tell(f"decode and crop for {name}", 50 / seconds, "images/s")
        kind = str(dtype).removeprefix("torch.")
        speed = 32 / seconds_of(lambda engine=engine, images=images: engine(images), 2)
        tell(f"forward of {name}, {kind}", speed, "images/s")
        tell(f"features of {name}, {kind}", engine.feature_example().nbytes, "bytes an image")
        tell(f"gradients of {name}", 4 * sum(p.numel() for p in model.parameters()), "bytes a step")
    tell("photo, 500 x 375, JPEG", (folder / "photo.jpg").stat().st_size, "bytes")
    tell("photo, 224 x 224, decoded", 3 * 224 * 224, "bytes")
    top = (("class_007", 0.987654321),)
    rows = [Prediction(f"photos/class_007/{n:09d}.jpg", *top[0], top, label="class_007") for n in range(20_000)]
    result = folder / "rows.csv"
    tell("write rows", len(rows) / seconds_of(lambda: write(rows, result)), "rows/s")
    tell("row of result.csv", result.stat().st_size / len(rows), "bytes an image")


def write(rows: list[Prediction], path: Path) -> None:
    """Writes all rows batch by batch, as a prediction does."""
    totals = Totals()
    metadata = {"checkpoint": {"sha256": ""}, "settings": {}}
    with ResultFile(str(path), columns_of(), metadata) as target:
        target.begin(False, iter(()), totals)
        for start in range(0, len(rows), 32):
            batch = rows[start : start + 32]
            totals.add(batch)
            target.write([row_of(row) for row in batch], totals)
        target.finish(totals.state())


def photo_of(rng: np.random.Generator, size: tuple[int, int], grain: int) -> Image.Image:
    """Returns smooth noise, whose JPEG is about as large as that of a photo."""
    small = rng.integers(0, 256, (size[1] // grain, size[0] // grain, 3)).astype("uint8")
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def growth(folder: Path, options: argparse.Namespace) -> None:
    """Measures the time per image of checking, splitting and predicting for sets of several sizes."""
    rng = np.random.default_rng(0)
    model = get_model("resnet18", 10, image_size=32)
    about = {"model_name": "resnet18", "class_names": [f"class_{k}" for k in range(10)], "precision": "fp32"}
    save_checkpoint(folder / "tiny.pth", model, {**about, "eval_batch_size": 64, "splits": {}, "metrics": {}})
    for n in options.sizes:
        root = folder / f"set{n}"
        for k in range(10):
            (root / f"class_{k}").mkdir(parents=True)
        for i in range(n):
            photo_of(rng, (40, 36), 4).save(root / f"class_{i % 10}" / f"{i:07d}.jpg", quality=80)
        measure_set(root, n, folder)


def measure_set(root: Path, n: int, folder: Path) -> None:
    """Measures a set of one size."""
    splits = []
    listing = seconds_of(lambda: splits.append(load_splits(root, SHARES, 0)), 1)
    samples = [sample for part in splits[-1].by_name().values() for sample in part]
    checking = seconds_of(lambda: (find_unreadable(samples, MAX_PIXELS), find_duplicates(splits[-1])), 1)
    argv = ["--model_fn", folder / "tiny.pth", "--input", root, "--result", folder / f"{n}.csv", "--gpu_id", "-1"]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        predict([str(word) for word in argv])
    predicting = n / float(re.search(r"([\d.]+) images/s", said.getvalue())[1])
    for what, seconds in (("list and split", listing), ("check", checking), ("predict", predicting)):
        tell(f"{n:7,} images: {what}", 1e6 * seconds / n, "microseconds an image")


def names(folder: Path, options: argparse.Namespace) -> None:
    """Measures listing of a set so large that opening each file would take too long."""
    for k in range(100):
        (folder / "names" / f"class_{k:03d}").mkdir(parents=True)
    for i in range(options.n_names):
        os.close(os.open(folder / "names" / f"class_{i % 100:03d}" / f"{i:08d}.jpg", os.O_CREAT | os.O_WRONLY))
    tell(f"list {options.n_names:,} names", seconds_of(lambda: sum(1 for _ in walk_images(folder / "names")), 1), "s")
    tell(f"list and split {options.n_names:,}", seconds_of(lambda: load_splits(folder / "names", SHARES, 0), 1), "s")


WORKS = {"parts": parts, "growth": growth, "names": names}


def main() -> None:
    """Runs the measurements that were asked for in a temporary folder."""
    parser = described(__doc__)
    parser.add_argument("--only", nargs="+", choices=WORKS, default=list(WORKS), help="which works (default: all)")
    parser.add_argument("--sizes", nargs="+", type=int, default=[1000, 10_000, 50_000], help="images in a set")
    parser.add_argument("--n_names", type=int, default=1_000_000, help="names to list (default: a million)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in options.only:
            WORKS[name](Path(folder), options)


if __name__ == "__main__":
    main()
