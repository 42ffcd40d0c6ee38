"""How good predictions are: measures in a streaming form, their temperature, report.json and its text."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from photo_classifier.evaluation.metrics import StreamingMetrics
from photo_classifier.runtime.files import write_text

# --- formulas ---------------------------------------------------------------------------------


# --- measures ---------------------------------------------------------------------------------


# --- the report -------------------------------------------------------------------------------


def evaluation_report(
    logits: torch.Tensor, labels: torch.Tensor, paths: Sequence[str], class_names: Sequence[str], temperature: float
) -> dict:
    """The report of a split whose logits are all there, with its calibration before the temperature too.

    Args:
        logits: fp32 (n, classes), not yet divided by the temperature.
        labels: int64 (n,); an image with the label -1 is not counted.
        paths: the names of the n images.

    Raises:
        ZeroDivisionError: no image has a label.
    """
    raw, fitted = StreamingMetrics(class_names), StreamingMetrics(class_names, temperature)
    for measures in (raw, fitted):
        measures.add(logits, labels, paths)
    before = {
        "negative_log_likelihood": raw.negative_log_likelihood,
        "expected_calibration_error": raw.calibration_error,
    }
    return fitted.report() | {"before_temperature": before}


def report_lines(name: str, report: Mapping) -> list[str]:
    """The report of a split as a few lines of text."""
    low, high = report["accuracy_interval_95"]
    before = report.get("before_temperature")
    shown = [
        (f"{before[key]:.4f} -> " if before else "") + f"{report[key]:.4f}"
        for key in ("negative_log_likelihood", "expected_calibration_error")
    ]
    seen = [about for about in report["classes"] if about["support"]]
    weakest = sorted(seen, key=lambda about: about["f1"])[:3]
    classes = ", ".join(
        f"{about['name']} {about['f1']:.3f} (precision {about['precision']:.3f}, recall {about['recall']:.3f} "
        f"of {about['support']})"
        for about in weakest
    )
    return [
        f"{name:7} accuracy {report['accuracy']:.4f}, 95 % interval {low:.4f} to {high:.4f}; "
        f"macro F1 {report['macro_f1']:.4f}",
        f"        negative log-likelihood {shown[0]}, calibration error {shown[1]} "
        f"(temperature {report['temperature']:.3f})",
        f"        {'weakest F1' if len(seen) > len(weakest) else 'F1'}: {classes}",
    ]


def write_report(path: str | Path, content: Mapping) -> None:
    """Writes report.json; numbers that do not exist are null."""
    write_text(path, json.dumps(_without_nan(content), indent=1, ensure_ascii=False) + "\n")


def _without_nan(value: object) -> object:
    """JSON has no word for a number that does not exist but null."""
    if isinstance(value, Mapping):
        return {key: _without_nan(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
