"""What folds come to: the outputs for each image are those of the head that has not seen it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from photo_classifier.data.samples import Splits
from photo_classifier.training.results import EpochResult, Outputs, PhaseResult, RunningMetrics
from photo_classifier.training.run import SilentRun
from photo_classifier.training.run_folder import write_table


class FoldRecorder(SilentRun):
    """Keeps the validation of every epoch of one fold, and writes nothing: the `trainer.Recorder` of its head."""

    def __init__(self) -> None:
        self.validations: list[PhaseResult] = []

    def log(self, result: EpochResult, _is_best: bool) -> None:
        """Keeps the validation of an epoch."""
        self.validations.append(result.valid)


def phase_result(outputs: Outputs, seconds: float = 0.0) -> PhaseResult:
    """Returns what these outputs come to."""
    sums = RunningMetrics(torch.device("cpu"))
    loss = nn.functional.cross_entropy(outputs.logits, outputs.labels, reduction="sum")
    sums.add(outputs.labels, outputs.logits, loss)
    sums.seconds = seconds
    return replace(sums.result("valid"), outputs=outputs)


def joined(parts: Sequence[PhaseResult]) -> PhaseResult:
    """Returns the validation of all folds as one, in the order of the images."""
    columns = zip(*(vars(part.outputs).values() for part in parts), strict=True)
    logits, labels, indices = map(torch.cat, columns)
    order = indices.argsort()
    return phase_result(Outputs(logits[order], labels[order], indices[order]), sum(part.seconds for part in parts))


def write_folds(path: Path, splits: Splits, folds: Sequence[int], outputs: Outputs, temperature: float) -> None:
    """Writes `folds.csv`: each image with its fold, and what the head that has not seen it says."""
    probabilities = (outputs.logits.double() / temperature).softmax(1)
    rows = []
    for index, row in zip(outputs.indices.tolist(), probabilities.tolist(), strict=True):
        sample = splits.valid[index]
        answer = {"fold": folds[index] + 1, "predict": splits.class_names[row.index(max(row))]}
        shares = {f"p_{name}": round(p, 6) for name, p in zip(splits.class_names, row, strict=True)}
        rows.append({"path": sample.path, "label": sample.label, **answer, **shares})
    write_table(path, rows)


def spread_text(folds: Sequence[int], outputs: Outputs) -> str:
    """Returns how far the accuracies of the folds are apart: `5 folds: accuracy 0.9241 to 0.9750, ...`."""
    fold_of, is_right = torch.tensor(folds)[outputs.indices], outputs.logits.argmax(1) == outputs.labels
    accuracies = [is_right[fold_of == fold].double().mean().item() for fold in fold_of.unique()]
    deviation = statistics.stdev(accuracies) if len(accuracies) > 1 else 0.0
    return (
        f"{len(accuracies)} folds: accuracy {min(accuracies):.4f} to {max(accuracies):.4f}, "
        f"standard deviation {deviation:.4f}"
    )
