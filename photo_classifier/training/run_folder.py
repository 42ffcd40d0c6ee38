"""The folder of a run: a new one, one that is free again, or that of an earlier start by the launcher."""

from __future__ import annotations

import contextlib
import csv
import io
import itertools
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from photo_classifier.data.new_photos import SAMPLES
from photo_classifier.data.samples import Splits
from photo_classifier.runtime import launcher
from photo_classifier.runtime.distributed import agents, broadcast_from_main
from photo_classifier.runtime.errors import UserError
from photo_classifier.runtime.files import read_json, write_text
from photo_classifier.runtime.plain_values import first_mismatch
from photo_classifier.runtime.text import shell_command
from photo_classifier.training.run_files import BACKBONE, CONFIG, ENDED, FINISHED, LAST

LAUNCH = "launch.json"
ANSWERS_BEFORE = "answers_before.json"
BEFORE_A_SAVE = {
    CONFIG,
    "splits.csv",
    SAMPLES,
    "augmented.png",
    "skipped.csv",
    "duplicates.csv",
    BACKBONE,
    LAUNCH,
    ENDED,
    ANSWERS_BEFORE,
}


def default_run_dir(model_name: str, words: Sequence[str] = ()) -> str:
    """Makes a new folder `runs/<model_name>-<time>-<words>`; TensorBoard tells runs apart by this name."""
    parts = [model_name, time.strftime("%Y%m%d-%H%M%S"), *words]
    base = os.path.join("runs", re.sub(r"[^\w.-]+", "_", "-".join(parts)))
    name, n = base, 2
    while True:
        try:
            os.makedirs(name)  # two runs that begin in the same second must not share one
        except FileExistsError:
            name, n = f"{base}-{n}", n + 1
        except OSError:
            return name  # `claim_folder` says what is wrong with it
        else:
            return name


def dry_run_dir() -> str:
    """Returns the folder of a dry run without `--run_dir`: not below `runs`, and used again by the next one."""
    names = (f"dry_run-{n}" if n > 1 else "dry_run" for n in itertools.count(1))
    return next(name for name in names if not os.path.lexists(name) or _has_not_begun(Path(name)))


def resume_command(folder: str | Path, *flags: object) -> str:
    """Returns the command that continues the run of that folder, with flags that it may have anew."""
    return train_command("--resume", folder, *flags)


def train_command(*words: object) -> str:
    """Returns the command that trains with these flags, as this one was called."""
    return _script_command("train.py", *words)


def predict_command(*words: object) -> str:
    """Returns the command that predicts with these flags, by the script beside this one."""
    return _script_command("predict.py", *words)


def _script_command(name: str, *words: object) -> str:
    folder, own = os.path.split(sys.argv[0])
    return shell_command("python", os.path.join(folder, name) if own == "train.py" else name, *words)


def claim_folder(folder: Path, is_new: bool) -> None:
    """Makes the folder of a new run, or prepares that of a stopped one; raises UserError if it cannot be used."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not is_new:
            _remove_leftovers(folder)
        elif _has_not_begun(folder):
            for path in folder.iterdir():
                path.unlink()
        elif any(folder.iterdir()) and launcher.agent() not in agents_of(folder):
            hint = f" (to continue its run: {resume_command(folder)})" if (folder / LAST).exists() else ""
            raise UserError(f"the run folder {folder} is not empty; give a new one, or leave --run_dir out{hint}")
    except OSError as error:
        raise UserError(f"cannot write the run folder {folder}: {error.strerror}; give --run_dir DIR") from error


def _remove_leftovers(folder: Path) -> None:
    """Marks the run as unfinished again, and removes files that were half written when it was killed."""
    for path in [folder / FINISHED, *folder.glob(".*.tmp"), *folder.glob(".*.tmp.prev")]:
        path.unlink(missing_ok=True)


def _has_not_begun(folder: Path) -> bool:
    """Returns whether a folder holds a dry run, or a run that ended before its first save, and nothing else."""
    # the other names alone do not tell: a run that is under way may have written no more than these yet
    return (folder / ENDED).exists() and all(map(_is_before_a_save, folder.iterdir()))


def _is_before_a_save(path: Path) -> bool:
    return path.name in BEFORE_A_SAVE or path.name.startswith("events.out.tfevents.")


def release_folder(folder: Path) -> None:
    """Marks that the run ended without a save, so that the next run may use the folder."""
    try:
        write_text(folder / ENDED, "{}\n")
    except UserError:  # a full disk may be what ended it
        with contextlib.suppress(OSError):
            for path in filter(_is_before_a_save, list(folder.iterdir())):
                path.unlink()


def check_folder(folder: Path) -> None:
    """Raises UserError if the folder was removed while the run used it."""
    if not folder.is_dir():
        raise UserError(f"the run folder {folder} was removed during the run, with its saves; start again")


def agents_of(folder: str | Path) -> list[str]:
    """Returns the launcher's agents under which the run of that folder was started; none without the launcher."""
    found = read_json(Path(folder) / LAUNCH).get("agents")
    return [] if first_mismatch(found, list[str]) else found


def run_of_this_launch(run_dir: str | None) -> str | None:
    """Returns the run folder to go on with after the launcher has restarted its processes; None in its first round."""
    own = set(agents())

    def find() -> str | None:
        """Returns the folder of a run that these agents have begun and saved."""
        notes = [Path(run_dir) / LAUNCH] if run_dir else Path("runs").glob(f"*/{LAUNCH}")
        folders = [note.parent for note in notes if own & set(agents_of(note.parent))]
        return next((str(folder) for folder in folders if (folder / LAST).exists()), None)

    return broadcast_from_main(find)


def note_launch(folder: str | Path) -> None:
    """Writes into the run folder under which agents of the launcher it runs, so that a restart finds it."""
    if launcher.is_launched():
        own = agents()
        if launcher.is_main():
            write_text(Path(folder) / LAUNCH, json.dumps({"agents": own}) + "\n")


def write_splits(folder: Path, splits: Splits) -> None:
    """Writes `splits.csv`: which image is in which split."""
    rows = [
        {"path": sample.path, "label": sample.label, "split": split, "group": sample.group}
        for split, part in splits.by_name().items()
        for sample in part
    ]
    columns = ["path", "label", "split"] + ["group"] * any(row["group"] for row in rows)
    write_table(folder / "splits.csv", rows, columns)


def read_table(path: Path) -> list[dict[str, str]]:
    """Returns the rows of a table that this tool wrote; none without it."""
    if not path.exists():
        return []
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_table(path: Path, rows: Iterable[Mapping[str, object]], columns: Sequence[str] | None = None) -> None:
    """Writes rows as CSV in UTF-8, atomically; without rows an earlier table is removed."""
    rows, text = list(rows), io.StringIO(newline="")
    if not rows:
        path.unlink(missing_ok=True)
        return
    # not pandas, whose import takes longer than all tables of most runs
    table = csv.DictWriter(text, columns or dict.fromkeys(name for row in rows for name in row), extrasaction="ignore")
    table.writeheader()
    table.writerows(rows)
    write_text(path, text.getvalue())
