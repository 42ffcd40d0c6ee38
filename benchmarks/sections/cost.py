"""Cost: what the checks of the photos add to a frozen run of at most 1,000 photos, whose features are computed anew.

- checks    seconds of the wrong labels, the near-duplicates, the odd photos, the distances, the left-out classes and
            the learning curve, beside those of the rest of the run
"""

from __future__ import annotations

import argparse
import importlib
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from pathlib import Path
from unittest.mock import patch

from common import Findings

from photo_classifier.data.discovery import load_splits

N = 1_000
CHECKS = (
    "known_photos.known_distances",
    "findings.findings_of",
    "label_check.check_labels",
    "photo_check.check_photos",
)


def copy_photos(sources: list[Path], folder: Path) -> int:
    """Copies photos of all sets into class folders, evenly; returns how many."""
    splits = [load_splits(str(source), {"train": 0.8, "valid": 0.2, "test": 0.0}, 0) for source in sources]
    samples = [sample for part in splits for sample in (*part.train, *part.valid, *part.test)]
    for n in range(min(N, len(samples))):
        sample = samples[n * len(samples) // min(N, len(samples))]
        target = folder / sample.label / f"{n:04d}{Path(sample.path).suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(sample.path, target)
    return min(N, len(samples))


def timed(function: Callable, seconds: list[float]) -> Callable:
    """Returns the function, which adds the time that it takes."""

    @wraps(function)
    def measured(*arguments: object) -> object:
        start = time.perf_counter()
        try:
            return function(*arguments)
        finally:
            seconds.append(time.perf_counter() - start)

    return measured


def work(options: argparse.Namespace, findings: Findings) -> None:
    """One run."""
    import train

    n, parts = copy_photos(options.data_dir, Path("photos")), {name.split(".")[1]: [] for name in CHECKS}
    argv = (
        "--data_dir photos --model_name efficientnet_lite0 --use_pretrained --freeze --feature_cache none --verbose 0"
    )
    with ExitStack() as stack:
        for name in CHECKS:
            module, function = name.split(".")
            module = importlib.import_module(f"photo_classifier.training.{module}")
            stack.enter_context(patch.object(module, function, timed(getattr(module, function), parts[function])))
        start = time.perf_counter()
        train.main(argv.split())
        whole = time.perf_counter() - start
    checks = sum(map(sum, parts.values()))
    text = ", ".join(f"{name} {sum(seconds):.1f} s" for name, seconds in parts.items())
    print(f"cost: {n} photos: {whole:.1f} s, of which {text}", flush=True)
    share = checks / (whole - checks)
    findings.reach(f"checks on top of a frozen run of {n} photos", "<= 20 %", f"{share:.0%}", share <= 0.2)
