"""Folds: each image is validated by a head that has not seen it, and what that comes to."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from photo_classifier.data.samples import Splits
from photo_classifier.features.loader import FeatureLoader
from photo_classifier.runtime import distributed
from photo_classifier.runtime.console import quiet
from photo_classifier.training.results import EpochResult, Outputs, PhaseResult, RunningMetrics
from photo_classifier.training.run import SilentRun
from photo_classifier.training.run_folder import write_table


class FoldTrainer(Protocol):
    """What `trainer.Trainer` has that trains the head of a fold."""

    def fit(self, train_loader: FeatureLoader, valid_loader: FeatureLoader, run: FoldRecorder, n_epochs: int) -> object:
        """Runs the epochs."""


class FoldRecorder(SilentRun):
    """Keeps the validation of every epoch of one fold, and writes nothing: the `trainer.Recorder` of its head."""

    def __init__(self) -> None:
        self.validations: list[PhaseResult] = []

    def log(self, result: EpochResult, _is_best: bool) -> None:
        """Keeps the validation of an epoch."""
        self.validations.append(result.valid)


def validate_by_folds(
    folds: Sequence[int],
    loaders: Mapping[str, FeatureLoader],
    make_trainer: Callable[[int, Sequence[int]], FoldTrainer],
    n_epochs: int,
) -> list[PhaseResult]:
    """Trains a head on all but each fold; returns the validation of every epoch, each image by the one without it.

    Args:
        folds: of each image.
        loaders: of the stored features of all images: `train` as they are trained on, `valid` as they are predicted.
        make_trainer: returns the trainer of a head of its own for a fold, and the images that it trains on.
    """
    by_fold = []
    for fold in sorted(set(folds)):
        seen = [n for n, other in enumerate(folds) if other != fold]
        held_out = [n for n, other in enumerate(folds) if other == fold]
        trainer, recorder = make_trainer(fold, seen), FoldRecorder()
        train, valid = (
            loaders[name].features.loader(loaders[name].batch_sampler.batch_size, only)
            for name, only in (("train", seen), ("valid", held_out))
        )
        with quiet():  # its epochs are not those of the run
            trainer.fit(train, valid, recorder, n_epochs)
        by_fold.append(recorder.validations)
    # the outputs of all images are on the main process alone
    return distributed.broadcast_from_main(lambda: [joined(parts) for parts in zip(*by_fold, strict=True)])


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
