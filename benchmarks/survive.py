"""Kills runs and fills disks, often enough to show that nothing is lost.

    python benchmarks/survive.py                   everything (half an hour on 2 cores)
    python benchmarks/survive.py --only kills --n_kills 60 --seed 1
    python benchmarks/survive.py --only disk memory

- kills    kill -9 at random moments, during saves and during feature extraction, each resumed until the end:
           weights to the bit, metrics.csv but for times, and every step of TensorBoard once, as undisturbed
- disk     a disk that is full at each save in turn, and (on Linux, as root) small file systems that fill
           anywhere: the earlier checkpoint loads every time, and the end is one line
- memory   the peak of a run from its second epoch to its fiftieth
- limits   what a system limits (processes, files, memory, quotas, folders, file systems), each set for real: every
           command works, or ends in one line whose advice is then followed (on Linux, as root)
- signals  seconds from SIGINT or SIGTERM to the exit, in extraction, in frozen and in whole training

The short form of the first two is part of the tests. Ends with status 1 if anything was not as it should be.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import itertools
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from common import ROOT, SMALL, Findings, command, described, make_photos, must, prove, run, weights
from common.limits import COMMANDS, LIMITS, NO_MOUNT, Limit, build_shim, run_inside

KINDS = {
    "frozen": ("--freeze", "--n_epochs", 60),
    "partly frozen": ("--freeze_until", "stage3", "--n_epochs", 6),
    "full": ("--n_epochs", 6, "--dropout", 0.2, "--mixup", 0.2, "--scheduler", "cosine"),
}
OFTEN = ("--save_every", 0.01)  # minutes: a save between the saves of epochs
TIMES = ("images_per_s", "seconds")


# --- kills ------------------------------------------------------------------------------------


def metrics(folder: Path) -> list[dict]:
    """Returns the lines of `metrics.csv` without their times."""
    rows = csv.DictReader(io.StringIO((folder / "metrics.csv").read_text(encoding="utf-8")))
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def steps(folder: Path) -> dict[str, list[int]]:
    """Returns the steps of every curve."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def compare(findings: Findings, what: str, whole: Path, resumed: Path) -> None:
    """Compares two finished runs, each a folder with `m.pth` and `run/`."""
    for name in ("m.pth", "run/last.pth"):
        if name == "m.pth":
            one, other = weights(whole / name), weights(resumed / name)
        else:
            loaded = (torch.load(folder / name, weights_only=True) for folder in (whole, resumed))
            one, other = (content["trainer"]["model"] for content in loaded)
        same = one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
        findings.expect(same, f"{what}: the weights of {name} differ")
    findings.expect(metrics(whole / "run") == metrics(resumed / "run"), f"{what}: metrics.csv differs")
    findings.expect(steps(whole / "run") == steps(resumed / "run"), f"{what}: TensorBoard's steps differ")


def is_saving(folder: Path) -> bool:
    """Returns whether a file is being written now."""
    with contextlib.suppress(OSError):
        return any(name.endswith(".tmp") for part in (".", "run") for name in os.listdir(folder / part))
    return False


def is_extracting(folder: Path) -> bool:
    """Returns whether the first features are on the disk."""
    return (folder / "run").is_dir() and any((folder / ".cache").rglob("*"))


def kill_one(process: subprocess.Popen, folder: Path, moment: str, seconds: float) -> bool:
    """Ends the process with kill -9 at such a moment; returns whether it was still running."""
    start = time.monotonic()
    waits: dict[str, Callable[[], bool]] = {
        "at random": lambda: True,
        "in a save": lambda: is_saving(folder),
        "in extraction": lambda: is_extracting(folder),
    }
    while process.poll() is None:
        if time.monotonic() - start >= seconds and waits[moment]():
            process.kill()
            break
        time.sleep(0.0005)
    return process.wait() == -signal.SIGKILL


