"""Proves that an exported model answers as its checkpoint does, photo by photo, from the files."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from photo_classifier.prediction.formats import texts
from photo_classifier.prediction.results import Prediction, columns_of, row_of
from photo_classifier.runtime.errors import UserError
from photo_classifier.runtime.text import pluralize

AGREEMENT = 1e-4  # between two ways to compute in fp32; classes whose probabilities are as close as that are a tie


@dataclass
class Proof:
    """What the comparison came to; times include reading and decoding."""

    n_photos: int = 0
    n_unreadable: int = 0
    largest_difference: float = 0.0
    changed_answers: int = 0
    ties: list[str] = field(default_factory=list)
    identical_rows: int = 0
    milliseconds_per_photo: dict[str, float] = field(default_factory=dict)

    def add(self, ours: Prediction, theirs: Prediction) -> None:
        """Compares two predictions for one photo; raises UserError if they differ by more than rounding."""
        self.n_photos += 1
        self.n_unreadable += ours.status == "error"
        columns = columns_of(class_names=list(ours.probabilities or ()))
        self.identical_rows += texts(row_of(ours), columns) == texts(row_of(theirs), columns)
        if (ours.status, ours.reason) != (theirs.status, theirs.reason):
            raise UserError(_text(ours, theirs))
        if ours.status == "error":
            return
        difference = max(abs(p - theirs.probabilities[name]) for name, p in ours.probabilities.items())
        self.largest_difference = max(self.largest_difference, difference)
        gap = ours.probability - ours.probabilities[theirs.best_guess]
        if difference > AGREEMENT or gap > AGREEMENT:
            raise UserError(_text(ours, theirs))
        if ours.best_guess != theirs.best_guess:
            self.changed_answers += 1
            self.ties.append(ours.file_dir)


def prove(ours: Iterable[Prediction], theirs: Iterable[Prediction]) -> tuple[Proof, list[Prediction]]:
    """Compares the predictions of a checkpoint and of what was made from it, both with the probability of every class.

    Returns:
        What it came to, and the predictions of the checkpoint.

    Raises:
        UserError: a photo has another answer, or none can be read; the message names it.
    """
    proof, start = Proof(), time.perf_counter()
    ours = list(ours)
    middle = time.perf_counter()
    for mine, its in zip(ours, theirs, strict=True):
        proof.add(mine, its)
    if proof.n_unreadable == proof.n_photos:
        what = f"none of {pluralize(len(ours), 'photo')} can be read ({ours[0].file_dir}: {ours[0].reason})"
        raise UserError(f"{what}, so nothing was proven and no file written; give others with --input")
    seconds = {"checkpoint": middle - start, "exported": time.perf_counter() - middle}
    proof.milliseconds_per_photo = {name: round(1000 * s / len(ours), 2) for name, s in seconds.items()}
    return proof, ours


def load_file(path: Path) -> ModuleType:
    """Imports the one-file predictor from where it was written."""
    spec = importlib.util.spec_from_file_location(f"exported_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


def _text(ours: Prediction, theirs: Prediction) -> str:
    def shown(p: Prediction) -> str:
        return f"{p.best_guess} ({p.probability:.6f})" if p.status == "ok" else f"no answer ({p.reason})"

    return (
        f"{ours.file_dir}: the checkpoint gives {shown(ours)}, the exported model {shown(theirs)}; no file was "
        "written, as it would answer differently"
    )
