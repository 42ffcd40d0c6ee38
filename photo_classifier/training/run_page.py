"""The page of a run, and what it says of the run itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from photo_classifier.data.samples import Splits
from photo_classifier.evaluation.page import About, write_page
from photo_classifier.runtime.files import read_json
from photo_classifier.runtime.packages import version_rows
from photo_classifier.runtime.text import duration, own_name, pluralize
from photo_classifier.training.run_files import REPORT
from photo_classifier.training.run_folder import predict_command
from photo_classifier.training.run_state import RunState


@dataclass(frozen=True)
class FinishedTraining:
    """What a run trained, and what it saved.

    Args:
        settings: flags and their values that differ from the defaults.
        checkpoint: the file of the saved weights.
        kept: their epoch, counted from 1.
        seconds: how long the run took, if that is known.
    """

    model_name: str
    settings: Mapping[str, object]
    checkpoint: str
    kept: int
    seconds: float | None


def write_run_page(
    folder: Path,
    state: RunState,
    splits: Splits,
    training: FinishedTraining,
    open_photo: Callable[[str], Image.Image],
    spare_seconds: float | None = None,
) -> Path:
    """Writes `report.html` from what lies in the run folder; returns its path.

    `spare_seconds` is how long reading photos may take.
    """
    return write_page(folder, _about(folder, state, splits, training), open_photo, spare_seconds)


def _about(folder: Path, state: RunState, splits: Splits, training: FinishedTraining) -> About:
    """Returns what the page says about the run, partly from the files in its folder."""
    facts = {
        "Data": _data_rows(state, splits),
        "Settings that differ from the defaults": [
            (f"--{name}", "on" if value is True else str(value)) for name, value in training.settings.items()
        ],
        "Result": [
            ("checkpoint", training.checkpoint),
            ("saved", _saved(state.rows, training.kept)),
            *_last_row(folder),
            *([("duration", duration(training.seconds))] if training.seconds else []),
            ("this page is of", time.strftime("%Y-%m-%d %H:%M")),
        ],
        "Computed with": [
            ("device", state.device),
            ("precision", state.dtype.removeprefix("torch.")),
            *version_rows("torch", "torchvision", "timm"),
        ],
    }
    command = predict_command("--model_fn", training.checkpoint, "--input", "new_photos")
    title = f"{own_name(splits.root)}, {training.model_name}"
    return About(title, facts, splits.counts_by_class(), training.kept, command=command)


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
