"""Kills runs, fills disks, and feeds hostile files, as long as it takes to believe that nothing is lost.

    python benchmarks/survive.py                   everything (half an hour on 2 cores)
    python benchmarks/survive.py --only kills --n_kills 60 --seed 1
    python benchmarks/survive.py --only disk memory

- kills    kill -9 at random moments, during saves and during feature extraction, each resumed until the end:
           weights to the bit, metrics.csv but for times, and every step of TensorBoard once, as undisturbed
- disk     a disk that is full at each save in turn, and (on Linux, as root) small file systems that fill
           anywhere: the earlier checkpoint loads every time, and the end is one line
- hostile  files from strangers: status 2, one line, nothing run, nothing written outside
- memory   the peak of a run from its second epoch to its fiftieth
- signals  seconds from SIGINT or SIGTERM to the exit, in extraction, in frozen and in whole training

The short form of the first three is part of the tests. Ends with status 1 if anything was not as it should be.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import itertools
import os
import pickle
import random
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from speed import ROOT, make_photos

sys.path.insert(0, str(ROOT))

from stop import SIGNALS

NAME = "shufflenet_v2_x0_5"  # has batch norm and is saved in no time: more kills a minute
BASE = ("--data_dir", "photos", "--model_name", NAME, "--image_size", 64, "--gpu_id", -1, "--batch_size", 16)
KINDS = {
    "frozen": ("--freeze", "--n_epochs", 60),
    "partly frozen": ("--freeze_until", "stage3", "--n_epochs", 6),
    "full": ("--n_epochs", 6, "--dropout", 0.2, "--mixup", 0.2, "--scheduler", "cosine"),
}
OFTEN = ("--save_every", 0.01)  # minutes: a save between the saves of epochs
TIMES = ("images_per_s", "seconds")


def command(script: str, *arguments: object) -> list[str]:
    return [sys.executable, str(ROOT / f"{script}.py"), *map(str, arguments)]


def run(*arguments: object, script: str = "train") -> subprocess.CompletedProcess:
    return subprocess.run(command(script, *arguments), capture_output=True, text=True)


def must(done: subprocess.CompletedProcess) -> str:
    if done.returncode:
        raise SystemExit(f"{' '.join(done.args[1:])} ended with {done.returncode}:\n{done.stderr}")
    return done.stdout


class Findings:
    """What was looked at, and what was not as it should be."""

    def __init__(self) -> None:
        self.n, self.bad = 0, []

    def expect(self, is_so: bool, what: str) -> None:
        self.n += 1
        if not is_so:
            self.bad.append(what)
            print(f"WRONG: {what}", flush=True)


# --- kills ------------------------------------------------------------------------------------


def weights(path: str | Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


def metrics(folder: Path) -> list[dict]:
    rows = csv.DictReader(io.StringIO((folder / "metrics.csv").read_text(encoding="utf-8")))
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def steps(folder: Path) -> dict[str, list[int]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def compare(findings: Findings, what: str, whole: Path, resumed: Path) -> None:
    """Two finished runs, each a folder with `m.pth`, `m-last.pth` where there is one, and `run/`."""
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
    with contextlib.suppress(OSError):
        return any(name.endswith(".tmp") for part in (".", "run") for name in os.listdir(folder / part))
    return False


def is_extracting(folder: Path) -> bool:
    return (folder / "run").is_dir() and any((folder / ".cache").rglob("*"))


def kill_one(process: subprocess.Popen, folder: Path, moment: str, seconds: float) -> bool:
    """Ends the process with kill -9 at such a moment; whether it was still running."""
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
    """Undisturbed once, then killed so often, in as many runs as that takes, each resumed until its end."""
    flags = (*BASE, *KINDS[kind], *OFTEN, "--model_fn", "m.pth", "--run_dir", "run")
    photos = Path("photos").resolve()

    def fresh(name: str) -> Path:
        folder = Path(f"{kind} {name}").resolve()
        folder.mkdir()
        (folder / "photos").symlink_to(photos)
        return folder

    def start(folder: Path) -> subprocess.Popen:
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
from flags import run_main
try:
    run_main(train.main, {argv!r})
finally:
    print("saves", len(calls))
"""
SMALL = (*BASE, "--freeze_until", "stage3", "--n_epochs", 2, "--n_workers", 0)


