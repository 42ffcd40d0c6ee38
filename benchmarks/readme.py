"""Writes what the README and docs/flags.md show of the present version: printed lines, pictures and the list of flags.

Run it after a change of what is printed or drawn, or of a flag, and look at what git says has changed. The pictures
show the built-in digits (Alpaydin and Kaynak 1998, CC BY 4.0), so they may be published. They need Chromium and
`pip install playwright`.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from common import ROOT, described, must, prove, run

if TYPE_CHECKING:
    from playwright.sync_api import Page

README, IMAGES = ROOT / "README.md", ROOT / "docs" / "images"
PRINTED = re.compile(r"(?<=\(the main lines\):\n\n)(?:    .*\n)+")  # the block in the README
WIDTH = 120
MAIN_LINES = ("data ", "labels ", "test ", "next ", "result ", "wrote ", "sheet ")
PYTHON = "    python "
VIEWPORT = {"width": 1500, "height": 800}
SECONDS_TO_DRAW = 8  # TensorBoard says nowhere that its charts are drawn

FLAGS = """# Every flag

This is what `python train.py --help` prints, and the same of `predict.py`, `export.py` and `compare.py`. The page is
written by `python benchmarks/readme.py --only flags`.
"""

# curves that differ, so that there is something to see
RUNS = {
    "frozen": "--freeze --n_epochs 10",
    "frozen_hidden_layer": "--freeze --head_hidden 128 --n_epochs 10",
    "first_layers_frozen": "--freeze_until blocks.3 --n_epochs 10",
}


def flags(*_: object) -> None:
    """Writes docs/flags.md."""
    os.environ["COLUMNS"] = "118"  # argparse leaves two of them free; four are the margin of a block
    text = FLAGS
    for script in ("train", "predict", "export", "compare"):
        told = must(run("--help", script=script)).partition("show this help message and exit\n\n")[2]
        lines = told.partition("\n\nexamples:")[0].splitlines()
        text += f"\n## {script}.py\n\n" + "".join(f"    {line}".rstrip() + "\n" for line in lines)
    (ROOT / "docs" / "flags.md").write_text(text, encoding="utf-8")


def first_run(*_: object) -> None:
    """Runs the first commands of the README as they stand there; writes their main lines into it, and its pictures."""
    readme, printed = README.read_text(encoding="utf-8"), []
    before = readme[: PRINTED.search(readme).start()]
    for script in ROOT.glob("*.py"):
        Path(script.name).symlink_to(script)  # so that printed commands name it as a user does
    for line in before.splitlines():
        if line.startswith((f"{PYTHON}train.py", f"{PYTHON}predict.py")):
            done = subprocess.run([sys.executable, *shlex.split(line)[1:]], capture_output=True, text=True)
            printed += [line for line in must(done).splitlines() if line.startswith(MAIN_LINES)]
    block = "".join(f"    {shortened(line)}\n" for line in printed)
    README.write_text(PRINTED.sub(lambda _: block, readme), encoding="utf-8")
    save(Path("result.png").read_bytes(), "sheet")
    for name in ("confusion", "calibration"):
        (path,) = Path("runs").glob(f"*/test_{name}.png")
        save(path.read_bytes(), name)
    (path,) = Path("runs").glob("*/report.html")
    with browser_page() as page:
        page.goto(path.resolve().as_uri())
        save(page.screenshot(), "page")


def shortened(line: str) -> str:
    """Cuts a long line, and the command at its end."""
    text, colon, _ = line.partition(": python ")
    line = f"{text}{colon and ': ...'}"
    return line if len(line) <= WIDTH else f"{line[: WIDTH - 4].rpartition(' ')[0]} ..."


def tensorboard(*_: object) -> None:
    """Trains three short runs, and takes pictures of them in TensorBoard."""
    for name, recipe in RUNS.items():
        data = ("--dataset_name", "digits", "--model_name", "efficientnet_lite0", "--use_pretrained")
        must(run(*data, *recipe.split(), "--run_dir", f"runs/{name}", "--model_fn", f"{name}.pth"))
    server = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", "--logdir", "runs", "--port", "0"], stderr=subprocess.PIPE, text=True
    )
    try:
        photograph(next(found[0] for line in server.stderr if (found := re.search(r"http://localhost:\d+", line))))
    finally:
        server.terminate()
        server.wait()


@contextlib.contextmanager
def browser_page() -> Iterator[Page]:
    """Opens an empty page in Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        path = shutil.which("chromium") or shutil.which("google-chrome")
        yield started.chromium.launch(executable_path=path, args=["--no-sandbox"]).new_page(viewport=VIEWPORT)


def photograph(url: str) -> None:
    """Takes pictures of two views of TensorBoard."""
    with browser_page() as page:
        page.goto(f"{url}/#hparams", wait_until="networkidle")
        page.wait_for_timeout(SECONDS_TO_DRAW * 1000)
        save(page.screenshot(), "hparams")
        page.goto(f"{url}/#timeseries", wait_until="networkidle")
        page.wait_for_timeout(SECONDS_TO_DRAW * 1000)
        page.locator("button.settings-button").click()  # its pane takes a quarter of the width
        page.locator("input[placeholder^='Filter tags']").fill("/(Accuracy|Loss)$")
        page.mouse.click(VIEWPORT["width"] - 200, 135)  # on nothing: closes the list of tags
        page.wait_for_timeout(SECONDS_TO_DRAW * 1000)
        save(page.screenshot(), "timeseries")


def save(content: bytes, name: str) -> None:
    """Writes a picture below docs/images: all its colours, no palette."""
    from PIL import Image

    Image.open(io.BytesIO(content)).convert("RGB").save(IMAGES / f"{name}.png", optimize=True)


WORKS = {"flags": flags, "first_run": first_run, "tensorboard": tensorboard}

if __name__ == "__main__":
    sys.exit(prove(described(__doc__), WORKS))
