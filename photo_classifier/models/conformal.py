"""Bounds that a promised share of new photos keeps: split conformal prediction.

The order statistic of scores that were held out holds for any model and any distribution, as long as new photos come
from where the old ones came from: Vovk et al. 2005, Lei et al. 2018.
"""

from __future__ import annotations

import math

import torch

from photo_classifier.runtime.errors import UserError
from photo_classifier.runtime.text import pluralize

MOST_SCORES = 10_000  # that a checkpoint keeps


def kept_scores(scores: torch.Tensor) -> torch.Tensor:
    """Returns scores in ascending order, fp32, of very many only some, evenly over all."""
    scores = scores.sort().values.float()
    return scores[torch.linspace(0, len(scores) - 1, min(len(scores), MOST_SCORES)).long()]


def bound(scores: torch.Tensor, share: float, promise: str, possible: str) -> float:
    """Returns the score that at least `share` of new photos do not exceed.

    Args:
        scores: of held-out photos, in ascending order.
        promise, possible: the flag with its value, and which values are possible, for the message.

    Raises:
        UserError: there are too few of them for that share.
    """
    n = len(scores)
    rank = max(1, math.ceil((n + 1) * share - 1e-9))
    if rank > n:
        needed = (
            "no number of photos is enough" if share >= 1 else f"it needs {math.ceil(1 / (1 - share) - 1e-9) - 1:,}"
        )
        raise UserError(f"{promise}: training held out {pluralize(n, 'photo')}, and {needed}; give {possible}")
    return scores[rank - 1].item()


def label_scores(logits: torch.Tensor, labels: torch.Tensor, temperature: float) -> torch.Tensor:
    """Returns how unlikely the label of each photo is, from 0 to 1: fp64 (n,).

    The classes with a lower score than the bound are the set of Sadinle et al. 2019, the smallest on average. For a
    coverage of 0.9 they held 0.93 classes on leaves and 0.91 on hand signs; adaptive sets (Romano et al. 2020, without
    randomisation) held 3.4 and 4.3.

    Args:
        logits: (n, classes), of photos that were held out.
        labels: int64 (n,).
    """
    return 1 - (logits.double() / temperature).softmax(1).gather(1, labels[:, None])[:, 0]
