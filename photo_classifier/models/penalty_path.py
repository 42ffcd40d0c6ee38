"""Logistic regression on features, from a strong penalty to a weak one, with folds beside the head of all photos."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from photo_classifier.models.logistic import Objective, minimize, penalties

# C of scikit-learn, for features that are scaled to a mean squared length of 1: from a strong penalty to a weak one
STRENGTHS = tuple(10 ** (k / 2) for k in range(-1, 11))
PATIENCE = 2  # strengths without a higher log-likelihood that end the path
# shares of the loss that are left when fitting ends: on the path, then the heads of the folds, and the final head
COARSE, FINE, EXACT = 3e-3, 1e-5, 1e-12


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
        factor = torch.linalg.cholesky(hessian).float()  # an estimate need not be exact, and fp32 is faster
        return lambda gradient: torch.cholesky_solve(gradient.flatten(1).float(), factor).double().view_as(gradient)

    def _point(self, strength: float, coefficients: torch.Tensor) -> PathPoint:
        data, heads = self.data, coefficients.float()
        held_out = torch.empty(len(data.labels), data.n_classes)
        for k in range(heads.shape[1] - 1):
            held_out[data.folds == k] = self.centre[data.folds == k] @ heads[:, k]
        own = held_out.double().log_softmax(1).gather(1, data.labels[:, None])[:, 0]
        log_likelihood = float((own * data.weights).sum() / data.weights.sum())
        return PathPoint(strength, coefficients, held_out, self.centre @ heads[:, -1], log_likelihood)
