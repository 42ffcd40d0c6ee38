"""Gives files of strangers to every flag that takes one: status 2, one line, nothing run, nothing written elsewhere.

    python benchmarks/hostile.py                   four minutes on 2 cores

Checkpoints, weights, run folders, split files, archives, tables, photos and entries of the feature cache. The short
form is part of the tests. Ends with status 1 if anything was not as it should be.
"""

from __future__ import annotations

import argparse
import collections
import csv
import io
import os
import pickle
import resource
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path, PurePosixPath

import pillow_heif
import torch
from common import SMALL, Findings, described, make_photos, must, prove, run, weights
from PIL import Image

from photo_classifier.data.file_kinds import image_formats

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
        """Writes a checkpoint that is small as a file and large in memory."""
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
    outside = str(Path("outside.jpg").absolute())
    return {
        "an entry with ..": partial(write_zip, {"a/1.jpg": photo, "../outside.jpg": photo}),
        "an absolute path": partial(write_zip, {"a/1.jpg": photo, outside: photo}),
        "a symbolic link": partial(write_linked, photo, tarfile.SYMTYPE, ".."),
        "a hard link": partial(write_linked, photo, tarfile.LNKTYPE, "../../../good.pth"),
        "an archive bomb": partial(write_zip, dict.fromkeys(("a/1.jpg", "a/2.jpg", "a/3.jpg"), bytes(500_000_000))),
    }


def write_zip(entries: Mapping[str, bytes], path: Path) -> Path:
    """Writes a zip file of those names and contents; returns its path."""
    path = path.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def write_linked(photo: bytes, kind: bytes, target: str, path: Path) -> Path:
    """Writes an archive whose first entry is a link that the second one, a photo, goes through."""
    path = path.with_suffix(".tar.gz")
    with tarfile.open(path, "w:gz") as archive:
        link = tarfile.TarInfo("a/link")
        link.type, link.linkname = kind, target
        archive.addfile(link)
        entry = tarfile.TarInfo("a/link/1.jpg")
        entry.size = len(photo)
        archive.addfile(entry, io.BytesIO(photo))
    return path


SHEET = b'<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><sheetData>%s</sheetData></worksheet>'


def tables() -> dict[str, Callable[[Path], Path]]:
    """Returns what strangers may send as a table of paths and labels: by name, functions that write a file."""
    cell = b'<row r="%d"><c r="A%d" t="inlineStr"><is><t>x</t></is></c></row>'
    entities = b'<!DOCTYPE x [<!ENTITY a "aaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>' + SHEET % b"<row/>"
    return {
        "a workbook bomb": partial(write_workbook, SHEET % b"", n_zeros=1_000_000_000),
        "a workbook of a billion lines": partial(write_workbook, SHEET % (cell % (1, 1) + cell % (10**12, 10**12))),
        "a workbook with a line of ten million cells": partial(
            write_workbook, SHEET % (b"<row>" + b"<c/>" * 10_000_000 + b"</row>")
        ),
        "a workbook a million levels deep": partial(write_workbook, b"<a>" * 1_000_000 + b"</a>" * 1_000_000),
        "a workbook with entities": partial(write_workbook, entities),
        "half a workbook": partial(write_file, b"PK\3\4" + bytes(1000), ".xlsx"),
        "JSON a million levels deep": partial(write_file, b"[" * 1_000_000, ".json"),
        "JSON with an endless number": partial(write_file, b'[{"path": ' + b"9" * 1_000_000 + b"}]", ".json"),
        "JSON without the fields of COCO": partial(
            write_file, b'{"images":[1],"annotations":[2],"categories":[3]}', ".json"
        ),
        "a pickle as a table": partial(write_file, pickle.dumps(Payload()) + b"\0" * 99, ".csv"),
    }


def write_workbook(sheet: bytes, path: Path, n_zeros: int = 0) -> Path:
    """Writes a workbook whose sheet is this XML, with a part of that many zeros; returns its path."""
    import openpyxl

    plain, path = io.BytesIO(), path.with_suffix(".xlsx")
    openpyxl.Workbook().save(plain)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry, sheet if "worksheets/" in entry.filename else old.read(entry))
        new.writestr("xl/more.bin", bytes(n_zeros))
    return path


def write_file(content: bytes, ending: str, path: Path) -> Path:
    """Writes a file of that ending; returns its path."""
    path = path.with_suffix(ending)
    path.write_bytes(content)
    return path


