"""Checks what a prediction promises, on enough images to be believed.

    python benchmarks/prediction.py                        all but the temperature (some minutes on 2 cores)
    python benchmarks/prediction.py --only temperature --data_dir photos     with train/ and val/ class folders

- rows         2,000 inputs, 40 of them bad in 10 ways: a row each, in order, bad ones with their reason, good ones
               as when they are predicted alone
- kill         kill -9 in the middle, then --resume: the same rows in the same order
- families     predict's accuracy is the recorded one to the image, for each family of backbones, in fp32 and auto
- temperature  three seeds: the log-likelihood of the half of the validation images that the fit did not see

Ends with status 1 if anything was not as it should be.
"""

from __future__ import annotations

import argparse
import csv
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from common import Findings, command, described, make_photos, must, prove, run

CPU = ("--gpu_id", -1)
TRAIN = ("--data_dir", "photos", "--image_size", 64, "--n_epochs", 2, *CPU)
N_INPUTS, N_EACH = 2_000, 4


# --- inputs, good and bad -------------------------------------------------------------------------


def bad_ways(photo: bytes) -> dict[str, Callable[[Path], object]]:
    """Returns ten ways in which an input may be bad: by name, functions that make one."""
    import io

    from PIL import Image

    def encoded(kind: str) -> bytes:
        file = io.BytesIO()
        Image.open(io.BytesIO(photo)).resize((60, 45)).save(file, kind)
        return file.getvalue()

    png, gif = encoded("PNG"), encoded("GIF")
    flipped = bytes(255 - byte if 200 < n < 400 else byte for n, byte in enumerate(png))
    huge = png[:16] + (10**5).to_bytes(4, "big") * 2 + png[24:]
    return {
        "missing": lambda path: None,
        "empty": lambda path: path.write_bytes(b""),
        "text": lambda path: path.write_text("no photo"),
        "a page": lambda path: path.write_text("<html><body>404</body></html>"),
        "cut": lambda path: path.write_bytes(photo[: len(photo) // 2]),
        "cut png": lambda path: path.with_suffix(".jpg").write_bytes(png[: len(png) // 2]),
        "cut gif": lambda path: path.write_bytes(gif[:30]),
        "flipped": lambda path: path.write_bytes(flipped),
        "huge": lambda path: path.write_bytes(huge),
        "folder": lambda path: path.mkdir(),
    }


def make_inputs(folder: Path, seed: int) -> tuple[list[str], set[str]]:
    """Returns the names of all inputs in a mixed order, and those that are bad."""
    photos = sorted(make_photos(folder / "many", 4, N_INPUTS - 10 * N_EACH).joinpath("val").rglob("*.jpg"))
    bad = []
    for name, make in bad_ways(photos[0].read_bytes()).items():
        for n in range(N_EACH):
            bad.append(folder / f"{name} {n}.jpg")
            make(bad[-1])
    names = [str(path) for path in [*photos, *bad]]
    random.Random(seed).shuffle(names)
    return names, {str(path) for path in bad}


def rows_of(path: str | Path) -> list[dict]:
    """Returns the rows of a result."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def predict(names: Sequence[str], *arguments: object) -> subprocess.CompletedProcess:
    """Predicts the images of those names, given on stdin."""
    argv = command("predict", "--model_fn", "m.pth", "--input", "-", *CPU, *arguments)
    return subprocess.run(argv, input="\n".join(names), capture_output=True, text=True)


def train_small(*arguments: object) -> None:
    """Trains a small model into `m.pth`."""
    make_photos(Path("photos"), 64, 32)
    must(run(*TRAIN, "--model_name", "resnet18", "--model_fn", "m.pth", "--lr", 1e-4, *arguments))


def rows(options: argparse.Namespace, findings: Findings) -> None:
    """Predicts good and bad inputs in a mixed order, and each good one alone."""
    from photo_classifier.prediction.predictor import Predictor

    train_small()
    names, bad = make_inputs(Path("inputs"), options.seed)
    done = predict(names)
    findings.expect(done.returncode == 3, f"rows: status {done.returncode}: {done.stderr}")
    found = rows_of("result.csv")
    findings.expect([row["file_dir"] for row in found] == names, "rows: not one row an input in its order")
    wrong = [row for row in found if (row["status"] == "error") != (row["file_dir"] in bad)]
    findings.expect(not wrong, f"rows: a wrong status: {wrong[:3]}")
    silent = [row for row in found if row["status"] == "error" and (not row["reason"] or row["predict"])]
    findings.expect(not silent, f"rows: without a reason, or with an answer: {silent[:3]}")
    predictor, worst = Predictor("m.pth", device="cpu"), 0.0
    good = [row for row in found if row["status"] == "ok"]
    for row in good:
        alone = predictor([row["file_dir"]])[0]
        findings.expect(alone.predict == row["predict"], f"rows: {row['file_dir']} alone is {alone.predict}")
        worst = max(worst, abs(alone.probability - float(row["probability"])))
    findings.expect(worst <= 1e-3, f"rows: a probability differs by {worst:.1e} from that of the image alone")
    reasons = {row["reason"] for row in found if row["reason"]}
    print(f"rows: {len(found)} rows, {len(found) - len(good)} errors with {len(reasons)} reasons, exit 3")
    print(f"rows: {len(good)} predicted alone: the same labels, probabilities within {worst:.1e}", flush=True)


def kill(options: argparse.Namespace, findings: Findings) -> None:
    """Predicts the same inputs with and without kills on the way."""
    train_small("--precision", "fp32")
    names, _ = make_inputs(Path("inputs"), options.seed)
    fp32 = ("--precision", "fp32", "--resume")
    whole = predict(names, *fp32, "--result", "whole.csv")
    findings.expect(whole.returncode == 3, f"kill: {whole.stderr}")
    rng, n_kills, partial = random.Random(options.seed), 0, Path("killed.csv.partial")
    Path("names.txt").write_text("\n".join(names))
    argv = command("predict", "--model_fn", "m.pth", "--input", "-", *CPU, *fp32, "--result", "killed.csv")
    while not Path("killed.csv").exists():
        before = partial.stat().st_size if partial.exists() else 0
        with open("names.txt", encoding="utf-8") as file:
            process = subprocess.Popen(argv, stdin=file, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        end = before + rng.randrange(5_000, 60_000)
        while process.poll() is None:
            if n_kills < 5 and partial.exists() and partial.stat().st_size > end:
                process.kill()
                n_kills += 1
                break
            time.sleep(0.001)
        errors = process.communicate()[1]
        findings.expect(process.returncode in (3, -9), f"kill: {errors}")
        if process.returncode not in (3, -9):
            return
    one, other = rows_of("whole.csv"), rows_of("killed.csv")
    same = [{**row, "probability": ""} for row in one] == [{**row, "probability": ""} for row in other]
    findings.expect(same, "kill: the rows differ")
    pairs = [(a["probability"], b["probability"]) for a, b in zip(one, other, strict=False) if a["probability"]]
    worst = max(abs(float(a) - float(b)) for a, b in pairs)
    findings.expect(worst <= 1e-4, f"kill: a probability differs by {worst:.1e}")
    print(f"kill: {n_kills} times, then the same {len(other)} rows, probabilities within {worst:.1e}", flush=True)


def families(_: argparse.Namespace, findings: Findings) -> None:
    """Compares the recorded and the predicted accuracy of every family."""
    from photo_classifier.models.backbones import BACKBONES

    make_photos(Path("photos"), 96, 64)
    for path in sorted(Path("photos").glob("*/warm/*[05].jpg")):  # a perfect model could hide a difference
        other = path.parent.parent / "cold" / path.name
        path.rename(path.with_suffix(".tmp"))
        other.rename(path)
        path.with_suffix(".tmp").rename(other)
    for name in (*BACKBONES, "timm/mobilenetv3_small_050"):
        for precision in ("fp32", "auto"):
            flags = ("--precision", precision, "--model_fn", "m.pth", *CPU)
            extra = ("--model_name", name, "--lr", 1e-4, "--batch_size", 16, "--run_dir", f"{precision} {name}")
            told = must(run(*TRAIN, *extra, *flags)), must(run(*flags, script="predict"))
            one, other = (re.findall(r"accuracy [\d.]+ \((\d+/\d+)\)", text)[-1] for text in told)
            answers = {row["predict"] for row in rows_of("result.csv")}
            findings.expect(one == other, f"families: {name} in {precision}: training {one}, predict {other}")
            print(f"families: {name} in {precision}: {one} in training and {other} in predict, "
                  f"{len(answers)} classes answered", flush=True)  # fmt: skip


def temperature(options: argparse.Namespace, findings: Findings) -> None:
    """Fits the temperature on one half of the validation images and measures it on the other; both ways."""
    from photo_classifier.evaluation.calibration import fit_temperature
    from photo_classifier.prediction.predictor import Predictor

    photos = options.data_dir or make_photos(Path("photos"), 64, 160)
    for seed in range(3):
        model = f"m{seed}.pth"
        argv = ("--data_dir", photos, "--model_name", "efficientnet_lite0", "--use_pretrained", "--freeze", *CPU)
        must(run(*argv, "--seed", seed, "--model_fn", model, "--run_dir", f"seed{seed}"))
        predictor = Predictor(model, device="cpu", probabilities=True)
        predictor.temperature = 1.0
        names = predictor.class_names
        paths = sorted((Path(photos) / "val").glob("*/*"))
        found = predictor([str(path) for path in paths])
        # logits but for a constant an image
        p = torch.tensor([[prediction.probabilities[name] for name in names] for prediction in found]).double()
        logits = p.clamp_min(1e-12).log()
        labels = torch.tensor([names.index(path.parent.name) for path in paths])
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        halves = order[::2], order[1::2]
        for fit, held_out in (halves, halves[::-1]):
            t = fit_temperature(logits[fit], labels[fit])
            before, after = (
                torch.nn.functional.cross_entropy(logits[held_out] / t, labels[held_out]).item() for t in (1.0, t)
            )
            findings.expect(after <= before + 0.01, f"temperature: seed {seed}: {before:.4f} became {after:.4f}")
            print(f"temperature: seed {seed}: T {t:.2f}, held-out half {before:.4f} -> {after:.4f}", flush=True)


WORK = {work.__name__: work for work in (rows, kill, families, temperature)}


def main() -> int:
    """Runs the checks that were asked for; returns the exit status."""
    parser = described(__doc__)
    parser.add_argument("--data_dir", type=lambda name: Path(name).resolve(), help="photos with train/ and val/")
    return prove(parser, WORK, list(WORK)[:3])


if __name__ == "__main__":
    sys.exit(main())
