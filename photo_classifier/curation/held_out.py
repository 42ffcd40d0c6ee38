"""What a head says of photos that it has not seen, from their stored features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from photo_classifier.data.checks import group_copies
from photo_classifier.data.folds import assign_folds
from photo_classifier.data.samples import Sample, Splits
from photo_classifier.features.loader import SplitFeatures
from photo_classifier.models.penalty_path import HeadData, PenaltyPath

N_FOLDS = 5
MOST_CLASSES = 100  # with more, the heads of the folds take more than a tenth of the backbone's time


@dataclass(frozen=True)
class JudgedPhotos:
    """The photos that are not test, and what heads that have not seen them say: `logits`, (n, classes).

    The first `n_training` are those of training. `features` are (n, d), `labels` int64 (n,).
    """

    samples: list[Sample]
    labels: torch.Tensor
    features: torch.Tensor
    logits: torch.Tensor
    n_training: int


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
    if len(features) < features.shape[1]:
        # a rotation into the space of these few photos changes no head and makes them much faster to fit
        features = torch.linalg.qr((features - features.mean(0)).T, mode="reduced")[1].T
    weights = torch.ones(len(labels), dtype=torch.float64)
    path = PenaltyPath(HeadData(features[:, None], labels, folds, weights, n_classes))
    return max(path.points(), key=lambda point: point.log_likelihood).held_out


def judge_photos(splits: Splits, features: Mapping[str, SplitFeatures], seed: int) -> JudgedPhotos:
    """Asks heads of folds of the photos of training and validation; by folds, which pool them, each once.

    Raises:
        UserError: there are fewer photos or groups than folds.
    """
    rows, samples, labels = [], [], []
    for name in ("train",) if splits.is_pooled else ("train", "valid"):
        means, indices = mean_features(features[name])
        rows.append(means)
        samples += [splits.by_name()[name][index] for index in indices.tolist()]
        labels += [features[name].dataset.label_of(index) for index in indices.tolist()]
    rows, labels, n_training = torch.cat(rows), torch.tensor(labels, dtype=torch.int64), len(rows[0])
    logits = held_out_logits(rows, labels, samples, len(splits.class_names), seed)
    return JudgedPhotos(samples, labels, rows, logits, n_training)