def still_loads(findings: Findings, what: str, done: subprocess.CompletedProcess, folder: str) -> None:
    """After a run that found the disk full: its status, its last line, and the checkpoint that was there before."""
    last = done.stderr.strip().splitlines()[-1:] or [""]
    findings.expect(done.returncode in (0, 2), f"{what}: status {done.returncode}: {done.stderr}")
    if done.returncode == 2:
        findings.expect(last[0].startswith("error: "), f"{what}: {last[0]}")
    findings.expect("Traceback" not in done.stderr, f"{what}: {done.stderr}")
    result = run("--model_fn", f"{folder}/m.pth", "--input", "photos/val", "--gpu_id", -1, script="predict")
    findings.expect(result.returncode == 0, f"{what}: the checkpoint does not load: {result.stderr}")


def disk(_: argparse.Namespace, findings: Findings) -> None:
    make_photos(Path("photos"), 32, 16)
    must(run(*SMALL, "--model_fn", "m.pth"))
    earlier = Path("m.pth").read_bytes()
    n_saves = 0
    for n in itertools.count(1):
        folder = Path(f"full{n}")
        folder.mkdir()
        (folder / "m.pth").write_bytes(earlier)
        argv = [str(a) for a in (*SMALL, "--model_fn", folder / "m.pth", "--run_dir", folder / "run")]
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
    """A file system of that size; whether there is one."""
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
    folder, counts = Path("small"), {0: 0, 2: 0}
    start = len(earlier) // 1024 + 16
    for kilobytes in range(start, start + 40_000, 1024):
        with small_file_system(folder, kilobytes) as made:
            if not made:
                print("disk: no small file systems here (they need Linux and root)")
                return
            (folder / "m.pth").write_bytes(earlier)
            done = run(*SMALL, "--model_fn", folder / "m.pth", "--run_dir", folder / "run")
            still_loads(findings, f"a file system of {kilobytes} kB", done, str(folder))
            counts[done.returncode] = counts.get(done.returncode, 0) + 1
            if not done.returncode:
                break
    findings.expect(counts[0] == 1, "no file system was large enough")
    print(f"disk: {counts[2]} file systems of {start} to {kilobytes} kB were too small", flush=True)


# --- hostile files --------------------------------------------------------------------------------

MARKER = "payload-was-here"


class Payload:
    def __reduce__(self):
        return Path.touch, (Path(MARKER).absolute(),)


