"""A linear head that is solved: logistic regression, its penalty chosen by cross-validated log-likelihood."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import nn

from photo_classifier.features.loader import FeatureLoader, SplitFeatures
from photo_classifier.models.penalty_path import HeadData, PathPoint, PenaltyPath
from photo_classifier.runtime import data_parallel, distributed, signals
from photo_classifier.training.by_folds import phase_result
from photo_classifier.training.results import EpochResult, FinalResults, Outputs, PhaseResult
from photo_classifier.training.run import Run, SilentRun


class HeadTrainer(Protocol):
    """What `trainer.Trainer` has that a solved head uses."""

    epoch: int
    best: EpochResult | None
    last: EpochResult | None

    def evaluate(self, loader: FeatureLoader, run: Run | SilentRun, split: str) -> PhaseResult:
        """Measures the present weights."""

    def state_dict(self) -> dict:
        """Returns what a resume needs."""


def solve_and_measure(
    trainer: HeadTrainer,
    head: nn.Linear,
    loaders: Mapping[str, FeatureLoader],
    folds: Sequence[int],
    class_weights: torch.Tensor | None,
    run: Run | SilentRun,
) -> FinalResults:
    """Solves the head on the main process, which records each C of the path as an epoch; measures and saves it.

    Args:
        loaders: of the same photos as they are trained on (`train`) and as they are predicted (`valid`), and of `test`.
        folds: of each photo.
        class_weights: how much a photo of each class counts, (classes,), or None for the same.
    """
    train, valid = (loaders[name].features for name in ("train", "valid"))
    best, trainer.epoch = distributed.broadcast_from_main(
        lambda: _solve(head, *_head_data(train, valid, folds, class_weights, head.out_features), run.log)
    )
    data_parallel.broadcast_model(head)
    trainer.last = trainer.best = best
    results = {"valid": best.valid}
    if "test" in loaders:
        results["test"] = trainer.evaluate(loaders["test"], run, "test")
    run.save_measured(best.epoch, results, is_best=True)
    run.save_last(trainer.state_dict())
    return FinalResults(best, best, results, results)


def _head_data(
    train: SplitFeatures, valid: SplitFeatures, folds: Sequence[int], class_weights: torch.Tensor | None, n_classes: int
) -> tuple[HeadData, torch.Tensor]:
    """Returns the stored features of all photos that could be read, and their indices in the splits."""
    indices = (train.is_readable & valid.is_readable).nonzero()[:, 0]
    parts = [valid.rows(indices)]
    if train is not valid:
        parts += [train.rows(indices, view) for view in range(train.locations.shape[1])]
    labels = torch.tensor([valid.dataset.label_of(index) for index in indices.tolist()], dtype=torch.int64)
    weights = torch.ones(len(labels)) if class_weights is None else class_weights[labels]
    return HeadData(torch.stack(parts, 1), labels, torch.tensor(folds)[indices], weights.double(), n_classes), indices


def _solve(
    head: nn.Linear, data: HeadData, indices: torch.Tensor, log: Callable[[EpochResult, bool], None]
) -> tuple[EpochResult, int]:
    """Solves the head on the photos of those indices; logs each C of the path, and returns what the best comes to."""
    path, best, best_n, n_points = PenaltyPath(data), None, 0, 0

    def result_of(n: int, point: PathPoint, start: float) -> EpochResult:
        """Returns a C of the path as an epoch."""
        seen, held_out = (
            phase_result(Outputs(logits, data.labels, indices), time.perf_counter() - start)
            for logits in (point.seen, point.held_out)
        )
        return EpochResult(n, seen, held_out, {"C": point.strength})

    start = time.perf_counter()
    for n, point in enumerate(path.points()):
        signals.raise_if_requested()
        is_best = best is None or point.log_likelihood > best.log_likelihood
        best, best_n, n_points = (point, n, n + 1) if is_best else (best, best_n, n + 1)
        log(result_of(n, point, start), is_best)
        start = time.perf_counter()
    final = path.refined(best)
    with torch.no_grad():
        for parameter, value in zip((head.weight, head.bias), path.linear(final), strict=True):
            parameter.copy_(value)
    return result_of(best_n, final, start), n_points
