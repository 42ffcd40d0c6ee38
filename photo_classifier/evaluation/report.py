"""The report of an evaluation: its values, its lines on the console, and report.json."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from photo_classifier.evaluation.metrics import (
    N_BINS,
    THRESHOLDS,
    StreamingMetrics,
    class_scores,
    macro_f1,
    wilson_interval,
)
from photo_classifier.runtime.files import write_text

N_CONFUSIONS = 50  # the most frequent ones, in report.json
MOST_CLASSES = 200  # with more, report.json lists only the most frequent confusions
MOST_GROUPS, FEWEST_IN_GROUP = 8, 25  # of photos with about the same probability


def evaluation_report(
    logits: torch.Tensor, labels: torch.Tensor, paths: Sequence[str], class_names: Sequence[str], temperature: float
) -> dict:
    """Returns the report of a split, including its calibration before temperature scaling.

    Args:
        logits: fp32 (n, classes), not yet divided by the temperature.
        labels: int64 (n,); images with the label -1 are not counted.
        paths: the names of the n images.

    Raises:
        ZeroDivisionError: no image has a label.
    """
    raw, fitted = StreamingMetrics(class_names), StreamingMetrics(class_names, temperature)
    for metrics in (raw, fitted):
        metrics.add(logits, labels, paths)
    before = {
        "negative_log_likelihood": raw.negative_log_likelihood,
        "expected_calibration_error": raw.calibration_error,
    }
    return metrics_report(fitted) | {"before_temperature": before}


def metrics_report(metrics: StreamingMetrics) -> dict:
    """Returns all measures as plain values; raises ZeroDivisionError if no image was counted."""
    n_images, n_correct = metrics.n_images, metrics.counts.n_correct
    return {
        "n_images": n_images,
        "n_correct": n_correct,
        "accuracy": n_correct / n_images,
        "accuracy_interval_95": list(wilson_interval(n_correct, n_images)),
        "macro_f1": macro_f1(*metrics.counts),
        "negative_log_likelihood": metrics.negative_log_likelihood,
        "expected_calibration_error": metrics.calibration_error,
        "temperature": metrics.temperature,
        "classes": _class_rows(metrics),
        "confusion_matrix": _matrix(metrics) if len(metrics.class_names) <= MOST_CLASSES else None,
        "confusions": _frequent_confusions(metrics),
        "calibration": _calibration_rows(metrics),
        "reliability": _reliability_rows(metrics),
        "answered": _answered_rows(metrics),
        "mistakes": _mistakes(metrics),
        "examples": _examples(metrics),
    }


def main_report(reports: Mapping[str, Mapping], held_out: str) -> Mapping:
    """Returns the report of the split with the most held-out photos; in a tie, that of `held_out`."""
    return max(reports.values(), key=lambda report: (report["n_images"], report is reports[held_out]))


def report_lines(name: str, report: Mapping) -> list[str]:
    """Returns the report of a split as a few lines of text."""
    low, high = report["accuracy_interval_95"]
    before = report.get("before_temperature")
    nll, error = (
        (f"{before[key]:.4f} -> " if before else "") + f"{report[key]:.4f}"
        for key in ("negative_log_likelihood", "expected_calibration_error")
    )
    seen = [row for row in report["classes"] if row["support"]]
    weakest = sorted(seen, key=lambda row: row["f1"])[:3]
    classes = ", ".join(
        f"{row['name']} {row['f1']:.3f} (precision {row['precision']:.3f}, recall {row['recall']:.3f} "
        f"of {row['support']})"
        for row in weakest
    )
    return [
        f"{name:7} accuracy {report['accuracy']:.4f}, 95 % interval {low:.4f} to {high:.4f}; "
        f"macro F1 {report['macro_f1']:.4f}",
        f"        negative log-likelihood {nll}, calibration error {error} (temperature {report['temperature']:.3f})",
        f"        {'weakest F1' if len(seen) > len(weakest) else 'F1'}: {classes}",
    ]


def write_report(path: str | Path, content: Mapping) -> None:
    """Writes report.json; numbers that are not finite become null, as JSON cannot express them."""
    write_text(path, json.dumps(_without_nan(content), indent=1, ensure_ascii=False) + "\n")


def _without_nan(value: object) -> object:
    if isinstance(value, Mapping):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _class_rows(metrics: StreamingMetrics) -> list[dict]:
    precision, recall, f1 = class_scores(*metrics.counts)
    columns = zip(metrics.class_names, precision, recall, f1, metrics.counts.support, strict=True)
    return [
        {"name": name, "precision": float(p), "recall": float(r), "f1": float(f), "support": int(s)}
        for name, p, r, f, s in columns
    ]


def _matrix(metrics: StreamingMetrics) -> list[list[int]]:
    """Returns the confusion matrix: labels down, predictions across."""
    n_classes, matrix = len(metrics.class_names), np.diag(metrics.counts.correct)
    for code, count in metrics.confusions.items():
        matrix[divmod(code, n_classes)] = count
    return matrix.tolist()


def _frequent_confusions(metrics: StreamingMetrics) -> list[dict]:
    names, pairs = metrics.class_names, sorted(metrics.confusions.items(), key=lambda item: (-item[1], item[0]))
    return [
        {"label": names[code // len(names)], "predict": names[code % len(names)], "n_images": count}
        for code, count in pairs[:N_CONFUSIONS]
    ]


def _calibration_rows(metrics: StreamingMetrics) -> list[dict]:
    return [
        {
            "from": k / N_BINS,
            "to": (k + 1) / N_BINS,
            "n_images": int(n),
            "confidence": confidence / n if n else None,
            "accuracy": right / n if n else None,
        }
        for k, (n, confidence, right) in enumerate(metrics.bins.T.tolist())
    ]


def _reliability_rows(metrics: StreamingMetrics) -> list[dict]:
    """Returns groups of images with neighbouring probabilities, about equally large, with the interval of each.

    Equal bins would leave some with an image or two, whose accuracy means nothing.
    """
    n_groups = min(MOST_GROUPS, max(1, metrics.n_images // FEWEST_IN_GROUP))
    groups, start, sums = [], 0, np.zeros(3)
    for k, column in enumerate(metrics.answered.T):
        sums = sums + column
        if sums[0] >= metrics.n_images / n_groups:
            groups.append((start, k, sums))
            start, sums = k + 1, np.zeros(3)
    if sums[0]:  # too few for a group of their own
        first, _, others = groups.pop()
        groups.append((first, len(THRESHOLDS) - 1, others + sums))
    return [
        _reliability_row(THRESHOLDS[first], min(THRESHOLDS[last] + 0.01, 1), *sums.tolist())
        for first, last, sums in groups
    ]


def _reliability_row(low: float, high: float, n: float, right: float, confidence: float) -> dict:
    return {
        "from": float(low),
        "to": float(high),
        "n_images": int(n),
        "confidence": confidence / n,
        "accuracy": right / n,
        "accuracy_interval_95": list(wilson_interval(int(right), int(n))),
    }


def _answered_rows(metrics: StreamingMetrics) -> list[dict]:
    # an image that reaches a threshold reaches all lower ones
    reached, right, _ = metrics.answered[:, ::-1].cumsum(1)[:, ::-1].tolist()
    return [
        {
            "min_probability": float(threshold),
            "n_answered": int(n),
            "share": n / metrics.n_images,
            "accuracy": r / n if n else None,
        }
        for threshold, n, r in zip(THRESHOLDS, reached, right, strict=True)
    ]


def _mistakes(metrics: StreamingMetrics) -> list[dict]:
    """Returns the most confident mistakes, highest confidence first."""
    names = metrics.class_names
    return [
        {
            "file_dir": path,
            "label": names[label],
            "predict": names[predict],
            "probability": round(p, 6),
            **({"refused": refusal} if refusal else {}),
        }
        for p, _, path, label, predict, refusal in sorted(metrics.mistakes, reverse=True)
    ]


def _examples(metrics: StreamingMetrics) -> list[dict]:
    """Returns images of each cell of the confusion matrix: confident mistakes first, then unsure right answers."""
    names = metrics.class_names
    return [
        {
            "file_dir": path,
            "label": names[cell // len(names)],
            "predict": names[cell % len(names)],
            "probability": round(abs(score), 6),
            **({"refused": refusal} if refusal else {}),
        }
        for examples in (metrics.wrong, metrics.right)
        for cell, score, _, path, refusal in examples.chosen()
    ]
