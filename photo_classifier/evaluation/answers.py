"""Answers for photos without a label: how many of each, how certain, and the least certain photos."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from photo_classifier.evaluation.examples import Examples
from photo_classifier.evaluation.page_photos import PagePhoto

N_PHOTOS = 60
MOST_ANSWERS = 100  # rows of the table


class PredictionLike(Protocol):
    """The part of `prediction.results.Prediction` that measures and sheets use."""

    file_dir: str
    predict: str
    probability: float | None
    top: Sequence[tuple[str, float]]
    log_likelihood: float | None
    label: str
    status: str
    reason: str


class UnlabelledAnswers:
    """Accumulates answers in memory that does not grow with the number of photos."""

    def __init__(self) -> None:
        self._sums: dict[str, list] = {}  # photos and summed probability, by answer
        self._unsure = Examples(N_PHOTOS)

    def add_predictions(self, predictions: Sequence[PredictionLike]) -> None:
        """Counts predictions."""
        if not predictions:
            return
        positions = self.n_images + np.arange(len(predictions))
        for p in predictions:
            n_images, confidence = self._sums.get(p.predict, (0, 0.0))
            self._sums[p.predict] = [n_images + 1, confidence + p.probability]
        index = {name: k for k, name in enumerate(self._sums)}
        groups, scores = (
            np.array([index[p.predict] for p in predictions]),
            np.array([-p.probability for p in predictions]),
        )
        self._unsure.add(groups, scores, positions, [p.file_dir for p in predictions])

    @property
    def n_images(self) -> int:
        """The number of images counted."""
        return sum(n for n, _ in self._sums.values())

    def state(self) -> dict:
        """Returns everything that was accumulated as plain values."""
        return {"sums": self._sums, "unsure": self._unsure.chosen()}

    def restore(self, state: Mapping) -> None:
        """Continues from what `state` returned."""
        self._sums = dict(state.get("sums", {}))
        self._unsure.restore(state.get("unsure", []))

    def summary(self) -> dict | None:
        """Returns what the page shows; None without an image."""
        if not self._sums:
            return None
        n_all, names = self.n_images, list(self._sums)
        rows = [
            {"name": name, "n_images": n, "share": n / n_all, "confidence": confidence / n}
            for name, (n, confidence) in sorted(self._sums.items(), key=lambda item: -item[1][0])
        ]
        photos = [
            PagePhoto(path, {"predict": names[group], "probability": probability})
            for group, probability, _, path in self._unsure.chosen()
        ]
        return {"n_images": n_all, "n_classes": len(rows), "rows": rows[:MOST_ANSWERS], "photos": photos}
