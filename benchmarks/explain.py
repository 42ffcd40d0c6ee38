"""Whether heat maps mark what matters, and what `--explain` costs.

    python benchmarks/explain.py --model_fn resnet.pth --input photos

The marked fifth of a photo is deleted, and others for comparison: replaced by the photo's mean colour. The score is how
far the log-odds of the answer fall, in nats: for the fifth that the map marks, for the same shape in another place, and
for the middle of the photo. The cost is that of whole predictions with and without `--explain`, in turn, in seconds of
all cores, the start included.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent.parent))

from photo_classifier.data.decoding import decode
from photo_classifier.data.preprocess import eval_transform
from photo_classifier.models.heat_maps import HeatMaps
from photo_classifier.prediction.predictor import Predictor

N_PHOTOS, SHARE, CHUNK = 200, 0.2, 20


def log_odds(predictor: Predictor, images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Returns the log-odds of those classes, (n,)."""
    p = (predictor.engine(images) / predictor.temperature).double().softmax(1).gather(1, classes[:, None])[:, 0]
    return torch.logit(p, 1e-9)


def without(images: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Returns the images with their mean colour where the masks, bool (n, size, size), are true."""
    means = images.float().mean((2, 3), keepdim=True).to(torch.uint8)
    return torch.where(masks[:, None], means, images)


def measure(predictor: Predictor, maps: HeatMaps, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Returns by how much the log-odds fall, (n, 3): the marked fifth, the same shape elsewhere, the middle."""
    n, size = len(images), images.shape[-1]
    classes = predictor.engine(images).argmax(1)
    large = nn.functional.interpolate(maps(images, classes)[:, None], (size, size), mode="bilinear")[:, 0]
    marked = large >= large.flatten(1).quantile(1 - SHARE, 1)[:, None, None]
    shifts = torch.randint(size // 4, 3 * size // 4, (n, 2), generator=generator).tolist()
    elsewhere = torch.stack([mask.roll(shift, (0, 1)) for mask, shift in zip(marked, shifts, strict=True)])
    middle, side = torch.zeros_like(marked), round(size * SHARE**0.5)
    start = (size - side) // 2
    middle[:, start : start + side, start : start + side] = True
    before = log_odds(predictor, images, classes)
    falls = [before - log_odds(predictor, without(images, mask), classes) for mask in (marked, elsewhere, middle)]
    return torch.stack(falls, 1)


def cpu_seconds(folder: str, *argv: str) -> float:
    """Returns the seconds of all cores that a prediction takes, with its workers."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, str(Path(__file__).parent.parent / "predict.py"), *argv]
    subprocess.run(command, check=True, capture_output=True, cwd=folder)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def print_cost(model_fn: str, photos: str, rounds: int) -> None:
    """Prints what predictions of all photos cost with and without `--explain`."""
    model_fn, photos = os.path.abspath(model_fn), os.path.abspath(photos)
    costs = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            argv = ("--model_fn", model_fn, "--gpu_id", "-1", "--input", photos)
            costs.append([cpu_seconds(folder, *argv, *more) for more in ((), ("--explain", "heat"))])
            print("without {:.2f} s, with --explain {:.2f} s of CPU".format(*costs[-1]), flush=True)
    added = statistics.median(explained / plain - 1 for plain, explained in costs)
    print(f"--explain adds {added:.1%}, the median of {rounds} rounds")


def main() -> None:
    """Prints the falls of 200 photos, and the cost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model_fn", required=True)
    parser.add_argument("--input", required=True)
    parser.add_argument("--rounds", type=int, default=3, help="of the cost (default: %(default)s)")
    parser.add_argument("--only", choices=("falls", "cost"))
    given = parser.parse_args()
    if given.only != "falls":
        print_cost(given.model_fn, given.input, given.rounds)
    if given.only != "cost":
        print_falls(given.model_fn, given.input)


def print_falls(model_fn: str, folder: str) -> None:
    """Prints by how much answers fall, over 200 photos."""
    predictor = Predictor(model_fn, device="cpu", n_workers=0)
    maps, generator = HeatMaps(predictor.engine), torch.Generator().manual_seed(0)
    paths = sorted(str(path) for path in Path(folder).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    paths = [paths[k * len(paths) // N_PHOTOS] for k in range(min(N_PHOTOS, len(paths)))]
    preprocess = predictor.engine.model.preprocess
    transform = eval_transform(preprocess)
    images = torch.stack([transform(decode(path, preprocess.decode_side)) for path in paths])
    start = time.perf_counter()
    for chunk in images.split(CHUNK):
        maps(chunk, torch.zeros(len(chunk), dtype=torch.int64))
    seconds = time.perf_counter() - start
    falls = torch.cat([measure(predictor, maps, chunk, generator) for chunk in images.split(CHUNK)])
    for name, fall in zip(("marked", "elsewhere", "middle"), falls.T, strict=True):
        print(f"{name:9} {fall.mean():7.3f} nats, median {fall.median():7.3f}")
    for k, name in ((1, "elsewhere"), (2, "the middle")):
        print(f"marked falls further than {name} in {(falls[:, 0] > falls[:, k]).double().mean():.1%} of {len(falls)}")
    kind = "exact" if maps.weight is not None else "by gradient"
    print(f"maps at {maps.layer!r}, {kind}; {1000 * seconds / len(images):.1f} ms a photo")


if __name__ == "__main__":
    main()
