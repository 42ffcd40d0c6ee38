"""Accuracy by the number of photos, and what more of them would bring."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from photo_classifier.evaluation.metrics import wilson_interval

EXPONENTS = np.arange(0.1, 1.01, 0.1)
N_BOOTSTRAP, SEED = 200, 0
WORTH_IT = 0.005  # of accuracy, from twice as many photos


def power_law(sizes: np.ndarray, errors: np.ndarray, at: float) -> float:
    """Returns the error at another size by the inverse power law a + b n^-c that fits best, with a and b at least 0.

    Learning curves of classifiers follow it: Cortes et al. 1993, Figueroa et al. 2012.
    """
    from scipy.optimize import nnls

    def fitted(exponent: float) -> tuple[float, float]:
        columns = np.stack([np.ones(len(sizes)), (sizes / sizes[-1]) ** -exponent], 1)
        (floor, slope), residual = nnls(columns, errors)
        return residual, floor + slope * (at / sizes[-1]) ** -exponent

    return min(fitted(exponent) for exponent in EXPONENTS)[1]


def learning_curve(sizes: Sequence[int], is_right: np.ndarray) -> list[dict]:
    """Returns the measured accuracies, and that to be expected of twice as many photos, each with a 95 % band.

    Args:
        sizes: numbers of photos, ascending.
        is_right: (sizes, n), whether each photo was answered right by a head that had not seen it; NaN where it was
            not asked.
    """
    counts = [(int(np.nansum(row)), int((~np.isnan(row)).sum())) for row in is_right]
    rows = [
        {"photos": n, "accuracy": right / asked, "low": low, "high": high}
        for n, (right, asked) in zip(sizes, counts, strict=True)
        for low, high in [wilson_interval(right, asked)]
    ]
    sizes, twice = np.asarray(sizes, float), 2 * sizes[-1]
    rng = np.random.default_rng(SEED)
    draws = rng.multinomial(is_right.shape[1], np.full(is_right.shape[1], 1 / is_right.shape[1]), N_BOOTSTRAP)
    known, wrong = ~np.isnan(is_right), np.nan_to_num(1 - is_right)
    errors = [(wrong * draw).sum(1) / (known * draw).sum(1).clip(1) for draw in draws]
    low, high = 1 - np.quantile([power_law(sizes, error, twice) for error in errors], (0.975, 0.025))
    expected = 1 - power_law(sizes, 1 - np.array([row["accuracy"] for row in rows]), twice)
    expected = float(np.clip(expected, low, high))
    return [*rows, {"photos": twice, "accuracy": expected, "low": low, "high": high, "is_expected": True}]


def advice(rows: Sequence[dict], is_right: np.ndarray, labels: np.ndarray, class_names: Sequence[str]) -> str:
    """Returns whether more photos help, and of which class most: that whose mistakes have become fewer with photos.

    Args:
        rows: of `learning_curve`.
        is_right: of half of the photos and of all, (2, n).
        labels: of the photos, (n,).
    """
    if rows[-1]["accuracy"] - rows[-2]["accuracy"] < WORTH_IT:
        return "more photos will hardly help"
    wrong = 1 - np.nan_to_num(is_right)
    n_classes = len(class_names)
    before, after = (np.bincount(labels, row, n_classes) for row in wrong)
    best = max(range(n_classes), key=lambda k: (before[k] - after[k], after[k]))
    return f"more photos of {class_names[best]} help most"
