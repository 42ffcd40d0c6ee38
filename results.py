"""Images in, one `Prediction` each out: the loop over a loader, and the file that holds them."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO

import torch
from torch.utils.data import DataLoader

from splits import Sample
from utils import atomic_write, progress


@dataclass(frozen=True)
class Prediction:
    """One row of result.csv; the fields are its columns, the first two are fixed."""

    file_dir: str
    predict: str
    probability: float | None
    label: str
    status: str
    reason: str


def predict_samples(
    compute: Callable[[torch.Tensor], torch.Tensor],
    loader: DataLoader,
    samples: Sequence[Sample],
    class_names: Sequence[str],
    temperature: float = 1.0,
) -> Iterator[Prediction]:
    """One `Prediction` for every sample, in the order of the samples, whatever could not be read.

    Args:
        compute: uint8 images (n, 3, size, size) -> fp32 logits (n, classes).
        loader: over those samples, in their order.
        temperature: what the logits are divided by; it changes no class.
    """
    for batch in progress(loader, desc="predicting", unit="batch"):
        rows = {index: _failed(samples[index], reason) for index, reason in batch.bad}
        if len(batch.indices):
            logits = compute(batch.images)
            classes = logits.argmax(1)  # before the temperature, whose rounding could make ties
            probabilities = (logits / temperature).softmax(1).gather(1, classes[:, None])[:, 0]
            columns = (batch.indices.tolist(), classes.tolist(), probabilities.tolist())
            for index, k, p in zip(*columns, strict=True):
                sample = samples[index]
                rows[index] = Prediction(sample.path, class_names[k], p, sample.label or "", "ok", "")
        yield from (rows[index] for index in sorted(rows))


def _failed(sample: Sample, reason: str) -> Prediction:
    return Prediction(sample.path, "", None, sample.label or "", "error", reason)


def write_predictions(predictions: Iterable[Prediction], path: str | Path) -> Counts:
    """Writes result.csv, which appears when it is complete, and counts its rows.

    UTF-8 with a BOM, so that Excel shows Korean names.
    """
    with atomic_write(path, "w", encoding="utf-8-sig", newline="") as file:
        return _write_rows(predictions, file)


@dataclass
class Counts:
    """What a set of predictions came to; `n_labelled` are those read whose label is known."""

    n_rows: int = 0
    n_errors: int = 0
    n_labelled: int = 0
    n_correct: int = 0

    def add(self, prediction: Prediction) -> None:
        """Counts one row."""
        self.n_rows += 1
        self.n_errors += prediction.status == "error"
        if prediction.status == "ok" and prediction.label:
            self.n_labelled += 1
            self.n_correct += prediction.predict == prediction.label

    @property
    def accuracy_text(self) -> str:
        """`0.9412 (144/153)`."""
        return f"{self.n_correct / self.n_labelled:.4f} ({self.n_correct}/{self.n_labelled})"


def _write_rows(predictions: Iterable[Prediction], file: IO[str]) -> Counts:
    columns = [field.name for field in fields(Prediction)]
    writer, counts = csv.writer(file), Counts()
    writer.writerow(columns)
    for prediction in predictions:
        p = prediction.probability
        row = {**vars(prediction), "probability": "" if p is None else f"{p:.6f}"}
        # names that are no valid Unicode on this system are shown, not a reason to stop
        writer.writerow([str(row[name]).encode("utf-8", "backslashreplace").decode() for name in columns])
        counts.add(prediction)
    return counts
