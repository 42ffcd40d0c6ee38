"""A linear head that is solved: logistic regression, its penalty chosen by cross-validated log-likelihood."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from photo_classifier.features.loader import SplitFeatures
from photo_classifier.runtime import signals
from photo_classifier.training.by_folds import phase_result
from photo_classifier.training.logistic import Objective, minimize, penalties
from photo_classifier.training.results import EpochResult, Outputs

# C of scikit-learn, for features that are scaled to a mean squared length of 1: from a strong penalty to a weak one
STRENGTHS = tuple(10 ** (k / 2) for k in range(-1, 11))
PATIENCE = 2  # strengths without a higher log-likelihood that end the path
# shares of the loss that are left when fitting ends: on the path, then the heads of the folds, and the final head
COARSE, FINE, EXACT = 1e-3, 1e-6, 1e-14


@dataclass(frozen=True)
class HeadData:
    """The photos that a head is fitted on.

    `views`, (n, views, d), are their features; the first view is the one that is predicted. The rest is (n,): `labels`
    and `folds`, int64, and `weights`, how much each photo counts.
    """

    views: torch.Tensor
    labels: torch.Tensor
    folds: torch.Tensor
    weights: torch.Tensor
    n_classes: int


@dataclass(frozen=True)
class PathPoint:
    """The heads for one C: coefficients, (d + 1, folds + 1, classes), each fold's and those of all photos last.

    `held_out` are the logits of each photo by the head that has not seen it, `seen` by the one that has: (n, classes).
    """

    strength: float
    coefficients: torch.Tensor
    held_out: torch.Tensor
    seen: torch.Tensor
    log_likelihood: float  # the weighted mean of `held_out`, in nats


class PenaltyPath:
    """Fits the heads of all folds, and that of all photos, from a strong penalty to a weak one.

    Centring and scaling the features changes no probability but makes the same C fit all backbones; `linear` folds it
    into the layer. One scale for all features does as well as one for each: over ants and bees, banana leaves and
    hand signs the log-likelihoods differ by less than 0.01 both ways.
    """

    def __init__(self, data: HeadData) -> None:
        self.data, n_views = data, data.views.shape[1]
        rows = data.views.float().flatten(0, 1)
        self.mean = rows.mean(0)
        rows = rows - self.mean
        self.scale = rows.square().sum(1).mean().sqrt().clamp(min=1e-12)
        self.rows = torch.cat([rows / self.scale, torch.ones(len(rows), 1)], 1)
        self.centre = self.rows.view(len(data.views), n_views, -1)[:, 0]
        self.labels = data.labels.repeat_interleave(n_views)
        n_folds = int(data.folds.max()) + 1
        is_seen = torch.stack([*(data.folds != k for k in range(n_folds)), torch.ones_like(data.folds) > 0], 1)
        self.weights = (is_seen * data.weights[:, None] / n_views).float().repeat_interleave(n_views, 0)
        self.gram = ((self.rows * self.weights[:, -1:]).T @ self.rows).double()

    def points(self) -> Iterator[PathPoint]:
        """Yields the path, which ends when the log-likelihood of held-out photos falls."""
        shape = (self.rows.shape[1], self.weights.shape[1], self.data.n_classes)
        point, history = self._point(0.0, torch.zeros(shape, dtype=torch.float64)), []
        for strength in STRENGTHS:
            # as if all photos were equally certain: that the final head is sure of those that a fold must not see
            # would lead the fold's head
            p = point.seen.softmax(1)
            curvature = (p * (1 - p)).mean().clamp(min=2e-3)
            precondition = self._preconditioner(strength, curvature * self.gram)
            point = self._point(strength, minimize(self._objective(strength), point.coefficients, precondition, COARSE))
            yield point
            history.append(point.log_likelihood)
            if len(history) - 1 - history.index(max(history)) >= PATIENCE:
                return

    def refined(self, point: PathPoint) -> PathPoint:
        """Returns the heads of a point at their optimum: those of the folds closely, that of all photos exactly."""
        p = (self.rows @ point.coefficients[:, -1].float()).softmax(1)
        curvature = (p * (1 - p)).mean(1, keepdim=True)
        hessian = ((self.rows * self.weights[:, -1:] * curvature).T @ self.rows).double() + 1e-3 * self.gram
        precondition = self._preconditioner(point.strength, hessian)
        heads = minimize(self._objective(point.strength), point.coefficients, precondition, FINE)
        objective = self._objective(point.strength, slice(-1, None), torch.float64)
        exact = minimize(objective, heads[:, -1:].contiguous(), precondition, EXACT)
        return self._point(point.strength, torch.cat([heads[:, :-1], exact], 1))

    def linear(self, point: PathPoint) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns weight, fp64 (classes, d), and bias of the head of all photos, for features as they are stored."""
        weight = point.coefficients[:-1, -1].T / self.scale
        return weight, point.coefficients[-1, -1] - weight @ self.mean.double()

    def _objective(
        self, strength: float, problems: slice = slice(None), dtype: torch.dtype = torch.float32
    ) -> Objective:
        return Objective(self.rows, self.labels, self.weights[:, problems], 1 / strength, dtype)

    def _preconditioner(self, strength: float, hessian: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """Returns a product with the inverse of a Hessian, to which the penalty is added."""
        hessian = hessian + (penalties(len(hessian), 1 / strength) + 1e-6 * hessian.diagonal().max()).diag()
        factor = torch.linalg.cholesky(hessian)
        return lambda gradient: torch.cholesky_solve(gradient.flatten(1), factor).view_as(gradient)

    def _point(self, strength: float, coefficients: torch.Tensor) -> PathPoint:
        data, heads = self.data, coefficients.float()
        held_out = torch.empty(len(data.labels), data.n_classes)
        for k in range(heads.shape[1] - 1):
            held_out[data.folds == k] = self.centre[data.folds == k] @ heads[:, k]
        own = held_out.double().log_softmax(1).gather(1, data.labels[:, None])[:, 0]
        log_likelihood = float((own * data.weights).sum() / data.weights.sum())
        return PathPoint(strength, coefficients, held_out, self.centre @ heads[:, -1], log_likelihood)


def head_data(
    train: SplitFeatures, valid: SplitFeatures, folds: Sequence[int], class_weights: torch.Tensor | None, n_classes: int
) -> tuple[HeadData, torch.Tensor]:
    """Returns the stored features of all photos that could be read, and their indices in the splits.

    Args:
        train, valid: the same photos, as they are trained on and as they are predicted.
        class_weights: how much a photo of each class counts, (classes,), or None for the same.
    """
    indices = ((train.locations[..., 0] >= 0).all(1) & (valid.locations[..., 0] >= 0).all(1)).nonzero()[:, 0]
    parts = [valid.rows(indices)]
    if train is not valid:
        parts += [train.rows(indices, view) for view in range(train.locations.shape[1])]
    labels = torch.tensor([valid.dataset.label_of(index) for index in indices.tolist()], dtype=torch.int64)
    weights = torch.ones(len(labels)) if class_weights is None else class_weights[labels]
    return HeadData(torch.stack(parts, 1), labels, torch.tensor(folds)[indices], weights.double(), n_classes), indices


def solve(
    head: nn.Linear, data: HeadData, indices: torch.Tensor, log: Callable[[EpochResult, bool], None]
) -> tuple[EpochResult, int]:
    """Solves the head; logs each C of the path as if it were an epoch.

    Args:
        indices: of the photos in their split.

    Returns:
        What the best C comes to, and how many there were.
    """
    path, best, best_n, n_points = PenaltyPath(data), None, 0, 0

    def result_of(n: int, point: PathPoint, start: float) -> EpochResult:
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
