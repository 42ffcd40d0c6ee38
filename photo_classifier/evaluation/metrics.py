"""Counts of correct predictions and the measures that follow from them, accumulated batch by batch."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from photo_classifier.evaluation.answers import PredictionLike, UnlabelledAnswers
from photo_classifier.evaluation.examples import Examples

N_BINS = 15  # of the calibration error, as in Guo et al. 2017
N_MISTAKES = 24  # the most confident ones, in report.json and as photos
N_WRONG, N_RIGHT = 200, 40  # examples of the cells of the confusion matrix
THRESHOLDS = np.arange(101) / 100


class ClassCounts(NamedTuple):
    """Images per class: with that label, with that prediction, and with both; int64 (classes,) each."""

    support: np.ndarray
    predicted: np.ndarray
    correct: np.ndarray

    @classmethod
    def zeros(cls, n_classes: int) -> ClassCounts:
        """Returns counts of zero."""
        return cls(*(np.zeros(n_classes, np.int64) for _ in cls._fields))

    @property
    def n_images(self) -> int:
        """The number of images counted."""
        return int(self.support.sum())

    @property
    def n_correct(self) -> int:
        """The number of images whose prediction is their label."""
        return int(self.correct.sum())

    def add(self, labels: np.ndarray, predicted: np.ndarray) -> None:
        """Counts a batch of labels and predictions, int64 (n,) each, in place."""
        for total, classes in zip(self, (labels, predicted, labels[labels == predicted]), strict=True):
            total += np.bincount(classes, minlength=len(total))


def confusion_matrix(labels: torch.Tensor, predicted: torch.Tensor, n_classes: int) -> torch.Tensor:
    """Counts images by (label, prediction): two int64 (n,) -> fp32 (classes, classes), on their device.

    fp32 counts exactly up to 2^24, every device can add it, and the order of the additions does not matter.
    """
    pairs, ones = labels * n_classes + predicted, torch.ones(len(labels), device=labels.device)
    return ones.new_zeros(n_classes * n_classes).index_add_(0, pairs, ones).view(n_classes, n_classes)


def class_counts(confusion: torch.Tensor) -> ClassCounts:
    """Returns the counts per class of a confusion matrix (classes, classes)."""
    sums = (confusion.sum(1), confusion.sum(0), confusion.diagonal())
    return ClassCounts(*(part.cpu().numpy().astype(np.int64) for part in sums))


def class_scores(support: np.ndarray, predicted: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, ...]:
    """Returns precision, recall and F1 of each class, 0 where one is undefined, as in scikit-learn."""

    def ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
        return np.divide(part, whole, out=np.zeros(len(whole)), where=whole > 0)

    return ratio(correct, predicted), ratio(correct, support), ratio(2 * correct, support + predicted)


def macro_f1(support: np.ndarray, predicted: np.ndarray, correct: np.ndarray) -> float:
    """Returns the mean F1 of the classes that occur, as a label or as a prediction."""
    occurs = support + predicted > 0
    return float(class_scores(support, predicted, correct)[2][occurs].mean()) if occurs.any() else math.nan


def wilson_interval(n_correct: int, n_images: int) -> tuple[float, float]:
    """Returns the 95 % interval of an accuracy (Wilson 1927), which also holds for few images and near 0 and 1."""
    if not n_images:
        return 0.0, 1.0
    z, p = 1.959963984540054, n_correct / n_images  # z is exceeded either way in 5 % of normal draws
    width = z * math.sqrt(p * (1 - p) / n_images + (z / n_images / 2) ** 2)
    low, high = ((p + z * z / n_images / 2 + side) / (1 + z * z / n_images) for side in (-width, width))
    return low if n_correct else 0.0, high if n_correct < n_images else 1.0  # exactly, as rounding may miss them


class StreamingMetrics:
    """Accumulates what a report needs, in memory that does not grow with the number of images."""

    def __init__(self, class_names: Sequence[str], temperature: float = 1.0) -> None:
        self.class_names, self.temperature = list(class_names), temperature
        self._index = {name: k for k, name in enumerate(self.class_names)}
        self.counts = ClassCounts.zeros(len(self.class_names))
        self.confusions: Counter[int] = Counter()  # label * classes + prediction of mistakes: most pairs never occur
        self.bins = np.zeros((3, N_BINS))  # images, summed confidence, correct images
        # images, correct ones and summed confidence, by threshold reached
        self.answered = np.zeros((3, len(THRESHOLDS)))
        self.nll_sum = 0.0
        self.mistakes: list[tuple] = []  # a heap of (probability, -position, path, label, prediction, refusal)
        # by label * classes + prediction: the most confident mistakes, and the least confident right answers
        self.wrong, self.right = Examples(N_WRONG), Examples(N_RIGHT)
        self.unlabelled = UnlabelledAnswers()

    def add(self, logits: torch.Tensor, labels: torch.Tensor, paths: Sequence[str]) -> None:
        """Counts a batch of logits.

        Args:
            logits: fp32 (n, classes), not yet divided by the temperature.
            labels: int64 (n,); images with the label -1 are not counted.
            paths: the names of the n images.
        """
        known = (labels >= 0).cpu()
        if not known.all():
            logits, labels = logits[known.to(logits.device)], labels[known.to(labels.device)]
            paths = [path for path, is_known in zip(paths, known.tolist(), strict=True) if is_known]
        if not len(labels):
            return
        logits, labels = logits.cpu(), labels.cpu()  # not every device has float64
        classes = logits.argmax(1)
        log_p = (logits.double() / self.temperature).log_softmax(1)
        p = log_p.gather(1, classes[:, None])[:, 0].exp().numpy()
        self.nll_sum -= log_p.gather(1, labels[:, None]).sum().item()
        self._count(labels.numpy(), classes.numpy(), p, paths, [""] * len(paths))

    def add_predictions(self, predictions: Sequence[PredictionLike]) -> None:
        """Counts the predictions of readable images, those whose label is not known apart from the others."""
        self.unlabelled.add_predictions([p for p in predictions if p.status == "ok" and p.log_likelihood is None])
        known = [p for p in predictions if p.status == "ok" and p.log_likelihood is not None]
        if known:
            self.nll_sum -= sum(p.log_likelihood for p in known)
            labels, classes = (
                np.array([self._index[name] for name in names], np.int64)
                for names in ((p.label for p in known), (p.top[0][0] for p in known))
            )
            paths, refusals = ([getattr(p, name) for p in known] for name in ("file_dir", "refusal"))
            self._count(labels, classes, np.array([p.probability for p in known]), paths, refusals)

    def state(self) -> dict:
        """Returns everything that was accumulated as plain values."""
        arrays = {**self.counts._asdict(), "bins": self.bins, "answered": self.answered}
        return {
            **{name: array.tolist() for name, array in arrays.items()},
            "confusions": [list(item) for item in self.confusions.items()],
            "nll_sum": self.nll_sum,
            "mistakes": self.mistakes,
            "wrong": self.wrong.chosen(),
            "right": self.right.chosen(),
            "unlabelled": self.unlabelled.state(),
        }

    def restore(self, state: Mapping) -> None:
        """Continues from what `state` returned."""
        self.counts = ClassCounts(*(np.array(state[name], np.int64) for name in ClassCounts._fields))
        self.bins, self.answered = np.array(state["bins"], float), np.array(state["answered"], float)
        if len(self.answered) == 2:  # an earlier version did not sum the confidence
            self.answered = np.vstack([self.answered, self.answered[0] * np.minimum(THRESHOLDS + 0.005, 1)])
        self.confusions = Counter(dict(state["confusions"]))
        self.nll_sum, self.mistakes = state["nll_sum"], [(*entry, "")[:6] for entry in state["mistakes"]]
        for name in ("wrong", "right"):
            getattr(self, name).restore(state.get(name, []))
        self.unlabelled.restore(state.get("unlabelled", {}))

    def _count(
        self,
        labels: np.ndarray,
        classes: np.ndarray,
        p: np.ndarray,
        paths: Sequence[str],
        refusals: Sequence[str],
    ) -> None:
        right, n_before = labels == classes, self.n_images
        self.counts.add(labels, classes)
        cells = labels * len(self.class_names) + classes
        codes, counts = np.unique(cells[~right], return_counts=True)
        self.confusions.update(dict(zip(codes.tolist(), counts.tolist(), strict=True)))
        # bins (a, b], the first one with its lower end: Guo et al. 2017
        bins = np.clip(np.ceil(p * N_BINS).astype(int) - 1, 0, N_BINS - 1)
        self.bins += [np.bincount(bins, weights, N_BINS) for weights in (np.ones(len(p)), p, right)]
        reached = np.searchsorted(THRESHOLDS, p, side="right") - 1
        self.answered += [np.bincount(reached, weights, len(THRESHOLDS)) for weights in (np.ones(len(p)), right, p)]
        for n in np.flatnonzero(~right):
            entry = (float(p[n]), -(n_before + int(n)), paths[n], int(labels[n]), int(classes[n]), refusals[n])
            (heapq.heappush if len(self.mistakes) < N_MISTAKES else heapq.heappushpop)(self.mistakes, entry)
        positions = n_before + np.arange(len(p))
        for examples, rows, scores in ((self.wrong, ~right, p), (self.right, right, -p)):
            names, why = ([values[n] for n in np.flatnonzero(rows)] for values in (paths, refusals))
            examples.add(cells[rows], scores[rows], positions[rows], names, why)

    @property
    def n_images(self) -> int:
        """The number of images counted."""
        return self.counts.n_images

    @property
    def negative_log_likelihood(self) -> float:
        """The mean over the images, in nats."""
        return self.nll_sum / self.n_images

    @property
    def calibration_error(self) -> float:
        """The expected calibration error over equal bins of confidence; Naeini et al. 2015, Guo et al. 2017."""
        _, confidence, right = self.bins
        return float(np.abs(confidence - right).sum() / self.n_images)
