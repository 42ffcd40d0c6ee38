"""Whether more photos would help: heads on parts of those that there are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from photo_classifier.curation.held_out import JudgedPhotos, held_out_logits
from photo_classifier.data.checks import group_copies
from photo_classifier.data.folds import assign_folds
from photo_classifier.evaluation.learning_curve import UNTOLD, advice, learning_curve
from photo_classifier.runtime.seeding import derive_seed

FEWEST = 80  # photos; the quarters of fewer are too small for folds
QUARTERS = {0.25: [(0,), (1,), (2,), (3,)], 0.5: [(0, 1), (2, 3)], 0.75: [(0, 1, 2)]}


def curve_of(judged: JudgedPhotos, class_names: Sequence[str], seed: int, rare: str = "") -> dict:
    """Returns `learning_curve` and `more_photos`, the advice, for a report; nothing for too few photos.

    Each photo is asked of heads that learned from a quarter of the photos, a half, and three quarters; what those of
    all photos say is in `judged`.

    Args:
        rare: a rare class that is recognised much less often than the others, if there is one.

    Raises:
        UserError: there are fewer groups of photos than folds.
    """
    n = len(judged.labels)
    if n < FEWEST:
        return {}
    quarter = torch.tensor(assign_folds(group_copies(judged.samples), 4, derive_seed(seed, "quarters")))
    is_right = np.full((4, n), np.nan)
    is_right[3] = judged.logits.argmax(1) == judged.labels
    for row, parts in enumerate(QUARTERS.values()):
        for part in parts:
            chosen = torch.isin(quarter, torch.tensor(part)).nonzero()[:, 0]
            is_right[row, chosen] = _answers(judged, chosen, len(class_names), seed) == judged.labels[chosen]
    sizes = [round(share * n) for share in QUARTERS] + [n]
    rows = learning_curve(sizes, is_right)
    text = advice(rows, is_right[1::2], judged.labels.numpy(), class_names, rare)
    return {"learning_curve": rows, "more_photos": text}


def _answers(judged: JudgedPhotos, chosen: torch.Tensor, n_classes: int, seed: int) -> torch.Tensor:
    samples = [judged.samples[index] for index in chosen.tolist()]
    return held_out_logits(judged.features[chosen], judged.labels[chosen], samples, n_classes, seed).argmax(1)


def learning_text(report: dict) -> str:
    """Returns the gain to be expected in a line; empty if there is no curve, or if it tells nothing.

    The accuracies of the curve are of heads of its own, so they are not shown beside those of the run.
    """
    if not report.get("learning_curve") or report["more_photos"].startswith(UNTOLD):
        return ""
    *_, now, twice = report["learning_curve"]
    low, high = (f"{100 * max(0.0, twice[name] - now['accuracy']):.1f}" for name in ("low", "high"))
    return f"{report['more_photos']}: twice as many would raise the accuracy by {low} to {high} points"
