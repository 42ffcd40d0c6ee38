"""Figures of a report: confusion matrix, calibration, and photos of mistakes."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from photo_classifier.evaluation.fonts import font_for, readable
from photo_classifier.evaluation.photo_sheets import mistakes_sheet
from photo_classifier.evaluation.report_files import FIGURES, SOFTWARE
from photo_classifier.runtime.files import atomic_write

MOST_SHOWN = 30  # classes in the picture of a confusion matrix: those with the most mistakes
NUMBERED = 15  # with at most this many classes, each cell shows its count


def figures_of(
    report: Mapping, open_photo: Callable[[str], Image.Image], seconds: float | None = None
) -> dict[str, Image.Image]:
    """Draws the figures of one split's report, by name; `seconds` limits the time for photos."""
    pictures = confusion_figure(report), calibration_figure(report), mistakes_sheet(report, open_photo, seconds)
    return {name: picture for name, picture in zip(FIGURES, pictures, strict=True) if picture is not None}


def save_picture(path: str | Path, picture: Image.Image) -> None:
    """Writes a PNG atomically, marked as written by this tool."""
    metadata, content = PngInfo(), io.BytesIO()
    metadata.add_text("Software", SOFTWARE)
    picture.save(content, "PNG", pnginfo=metadata)
    with atomic_write(path) as file:
        file.write(content.getvalue())


def confusion_figure(report: Mapping) -> Image.Image:
    """Draws the confusion matrix: labels down, predictions across, shaded by the share of the label's images."""
    names, counts = most_confused(report)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    font = font_for("".join(names))
    texts = [_short(readable(name, font)) for name in names]
    longest = max(len(text) for text in texts)
    size = min(max(3.6, 0.4 * len(names) + 2), 12) + 0.07 * longest
    figure = _figure(size + 1, size)
    axes = figure.subplots()
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    options = {"font": Path(font.path)} if isinstance(font.path, str) else {}  # Pillow's own font has no file
    for axis, rotation in ((axes.xaxis, 90 if longest * len(names) > 30 else 0), (axes.yaxis, 0)):
        axis.set_ticks(range(len(names)))
        axis.set_ticklabels(texts, rotation=rotation, fontsize=9, parse_math=False, **options)
    axes.set_xlabel("prediction")
    axes.set_ylabel("label")
    if len(names) < len(report["classes"]):
        axes.set_title(f"the {len(names)} of {len(report['classes'])} classes with the most mistakes", fontsize=9)
    if len(names) <= NUMBERED:
        for row, column in np.ndindex(*counts.shape):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, int(counts[row, column]), ha="center", va="center", color=colour, fontsize=9)
    figure.colorbar(picture, ax=axes, fraction=0.046, label="share of the label's images")
    return _render(figure)


def calibration_figure(report: Mapping) -> Image.Image:
    """Draws accuracy by confidence, and accuracy and share of the answers by `--min_probability`."""
    figure = _figure(8.4, 3.6, layout=None)  # all sizes are fixed; a layout would take as long as the drawing
    figure.subplots_adjust(left=0.045, right=0.985, bottom=0.14, top=0.91, wspace=0.12)
    left, right = figure.subplots(1, 2)
    _draw_calibration(left, report)
    _draw_thresholds(right, report)
    for axes in (left, right):
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.02)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="lower left" if axes is right else "upper left")
    return _render(figure)


def most_confused(report: Mapping) -> tuple[list[str], np.ndarray]:
    """Returns names and counts of the classes to show, in the order of the classes."""
    names = [row["name"] for row in report["classes"]]
    matrix = np.array(report["confusion_matrix"]) if report["confusion_matrix"] else _sparse_matrix(report)
    n_wrong = matrix.sum(0) + matrix.sum(1) - 2 * matrix.diagonal()
    chosen = np.sort(np.argsort(-n_wrong, kind="stable")[:MOST_SHOWN])
    return [names[k] for k in chosen], matrix[np.ix_(chosen, chosen)]


def _sparse_matrix(report: Mapping) -> np.ndarray:
    """Returns the confusion matrix of a report with many classes, which lists the most frequent confusions only."""
    index = {row["name"]: k for k, row in enumerate(report["classes"])}
    matrix = np.diag([round(row["recall"] * row["support"]) for row in report["classes"]])
    for pair in report["confusions"]:
        matrix[index[pair["label"]], index[pair["predict"]]] = pair["n_images"]
    return matrix


def _draw_calibration(axes: Axes, report: Mapping) -> None:
    bins = report["calibration"]
    filled = [row for row in bins if row["n_images"]]
    most = max(row["n_images"] for row in filled)
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", label="perfect calibration")
    heights, label = [row["n_images"] / most for row in bins], f"images per bin (up to {most})"
    axes.bar([row["from"] for row in bins], heights, 1 / len(bins), align="edge", color="lightgrey", label=label)
    axes.plot([row["confidence"] for row in filled], [row["accuracy"] for row in filled], "o-", label="accuracy")
    axes.set_xlabel("probability of the prediction")
    axes.set_title(f"calibration error {report['expected_calibration_error']:.4f}", fontsize=10)


def _draw_thresholds(axes: Axes, report: Mapping) -> None:
    rows = [row for row in report["answered"] if row["n_answered"]]
    thresholds = [row["min_probability"] for row in rows]
    axes.plot(thresholds, [row["accuracy"] for row in rows], label="accuracy of the answers")
    axes.plot(thresholds, [row["share"] for row in rows], label="share answered")
    axes.set_xlabel("--min_probability")
    axes.set_title("accuracy and share answered", fontsize=10)


def _figure(width: float, height: float, layout: str | None = "constrained") -> Figure:
    return Figure(figsize=(width, height), dpi=100, layout=layout)


def _render(figure: Figure) -> Image.Image:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def _short(text: str, most: int = 24) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."
