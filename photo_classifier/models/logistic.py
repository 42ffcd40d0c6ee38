"""Multinomial logistic regression: several problems on the same rows, solved side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

MEMORY = 20  # pairs that L-BFGS keeps
BLOCK = 2**21  # numbers in a block of rows, so that it stays in the processor's cache

Evaluate = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class Objective:
    """The losses of several problems and their gradients, summed in fp64.

    A loss is that of scikit-learn's `LogisticRegression` divided by its C: the weighted sum of the cross entropy plus
    half the penalised squares.

    Args:
        rows: features with a last column of ones for the intercept, (n, d + 1).
        labels: int64 (n,).
        weights: of the rows in each problem, (n, problems).
        penalty: of the square of each coefficient but those of the intercept.
        dtype: what products are computed in.
    """

    def __init__(
        self, rows: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor, penalty: float, dtype: torch.dtype
    ) -> None:
        self.parts = (rows, labels, weights)
        self.penalties = penalties(rows.shape[1], penalty)
        self.dtype = dtype

    def __call__(self, coefficients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns losses, (problems,), and gradients of coefficients, fp64 (d + 1, problems, classes)."""
        width, n_problems, n_classes = coefficients.shape
        flat = coefficients.reshape(width, -1).to(self.dtype)
        gradient = self.penalties[:, None, None] * coefficients
        loss, gradient = (gradient * coefficients).sum((0, 2)) / 2, gradient.reshape(width, -1)
        size = max(1, BLOCK // max(flat.shape))
        for rows, labels, weights in zip(*(part.split(size) for part in self.parts), strict=True):
            rows, weights = rows.to(self.dtype), weights.to(self.dtype)
            log_p = (rows @ flat).view(len(rows), n_problems, n_classes).log_softmax(2)
            own = labels[:, None, None].expand(-1, n_problems, 1)
            loss = loss - (log_p.gather(2, own)[:, :, 0] * weights).sum(0, dtype=torch.float64)
            residuals = log_p.exp_().scatter_add_(2, own, torch.full_like(own, -1, dtype=log_p.dtype))
            gradient += rows.T @ (residuals * weights[:, :, None]).view(len(rows), -1)
        return loss, gradient.view_as(coefficients)

    @property
    def rounding(self) -> float:
        """The relative error of a loss."""
        return 10 * torch.finfo(self.dtype).eps


def penalties(width: int, penalty: float) -> torch.Tensor:
    """Returns the penalty of each coefficient, fp64 (d + 1,); the intercept has none."""
    return torch.full((width,), penalty, dtype=torch.float64).index_fill_(0, torch.tensor(width - 1), 0.0)


class Pair(NamedTuple):
    """A step and the change of the gradient over it, (d + 1, problems, classes); what L-BFGS learns from them."""

    step: torch.Tensor
    change: torch.Tensor
    inverse: torch.Tensor  # 1 / (step * change), (problems,); 0 where the pair says nothing
    scale: torch.Tensor  # of the preconditioner, (problems,)


def minimize(
    objective: Objective,
    start: torch.Tensor,
    precondition: Callable[[torch.Tensor], torch.Tensor],
    tolerance: float,
    max_steps: int = 1000,
) -> torch.Tensor:
    """Minimises convex problems side by side by preconditioned L-BFGS; Nocedal and Wright 2006, algorithm 7.4.

    Args:
        start: coefficients, fp64 (d + 1, problems, classes).
        precondition: multiplies gradients by an estimate of the inverse Hessian.
        tolerance: ends when a Newton step would lower no loss by more than half of this share of it.
    """
    x, (loss, gradient), pairs = start, objective(start), []
    for _ in range(max_steps):
        direction = _direction(gradient, pairs, precondition)
        slope = _dot(direction, gradient)
        if bool((-slope <= tolerance * loss).all()):
            break
        new_x, new_loss, new_gradient = _search(objective, x, loss, direction, slope)
        pairs = [*pairs[1 - MEMORY :], _pair(new_x - x, new_gradient - gradient, precondition)]
        if bool((new_loss >= loss).all()):  # only rounding is left
            break
        x, loss, gradient = new_x, new_loss, new_gradient
    return x


def _search(
    objective: Objective, x: torch.Tensor, loss: torch.Tensor, direction: torch.Tensor, slope: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Halves the steps until each loss falls enough; Armijo's rule."""
    steps = torch.ones_like(loss)
    for _ in range(30):
        new_x = x + steps[:, None] * direction
        new_loss, gradient = objective(new_x)
        fails = ~(new_loss <= loss + 1e-4 * steps * slope + objective.rounding * loss.abs())
        if not bool(fails.any()):
            break
        steps = torch.where(fails, steps / 2, steps)
    return new_x, new_loss, gradient


def _direction(
    gradient: torch.Tensor, pairs: Sequence[Pair], precondition: Callable[[torch.Tensor], torch.Tensor]
) -> torch.Tensor:
    q, factors = gradient, []
    for pair in reversed(pairs):
        factors.append(pair.inverse * _dot(pair.step, q))
        q = q - factors[-1][:, None] * pair.change
    r = precondition(q)
    if pairs:
        r = r * pairs[-1].scale[:, None]
    for pair in pairs:
        r = r + (factors.pop() - pair.inverse * _dot(pair.change, r))[:, None] * pair.step
    return -r


def _pair(step: torch.Tensor, change: torch.Tensor, precondition: Callable[[torch.Tensor], torch.Tensor]) -> Pair:
    product, length = _dot(step, change), _dot(change, precondition(change))
    is_useful = (product > 0) & (length > 0)
    inverse, scale = torch.where(is_useful, 1 / product, 0.0), torch.where(is_useful, product / length, 1.0)
    return Pair(step, change, inverse, scale)


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Returns the products of the coefficients of each problem, (problems,)."""
    return (a * b).sum((0, 2))