def checkpoints() -> dict[str, Callable[[Path], None]]:
    """What strangers may send as a checkpoint, by name; each writes a file."""
    content = torch.load("good.pth", weights_only=True)
    state = content["state_dict"]
    key = next(name for name, tensor in state.items() if tensor.ndim == 4)

    def saved(**changes: object) -> Callable[[Path], None]:
        return lambda path: torch.save({**content, **changes}, path)

    def with_tensor(tensor: torch.Tensor) -> Callable[[Path], None]:
        return saved(state_dict={**state, key: tensor})

    def truncated(path: Path) -> None:
        whole = Path("good.pth").read_bytes()
        path.write_bytes(whole[: len(whole) * 2 // 3])

    def bomb(path: Path) -> None:
        torch.save({**content, "more": torch.zeros(100_000_000)}, "large.pth")
        with zipfile.ZipFile("large.pth") as large, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as small:
            for entry in large.infolist():
                small.writestr(entry.filename, large.read(entry.filename))
        os.unlink("large.pth")

    return {
        "a pickle with a payload": lambda path: path.write_bytes(pickle.dumps(Payload())),
        "a payload in torch's format": lambda path: torch.save({**content, "x": Payload()}, path),
        "a truncated checkpoint": truncated,
        "a newer format_version": saved(format_version=10_000),
        "a state_dict of another model": saved(state_dict={"conv.weight": torch.zeros(1)}),
        "a plain state_dict": lambda path: torch.save(state, path),
        "wrong shapes": with_tensor(torch.zeros(1, 2, 3, 4)),
        "NaN weights": with_tensor(torch.full_like(state[key], float("nan"))),
        "a zip bomb": bomb,
        "no checkpoint": lambda path: path.write_text("hello"),
        "an empty file": lambda path: path.write_bytes(b""),
    }


def archives() -> dict[str, Callable[[Path], Path]]:
    """What strangers may send as an archive of photos, by name."""
    photo = next(Path("photos").rglob("*.jpg")).read_bytes()

    def zipped(**entries: bytes) -> Callable[[Path], Path]:
        def write(path: Path) -> Path:
            with zipfile.ZipFile(path.with_suffix(".zip"), "w") as archive:
                for name, data in entries.items():
                    archive.writestr(name, data)
            return path.with_suffix(".zip")

        return write

    def linked(kind: bytes, target: str) -> Callable[[Path], Path]:
        def write(path: Path) -> Path:
            path = path.with_suffix(".tar.gz")
            with tarfile.open(path, "w:gz") as archive:
                link = tarfile.TarInfo("a/link")
                link.type, link.linkname = kind, target
                archive.addfile(link)
                entry = tarfile.TarInfo("a/link/1.jpg")
                entry.size = len(photo)
                archive.addfile(entry, io.BytesIO(photo))
            return path

        return write

    def bomb(path: Path) -> Path:
        with zipfile.ZipFile(path.with_suffix(".zip"), "w", zipfile.ZIP_DEFLATED) as archive:
            for n in range(3):
                archive.writestr(f"a/{n}.jpg", bytes(500_000_000))
        return path.with_suffix(".zip")

    return {
        "an entry with ..": zipped(**{"a/1.jpg": photo, "../outside.jpg": photo}),
        "an absolute path": zipped(**{"a/1.jpg": photo, str(Path("outside.jpg").absolute()): photo}),
        "a symbolic link": linked(tarfile.SYMTYPE, ".."),
        "a hard link": linked(tarfile.LNKTYPE, "../../../good.pth"),
        "an archive bomb": bomb,
    }


def hostile(_: argparse.Namespace, findings: Findings) -> None:
    make_photos(Path("photos"), 32, 16)
    must(run(*BASE, "--freeze", "--n_epochs", 1, "--model_fn", "good.pth", "--run_dir", "good"))
    before, names = None, []

    def refused(what: str, script: str, *arguments: object) -> None:
        done = run(*arguments, script=script)
        names.append(what)
        one_line = done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")
        findings.expect(done.returncode == 2 and one_line, f"{what}: status {done.returncode}: {done.stderr}")
        findings.expect(not Path(MARKER).exists(), f"{what}: the payload was run")

    for n, (what, make) in enumerate(checkpoints().items()):
        path = Path(f"hostile{n}.pth")
        make(path)
        refused(what, "predict", "--model_fn", path, "--input", "photos/val", "--gpu_id", -1)
        if what not in ("a newer format_version", "a plain state_dict"):
            weights_flags = ("--weights", path, "--n_epochs", 1, "--model_fn", "w.pth", "--run_dir", f"w{n}")
            refused(f"{what}, as --weights", "train", *BASE, *weights_flags)
        run_folder = Path(f"resume{n}")
        run_folder.mkdir()
        (run_folder / "last.pth").write_bytes(path.read_bytes())
        refused(f"{what}, as last.pth", "train", "--resume", run_folder)
    Path("splits.csv").write_bytes(pickle.dumps(Payload()))
    refused("a payload as a split file", "train", *BASE, "--splits", "splits.csv", "--run_dir", "s")
    before = {path for path in Path.cwd().parent.rglob("*") if ".cache" not in path.parts}
    for n, (what, make) in enumerate(archives().items()):
        path = make(Path(f"hostile{n}"))
        before.add(path.absolute())
        refused(what, "train", *BASE[2:], "--data_dir", path, "--n_epochs", 1, "--run_dir", f"a{n}")
        refused(f"{what}, predicted", "predict", "--model_fn", "good.pth", "--input", path, "--result", f"r{n}.csv")
    after = {path for path in Path.cwd().parent.rglob("*") if ".cache" not in path.parts}
    findings.expect(after == before, f"written outside: {sorted(after - before)}")
    poison_the_cache(findings)
    print(f"hostile: {len(names)} files refused, {MARKER} was never there", flush=True)


def poison_the_cache(findings: Findings) -> None:
    """Every file of the feature cache replaced by a payload: computed anew, to the same weights."""
    entries = [path for path in Path(".cache").rglob("*") if path.is_file() and path.stat().st_size]
    for path in entries:
        path.write_bytes(pickle.dumps(Payload()))
    must(run(*BASE, "--freeze", "--n_epochs", 1, "--model_fn", "anew.pth", "--run_dir", "anew"))
    one, other = weights("good.pth"), weights("anew.pth")
    same = all(torch.equal(one[key], other[key]) for key in one)
    findings.expect(same, "a poisoned cache changed the weights")
    findings.expect(not Path(MARKER).exists(), "a payload in the cache was run")
    print(f"hostile: {len(entries)} files of the feature cache replaced by payloads and not believed")


# --- memory ---------------------------------------------------------------------------------------

PEAKS = """
import resource, sys
sys.path.insert(0, {root!r})
from run import Run
import train
from flags import run_main
def log(self, result, best, log=Run.log):
    log(self, result, best)
    unit = 1e6 if sys.platform == "darwin" else 1e3
    print("peak", result.epoch + 1, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)
Run.log = log
run_main(train.main, {argv!r})
"""


def memory(_: argparse.Namespace, findings: Findings) -> None:
    make_photos(Path("photos"), 128, 48)
    for kind, flags in KINDS.items():
        name = kind.replace(" ", "_")
        more = ("--model_fn", f"{name}.pth", "--run_dir", name, "--n_epochs", 50)
        argv = [str(a) for a in (*BASE, *flags, *more)]
        code = PEAKS.format(root=str(ROOT), argv=argv)
        out = must(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True))
        peaks = {int(epoch): float(mb) for epoch, mb in re.findall(r"^peak (\d+) ([\d.]+)$", out, re.MULTILINE)}
        growth = peaks[50] - peaks[2]
        findings.expect(growth <= 10, f"memory: {kind}: {growth:.1f} MB more in epoch 50 than in epoch 2")
        print(f"memory: {kind}: peak {peaks[2]:.0f} MB at epoch 2, {peaks[50]:.0f} MB at epoch 50", flush=True)


# --- signals --------------------------------------------------------------------------------------


def signals(options: argparse.Namespace, findings: Findings) -> None:
    """On a benchmark's model at 224 pixels; from the signal to the end of the process."""
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
    for line in process.stdout:
        if re.match(pattern, line):
            return
    raise SystemExit(f"the run ended before its line {pattern!r}: {process.stderr.read()}")


WORK = {work.__name__: work for work in (kills, disk, hostile, memory, signals)}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=WORK, default=list(WORK), help="which parts (default: all)")
    parser.add_argument("--n_kills", type=int, default=30, help="kill -9, over all kinds of training (default: 30)")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments (default: 0)")
    options = parser.parse_args(argv)
    for s in SIGNALS:  # what is started in the background ignores some, and hands that on
        signal.signal(s, signal.SIG_DFL)
    findings, here = Findings(), os.getcwd()
    for name in options.only:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "work").mkdir()
            os.chdir(Path(folder) / "work")
            start = time.monotonic()
            try:
                WORK[name](options, findings)
            finally:
                os.chdir(here)
            print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
    print(f"{findings.n} checks, {len(findings.bad)} wrong")
    return 1 if findings.bad else 0


if __name__ == "__main__":
    sys.exit(main())
