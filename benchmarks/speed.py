"""Times this tool against the loops that people write by hand, both in one run on this machine.

    python benchmarks/speed.py                       generated photos
    python benchmarks/speed.py --data_dir photos     your own, with train/ and val/ class folders
    python benchmarks/speed.py --only frozen predict
    python benchmarks/speed.py --only accuracy --data_dir photos      is the fast way as good? (long)

Both sides run on the CPU. Frozen training is the whole process of ours, from start to exit with all its
reports, against the loop alone; fine-tuning is the last epoch of both; prediction is both loops. Figures are
medians over --rounds; the ratio is of the medians. The frozen plain loop costs the same in every epoch, so
25 times the median of --plain_epochs of them is taken.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT, command, described, make_photos, must

N_EPOCHS = 25
# what trains behind which frozen layers, for how many epochs
CUTS = (
    ("VGG16_bn behind `avgpool` with a hidden layer, 12 epochs", "vgg16_bn", "avgpool", 12, ("--head_hidden", 512)),
    ("ResNet-18 behind `layer3`, 15 epochs", "resnet18", "layer3", 15, ()),
)


def run(script: str, *arguments: object, cwd: Path) -> tuple[str, float]:
    """Runs a script of the repository on the CPU; returns its output and the seconds from start to exit."""
    device = () if script.startswith("benchmarks/") else ("--gpu_id", -1)  # the plain loop knows no other
    start = time.perf_counter()
    done = subprocess.run(command(script, *arguments, *device), cwd=cwd, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    return must(done), seconds


def plain(cwd: Path, *arguments: object) -> dict:
    """Runs a plain loop; returns the figures of its last line."""
    return json.loads(run("benchmarks/plain", *arguments, cwd=cwd)[0].splitlines()[-1])


class Bench:
    """Measures in a scratch folder, on one folder of photos; each method adds rows to the table."""

    def __init__(self, options: argparse.Namespace, scratch: Path) -> None:
        self.options, self.scratch = options, scratch
        self.data = options.data_dir or make_photos(scratch / "photos", 246, 154)
        self.rows: list[tuple[str, str, str, str]] = []

    def row(self, work: str, yardstick: float, ours: float, unit: str, ratio: float) -> None:
        self.tell((work, f"{yardstick:.1f} {unit}", f"{ours:.1f} {unit}", f"{ratio:.1f}x"))

    def tell(self, row: tuple[str, str, str, str]) -> None:
        self.rows.append(row)
        print("  ".join(filter(None, row)), flush=True)

    def frozen(self) -> None:
        """Times 25 epochs on a frozen EfficientNet-Lite0: a first run, and a second one with another rate."""
        common = ("--data_dir", self.data, "--model_name", "efficientnet_lite0", "--freeze", "--use_pretrained")
        first, second, theirs = [], [], []
        for _ in range(self.options.rounds):
            shutil.rmtree(self.scratch / ".cache", ignore_errors=True)
            first.append(run("train", *common, "--n_epochs", N_EPOCHS, cwd=self.scratch)[1])
            second.append(run("train", *common, "--n_epochs", N_EPOCHS, "--lr", 5e-4, cwd=self.scratch)[1])
            n_epochs = self.options.plain_epochs
            found = plain(self.scratch, "train", self.data, "--arch", "efficientnet_lite0", "--n_epochs", n_epochs)
            theirs.append(statistics.median(found["of_epochs"]) * N_EPOCHS)
        yardstick = statistics.median(theirs)
        for title, seconds in (
            ("25 epochs of a head on a frozen EfficientNet-Lite0", first),
            ("the same again with another `--lr`", second),
        ):
            ours = statistics.median(seconds)
            self.row(title, yardstick, ours, "s", yardstick / ours)

    def cut(self) -> None:
        """Times training behind frozen layers: a first run, and a second one with another rate."""
        for title, arch, layer, n_epochs, extra in CUTS:
            common = ("--data_dir", self.data, "--model_name", arch, "--freeze_until", layer, *extra)
            common = (*common, "--n_epochs", n_epochs, "--optimizer", "sgd", "--scheduler", "plateau")
            first, second, theirs = [], [], []
            for _ in range(self.options.rounds):
                shutil.rmtree(self.scratch / ".cache", ignore_errors=True)
                first.append(run("train", *common, cwd=self.scratch)[1])
                second.append(run("train", *common, "--lr", 5e-4, cwd=self.scratch)[1])
                found = plain(self.scratch, "train", self.data, "--arch", arch, "--freeze_until", layer,
                              "--batch_size", 32, "--n_epochs", self.options.plain_epochs)  # fmt: skip
                theirs.append(statistics.median(found["of_epochs"]) * n_epochs)
            yardstick = statistics.median(theirs)
            for name, seconds in ((title, first), ("the same again with another `--lr`", second)):
                ours = statistics.median(seconds)
                self.row(name, yardstick, ours, "s", yardstick / ours)

    def views(self) -> None:
        """Compares the best validation accuracy behind a cut with that of new views in every epoch, over seeds."""
        found: dict[str, list[float]] = {"0": [], "default": []}
        for seed in range(self.options.seeds):
            for views, accuracies in found.items():
                folder = f"runs/views{views}-seed{seed}"
                extra = ("--views", 0) if views == "0" else ()
                run("train", "--data_dir", self.data, "--model_name", "efficientnet_lite0", "--freeze_until",
                    "blocks.4", "--use_pretrained", "--n_epochs", self.options.epochs, "--seed", seed, "--run_dir",
                    folder, *extra, cwd=self.scratch)  # fmt: skip
                with open(self.scratch / folder / "metrics.csv", encoding="utf-8") as file:
                    accuracies.append(max(float(row["valid_accuracy"]) for row in csv.DictReader(file)))
            print(f"seed {seed}: {', '.join(f'{name} {a[-1]:.4f}' for name, a in found.items())}", flush=True)
        new, stored = (100 * statistics.mean(accuracies) for accuracies in found.values())
        title = f"best validation accuracy of {self.options.epochs} epochs behind blocks.4, mean of seeds"
        self.tell((title, f"{new:.1f} % (`--views 0`)", f"{stored:.1f} %", f"{stored - new:+.1f} points"))

    def reports(self) -> None:
        """Times what is only shown, and what is found out about the photos, in a short run and in one of minutes."""
        common = ("--data_dir", self.data, "--use_pretrained", "--model_name", "efficientnet_lite0", "--gpu_id", -1)
        short = (*common, "--freeze", "--n_epochs", N_EPOCHS)
        for title, argv in (
            ("a frozen run", short),
            ("the same again", (*short, "--lr", 5e-4)),
            ("fine-tuning for some minutes", (*common, "--lr", 1e-4, "--n_epochs", 20)),
        ):
            found = []
            for _ in range(self.options.rounds if "--freeze" in argv else 1):
                if title == "a frozen run":
                    shutil.rmtree(self.scratch / ".cache", ignore_errors=True)
                code = TIMED.format(root=str(ROOT), argv=[str(a) for a in argv])
                command = [sys.executable, "-c", code]
                out = subprocess.run(command, cwd=self.scratch, capture_output=True, text=True, check=True).stdout
                found.append(tuple(map(float, out.splitlines()[-1].split())))
            reports, checks, whole = (statistics.median(values) for values in zip(*found, strict=True))
            shares = f"reports {reports:.1f} s ({reports / whole:.1%}), checks of photos {checks:.1f} s"
            print(f"reports: {title}: {whole:.1f} s, of these {shares} ({checks / whole:.1%})", flush=True)

    def accuracy(self) -> None:
        """Compares the best validation accuracy of 25 epochs of that head, the mean over seeds."""
        ours, theirs = [], []
        for seed in range(self.options.seeds):
            folder = f"runs/seed{seed}"
            run("train", "--data_dir", self.data, "--model_name", "efficientnet_lite0", "--freeze",
                "--use_pretrained", "--n_epochs", N_EPOCHS, "--seed", seed, "--run_dir", folder,
                cwd=self.scratch)  # fmt: skip
            with open(self.scratch / folder / "metrics.csv", encoding="utf-8") as file:
                ours.append(max(float(row["valid_accuracy"]) for row in csv.DictReader(file)))
            found = plain(self.scratch, "train", self.data, "--arch", "efficientnet_lite0", "--n_epochs", N_EPOCHS,
                          "--seed", seed)  # fmt: skip
            theirs.append(found["best"])
            told = f"plain loop {theirs[-1]:.4f} in {found['seconds']:.0f} s, this tool {ours[-1]:.4f}"
            print(f"seed {seed}: {told}", flush=True)
        means = statistics.mean(theirs), statistics.mean(ours)
        title = f"best validation accuracy of 25 such epochs, mean of {self.options.seeds} seeds"
        better = f"{100 * (means[1] - means[0]):+.1f} points"
        self.tell((title, f"{100 * means[0]:.1f} %", f"{100 * means[1]:.1f} %", better))

    def finetune(self) -> None:
        """Times an epoch of full fine-tuning of ResNet-18, with the same batch size and workers on both sides."""
        ours, theirs = [], []
        for n in range(self.options.rounds):
            run("train", "--data_dir", self.data, "--model_name", "resnet18", "--n_epochs", 2,
                "--batch_size", 32, "--n_workers", 2, "--run_dir", f"runs/bench{n}", cwd=self.scratch)  # fmt: skip
            with open(self.scratch / "runs" / f"bench{n}" / "metrics.csv", encoding="utf-8") as file:
                ours.append(float(list(csv.DictReader(file))[-1]["seconds"]))
            found = plain(self.scratch, "train", self.data, "--arch", "resnet18", "--n_epochs", 2,
                          "--batch_size", 32, "--n_workers", 2)  # fmt: skip
            theirs.append(found["of_epochs"][-1])
        a, b = statistics.median(theirs), statistics.median(ours)
        self.row("an epoch of full fine-tuning of ResNet-18", a, b, "s", a / b)

    def predict(self) -> None:
        """Measures images per second of prediction with ResNet-34 over 1,000 small JPEGs."""
        photos = make_photos(self.scratch / "thousand", 4, 1000)
        run("train", "--data_dir", photos, "--model_name", "resnet34", "--n_epochs", 1, "--image_size", 64,
            "--resize", 73, "--model_fn", "tiny.pth", cwd=self.scratch)  # fmt: skip
        self._at_full_size("tiny.pth", "resnet34.pth")
        ours, theirs = [], []
        for _ in range(self.options.rounds):
            out, _ = run("predict", "--model_fn", "resnet34.pth", "--input", photos / "val", cwd=self.scratch)
            ours.append(float(re.search(r"([\d.]+) images/s", out)[1]))
            plains = [
                plain(self.scratch, "predict", photos, "--arch", "resnet34", "--batch_size", 32, "--n_workers", n)
                for n in (0, 2)
            ]
            theirs.append(max(found["images_per_s"] for found in plains))
        a, b = statistics.median(theirs), statistics.median(ours)
        self.row("prediction with ResNet-34", a, b, "images/s", b / a)

    def decode(self) -> None:
        """Measures milliseconds to open and prepare a JPEG on one core: the reason for the decoder that is used."""
        import torch
        from torchvision.io import ImageReadMode, decode_jpeg, read_file

        from photo_classifier.data.decoding import decode
        from photo_classifier.data.preprocess import Preprocess, eval_transform

        torch.set_num_threads(1)
        preprocess = Preprocess(224, 256, "bilinear", (0.5,) * 3, (0.5,) * 3)
        ways = {
            "Pillow, whole": _pillow,
            "torchvision": lambda path: decode_jpeg(read_file(path), mode=ImageReadMode.RGB),
            "this tool": lambda path: decode(path, preprocess.decode_side),
        }
        small = sorted(map(str, (self.data / "train").rglob("*.jpg")))[:100]
        for name, paths in (("photos of the data set", small), ("a photo of 12 megapixels", [self._large()] * 5)):
            for way, open_image in ways.items():
                times = [_seconds(lambda p=p, way=open_image: way(p)) for p in paths * 3]
                print(f"decode {name}, {way}: {1e3 * statistics.median(times):.1f} ms", flush=True)
        images, prepare = [decode(path, preprocess.decode_side) for path in small], eval_transform(preprocess)
        times = [_seconds(lambda image=image: prepare(image)) for image in images * 3]
        print(f"resize and crop: {1e3 * statistics.median(times):.1f} ms", flush=True)

    def _large(self) -> str:
        import numpy as np
        from PIL import Image

        small = np.random.default_rng(0).integers(0, 255, (375, 500, 3)).astype("uint8")
        path = self.scratch / "large.jpg"
        Image.fromarray(small).resize((4000, 3000), Image.Resampling.BICUBIC).save(path, quality=92)
        return str(path)

    def memory(self) -> None:
        """Measures the peak memory of prediction: at 224 pixels, and for 1,000 and 100,000 small inputs."""
        photos = make_photos(self.scratch / "small", 40, 200)
        run("train", "--data_dir", photos, "--model_name", "resnet34", "--n_epochs", 1, "--image_size", 32,
            "--model_fn", "tiny.pth", cwd=self.scratch)  # fmt: skip
        self._at_full_size("tiny.pth", "full.pth")
        inputs = sorted(map(str, (photos / "val").rglob("*.jpg")))
        for n, model, size in ((1_000, "full.pth", 224), (1_000, "tiny.pth", 32), (100_000, "tiny.pth", 32)):
            code = (
                "import sys; sys.path.insert(0, sys.argv[1]); from common import peak_mb; import predict\n"
                f"inputs = {inputs!r} * {n // len(inputs)}\n"
                f"predict.main(['--gpu_id', '-1', '--model_fn', {model!r}, '--input', *inputs])\n"
                "print(peak_mb())"
            )
            command = [sys.executable, "-c", code, str(ROOT / "benchmarks")]
            out = subprocess.run(command, cwd=self.scratch, capture_output=True, text=True, check=True).stdout
            title = f"peak memory of that prediction, {n:,} photos at {size} pixels"
            self.tell((title, "", f"{float(out.split()[-1]):,.0f} MB", ""))

    def _at_full_size(self, source: str, target: str) -> None:
        """Writes the same checkpoint for 224 pixels: the speed does not depend on the weights."""
        import torch

        content = torch.load(self.scratch / source, weights_only=True)
        torch.save({**content, "image_size": 224, "resize": 256}, self.scratch / target)


TIMED = """
import sys, time
began = time.perf_counter()
sys.path.insert(0, {root!r})
from photo_classifier.training import findings, first_look, known_photos, label_check, photo_check, summary
import train
from utils import run_main
from photo_classifier.training.epoch_log import EpochLog
spent, inside = dict(reports=0.0, checks=0.0), []
def timed(group, owner, name):
    def call(*args, work=getattr(owner, name), **kwargs):
        start = time.perf_counter()
        inside.append(0.0)  # the seconds of those inside it, which count as theirs
        try:
            return work(*args, **kwargs)
        finally:
            seconds = time.perf_counter() - start
            spent[group] += seconds - inside.pop()
            if inside:
                inside[-1] += seconds
    setattr(owner, name, call)
