"""What the page of a run says of the run itself."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import PurePath

from photo_classifier.data.samples import Splits
from photo_classifier.evaluation.page import About
from photo_classifier.runtime.packages import version_rows
from photo_classifier.runtime.text import duration, pluralize, shell_command
from photo_classifier.training.run_state import RunState


def about_run(
    state: RunState,
    splits: Splits,
    settings: Mapping[str, object],
    model_name: str,
    checkpoint: str,
    kept: int,
    last: object,
    seconds: float | None,
) -> About:
    """Returns what a page is told about a run.

    Args:
        settings: flags and their values that differ from the defaults.
        checkpoint: the file of the saved weights.
        kept: their epoch, counted from 1.
        last: what `report.json` says of the last epoch, where that is another.
        seconds: how long the run took, if that is known.
    """
    data = PurePath(splits.root).name or splits.root
    facts = {
        "Data": _data_rows(state, splits),
        "Settings that differ from the defaults": [
            (f"--{name}", "on" if value is True else str(value)) for name, value in settings.items()
        ],
        "Result": [
            ("checkpoint", checkpoint),
            ("saved", _saved(state.rows, kept)),
            *([("last", str(last.get("text", "")))] if isinstance(last, Mapping) else []),
            *([("duration", duration(seconds))] if seconds else []),
            ("this page is of", time.strftime("%Y-%m-%d %H:%M")),
        ],
        "Computed with": [
            ("device", state.device),
            ("precision", state.dtype.removeprefix("torch.")),
            *version_rows("torch", "torchvision", "timm"),
        ],
    }
    command = shell_command("python", "predict.py", "--model_fn", checkpoint, "--input", "new_photos")
    return About(f"{data}, {model_name}", facts, splits.counts_by_class(), kept, command=command)


def _saved(rows: Sequence[Mapping[str, str]], kept: int) -> str:
    """Returns which weights were saved: of an epoch, or those of the best penalty of a solved head."""
    strength = rows[kept - 1].get("C")
    return f"penalty C {float(strength):.3g}, of {len(rows)}" if strength else f"epoch {kept} of {len(rows)}"


def _data_rows(state: RunState, splits: Splits) -> list[tuple[str, str]]:
    counts = {splits.title(name): f"{len(samples):,}" for name, samples in splits.by_name().items()}
    rows = [("folder", splits.root), ("layout", splits.layout), ("classes", f"{len(splits.class_names):,}")]
    rows += [(f"{name} photos", n) for name, n in counts.items()]
    if state.skipped:
        rows.append(("left out", f"{pluralize(len(state.skipped), 'photo')} that could not be read, in skipped.csv"))
    return rows
