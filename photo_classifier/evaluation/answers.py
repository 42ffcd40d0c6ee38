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
    refusal: str
    heat: str
    picture: np.ndarray | None


class UnlabelledAnswers:
    """Accumulates answers in memory that does not grow with the number of photos."""

    def __init__(self) -> None:
        # photos and summed probability, by best guess and whether it was refused
        self._sums: dict[tuple[str, bool], list] = {}
        self._unsure = Examples(N_PHOTOS)

    def add_predictions(self, predictions: Sequence[PredictionLike]) -> None:
        """Counts predictions."""
        if not predictions:
            return
        positions = self.n_images + np.arange(len(predictions))
        keys = [(p.top[0][0], bool(p.reason)) for p in predictions]
        for key, p in zip(keys, predictions, strict=True):
            n_images, confidence = self._sums.get(key, (0, 0.0))
            self._sums[key] = [n_images + 1, confidence + p.probability]
        index = {key: k for k, key in enumerate(self._sums)}
        groups = np.array([index[key] for key in keys])
        scores = np.array([-p.probability for p in predictions])
        self._unsure.add(groups, scores, positions, *zip(*((p.file_dir, p.refusal) for p in predictions), strict=True))

    @property
    def n_images(self) -> int:
        """The number of images counted."""
        return sum(n for n, _ in self._sums.values())

    def state(self) -> dict:
        """Returns everything that was accumulated as plain values."""
        return {"sums": [[*key, *sums] for key, sums in self._sums.items()], "unsure": self._unsure.chosen()}

    def restore(self, state: Mapping) -> None:
        """Continues from what `state` returned."""
        sums = state.get("sums", [])
        if isinstance(sums, Mapping):  # an earlier version did not know the refused photos
            sums = [(name, False, *values) for name, values in sums.items()]
        self._sums = {(name, is_refused): values for name, is_refused, *values in sums}
        self._unsure.restore(state.get("unsure", []))

    def summary(self) -> dict | None:
        """Returns what the page shows; None without an image."""
        if not self._sums:
            return None
        n_all, names = self.n_images, [name for name, _ in self._sums]
        rows = [
            {"name": name, "n_images": n, "share": n / n_all, "confidence": confidence / n}
            for (name, is_refused), (n, confidence) in sorted(self._sums.items(), key=lambda item: -item[1][0])
            if not is_refused
        ]
        photos = [
            PagePhoto(path, {"predict": names[group], "probability": probability, "refused": refusal})
            for group, probability, _, path, refusal in self._unsure.chosen()
        ]
        n_refused = sum(n for (_, is_refused), (n, _) in self._sums.items() if is_refused)
        answers = {"n_classes": len(rows), "rows": rows[:MOST_ANSWERS], "photos": photos}
        return {"n_images": n_all, "n_refused": n_refused, "share_refused": n_refused / n_all, **answers}
