"""What the page of a run says of the run itself."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from photo_classifier.data.samples import Splits
from photo_classifier.evaluation.page import About
from photo_classifier.runtime.files import read_json
from photo_classifier.runtime.packages import version_rows
from photo_classifier.runtime.text import duration, pluralize, shell_command
from photo_classifier.training.run_files import REPORT
from photo_classifier.training.run_state import RunState


def about_run(
    folder: Path,
    state: RunState,
    splits: Splits,
    settings: Mapping[str, object],
    model_name: str,
    checkpoint: str,
    kept: int,
    seconds: float | None,
) -> About:
    """Returns what a page is told about a run, whose `report.json` was written.

    Args:
        settings: flags and their values that differ from the defaults.
        checkpoint: the file of the saved weights.
        kept: their epoch, counted from 1.
        seconds: how long the run took, if that is known.
    """
    facts = {
        "Data": _data_rows(state, splits),
        "Settings that differ from the defaults": [
            (f"--{name}", "on" if value is True else str(value)) for name, value in settings.items()
        ],
        "Result": [
            ("checkpoint", checkpoint),
            ("saved", _saved(state.rows, kept)),
            *_last_row(folder),
            *([("duration", duration(seconds))] if seconds else []),
            ("this page is of", time.strftime("%Y-%m-%d %H:%M")),
        ],
        "Computed with": [
            ("device", state.device),
            ("precision", state.dtype.removeprefix("torch.")),
            *version_rows("torch", "torchvision", "timm"),
        ],
    }
    counts = dict(zip(splits.class_names, splits.training_counts(), strict=True))
    command = shell_command("python", "predict.py", "--model_fn", checkpoint, "--input", "new_photos")
    data = Path(splits.root).name or splits.root
    return About(f"{data}, {model_name}", facts, counts, kept, command=command)


def _saved(rows: Sequence[Mapping[str, str]], kept: int) -> str:
    """Returns which weights were saved: of an epoch, or those of the best penalty of a solved head."""
    strength = rows[kept - 1].get("C")
    return f"penalty C {float(strength):.3g}, of {len(rows)}" if strength else f"epoch {kept} of {len(rows)}"


def _last_row(folder: Path) -> list[tuple[str, str]]:
    """Returns what `report.json` says of the weights of the last epoch, where others were saved."""
    last = read_json(folder / REPORT).get("last_epoch")
    return [("last", str(last.get("text", "")))] if isinstance(last, Mapping) else []


def _data_rows(state: RunState, splits: Splits) -> list[tuple[str, str]]:
    counts = {splits.title(name): f"{len(samples):,}" for name, samples in splits.by_name().items()}
    rows = [("folder", splits.root), ("layout", splits.layout), ("classes", f"{len(splits.class_names):,}")]
    rows += [(f"{name} photos", n) for name, n in counts.items()]
    if state.skipped:
        rows.append(("left out", f"{pluralize(len(state.skipped), 'photo')} that could not be read, in skipped.csv"))
    return rows
