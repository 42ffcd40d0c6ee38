"""Accuracy by the number of photos, and what more of them would bring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from photo_classifier.evaluation.metrics import wilson_interval

EXPONENTS = np.arange(0.1, 1.01, 0.1)
N_BOOTSTRAP, SEED = 200, 0
WORTH_IT, HARDLY = 0.005, 0.01  # of accuracy, from twice as many photos: at least, and at most
FAR_BELOW = 0.1  # the accuracy, of the share of a class that was recognised
UNTOLD = "whether more photos help cannot be told from"
NO_HELP = "more photos will hardly help"


def power_law(sizes: np.ndarray, errors: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Returns the errors at other sizes by the inverse power law a + b n^-c that fits best, with a and b at least 0.

    Learning curves of classifiers follow it: Cortes et al. 1993, Figueroa et al. 2012.

    Args:
        errors: of several curves, (curves, sizes).
        at: the other sizes, (m,).

    Returns:
        (curves, m).
    """
    powers = (sizes / sizes[-1]) ** -EXPONENTS[:, None]  # (exponents, sizes)
    x, y = powers.mean(1), errors.mean(1, keepdims=True)
    centred = powers - x[:, None]
    slopes = ((errors @ centred.T) / (centred**2).sum(1)).clip(0)
    has_floor = y >= slopes * x
    slopes = np.where(has_floor, slopes, errors @ powers.T / (powers**2).sum(1))
    floors = np.where(has_floor, y - slopes * x, 0)
    residuals = errors[:, None] - floors[..., None] - slopes[..., None] * powers
    best, rows = (residuals**2).sum(2).argmin(1), np.arange(len(errors))
    ratios = (at / sizes[-1]) ** -EXPONENTS[best][:, None]
    return floors[rows, best][:, None] + slopes[rows, best][:, None] * ratios


def learning_curve(sizes: Sequence[int], is_right: np.ndarray) -> list[dict]:
    """Returns the measured accuracies, and that to be expected of twice as many photos, each with a 95 % band.

    What is expected is today's accuracy and the gain of the power law, which is never negative. Its band is that of the
    gain on these photos: chance in which photos they are moves today's accuracy as well, and tells nothing of a gain.

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
    sizes, twice, today = np.asarray(sizes, float), 2 * sizes[-1], rows[-1]["accuracy"]

    def gains(errors: np.ndarray) -> np.ndarray:
        now, then = power_law(sizes, errors, np.array([twice / 2, twice])).T
        return np.minimum(now - then, 1 - today)

    rng = np.random.default_rng(SEED)
    draws = rng.multinomial(is_right.shape[1], np.full(is_right.shape[1], 1 / is_right.shape[1]), N_BOOTSTRAP)
    known, wrong = ~np.isnan(is_right), np.nan_to_num(1 - is_right)
    errors = (draws @ wrong.T) / (draws @ known.T.astype(int)).clip(1)
    low, high = np.quantile(gains(errors), (0.025, 0.975))
    expected = np.clip(gains(1 - np.array([[row["accuracy"] for row in rows]]))[0], low, high)
    names = {"accuracy": expected, "low": low, "high": high}
    band = {name: float(today + value) for name, value in names.items()}
    return [*rows, {"photos": twice, **band, "is_expected": True}]


def rare_class(report: Mapping, training_counts: Mapping[str, int]) -> Mapping | None:
    """Returns the row of the class with few photos that is recognised much less often than the others, if there is one.

    Args:
        training_counts: photos by class.
    """
    most = max(training_counts.values())
    rows = [
        row
        for row in report["classes"]
        if row["support"] and 2 * training_counts[row["name"]] <= most
        if row["recall"] < report["accuracy"] - FAR_BELOW
    ]
    return min(rows, key=lambda row: row["recall"], default=None)


def advice(
    rows: Sequence[dict], is_right: np.ndarray, labels: np.ndarray, class_names: Sequence[str], rare: str = ""
) -> str:
    """Returns whether more photos help, and of which class most: that whose mistakes have become fewer with photos.

    The band of the gain decides: from few photos it often cannot be told. All photos together say little of a rare
    class, so one that is recognised much less often is named first.

    Args:
        rows: of `learning_curve`.
        is_right: of half of the photos and of all, (2, n).
        labels: of the photos, (n,).
        rare: the name of the `rare_class`.
    """
    now, twice = rows[-2:]
    if twice["high"] - now["accuracy"] <= HARDLY:
        return f"{NO_HELP}, except those of {rare}, which has few" if rare else NO_HELP
    if twice["low"] - now["accuracy"] < WORTH_IT:
        return f"{UNTOLD} {now['photos']:,} photos"
    if rare:
        return f"more photos help, above all those of {rare}, which has few"
    wrong = 1 - np.nan_to_num(is_right)
    n_classes = len(class_names)
    before, after = (np.bincount(labels, row, n_classes) for row in wrong)
    best = max(range(n_classes), key=lambda k: (before[k] - after[k], after[k]))
    return f"more photos of {class_names[best]} help most" if before[best] > after[best] else "more photos help"
