"""Shows what the solved head and folds promise.

    python benchmarks/onepass.py                       generated photos
    python benchmarks/onepass.py --data_dir photos     your own, in class folders or with train/ and val/

- solve     a whole path of C with 5 folds on random features of 2,000 photos x 4 views x 1,280, 10 classes: seconds
- time      `--freeze --head logistic --folds 5` with its report against `--freeze` with 25 epochs, each with an empty
            cache of features, and again with everything stored; and what the imports alone take
- start     with everything stored: `--freeze` with 25 epochs, `--head logistic --folds 5`, `predict.py` of one photo;
            each beyond `import torch` in the same round (to reach: 4 s, 4 s and 1.5 s)
- test      over --seeds splits: the accuracy of ten epochs, and that of the solved head by folds and on the test split;
            how often the interval of their difference holds 0 (Newcombe 1998)
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from common import ROOT, Findings, described, make_photos, must, prove, run

LITE0 = ("--model_name", "efficientnet_lite0", "--use_pretrained", "--freeze", "--gpu_id", -1)
SOLVED = ("--head", "logistic", "--folds", 5)


def photos(options: argparse.Namespace) -> Path:
    """The photos of the user, or generated ones."""
    return options.data_dir or make_photos(Path("photos"), 246, 154)


def seconds_of(*arguments: object, script: str = "train") -> float:
    """How long a command takes, from its start to its exit."""
    start = time.perf_counter()
    must(run(*arguments, script=script))
    return time.perf_counter() - start


def seconds_to_import(modules: str) -> float:
    """How long a Python takes that imports them and ends."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", f"import {modules}"], cwd=ROOT, check=True)
    return time.perf_counter() - start


def solve(_: argparse.Namespace, __: Findings) -> None:
    """The solver alone."""
    import torch

    from photo_classifier.models.penalty_path import HeadData, PenaltyPath

    n, n_classes = 2000, 10
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % n_classes
    centres = torch.randn(n_classes, 1280, generator=generator)
    views = (centres[labels][:, None] + 6 * torch.randn(n, 4, 1280, generator=generator)).bfloat16()
    start = time.perf_counter()
    path = PenaltyPath(HeadData(views, labels, torch.arange(n) // n_classes % 5, torch.ones(n), n_classes))
    points = list(path.points())
    path.refined(max(points, key=lambda point: point.log_likelihood))
    print(f"solve: {len(points)} values of C, 5 folds: {time.perf_counter() - start:.1f} s", flush=True)


def times(options: argparse.Namespace, findings: Findings) -> None:
    """The whole process, three rounds."""
    data = ("--data_dir", photos(options), *LITE0)
    found: dict[str, list[float]] = {"epochs": [], "solved": [], "again": [], "imports": []}
    for _ in range(3):
        shutil.rmtree(".cache", ignore_errors=True)
        found["epochs"].append(seconds_of(*data, "--n_epochs", 25))
        shutil.rmtree(".cache", ignore_errors=True)
        found["solved"].append(seconds_of(*data, *SOLVED))
        found["again"].append(seconds_of(*data, *SOLVED))
        modules = "torch, torchvision, timm, photo_classifier.training.run, photo_classifier.training.summary"
        found["imports"].append(seconds_to_import(modules))
    medians = {name: statistics.median(values) for name, values in found.items()}
    print("time: " + ", ".join(f"{name} {value:.1f} s" for name, value in medians.items()), flush=True)
    ratio = medians["solved"] / medians["epochs"]
    findings.expect(ratio <= 1.3, f"time: a solved head takes {ratio:.2f} times as long as 25 epochs")


def start(options: argparse.Namespace, findings: Findings) -> None:
    """The whole process with everything stored, beyond `import torch`: the median of that many rounds."""
    folder = photos(options)
    photo = next(path for path in sorted(folder.rglob("*")) if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    data = ("--data_dir", folder, *LITE0, "--model_fn", "start.pth")
    works = {
        "25 epochs": (4, ("train", *data, "--n_epochs", 25)),
        "solved head, 5 folds": (4, ("train", *data, *SOLVED)),
        "one photo": (1.5, ("predict", "--model_fn", "start.pth", "--input", photo, "--gpu_id", -1)),
    }
    beyond: dict[str, list[float]] = {name: [] for name in works}
    for n in range(options.rounds + 1):
        torch_alone = seconds_to_import("torch")
        for name, (_, (script, *arguments)) in works.items():
            seconds = seconds_of(*arguments, script=script) - torch_alone
            beyond[name] += [seconds] if n else []  # the first round fills the caches
    for name, (most, _) in works.items():
        median = statistics.median(beyond[name])
        print(f"start: {name}: import torch and {median:.1f} s (from {min(beyond[name]):.1f} s)", flush=True)
        findings.expect(median <= most, f"start: {name} takes {median:.1f} s beyond import torch, not {most} s")


def without_splits(folder: Path) -> Path:
    """Returns the photos of train/ and val/ together in class folders, so that each seed draws a test split."""
    parts = [folder / name for name in ("train", "val") if (folder / name).is_dir()]
    for part in parts:
        for path in part.glob("*/*"):
            target = Path("together", path.parent.name, f"{part.name}-{path.name}")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, target)
    return Path("together").resolve() if parts else folder


def splits(options: argparse.Namespace, findings: Findings) -> None:
    """Accuracy by folds against accuracy on the untouched test split."""
    from photo_classifier.evaluation.metrics import wilson_interval

    data = ("--data_dir", without_splits(photos(options)), *LITE0)
    n_holds, accuracies = 0, {"epochs": [], "solved": []}
    for seed in range(options.seeds):
        epochs = must(run(*data, "--seed", seed, "--run_dir", f"epochs{seed}"))
        must(run(*data, *SOLVED, "--seed", seed, "--run_dir", f"solved{seed}"))
        report = json.loads(Path(f"solved{seed}/report.json").read_text(encoding="utf-8"))
        (p, low, high), (q, bottom, top) = (
            (part["accuracy"], *wilson_interval(part["n_correct"], part["n_images"]))
            for part in (report["test"], report["out-of-fold"])
        )
        down, up = ((p - low) ** 2 + (top - q) ** 2) ** 0.5, ((high - p) ** 2 + (q - bottom) ** 2) ** 0.5
        n_holds += p - q - down <= 0 <= p - q + up
        accuracies["epochs"].append(float(re.findall(r"test accuracy ([\d.]+)", epochs)[-1]))
        accuracies["solved"].append(p)
        print(f"test: seed {seed}: epochs {accuracies['epochs'][-1]:.4f}, solved {p:.4f}, by folds {q:.4f}", flush=True)
    means = {name: 100 * statistics.mean(values) for name, values in accuracies.items()}
    print(f"test: {means}, the difference's interval holds 0 in {n_holds} of {options.seeds}", flush=True)
    findings.expect(n_holds >= 0.9 * options.seeds, "test: accuracy by folds does not predict that of the test split")


WORK = {"solve": solve, "time": times, "start": start, "test": splits}


def main() -> int:
    """Parses and measures; the exit status."""
    parser = described(__doc__)
    parser.add_argument("--data_dir", type=lambda name: Path(name).resolve(), help="your photos")
    parser.add_argument("--rounds", type=int, default=3, help="of start (default: 3)")
    parser.add_argument("--seeds", type=int, default=5, help="splits (default: 5)")
    return prove(parser, WORK)


if __name__ == "__main__":
    sys.exit(main())
