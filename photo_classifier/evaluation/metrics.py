"""Measures of how good predictions are, added up batch by batch."""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from photo_classifier.prediction.results import Prediction

N_BINS = 15  # of the calibration error, as in Guo et al. 2017


N_MISTAKES = 24  # the most confident ones, in report.json and as photos


N_CONFUSIONS = 50  # the most frequent ones, in report.json


MOST_CLASSES = 200  # with more, report.json lists the confusions and leaves the whole matrix out


THRESHOLDS = np.arange(101) / 100


def wilson_interval(n_correct: int, n_images: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy (Wilson 1927), which also holds for few images and near 0 and 1."""
    if not n_images:
        return 0.0, 1.0
    z, p = 1.959963984540054, n_correct / n_images
    middle = p + z * z / (2 * n_images)
    half = z * math.sqrt(p * (1 - p) / n_images + z * z / (4 * n_images**2))
    scale = 1 + z * z / n_images
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def class_scores(support: np.ndarray, predicted: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, ...]:
    """Precision, recall and F1 of each class, 0 where one is not defined, as in scikit-learn.

    Args:
        support, predicted, correct: images of a class, images called so, and both, int (classes,).
    """

    def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
        return np.divide(part, whole, out=np.zeros(len(whole)), where=whole > 0)

    return share(correct, predicted), share(correct, support), share(2 * correct, support + predicted)


def macro_f1(support: np.ndarray, predicted: np.ndarray, correct: np.ndarray) -> float:
    """The mean F1 of the classes that occur, as label or as prediction."""
    occurs = support + predicted > 0
    return float(class_scores(support, predicted, correct)[2][occurs].mean()) if occurs.any() else math.nan


class StreamingMetrics:
    """Adds up what the measures need, batch by batch, so that millions of images take no more memory.

    Args:
        temperature: of the probabilities; it changes no class.
    """

    def __init__(self, class_names: Sequence[str], temperature: float = 1.0) -> None:
        self.class_names, self.temperature = list(class_names), temperature
        self._index = {name: k for k, name in enumerate(self.class_names)}
        n_classes = len(self.class_names)
        self.support, self.predicted, self.correct = (np.zeros(n_classes, np.int64) for _ in range(3))
        self.confusions: Counter[int] = Counter()  # label * classes + prediction; few of all pairs occur
        self.bins = np.zeros((3, N_BINS))  # images, summed confidence, images that are right
        self.answered = np.zeros((2, len(THRESHOLDS)), np.int64)  # images and right ones, by threshold reached
        self.nll_sum = 0.0
        self._mistakes: list[tuple] = []

    def add(self, logits: torch.Tensor, labels: torch.Tensor, paths: Sequence[str]) -> None:
        """Counts one batch.

        Args:
            logits: fp32 (n, classes), not yet divided by the temperature.
            labels: int64 (n,); a label of -1 is unknown, and that image is not counted.
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
        self._count(labels.numpy(), classes.numpy(), p, paths)

    def add_predictions(self, predictions: Sequence[Prediction]) -> None:
        """Counts those that were read and whose label is known."""
        known = [p for p in predictions if p.status == "ok" and p.log_likelihood is not None]
        if known:
            self.nll_sum -= sum(p.log_likelihood for p in known)
            labels, classes = (
                np.array([self._index[name] for name in names], np.int64)
                for names in ((p.label for p in known), (p.top[0][0] for p in known))
            )
            self._count(labels, classes, np.array([p.probability for p in known]), [p.file_dir for p in known])

    def state(self) -> dict:
        """All that was added up, as plain values."""
        arrays = ("support", "predicted", "correct", "bins", "answered")
        return {
            **{name: getattr(self, name).tolist() for name in arrays},
            "confusions": [list(item) for item in self.confusions.items()],
            "nll_sum": self.nll_sum,
            "mistakes": self._mistakes,
        }

    def restore(self, state: Mapping) -> None:
        """Takes over what `state` gave."""
        for name in ("support", "predicted", "correct", "bins", "answered"):
            setattr(self, name, np.array(state[name], getattr(self, name).dtype))
        self.confusions = Counter(dict(state["confusions"]))
        self.nll_sum, self._mistakes = state["nll_sum"], [tuple(entry) for entry in state["mistakes"]]

    def _count(self, labels: np.ndarray, classes: np.ndarray, p: np.ndarray, paths: Sequence[str]) -> None:
        n_classes, right = len(self.class_names), labels == classes
        seen = self.n_images
        for total, chosen in ((self.support, labels), (self.predicted, classes), (self.correct, labels[right])):
            total += np.bincount(chosen, minlength=n_classes)
        codes, counts = np.unique((labels * n_classes + classes)[~right], return_counts=True)
        self.confusions.update(dict(zip(codes.tolist(), counts.tolist(), strict=True)))
        # bins (a, b], the first with its lower end: Guo et al. 2017
        places = np.clip(np.ceil(p * N_BINS).astype(int) - 1, 0, N_BINS - 1)
        self.bins += [np.bincount(places, weights, N_BINS) for weights in (np.ones(len(p)), p, right)]
        reached = np.searchsorted(THRESHOLDS, p, side="right") - 1
        self.answered += [np.bincount(r, minlength=len(THRESHOLDS)) for r in (reached, reached[right])]
        for n in np.flatnonzero(~right):
            entry = (float(p[n]), -(seen + int(n)), paths[n], int(labels[n]), int(classes[n]))
            (heapq.heappush if len(self._mistakes) < N_MISTAKES else heapq.heappushpop)(self._mistakes, entry)

    @property
    def n_images(self) -> int:
        """Images counted so far."""
        return int(self.support.sum())

    @property
    def negative_log_likelihood(self) -> float:
        """In nats an image."""
        return self.nll_sum / self.n_images

    @property
    def calibration_error(self) -> float:
        """The expected calibration error over equal bins of confidence; Naeini et al. 2015, Guo et al. 2017."""
        _, confidence, right = self.bins
        return float(np.abs(confidence - right).sum() / self.n_images)

    def mistakes(self) -> list[dict]:
        """The most confident mistakes, the most confident first."""
        return [
            {
                "file_dir": path,
                "label": self.class_names[label],
                "predict": self.class_names[predict],
                "probability": round(p, 6),
            }
            for p, _, path, label, predict in sorted(self._mistakes, reverse=True)
        ]

    def report(self) -> dict:
        """All measures as plain values; there must be at least one image."""
        n, n_correct = self.n_images, int(self.correct.sum())
        return {
            "n_images": n,
            "n_correct": n_correct,
            "accuracy": n_correct / n,
            "accuracy_interval_95": list(wilson_interval(n_correct, n)),
            "macro_f1": macro_f1(self.support, self.predicted, self.correct),
            "negative_log_likelihood": self.negative_log_likelihood,
            "expected_calibration_error": self.calibration_error,
            "temperature": self.temperature,
            "classes": self._classes(),
            "confusion_matrix": self.confusion_matrix() if len(self.class_names) <= MOST_CLASSES else None,
            "confusions": self._most_frequent(),
            "calibration": self._calibration(),
            "answered": self._answered(),
            "mistakes": self.mistakes(),
        }

    def confusion_matrix(self) -> list[list[int]]:
        """Rows are labels, columns predictions, both in the order of the classes."""
        n = len(self.class_names)
        matrix = np.diag(self.correct)
        for code, count in self.confusions.items():
            matrix[code // n, code % n] = count
        return matrix.tolist()

    def _classes(self) -> list[dict]:
        precision, recall, f1 = class_scores(self.support, self.predicted, self.correct)
        columns = zip(self.class_names, precision, recall, f1, self.support, strict=True)
        return [
            {"name": name, "precision": float(p), "recall": float(r), "f1": float(f), "support": int(s)}
            for name, p, r, f, s in columns
        ]

    def _most_frequent(self) -> list[dict]:
        n, pairs = len(self.class_names), sorted(self.confusions.items(), key=lambda item: (-item[1], item[0]))
        return [
            {"label": self.class_names[code // n], "predict": self.class_names[code % n], "n_images": count}
            for code, count in pairs[:N_CONFUSIONS]
        ]

    def _calibration(self) -> list[dict]:
        return [
            {
                "from": k / N_BINS,
                "to": (k + 1) / N_BINS,
                "n_images": int(n),
                "confidence": confidence / n if n else None,
                "accuracy": right / n if n else None,
            }
            for k, (n, confidence, right) in enumerate(self.bins.T.tolist())
        ]

    def _answered(self) -> list[dict]:
        # those that reach a threshold reach all below it
        reached, right = self.answered[:, ::-1].cumsum(1)[:, ::-1].tolist()
        return [
            {
                "min_probability": float(threshold),
                "n_answered": n,
                "share": n / self.n_images,
                "accuracy": r / n if n else None,
            }
            for threshold, n, r in zip(THRESHOLDS, reached, right, strict=True)
        ]


def confusion_matrix(labels: torch.Tensor, predicted: torch.Tensor, n_classes: int) -> torch.Tensor:
    """Images by (true class, predicted class): two int64 (n,) -> fp32 (classes, classes), on their device.

    fp32 counts exactly up to 2^24, every device adds it, and the order of the additions does not matter.
    """
    pairs, ones = labels * n_classes + predicted, torch.ones(len(labels), device=labels.device)
    return ones.new_zeros(n_classes * n_classes).index_add_(0, pairs, ones).view(n_classes, n_classes)


def class_counts(confusion: torch.Tensor) -> tuple[np.ndarray, ...]:
    """Images of each class, images called so, and both, from a confusion matrix (classes, classes)."""
    sums = (confusion.sum(1), confusion.sum(0), confusion.diagonal())
    return tuple(part.cpu().numpy().astype(np.int64) for part in sums)
