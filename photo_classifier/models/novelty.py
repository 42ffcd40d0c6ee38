"""How unlike the training photos a photo is, by the input of the head."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from photo_classifier.models.conformal import bound, kept_scores
from photo_classifier.runtime.errors import UserError
from photo_classifier.runtime.plain_values import Finite, Positive

MOST_DIRECTIONS, MOST_BYTES = 256, 5 * 2**17  # of the projection, and again of the references
MOST_PHOTOS = 5000  # that a space is fitted on
SHRINKAGE = 0.1  # the share of a round covariance in that of the features
N_NEAREST, N_SCORES = 5, 4


@dataclass(frozen=True)
class Space:
    """The training photos in a space where the photos of a class vary about equally in all directions.

    `centre`, (d,), is subtracted from features; `basis`, (d, r), has the directions in which they vary most, and
    `whitening`, (r, r), leads from there into the space. `discriminants`, (r, c), are the directions in which the
    classes differ, and `class_means`, (classes, c), lie in these. `references`, (m, r), are training photos of
    length 1.
    """

    centre: torch.Tensor
    basis: torch.Tensor
    whitening: torch.Tensor
    discriminants: torch.Tensor
    class_means: torch.Tensor
    references: torch.Tensor

    def scores(self, features: torch.Tensor) -> torch.Tensor:
        """Returns how unlike the training photos features, (n, d), are in four ways: (n, 4).

        - the squared distance to the nearest class where the classes differ: linear discriminant analysis
        - the cosine to the nearest photos (Sun et al. 2022), in the space of Lee et al. 2018
        - the share of the length that no training photo explains (Wang et al. 2022)
        - the cosine to the mean of all training photos, without subtracting it

        Each is the best on other photos: the first on hand signs, the second on leaves, the third on photos of
        something else altogether, the fourth on these where there are only two or three classes.
        """
        rows = features.float() - self.centre
        inside = rows @ self.basis.float()
        lengths = rows.square().sum(1).clamp(min=1e-12)
        outside = (1 - inside.square().sum(1) / lengths).clamp(min=0).sqrt()
        inside = inside @ self.whitening.float()
        to_class = torch.cdist(inside @ self.discriminants.float(), self.class_means.float()).min(1).values.square()
        cosines = torch.nn.functional.normalize(inside) @ self.references.float().T
        nearest = cosines.topk(min(N_NEAREST, cosines.shape[1]), 1).values.mean(1)
        from_mean = 1 - torch.nn.functional.cosine_similarity(features.float(), self.centre[None])
        return torch.stack([to_class, 1 - nearest, outside, from_mean], 1)

    @property
    def weights(self) -> list[float]:
        """How much each score counts: the last one less with many classes, as these differ in many directions."""
        return [1.0, 1.0, 1.0, 1 / max(1, len(self.class_means) - 1)]


@dataclass(frozen=True)
class Novelty:
    """The distance of a photo from the training photos, and what it is for photos of the same kind.

    Args:
        means, deviations: of the scores of held-out photos, so that all have the same unit. Checkpoints of earlier
            versions have the first three.
        held_out: the distances of held-out photos in ascending order.
    """

    space: Space
    means: tuple[Finite, ...]
    deviations: tuple[Positive, ...]
    held_out: torch.Tensor

    def distances(self, features: torch.Tensor) -> torch.Tensor:
        """Returns the distances of head inputs, (n, ...): fp32 (n,); 0 is usual, 1 one standard deviation more.

        Raises:
            UserError: they are of another network.
        """
        features = pooled(features)
        if features.shape[1] != len(self.space.centre):
            raise UserError(
                f"the distances of this checkpoint are for {len(self.space.centre)} features, but its network has "
                f"{features.shape[1]}; train it again"
            )
        with torch.autocast(features.device.type, enabled=False):
            means, deviations = torch.tensor([self.means, self.deviations], device=features.device)
            return _distances(self.space, self.space.scores(features)[:, : len(means)], means, deviations)

    def threshold(self, false_alarm: float) -> float:
        """Returns the distance that a share of at most `false_alarm` of photos like the training photos exceed.

        Raises:
            UserError: there were too few held-out photos for that.
        """
        least = math.ceil(1000 / (len(self.held_out) + 1)) / 1000
        return bound(self.held_out, 1 - false_alarm, f"--false_alarm {false_alarm:g}", f"at least {least:g}")

    @property
    def is_sound(self) -> bool:
        """Whether the values that were read from a file fit together."""
        s, tensors = self.space, [*vars(self.space).values(), self.held_out]
        shapes = [tuple(tensor.shape) for tensor in tensors]
        (d, r), (_, c) = (part.shape if part.dim() == 2 else (0, 0) for part in (s.basis, s.discriminants))
        n_classes, m, n = (len(part) if part.dim() else 0 for part in (s.class_means, s.references, self.held_out))
        fitting = [(d,), (d, r), (r, r), (r, c), (n_classes, c), (m, r), (n,)]
        is_number = all(tensor.is_floating_point() and tensor.isfinite().all() for tensor in tensors)
        is_whole = len(self.means) == len(self.deviations) and len(self.means) in (N_SCORES - 1, N_SCORES)
        return shapes == fitting and min(d, r, n_classes, m, n) > 0 and is_number and is_whole

    def to(self, device: torch.device) -> Novelty:
        """Returns the same on another device."""
        return replace(self, space=Space(*(tensor.to(device) for tensor in vars(self.space).values())))


def pooled(features: torch.Tensor) -> torch.Tensor:
    """Returns features, (n, d), of head inputs, (n, ...): the mean over the places of an image."""
    return features.float().flatten(2).mean(2) if features.dim() > 2 else features.float()


def fit_space(features: torch.Tensor, labels: torch.Tensor) -> Space:
    """Returns the space of training photos.

    Args:
        features: fp32 (n, d).
        labels: int64 (n,); two classes or more.
    """
    kept = _evenly(len(features), MOST_PHOTOS)
    features, labels = features[kept], labels[kept]
    centre, classes = features.mean(0), labels.unique(return_inverse=True)[1]
    rows = features - centre
    basis = _main_directions(rows)
    inside = rows @ basis
    means = _class_means(inside, classes)
    within = inside - means[classes]
    covariance = within.T @ within / len(within)
    round_part = covariance.diagonal().mean().clamp(min=1e-4 * inside.square().mean().clamp(min=1e-12))
    factor = torch.linalg.cholesky((1 - SHRINKAGE) * covariance.double() + SHRINKAGE * round_part * _eye(basis))
    whitening = torch.linalg.inv(factor).T.float()
    inside = inside @ whitening
    means = _class_means(inside, classes)
    directions = torch.linalg.svd(means - means.mean(0), full_matrices=False)[2][: len(means) - 1].T
    references = torch.nn.functional.normalize(inside)[_evenly(len(inside), MOST_BYTES // (2 * inside.shape[1]))]
    basis, directions, means, references = (
        part.half().contiguous() for part in (basis, directions, means @ directions, references)
    )
    return Space(centre, basis, whitening, directions, means, references)


def fit_novelty(space: Space, scores: torch.Tensor) -> Novelty | None:
    """Returns the distances in a space, or None if there is no difference to measure them by.

    Args:
        scores: (n, 4), of photos that were held out.
    """
    deviations = scores.std(0)
    if len(scores) < 2 or not deviations.isfinite().all() or not (deviations > 0).all():
        return None
    distances = _distances(space, scores, scores.mean(0), deviations)
    return Novelty(space, tuple(scores.mean(0).tolist()), tuple(deviations.tolist()), kept_scores(distances))


def _distances(space: Space, scores: torch.Tensor, means: torch.Tensor, deviations: torch.Tensor) -> torch.Tensor:
    weights = torch.tensor(space.weights[: scores.shape[1]], device=scores.device)
    return ((scores - means) / deviations) @ (weights / weights.sum())


def _main_directions(rows: torch.Tensor) -> torch.Tensor:
    """Returns about the directions in which the rows vary most, (d, r), as many as there is space for.

    A random sketch (Halko et al. 2011) with one pass over the rows tells classes as well as one with three, and costs
    a third: of left-out leaves, hand signs and solar cells it changes the area under the curve by less than 0.004.
    """
    n_directions = min(MOST_DIRECTIONS, MOST_BYTES // (2 * rows.shape[1]), len(rows) - 1, rows.shape[1])
    sketch = torch.randn(rows.shape[1], max(1, n_directions), generator=torch.Generator().manual_seed(0))
    return torch.linalg.qr(rows.T @ (rows @ sketch))[0]


def _evenly(n: int, most: int) -> torch.Tensor:
    """Returns at most so many of n indices; samples are sorted by class, and each class keeps its share."""
    return torch.linspace(0, n - 1, min(n, most)).long()


def _class_means(rows: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    sums = rows.new_zeros(int(classes.max()) + 1, rows.shape[1]).index_add_(0, classes, rows)
    return sums / classes.bincount()[:, None]


def _eye(basis: torch.Tensor) -> torch.Tensor:
    return torch.eye(basis.shape[1], dtype=torch.float64)
