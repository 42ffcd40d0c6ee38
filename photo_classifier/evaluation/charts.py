"""Charts of the page: values as points of an SVG, which the template draws in the colours of the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from matplotlib.ticker import MaxNLocator

from photo_classifier.runtime.text import percent

WIDTH, HEIGHT = 460, 280
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 14, 44  # margins for the ticks and the name of the axis
MOST_POINTS = 400  # of a line
FEWEST_ANSWERS = 10
TARGETS = (0.9, 0.95, 0.99)  # shares of right answers that one may want


def curve_charts(rows: Sequence[Mapping[str, str]], kept: int | None) -> list[dict]:
    """Returns charts of loss and accuracy by epoch from the rows of `metrics.csv`.

    Args:
        kept: the epoch whose weights were saved, counted from 1.
    """
    if not rows:
        return []
    epochs = [float(row["epoch"]) for row in rows]
    name = "step from a strong to a weak penalty" if rows[0].get("C") else "epoch"
    charts = []
    for measure in ("loss", "accuracy"):
        lines = curve_values(rows, measure)
        values = [value for line in lines.values() for value in line if value is not None]
        if not values:
            continue
        is_share = measure == "accuracy"
        low, high = (min(0.5, *values), 1.0) if is_share else (0.0, max(values))
        x, y = _scale(epochs, LEFT, WIDTH - RIGHT), _scale((low, high), HEIGHT - BOTTOM, TOP)
        chart = _chart(
            measure, name, _ticks(min(epochs), max(epochs), x, "{:g}".format, is_whole=True), low, high, y, is_share
        )
        chart["lines"] = [{"name": split, "points": _points(epochs, line, x, y)} for split, line in lines.items()]
        chart["marks"] = [{"x": x(kept), "text": "saved"}] if kept and kept in epochs and len(rows) > 1 else []
        charts.append(chart)
    return charts


def curve_values(rows: Sequence[Mapping[str, str]], measure: str) -> dict[str, list[float | None]]:
    """Returns the loss or the accuracy of training and of validation in every row; None where there is none."""
    return {
        split: [_number(row.get(f"{part}_{measure}")) for row in rows]
        for split, part in (("training", "train"), ("validation", "valid"))
    }


def reliability_chart(rows: Sequence[Mapping]) -> dict:
    """Returns a chart of how often answers are right by their probability, with intervals."""
    low = (
        math.floor(10 * min([row["confidence"] for row in rows] + [row["accuracy_interval_95"][0] for row in rows]))
        / 10
    )
    x, y = _scale((low, 1), LEFT, WIDTH - RIGHT), _scale((low, 1), HEIGHT - BOTTOM, TOP)
    chart = _chart("right", "probability of the answer", _ticks(low, 1, x, percent), low, 1, y, is_share=True)
    chart["lines"] = [{"name": "exact", "points": [(x(low), y(low)), (x(1), y(1))]}]
    chart["dots"] = [
        {
            "x": x(row["confidence"]),
            "y": y(row["accuracy"]),
            "low": y(row["accuracy_interval_95"][0]),
            "high": y(row["accuracy_interval_95"][1]),
        }
        for row in rows
    ]
    return chart


def threshold_chart(answered: Sequence[Mapping]) -> dict:
    """Returns a chart of what `--min_probability` does: the share answered, and how many of the answers are right."""
    rows = [row for row in answered if row["n_answered"]]
    x, y = _scale((0, 1), LEFT, WIDTH - RIGHT), _scale((0, 1), HEIGHT - BOTTOM, TOP)
    chart = _chart("share", "--min_probability", _ticks(0, 1, x, "{:g}".format), 0, 1, y, is_share=True)
    at = [row["min_probability"] for row in rows]
    chart["lines"] = [
        {"name": name, "points": _points(at, [row[key] for row in rows], x, y)}
        for name, key in (("right", "accuracy"), ("answered", "share"))
    ]
    found = [(row, target) for target in TARGETS if (row := threshold_for(answered, target))]
    chart["marks"] = [{"x": x(row["min_probability"]), "text": percent(target)} for row, target in found]
    return chart


def learning_chart(rows: Sequence[Mapping]) -> dict:
    """Returns a chart of accuracy by number of training photos, with intervals."""
    n_photos, lows, highs = ([row[name] for row in rows] for name in ("photos", "low", "high"))
    low = math.floor(10 * min(lows)) / 10
    x, y = _scale((0, max(n_photos)), LEFT, WIDTH - RIGHT), _scale((low, 1), HEIGHT - BOTTOM, TOP)
    chart = _chart(
        "accuracy", "training photos", _ticks(0, max(n_photos), x, "{:,.0f}".format, True), low, 1, y, is_share=True
    )
    accuracies = [row["accuracy"] for row in rows]
    n_measured = sum(not row.get("is_expected") for row in rows)
    parts = {"measured": slice(n_measured), "expected": slice(n_measured - 1, None)}
    chart["lines"] = [
        {"name": name, "points": _points(n_photos[part], accuracies[part], x, y)}
        for name, part in parts.items()
        if len(rows[part]) > 1
    ]
    dots = zip(n_photos, accuracies, lows, highs, strict=True)
    chart["dots"] = [{"x": x(n), "y": y(value), "low": y(bottom), "high": y(top)} for n, value, bottom, top in dots]
    return chart


def threshold_for(answered: Sequence[Mapping], target: float) -> Mapping | None:
    """Returns the row of the lowest `--min_probability` with at least that share of right answers; None without one.

    A row with fewer answers than `FEWEST_ANSWERS` proves nothing.
    """
    rows = (row for row in answered if row["n_answered"] >= FEWEST_ANSWERS and row["accuracy"] >= target)
    return next(rows, None)


def _chart(y_name: str, x_name: str, x_ticks: list[dict], low: float, high: float, y: Callable, is_share: bool) -> dict:
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "left": LEFT,
        "right": WIDTH - RIGHT,
        "top": TOP,
        "bottom": HEIGHT - BOTTOM,
        "x_name": x_name,
        "y_name": y_name,
        "x_ticks": x_ticks,
        "y_ticks": _ticks(low, high, y, percent if is_share else "{:g}".format),
        "lines": [],
        "dots": [],
        "marks": [],
    }


def _scale(values: Sequence[float], start: float, end: float) -> Callable[[float], float]:
    """Returns what maps the range of the values to pixels; a single value is in the middle."""
    low, high = min(values), max(values)
    if low == high:
        return lambda _value: (start + end) / 2
    return lambda value: round(start + (value - low) / (high - low) * (end - start), 1)


def _ticks(
    low: float, high: float, scale: Callable, text: Callable[[float], str], is_whole: bool = False
) -> list[dict]:
    values = MaxNLocator(5, integer=is_whole, steps=[1, 2, 5, 10]).tick_values(low, high)
    # by text, as ticks around a single value are all but equal
    ticks = {text(value): scale(value) for value in values if low - 1e-9 <= value <= high + 1e-9}
    return [{"at": at, "text": text} for text, at in ticks.items()]


def _points(xs: Sequence[float], ys: Sequence[float | None], x: Callable, y: Callable) -> list[tuple[float, float]]:
    """Returns the points of a line, evenly thinned out if there are many."""
    points = [(x(a), y(b)) for a, b in zip(xs, ys, strict=True) if b is not None]
    step = -(-len(points) // MOST_POINTS)
    return points[::step] + points[-1:] if step > 1 else points


def _number(text: str | None) -> float | None:
    value = float(text) if text else math.nan
    return value if math.isfinite(value) else None
