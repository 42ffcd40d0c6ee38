"""Gives files of strangers to every flag that takes one: status 2, one line, nothing run, nothing written elsewhere.

    python benchmarks/hostile.py                   four minutes on 2 cores

Checkpoints, weights, run folders, split files, archives and entries of the feature cache. The short form is part of
the tests. Ends with status 1 if anything was not as it should be.
"""

from __future__ import annotations

import argparse
import collections
import io
import os
import pickle
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import torch
from common import SMALL, Findings, described, make_photos, must, prove, run, weights

MARKER = "payload-was-here"


class Payload:
    def __reduce__(self):
        return Path.touch, (Path(MARKER).absolute(),)


class Call:
    """Calls a function that training scripts may save, with what must not run."""

    def __init__(self, *call: object) -> None:
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


def checkpoints() -> dict[str, Callable[[Path], None]]:
    """Returns what strangers may send as a checkpoint: by name, functions that write a file."""
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
        "a payload in the arguments of a script": saved(args=argparse.Namespace(lr=0.1, hook=Payload())),
        "a default dict that calls": saved(history=Call(collections.defaultdict, Payload())),
        "a path that calls": saved(path=Call(PurePosixPath, Payload())),
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
    """Returns what strangers may send as an archive of photos: by name, functions that write a file."""
    photo = next(Path("photos").rglob("*.jpg")).read_bytes()

    def zipped(**entries: bytes) -> Callable[[Path], Path]:
        """Writes an archive of those names and contents."""

        def write(path: Path) -> Path:
            with zipfile.ZipFile(path.with_suffix(".zip"), "w") as archive:
                for name, data in entries.items():
                    archive.writestr(name, data)
            return path.with_suffix(".zip")

        return write

    def linked(kind: bytes, target: str) -> Callable[[Path], Path]:
        """Writes an archive whose first entry is a link that the second one goes through."""

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
    """Gives every file to every flag that takes one, and compares the folders before and after."""
    make_photos(Path("photos"), 32, 16)
    must(run(*SMALL, "--freeze", "--n_epochs", 1, "--model_fn", "good.pth", "--run_dir", "good"))
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
        if what != "a plain state_dict":
            weights_flags = ("--weights", path, "--n_epochs", 1, "--model_fn", "w.pth", "--run_dir", f"w{n}")
            refused(f"{what}, as --weights", "train", *SMALL, *weights_flags)
        run_folder = Path(f"resume{n}")
        run_folder.mkdir()
        (run_folder / "last.pth").write_bytes(path.read_bytes())
        refused(f"{what}, as last.pth", "train", "--resume", run_folder)
    Path("splits.csv").write_bytes(pickle.dumps(Payload()))
    refused("a payload as a split file", "train", *SMALL, "--splits", "splits.csv", "--run_dir", "s")
    before = {path for path in Path.cwd().parent.rglob("*") if ".cache" not in path.parts}
    for n, (what, make) in enumerate(archives().items()):
        path = make(Path(f"hostile{n}"))
        before.add(path.absolute())
        refused(what, "train", *SMALL[2:], "--data_dir", path, "--n_epochs", 1, "--run_dir", f"a{n}")
        refused(f"{what}, predicted", "predict", "--model_fn", "good.pth", "--input", path, "--result", f"r{n}.csv")
    after = {path for path in Path.cwd().parent.rglob("*") if ".cache" not in path.parts}
    findings.expect(after == before, f"written outside: {sorted(after - before)}")
    poison_the_cache(findings)
    print(f"hostile: {len(names)} files refused, {MARKER} was never there", flush=True)


def poison_the_cache(findings: Findings) -> None:
    """Replaces every file of the feature cache by a payload: features are computed again, weights stay the same."""
    entries = [path for path in Path(".cache").rglob("*") if path.is_file() and path.stat().st_size]
    for path in entries:
        path.write_bytes(pickle.dumps(Payload()))
    must(run(*SMALL, "--freeze", "--n_epochs", 1, "--model_fn", "anew.pth", "--run_dir", "anew"))
    one, other = weights("good.pth"), weights("anew.pth")
    same = all(torch.equal(one[key], other[key]) for key in one)
    findings.expect(same, "a poisoned cache changed the weights")
    findings.expect(not Path(MARKER).exists(), "a payload in the cache was run")
    print(f"hostile: {len(entries)} files of the feature cache replaced by payloads and not believed")


if __name__ == "__main__":
    sys.exit(prove(described(__doc__), {"hostile": hostile}))
