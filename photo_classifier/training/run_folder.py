"""The place of a run: a new folder, one that is free again, or that of an earlier start by the launcher."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

from photo_classifier.runtime import distributed, launcher
from photo_classifier.runtime.files import read_json, write_text
from photo_classifier.runtime.plain_values import first_mismatch
from photo_classifier.training.resume import LAST, SAMPLES

LAUNCH = "launch.json"
ENDED = "ended.json"  # of a run that an error ended before its first save
BEFORE_A_SAVE = {"config.json", "splits.csv", SAMPLES, "augmented.png", "skipped.csv", "duplicates.csv", LAUNCH, ENDED}


def default_run_dir(model_name: str, about: Sequence[str] = ()) -> str:
    """`runs/<model_name>-<time>-<about>`, a new folder; TensorBoard tells runs apart by it."""
    words = [model_name, time.strftime("%Y%m%d-%H%M%S"), *about]
    base = os.path.join("runs", re.sub(r"[^\w.-]+", "_", "-".join(words)))
    name, n = base, 2
    while True:
        try:
            os.makedirs(name)  # two runs that begin in the same second must not share one
        except FileExistsError:
            name, n = f"{base}-{n}", n + 1
        except OSError:
            return name  # `Run` says why it cannot be
        else:
            return name


def has_not_begun(folder: Path) -> bool:
    """Whether a folder is of a dry run, or of a run that ended before its first save, and of nothing else."""
    names = {path.name for path in folder.iterdir() if not path.name.startswith("events.out.tfevents.")}
    # not by the names alone: a run that lives may have written no more than these yet
    is_over = ENDED in names or read_json(folder / "config.json").get("dry_run") is True
    return is_over and names <= BEFORE_A_SAVE


def agents_of(folder: str | Path) -> list[str]:
    """The launcher's agents under which the run of that folder was started; none without the launcher."""
    agents = read_json(Path(folder) / LAUNCH).get("agents")
    return [] if first_mismatch(agents, [str]) else agents


def run_of_this_launch(run_dir: str | None) -> str | None:
    """The run folder to go on with after the launcher has started its processes again; None in its first round."""
    agents = set(distributed.agents())

    def find() -> str | None:
        notes = [Path(run_dir) / LAUNCH] if run_dir else Path("runs").glob(f"*/{LAUNCH}")
        folders = [note.parent for note in notes if agents & set(agents_of(note.parent))]
        return next((str(folder) for folder in folders if (folder / LAST).exists()), None)

    return distributed.broadcast_from_main(find)


def note_launch(folder: str | Path) -> None:
    """Writes into the run folder under which agents of the launcher it runs, so that a restart finds it."""
    if launcher.is_launched():
        agents = distributed.agents()
        if launcher.is_main():
            write_text(Path(folder) / LAUNCH, json.dumps({"agents": agents}) + "\n")