def hostile(_: argparse.Namespace, findings: Findings) -> None:
    """Gives every file to every flag that takes one, and compares the folders before and after."""
    make_photos(Path("photos"), 32, 16)
    must(run(*SMALL, "--freeze", "--n_epochs", 1, "--model_fn", "good.pth", "--run_dir", "good"))
    before, names = None, []

    def refused(what: str, script: str, *arguments: object) -> None:
        """Expects status 2 and one line."""
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
    for n, (what, make) in enumerate(tables().items()):
        path = make(Path(f"table{n}"))
        before.add(path.absolute())
        refused(what, "train", *SMALL[2:], "--labels", path, "--n_epochs", 1, "--run_dir", f"t{n}")
        refused(f"{what}, predicted", "predict", "--model_fn", "good.pth", "--input", path, "--result", f"t{n}.csv")
    after = {path for path in Path.cwd().parent.rglob("*") if ".cache" not in path.parts}
    findings.expect(after == before, f"written outside: {sorted(after - before)}")
    poison_the_cache(findings)
    print(f"hostile: {len(names)} files refused, {MARKER} was never there", flush=True)


def photos() -> dict[str, bytes]:
    """Returns what strangers may send as a photo, by name; none can be read."""
    image_formats()  # makes Pillow write HEIC

    def of_size(content: bytes, old: int, new: int) -> bytes:
        """Returns a HEIC that declares another size than it has."""
        return content.replace(*(b"ispe" + struct.pack(">3I", 0, side, side) for side in (old, new)))

    small, large = (saved(Image.new("RGB", (side, side), "red"), "HEIF") for side in (64, 4096))
    pillow_heif.options.GRID_TILE_SIZE = 512
    tiles = saved(Image.new("RGB", (2048, 2048), "red"), "HEIF")
    place = tiles.find(struct.pack(">4B2H", 0, 0, 3, 3, 2048, 2048))
    png = saved(Image.new("RGB", (64, 64)), "PNG")
    text = chunk(b"zTXt", b"a\0\0" + zeros(1000))
    header = chunk(b"IHDR", struct.pack(">2I5B", 30_000, 30_000, 1, 0, 0, 0, 0))
    bomb = png[:8] + header + chunk(b"IDAT", zeros(113)) + chunk(b"IEND", b"")
    icon = struct.pack("<3H4B2H2I", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(bomb), 22) + bomb
    return {
        "HEIC of 60,000 x 60,000 pixels": of_size(small, 64, 60_000),
        "HEIC whose picture is larger than it says": of_size(large, 4096, 64),
        "HEIC whose picture is smaller than it says": of_size(small, 64, 14_000),
        "HEIC whose tiles are more than it says": of_size(tiles, 2048, 64),
        "HEIC whose tiles make 60,000 x 60,000 pixels": tiles[: place + 4] + b"\xea\x60" * 2 + tiles[place + 8 :],
        "HEIC with a box of no end": small.replace(b"\0\0\0\x14ispe", b"\xff\xff\xff\xffispe"),
        "HEIC without its pictures": small[: small.find(b"mdat")],
        "HEIC of noise": small[:32] + bytes(n * 97 % 251 for n in range(4000)),
        "PNG of 900 million pixels": bomb,
        "PNG with 1 GB of text": png[:33] + text + png[33:],
        "icon of 900 million pixels": icon,
        "program for a printer": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(marker) (w) file closefile\n",
    }


def saved(image: Image.Image, kind: str) -> bytes:
    """Returns a picture as a file of that kind."""
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def zeros(n_mb: int) -> bytes:
    """Returns compressed zeros, made in little memory: the peak of a process begins with that of its parent."""
    packer = zlib.compressobj()
    return b"".join(packer.compress(bytes(1_000_000)) for _ in range(n_mb)) + packer.flush()


def chunk(kind: bytes, content: bytes) -> bytes:
    """Returns a chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def strangers(_: argparse.Namespace, findings: Findings) -> None:
    """Predicts the photos of strangers: each gets a row with a reason, and memory stays as for any photo."""
    make_photos(Path("photos"), 32, 16)
    must(run(*SMALL, "--freeze", "--n_epochs", 1, "--model_fn", "good.pth", "--run_dir", "good"))
    Path("strange").mkdir()
    sent = photos()
    for name, content in sent.items():
        Path("strange", f"{name}.jpg").write_bytes(content)
    done = run("--model_fn", "good.pth", "--input", "strange", "photos/val", "--gpu_id", -1, script="predict")
    with open("result.csv", encoding="utf-8-sig") as file:
        rows = {Path(row["file_dir"]).stem: row for row in csv.DictReader(file)}
    findings.expect(done.returncode == 3, f"status {done.returncode}: {done.stderr}")
    findings.expect("Traceback" not in done.stderr, done.stderr)
    for name in sent:
        findings.expect(rows[name]["status"].startswith("error"), f"{name}: {rows[name]}")
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3
    findings.expect(peak < 2000, f"{peak:.0f} MB of memory")
    print(f"strangers: {len(sent)} photos of strangers have a row with a reason, within {peak:.0f} MB", flush=True)


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
    sys.exit(prove(described(__doc__), {"hostile": hostile, "strangers": strangers}))
