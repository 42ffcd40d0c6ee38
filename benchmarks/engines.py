"""Compares what computes features on this CPU: the tool's engine in torch, ONNX Runtime and OpenVINO.

    python benchmarks/engines.py
    python benchmarks/engines.py --only resnet18 vgg16_bn --threads 1

Prints, for each network, milliseconds a batch (the median of several rounds, in turn), seconds to start (for OpenVINO
the first time and from what was kept), the largest difference of a probability, and the most memory of a process that
computes in this way alone (in fp32; the converted network is there already). Needs
`pip install -r requirements-export.txt openvino`.
"""

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from common import peak_mb

from model_loader import get_model
from photo_classifier.export.graph import write_onnx
from photo_classifier.models.inference import Engine
from photo_classifier.runtime.device import choose_device, choose_precision

NAMES = ("efficientnet_lite0", "resnet18", "resnet34", "resnet50", "vgg16_bn", "mobilenet_v3_large", "convnext_tiny")
NAMES = (*NAMES, "timm/vit_small_patch16_224")
BATCH = 16
WAYS = ("torch", "openvino", "onnxruntime")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=NAMES, help="networks")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = choose_device("cpu")
    best = choose_precision("auto", device)
    print(f"{args.threads} threads, {torch.backends.cpu.get_cpu_capability()}, auto is {best}, batches of {BATCH}")
    os.chdir(tempfile.mkdtemp())
    for name in args.only:
        torch.manual_seed(0)
        model = get_model(name, 5).eval()
        size = model.preprocess.image_size
        images = torch.randint(0, 256, (BATCH, 3, size, size), dtype=torch.uint8)
        computing, starts = {}, {}
        for dtype in dict.fromkeys((torch.float32, best)):
            short = "fp32" if dtype == torch.float32 else "bf16"
            computing[f"torch {short}"] = Engine(model, device, dtype, BATCH)
            for start in ("first", "kept"):
                began, engine = time.perf_counter(), Engine(model, device, dtype, BATCH)
                engine.compile()
                starts[f"openvino {short} {start}"] = time.perf_counter() - began
            computing[f"openvino {short}"] = engine
        began = time.perf_counter()
        computing["onnxruntime fp32"] = onnx_session(model, args.threads)
        starts["onnxruntime"] = time.perf_counter() - began
        report(name, computing, starts, images, args.rounds)
        most = (f"{way} {memory(name, way, args.threads):.0f} MB" for way in WAYS)
        print(f"  most memory: {', '.join(most)}", flush=True)


def memory(name, way, threads):
    """Returns the most memory, in MB, of a process that computes two batches of a network in this way."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as alone:
        return alone.submit(_memory_here, name, way, threads).result()


def _memory_here(name, way, threads):
    torch.set_num_threads(threads)
    if way == "onnxruntime":
        compute, size = read_onnx_session(threads)
    else:
        model = get_model(name, 5).eval()
        compute, size = Engine(model, choose_device("cpu"), torch.float32, BATCH), model.preprocess.image_size
        if way == "openvino":
            compute.compile()
    for _ in range(2):
        compute(torch.zeros((BATCH, 3, size, size), dtype=torch.uint8))
    return peak_mb()


def onnx_session(model, threads):
    """Exports a model and returns what computes its logits in ONNX Runtime."""
    write_onnx(Path("model.onnx"), model, list("abcde"), 1.0, {"model_name": "network"})
    return read_onnx_session(threads)[0]


def read_onnx_session(threads):
    """Returns what computes the logits of the exported model, and the size of its images."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession("model.onnx", options, providers=["CPUExecutionProvider"])

    def compute(images):
        pixels = images.permute(0, 2, 3, 1).contiguous().numpy()
        return torch.from_numpy(session.run(["logits"], {"images": pixels})[0])

    return compute, session.get_inputs()[0].shape[1]


def report(name, computing, starts, images, rounds):
    """Prints the times and differences of a network."""
    answers = {way: compute(images).softmax(1) for way, compute in computing.items()}
    times = {way: [] for way in computing}
    for _ in range(rounds):
        for way, compute in computing.items():
            began = time.perf_counter()
            compute(images)
            times[way].append(1000 * (time.perf_counter() - began))
    print(f"\n{name}")
    for way in computing:
        difference = (answers[way] - answers["torch fp32"]).abs().max().item()
        print(f"  {way:<17} {statistics.median(times[way]):8.1f} ms  difference {difference:.0e}")
    print("  start: " + ", ".join(f"{way} {seconds:.1f} s" for way, seconds in starts.items()), flush=True)


if __name__ == "__main__":
    main()