def kill_kind(kind: str, n_kills: int, rng: random.Random, findings: Findings) -> None:
    """Trains once undisturbed, then with that many kills, in as many runs as that takes, each resumed to its end."""
    flags = (*SMALL, *KINDS[kind], *OFTEN, "--model_fn", "m.pth", "--run_dir", "run")
    photos = Path("photos").resolve()

    def fresh(name: str) -> Path:
        """Makes a folder with the photos."""
        folder = Path(f"{kind} {name}").resolve()
        folder.mkdir()
        (folder / "photos").symlink_to(photos)
        return folder

    def start(folder: Path) -> subprocess.Popen:
        """Starts or continues the run of a folder."""
        can_go_on = (folder / "run" / "last.pth").exists()
        if not can_go_on and (folder / "run").exists():  # killed before there was anything to continue
            (folder / "run").rename(folder / f"run-{len(os.listdir(folder))}")
        arguments = ("--resume", "run") if can_go_on else flags
        return subprocess.Popen(
            command("train", *arguments), cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    whole, began = fresh("whole"), time.monotonic()
    process = start(whole)
    errors = process.communicate()[1]
    findings.expect(process.returncode == 0, f"{kind}: undisturbed run ended with {process.returncode}: {errors}")
    seconds = undisturbed = time.monotonic() - began
    moments = itertools.cycle(["at random", "in a save", *(["in extraction"] if kind == "frozen" else [])])
    done, n_runs, counts = 0, 0, {}
    while done < n_kills:
        n_runs += 1
        folder, in_this_run = fresh(f"killed {n_runs}"), 0
        while True:
            process, is_last = start(folder), done == n_kills or in_this_run == 5
            moment = next(moments)
            if not is_last and kill_one(process, folder, moment, rng.uniform(0.3, 0.8) * seconds):
                done, in_this_run = done + 1, in_this_run + 1
                counts[moment] = counts.get(moment, 0) + 1
                process.stderr.close()
                continue
            seconds *= 1 if is_last else 0.8  # it ended before its moment came
            errors = process.communicate()[1]
            findings.expect(process.returncode == 0, f"{kind}: a resume ended with {process.returncode}: {errors}")
            break
        compare(findings, f"{kind}, run {n_runs}, after {in_this_run} kills", whole, folder)
    told = ", ".join(f"{n} {moment}" for moment, n in counts.items())
    print(f"kills: {kind}: {done} ({told}) in {n_runs} runs, undisturbed {undisturbed:.1f} s", flush=True)


def kills(options: argparse.Namespace, findings: Findings) -> None:
    """Divides the kills equally among the kinds of training."""
    make_photos(Path("photos"), 128, 48)
    rng = random.Random(options.seed)
    for n, kind in enumerate(KINDS):
        kill_kind(kind, options.n_kills // 3 + (n < options.n_kills % 3), rng, findings)


# --- a full disk --------------------------------------------------------------------------------

FULL_AT = """
import errno, os, sys
sys.path.insert(0, {root!r})
fsync, calls = os.fsync, []
def full(handle):  # every file that matters is flushed to the disk once it is written
    calls.append(handle)
    if len(calls) == {n}:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    fsync(handle)
os.fsync = full
import train
from utils import run_main
try:
    run_main(train.main, {argv!r})
finally:
    print("saves", len(calls))
"""
SHORT = (*SMALL, "--freeze_until", "stage3", "--n_epochs", 2, "--n_workers", 0)


def still_loads(findings: Findings, what: str, done: subprocess.CompletedProcess, folder: str) -> None:
    """Checks a run that found the disk full: its status, its last line, and the checkpoint that was there before."""
    last = done.stderr.strip().splitlines()[-1:] or [""]
    findings.expect(done.returncode in (0, 2), f"{what}: status {done.returncode}: {done.stderr}")
    if done.returncode == 2:
        findings.expect(last[0].startswith("error: "), f"{what}: {last[0]}")
    findings.expect("Traceback" not in done.stderr, f"{what}: {done.stderr}")
    result = run("--model_fn", f"{folder}/m.pth", "--input", "photos/val", "--gpu_id", -1, script="predict")
    findings.expect(result.returncode == 0, f"{what}: the checkpoint does not load: {result.stderr}")


def disk(_: argparse.Namespace, findings: Findings) -> None:
    """Trains on a disk that is full at each save in turn, then on file systems that are too small."""
    make_photos(Path("photos"), 32, 16)
    must(run(*SHORT, "--model_fn", "m.pth"))
    earlier = Path("m.pth").read_bytes()
    n_saves = 0
    for n in itertools.count(1):
        folder = Path(f"full{n}")
        folder.mkdir()
        (folder / "m.pth").write_bytes(earlier)
        argv = [str(a) for a in (*SHORT, "--model_fn", folder / "m.pth", "--run_dir", folder / "run")]
        code = FULL_AT.format(root=str(ROOT), n=n, argv=argv)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        saves = int(re.findall(r"^saves (\d+)$", done.stdout, re.MULTILINE)[-1])
        if saves < n:
            findings.expect(done.returncode == 0, f"undisturbed: {done.stderr}")
            break
        findings.expect(done.returncode != 0, f"save {n}: a full disk was not told")
        still_loads(findings, f"full at save {n}", done, str(folder))
        n_saves = n
    print(f"disk: full at each of {n_saves} saves", flush=True)
    small_file_systems(findings, earlier)


@contextlib.contextmanager
def small_file_system(folder: Path, kilobytes: int) -> Iterator[bool]:
    """Mounts a file system of that size; yields whether that was possible."""
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    try:
        made = subprocess.run(mount, capture_output=True).returncode == 0
    except OSError:
        made = False
    try:
        yield made
    finally:
        if made:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def small_file_systems(findings: Findings, earlier: bytes) -> None:
    """Tries larger and larger file systems, until a run fits."""
    folder, counts = Path("small"), {0: 0, 2: 0}
    start = len(earlier) // 1024 + 16
    for kilobytes in range(start, start + 40_000, 1024):
        with small_file_system(folder, kilobytes) as made:
            if not made:
                print("disk: no small file systems here (they need Linux and root)")
                return
            (folder / "m.pth").write_bytes(earlier)
            done = run(*SHORT, "--model_fn", folder / "m.pth", "--run_dir", folder / "run")
            still_loads(findings, f"a file system of {kilobytes} kB", done, str(folder))
            counts[done.returncode] = counts.get(done.returncode, 0) + 1
            if not done.returncode:
                break
    findings.expect(counts[0] == 1, "no file system was large enough")
    print(f"disk: {counts[2]} file systems of {start} to {kilobytes} kB were too small", flush=True)


# --- memory ---------------------------------------------------------------------------------------

PEAKS = """
import sys
sys.path.insert(0, {root!r} + "/benchmarks")
from common import peak_mb
from photo_classifier.training.run import Run
import train
from utils import run_main
def log(self, result, best, log=Run.log):
    log(self, result, best)
    print("peak", result.epoch + 1, peak_mb())
Run.log = log
run_main(train.main, {argv!r})
"""


def memory(_: argparse.Namespace, findings: Findings) -> None:
    """Measures the peak memory of each kind of training, after its second and its fiftieth epoch."""
    make_photos(Path("photos"), 128, 48)
    for kind, flags in KINDS.items():
        name = kind.replace(" ", "_")
        more = ("--model_fn", f"{name}.pth", "--run_dir", name, "--n_epochs", 50)
        argv = [str(a) for a in (*SMALL, *flags, *more)]
        code = PEAKS.format(root=str(ROOT), argv=argv)
        out = must(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True))
        peaks = {int(epoch): float(mb) for epoch, mb in re.findall(r"^peak (\d+) ([\d.]+)$", out, re.MULTILINE)}
        growth = peaks[50] - peaks[2]
        findings.expect(growth <= 10, f"memory: {kind}: {growth:.1f} MB more in epoch 50 than in epoch 2")
        print(f"memory: {kind}: peak {peaks[2]:.0f} MB at epoch 2, {peaks[50]:.0f} MB at epoch 50", flush=True)


# --- limits ---------------------------------------------------------------------------------------

LONGEST = 300  # seconds; what takes longer hangs


def limits(options: argparse.Namespace, findings: Findings) -> None:
    """Runs commands inside each limit, and follows the advice of those that end in an error."""
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        print("limits: they need Linux and root")
        return
    make_photos(Path("photos"), 40, 16, (80, 60))
    must(run(*COMMANDS["alone"][1:]))
    shim, outcomes = build_shim(Path.cwd()), {}
    os.chmod(Path.cwd().parent, 0o755)  # tempfile's own folder is private
    for what, limit in LIMITS.items():
        if not options.limit or options.limit in what:
            done = [try_limit(findings, f"{what}: {name}", limit, name, shim) for name in limit.commands]
            outcomes[what] = ", ".join(done)
            print(f"limits: {what}: {outcomes[what]}", flush=True)


def try_limit(findings: Findings, what: str, limit: Limit, name: str, shim: Path) -> str:
    """Runs one command inside a limit; returns what came of it."""
    folder = Path.cwd() / re.sub(r"\W+", "_", what)
    folder.mkdir()
    os.chmod(folder, 0o777)
    done = run_inside(limit, COMMANDS[name], folder, shim, LONGEST)
    if done.returncode == NO_MOUNT:
        return f"not possible here: {done.stderr}"
    last = (done.stderr.strip().splitlines() or [""])[-1]
    findings.expect(done.returncode in (0, 2), f"{what}: status {done.returncode}: {done.stderr[-2000:]}")
    findings.expect("Traceback" not in done.stderr, f"{what}: {done.stderr[-2000:]}")
    if limit.works is not None:
        findings.expect(done.returncode == (0 if limit.works else 2), f"{what}: status {done.returncode}: {last}")
    if done.returncode == 2:
        findings.expect(last.startswith("error: ") and limit.advice in last, f"{what}: {last}")
        follow(findings, what, COMMANDS[name], last, folder)
    shutil.rmtree(folder)
    return "works" if not done.returncode else last


def follow(findings: Findings, what: str, arguments: tuple, error: str, folder: Path) -> None:
    """Does without the limit what an error advises: continues the run, or gives the command again."""
    is_kept = "continue with: " in error and (folder / "run").exists()  # a file system may be gone with its mount
    given = shlex.split(error.rpartition("continue with: python ")[2])[1:] if is_kept else ()
    done = subprocess.run(command(arguments[0], *(given or arguments[1:])), cwd=folder, capture_output=True, text=True)
    findings.expect(done.returncode == 0, f"{what}: after {error!r}: {done.stderr}")


# --- signals --------------------------------------------------------------------------------------


def signals(options: argparse.Namespace, findings: Findings) -> None:
    """Measures the time from a signal to the end of the process, for a model at 224 pixels."""
    make_photos(Path("photos"), 256, 160)
    base = ("--data_dir", "photos", "--gpu_id", -1, "--model_name")
    work = {
        "in extraction": (*base, "efficientnet_lite0", "--freeze", "--feature_cache", "none"),
        "in frozen epochs": (*base, "efficientnet_lite0", "--freeze", "--n_epochs", 10_000),
        "in whole training": (*base, "resnet18", "--batch_size", 32),
    }
    marks = {"in extraction": "train ", "in frozen epochs": "epoch +3/", "in whole training": "epoch +1/"}
    rng = random.Random(options.seed)
    for n, (what, flags) in enumerate(work.items()):
        took = []
        for k, s in enumerate((signal.SIGINT, signal.SIGTERM) * 3):
            name = f"s{n}{k}"
            argv = (*flags, "--model_fn", f"{name}.pth", "--run_dir", name)
            process = subprocess.Popen(
                command("train", *argv), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
            )
            wait_for_line(process, marks[what])
            time.sleep(rng.uniform(0.5, 4) if what != "in frozen epochs" else rng.uniform(0, 1))
            asked = time.monotonic()
            process.send_signal(s)
            errors = process.communicate()[1]
            took.append(time.monotonic() - asked)
            findings.expect(process.returncode == 128 + s, f"{what}: status {process.returncode}: {errors}")
            findings.expect("--resume" in errors, f"{what}: no word on how to continue: {errors}")
        findings.expect(max(took) <= 5, f"{what}: {max(took):.1f} s from the signal to the end")
        print(f"signals: {what}: {', '.join(f'{t:.1f}' for t in took)} s to the end", flush=True)


def wait_for_line(process: subprocess.Popen, pattern: str) -> None:
    """Reads what the process prints up to such a line."""
    for line in process.stdout:
        if re.match(pattern, line):
            return
    raise SystemExit(f"the run ended before its line {pattern!r}: {process.stderr.read()}")


WORK = {work.__name__: work for work in (kills, disk, memory, limits, signals)}


def main() -> int:
    """Runs the checks that were asked for; returns the exit status."""
    parser = described(__doc__)
    parser.add_argument("--n_kills", type=int, default=30, help="kill -9, over all kinds of training (default: 30)")
    parser.add_argument("--limit", default="", help="only the limits whose name contains that")
    return prove(parser, WORK)


if __name__ == "__main__":
    sys.exit(main())