for owner, name in ((findings, "findings_of"), (known_photos, "known_distances"), (label_check, "check_labels"),
                    (photo_check, "check_photos")):
    timed("checks", owner, name)
for owner, name in ((first_look, "show_augmented"), (train, "report"), (summary, "describe"), (EpochLog, "add"),
                    (EpochLog, "add_picture"), (EpochLog, "close")):
    timed("reports", owner, name)
try:
    run_main(train.main, {argv!r})
finally:
    print(spent["reports"], spent["checks"], time.perf_counter() - began)
"""


def _pillow(path: str):
    import numpy as np
    from PIL import Image

    with Image.open(path) as image:
        return np.array(image.convert("RGB"))


def _seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def machine() -> str:
    """Describes what the figures depend on: cores, bf16 and the library."""
    import torch

    from photo_classifier.runtime.device import choose_device, choose_precision, n_cores

    device = choose_device()
    bf16 = "bf16" if choose_precision("auto", device) == torch.bfloat16 else "no bf16"
    return f"{n_cores()} cores, {device}, {bf16}, torch {torch.__version__.split('+')[0]}"


WORK = ("frozen", "finetune", "predict", "memory", "cut", "views", "decode", "reports", "accuracy")


def main() -> None:
    """Parses, measures, and prints the table."""
    parser = described(__doc__)
    n = 3 if sys.platform == "win32" else 4  # memory cannot be asked for there
    parser.add_argument("--data_dir", type=lambda name: Path(name).resolve(), help="photos with train/ and val/")
    parser.add_argument("--rounds", type=int, default=3, help="how often each side runs (default: 3)")
    parser.add_argument("--seeds", type=int, default=5, help="of the comparison of accuracies (default: 5)")
    parser.add_argument("--epochs", type=int, default=10, help="of the comparison of views (default: 10)")
    parser.add_argument("--plain_epochs", type=int, default=3, help="epochs of the frozen plain loop (default: 3)")
    default = f"which work (default: the first {n})"
    parser.add_argument("--only", nargs="+", choices=WORK, default=WORK[:n], help=default)
    options = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(options, Path(scratch))
        for work in options.only:
            getattr(bench, work)()
    print("\n| work | plain loop | this tool | |\n|---|---|---|---|")
    for row in bench.rows:
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
