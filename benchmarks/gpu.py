"""Measures this tool on a GPU, a row of a table for each figure as soon as it is known.

    python benchmarks/gpu.py                       all of it, under 8 minutes on a GPU
    python benchmarks/gpu.py --only engine resume
    python benchmarks/gpu.py --size 0.02           fewer photos; without a GPU it runs on the CPU, in small

Each part is a file in gpu_sections/:

- engine     the engine against the plain model: probabilities and images/s
- finetune   full fine-tuning of ResNet-50 (on a CPU ResNet-18) against the loop that people write by hand: images/s
             and memory
- frozen     whole runs with --freeze and with --freeze_until, first and again
- predict    prediction of 5,000 photos as a whole, and decoding, copying and computing alone
- resume     a run that is killed within an epoch and continued, against an undisturbed one
- torchrun   one process of the launcher, and the collectives of several in a group of one (NCCL on a GPU)
- memory     what the commands say when memory runs out

A part that fails has a row with its error. Ends with status 1 if one did, or if something was not as it should be.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import torch
from common import described
from gpu_sections import Bench, engine, finetune, free_memory, frozen, memory, predict, resume, torchrun

from photo_classifier.runtime.device import n_cores

PARTS = {
    "engine": engine.engine,
    "finetune": finetune.finetune,
    "frozen": frozen.frozen,
    "predict": predict.predict,
    "resume": resume.resume,
    "torchrun": torchrun.torchrun,
    "memory": memory.memory,
}


def machine(bench: Bench) -> str:
    """The card, the cores and the libraries."""
    card = torch.cuda.get_device_name(bench.device) if bench.on_gpu else "no GPU"
    libraries = f"torch {torch.__version__}"
    if bench.on_gpu:
        libraries += f", CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    return f"{card}, {n_cores()} cores, {libraries}, size {bench.size:g}"


def measure(bench: Bench, name: str) -> None:
    """One part in a folder of its own; an error becomes a row."""
    folder, start = bench.scratch / name, time.perf_counter()
    folder.mkdir()
    os.chdir(folder)
    try:
        PARTS[name](bench)
    except (Exception, SystemExit) as error:
        bench.expect(False)
        bench.row(name, "", "", "WRONG: failed", " ".join(f"{type(error).__name__}: {error}".split())[-600:])
    os.chdir(bench.scratch)
    shutil.rmtree(folder)
    free_memory(bench)
    print(f"{name}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)


def main() -> int:
    """Parses, measures, and prints the table; the exit status."""
    parser = described(__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="which parts (default: all)")
    parser.add_argument("--size", type=float, help="share of all photos and batches (default: 1, on a CPU 0.02)")
    parser.add_argument("--data_dir", type=lambda name: Path(name).resolve(), help="photos with train/ and val/")
    options, here = parser.parse_args(), os.getcwd()
    with tempfile.TemporaryDirectory() as scratch:
        start = time.perf_counter()
        bench = Bench(options, Path(scratch))
        print(f"{machine(bench)}\n\n| work | precision | plain | this tool | |\n|---|---|---|---|---|", flush=True)
        for name in options.only:
            measure(bench, name)
        os.chdir(here)
        print(f"all: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    return int(bench.is_wrong)


if __name__ == "__main__":
    sys.exit(main())
