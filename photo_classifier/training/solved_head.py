"""A linear head that is solved: logistic regression, its penalty chosen by cross-validated log-likelihood."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

from photo_classifier.features.loader import SplitFeatures
from photo_classifier.models.penalty_path import HeadData, PathPoint, PenaltyPath
from photo_classifier.runtime import data_parallel, distributed, signals
from photo_classifier.training.by_folds import phase_result
from photo_classifier.training.results import EpochResult, Outputs


def solve_on_main(
    head: nn.Linear,
    train: SplitFeatures,
    valid: SplitFeatures,
    folds: Sequence[int],
    class_weights: torch.Tensor | None,
    n_classes: int,
    log: Callable[[EpochResult, bool], None],
) -> tuple[EpochResult, int]:
    """Solves the head on the main process and gives it to all.

    Args:
        train, valid: the same photos, as they are trained on and as they are predicted.
        folds: of each photo.
        class_weights: how much a photo of each class counts, (classes,), or None for the same.
        log: records each C of the path as if it were an epoch.

    Returns:
        What the best C comes to, and how many there were.
    """
    solved = distributed.broadcast_from_main(
        lambda: _solve(head, *_head_data(train, valid, folds, class_weights, n_classes), log)
    )
    data_parallel.broadcast_model(head)
    return solved


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
