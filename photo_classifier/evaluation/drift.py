"""Whether photos as a whole look like those of a training, by their distances."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from photo_classifier.runtime.text import percent, pluralize

ALARM = 0.01  # how often photos like the training photos are called unlike them
FAR = 0.95  # of the held-out photos are nearer than one that is called far, or unfamiliar
NOTICED = 0.5  # a difference of shares; photos in which it would go unnoticed are not called like the training photos
N_MOST_UNLIKE = 20


class WithDistance(Protocol):
    """The part of a prediction that is used here."""

    file_dir: str
    distance: float | None


class Drift:
    """Compares the distances of predictions with those of photos that training held out.

    The test of Kolmogorov and Smirnov, one-sided: nearer than the held-out photos is no reason for an alarm.

    Args:
        held_out: distances in ascending order.
    """

    def __init__(self, held_out: Sequence[float]) -> None:
        self.held_out = np.asarray(held_out)
        self.counts = np.zeros(len(self.held_out) + 1, np.int64)  # photos between two of them
        self._most_unlike: list[tuple[float, str]] = []  # a heap

    def add_predictions(self, predictions: Sequence[WithDistance]) -> None:
        """Counts those that could be read."""
        found = [(p.distance, p.file_dir) for p in predictions if p.distance is not None]
        places = np.searchsorted(self.held_out, [distance for distance, _ in found], side="left")
        self.counts += np.bincount(places, minlength=len(self.counts))
        self._most_unlike = heapq.nlargest(N_MOST_UNLIKE, [*self._most_unlike, *found])

    def state(self) -> dict:
        """Returns everything that was counted as plain values."""
        return {"counts": self.counts.tolist(), "most_unlike": self._most_unlike}

    def restore(self, state: Mapping) -> None:
        """Continues from what `state` returned."""
        self.counts = np.array(state["counts"], np.int64)
        self._most_unlike = [tuple(entry) for entry in state["most_unlike"]]

    @property
    def p_value(self) -> float:
        """The probability of distances as large as these, or larger, if the photos were like the training photos."""
        n, m = int(self.counts.sum()), len(self.held_out)
        if not n:
            return 1.0
        nearer = self.counts.cumsum()[:-1] / n  # than, or as near as, each held-out photo
        largest = max(0.0, float((np.arange(1, m + 1) / m - nearer).max()))
        return _p_value(largest, n, m)

    def report(self) -> dict:
        """Returns the result as plain values."""
        n = int(self.counts.sum())
        limit, is_unlike = math.ceil(FAR * len(self.held_out)), self.p_value < ALARM
        return {
            "n_images": n,
            "p_value": self.p_value,
            "is_unlike": is_unlike,
            "false_alarm": ALARM,
            "is_enough": is_unlike or _p_value(NOTICED, n, len(self.held_out)) < ALARM,
            "share_far": float(self.counts[limit:].sum() / n) if n else None,
            "far": float(self.held_out[limit - 1]),
            "most_unlike": [{"file_dir": path, "distance": round(d, 4)} for d, path in self._most_unlike],
        }


def _p_value(difference: float, n: int, m: int) -> float:
    return math.exp(-2 * n * m / (n + m) * difference**2)


def drift_lines(report: Mapping) -> list[str]:
    """Returns the result as lines for the console; none if no photo could be read."""
    if not report["n_images"]:
        return []
    lines = [f"inputs  {drift_text(report)}"]
    if report["is_unlike"]:
        names = ", ".join(row["file_dir"] for row in report["most_unlike"][:3])
        lines.append(f"        the least familiar: {names}")
    return lines


def drift_text(report: Mapping) -> str:
    """Returns the result as two sentences, if photos could be read: what was found, and what follows."""
    if report.get("is_enough") is False:
        n, verb = pluralize(report["n_images"], "photo"), "is" if report["n_images"] == 1 else "are"
        return f"{n} {verb} too few to tell whether your photos are like the training photos"
    found = f"{percent(report['share_far'], 0)} of them look unfamiliar to the model"
    if report["is_unlike"]:
        return (
            f"your photos differ from the training photos: {found}, and {percent(1 - FAR, 0)} would be usual. Expect "
            "more wrong answers than training measured; if you want to predict such photos, label some and train with "
            "them too"
        )
    return (
        f"your photos look like the training photos: {found}, and {percent(1 - FAR, 0)} is usual. Expect about the "
        "accuracy that training measured"
    )
