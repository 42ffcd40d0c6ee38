"""What a head says of photos that it has not seen, from their stored features."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from photo_classifier.data.checks import group_copies
from photo_classifier.data.folds import assign_folds
from photo_classifier.data.samples import Sample
from photo_classifier.features.loader import SplitFeatures
from photo_classifier.models.penalty_path import HeadData, PenaltyPath

N_FOLDS = 5


def mean_features(features: SplitFeatures) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the mean over the views of each photo that could be read, fp32 (n, d), and their indices, int64 (n,)."""
    indices = features.is_readable.nonzero()[:, 0]
    n_views = features.locations.shape[1]
    return sum(features.rows(indices, view).flatten(1).float() for view in range(n_views)) / n_views, indices


def held_out_logits(
    features: torch.Tensor, labels: torch.Tensor, samples: Sequence[Sample], n_classes: int, seed: int
) -> torch.Tensor:
    """Returns logits of each photo, (n, classes), from logistic regression on the other folds.

    Copies of a photo, and photos of one group, are in the same fold.

    Args:
        features: (n, d).
        labels: int64 (n,).

    Raises:
        UserError: there are fewer photos or groups than folds.
    """
    folds = torch.tensor(assign_folds(group_copies(samples), N_FOLDS, seed))
    weights = torch.ones(len(labels), dtype=torch.float64)
    path = PenaltyPath(HeadData(features[:, None], labels, folds, weights, n_classes))
    return max(path.points(), key=lambda point: point.log_likelihood).held_out
