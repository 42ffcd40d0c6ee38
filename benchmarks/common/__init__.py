"""What the scripts share: photos, commands of the repository, and the frame of those that prove something."""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

if TYPE_CHECKING:
    import torch

NAME = "shufflenet_v2_x0_5"  # has batch norm and is saved in no time: more kills a minute
SMALL = ("--data_dir", "photos", "--model_name", NAME, "--image_size", 64, "--gpu_id", -1, "--batch_size", 16)


def make_photos(folder: Path, n_train: int, n_val: int, size: tuple[int, int] = (500, 375)) -> Path:
    """Class folders of JPEG photos of that width and height: smooth noise, in bytes as large as real ones."""
    import numpy as np

    rng = np.random.default_rng(0)
    photos = []
    for split, n in (("train", n_train), ("val", n_val)):
        for k, name in enumerate(("warm", "cold")):
            (folder / split / name).mkdir(parents=True)
            for i in range(n // 2):
                small = rng.integers(0, 200, (-(-size[1] // 8), -(-size[0] // 8), 3)).astype("uint8")
                small[..., 2 * k] += 55
                photos.append((small, size, folder / split / name / f"{i:04d}.jpg"))
    with ProcessPoolExecutor() as pool:
        list(pool.map(_save_photo, photos, chunksize=16))
    return folder


def _save_photo(photo: tuple) -> None:
    from PIL import Image

    small, size, path = photo
    Image.fromarray(small).resize(size, Image.Resampling.BICUBIC).save(path, quality=90)


def peak_mb() -> float:
    """The most memory that this process had so far, in MB; not on Windows."""
    import resource

    status = Path("/proc/self/status")
    if status.is_file():  # on Linux, getrusage begins with the memory of the process that started this one
        return int(re.search(r"VmHWM:\s*(\d+) kB", status.read_text()).group(1)) / 1e3
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


# --- commands of the repository ---------------------------------------------------------------


def command(script: str, *arguments: object) -> list[str]:
    """What starts `train` or `predict` with this Python."""
    return [sys.executable, str(ROOT / f"{script}.py"), *map(str, arguments)]


def run(*arguments: object, script: str = "train") -> subprocess.CompletedProcess:
    """Runs it to its end."""
    return subprocess.run(command(script, *arguments), capture_output=True, text=True)


def must(done: subprocess.CompletedProcess) -> str:
    """What it printed; SystemExit where it did not end well."""
    if done.returncode:
        raise SystemExit(f"{' '.join(done.args[1:])} ended with {done.returncode}:\n{done.stderr}")
    return done.stdout


def weights(path: str | Path) -> dict[str, torch.Tensor]:
    """The state_dict in a checkpoint."""
    import torch

    return torch.load(path, weights_only=True)["state_dict"]


# --- proofs -----------------------------------------------------------------------------------


class Findings:
    """What was looked at, and what was not as it should be."""

    def __init__(self) -> None:
        self.n, self.bad, self.reaches = 0, [], []

    def expect(self, is_so: bool, what: str) -> None:
        """Counts a check, and tells one that does not hold."""
        self.n += 1
        if not is_so:
            self.bad.append(what)
            print(f"WRONG: {what}", flush=True)

    def reach(self, what: str, asked: str, figure: str, is_kept: bool) -> None:
        """Checks a figure that was asked for; the table at the end has all of them."""
        self.reaches.append((what, asked, figure, "kept" if is_kept else "missed"))
        self.expect(is_kept, f"{what}: {figure}, asked {asked}")

    def table(self) -> str:
        """Returns the figures that were asked for, in columns."""
        rows = [("reach", "asked", "figure", ""), *self.reaches] if self.reaches else []
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        return "".join("  ".join(map(str.ljust, row, widths)).rstrip() + "\n" for row in rows)


Work = Callable[[argparse.Namespace, Findings], None]


def prove(parser: argparse.ArgumentParser, works: Mapping[str, Work], default: Sequence[str] = ()) -> int:
    """Parses, and does the works that are asked for, each in an empty folder; the exit status.

    Args:
        default: which are done where `--only` names none; without it all of them.
    """
    from photo_classifier.runtime.signals import SIGNALS

    names = list(default or works)
    told = "all" if len(names) == len(works) else ", ".join(names)
    parser.add_argument("--only", nargs="+", choices=works, default=names, help=f"which parts (default: {told})")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default: 0)")
    options = parser.parse_args()
    for s in SIGNALS:  # what is started in the background ignores some, and hands that on
        signal.signal(s, signal.SIG_DFL)
    findings, here = Findings(), os.getcwd()
    for name in options.only:
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "work").mkdir()
            os.chdir(Path(folder) / "work")
            start = time.monotonic()
            try:
                works[name](options, findings)
            finally:
                os.chdir(here)
            print(f"{name}: {time.monotonic() - start:.0f} s", flush=True)
    print(f"{findings.table()}{findings.n} checks, {len(findings.bad)} wrong")
    return 1 if findings.bad else 0


def described(about: str) -> argparse.ArgumentParser:
    """A parser that shows a script's docstring as it is written."""
    return argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
