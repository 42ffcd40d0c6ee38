"""Prediction as a whole, and decoding, copying and computing alone."""

from __future__ import annotations

import itertools
import os
import re
import time
from pathlib import Path

import torch

from gpu_sections import Bench
from photo_classifier.runtime.device import to_device


def predict(bench: Bench) -> None:
    """The command over all photos in two batch sizes, and then its parts alone."""
    folder = many_photos(bench, bench.scaled(5000, 64))
    bench.run("train", "--data_dir", bench.photos, "--model_name", bench.network, "--n_epochs", 1, "--image_size", 32,
              "--freeze", "--feature_cache", "none", "--model_fn", "small.pth")  # fmt: skip
    content = torch.load("small.pth", weights_only=True)
    sizes = {"image_size": bench.image_size, "resize": bench.image_size * 8 // 7}
    torch.save({**content, **sizes}, "m.pth")  # a speed does not depend on the weights
    for n in sorted({bench.scaled(32), bench.scaled(256)}):
        out, seconds = bench.run("predict", "--model_fn", "m.pth", "--input", folder, "--batch_size", n)
        speed, n_rows = re.search(r"([\d.]+) images/s", out)[1], re.search(r"([\d,]+) rows", out)[1]
        told = f"{float(speed):,.0f} images/s, {seconds:.1f} s from start to exit"
        bench.row(f"predict.py, {n_rows} photos, {bench.network}, batch {n}", bench.dtype, "", told)
        parts_of_prediction(bench, folder, n)


def many_photos(bench: Bench, n: int) -> Path:
    """A folder of that many names of the photos."""
    folder = Path("many")
    folder.mkdir()
    for k, photo in zip(range(n), itertools.cycle(sorted(bench.photos.rglob("*.jpg"))), strict=False):
        os.link(photo, folder / f"{k:06d}.jpg")
    return folder


def parts_of_prediction(bench: Bench, folder: Path, n: int) -> None:
    """Decoding without computing, and copying and computing what is in memory already."""
    from photo_classifier.data.samples import Sample
    from photo_classifier.prediction.predictor import Predictor

    predictor, samples = Predictor("m.pth", batch_size=n), [Sample(str(path)) for path in folder.iterdir()]
    found = {"all of it, warm": images_per_second(predictor, samples)}
    compute, predictor._predict_batch = predictor._predict_batch, lambda samples, batch: samples
    found["decode alone"] = images_per_second(predictor, samples)
    predictor._predict_batch = compute
    images = torch.zeros(n, 3, bench.image_size, bench.image_size, dtype=torch.uint8)
    images = images.to(memory_format=torch.channels_last)
    on_device = images.to(bench.device)
    if bench.on_gpu:
        found["copy alone"] = bench.speed(lambda: to_device(images, bench.device), n)
        pinned = images.pin_memory()
        found["copy alone from pinned memory"] = bench.speed(lambda: to_device(pinned, bench.device), n)
    found["compute alone"] = bench.speed(lambda: predictor.engine(on_device), n)
    for what, speed in found.items():
        bench.row(f"- {what}, batch {n}", bench.dtype, "", f"{speed:,.0f} images/s")


def images_per_second(predictor, samples: list) -> float:
    """The speed of a stream of predictions, with the start of worker processes, as predict.py tells it."""
    start = time.perf_counter()
    n = sum(map(len, predictor.stream(samples)))
    return n / (time.perf_counter() - start)
