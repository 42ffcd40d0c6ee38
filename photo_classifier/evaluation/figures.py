"""Figures of a report: confusion matrix, calibration, and photos of mistakes or of predictions."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from photo_classifier.evaluation.contact_sheet import (
    font_for,
    mistakes_sheet,
    readable,
)
from photo_classifier.evaluation.report_files import FIGURES, SOFTWARE
from photo_classifier.runtime.files import atomic_write

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure

MOST_SHOWN = 30  # classes in the picture of a confusion matrix: those with the most mistakes
NUMBERED = 15  # up to so many classes each cell has its count


# --- matplotlib -------------------------------------------------------------------------------


def confusion_figure(report: Mapping) -> Image.Image:
    """The confusion matrix: a row a class, the share of its images in each column."""
    names, counts = _most_confused(report)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    font = font_for("".join(names))
    texts = [_short(readable(name, font)) for name in names]
    longest = max(len(text) for text in texts)
    size = min(max(3.6, 0.4 * len(names) + 2), 12) + 0.07 * longest
    figure = _figure(size + 1, size)
    axes = figure.subplots()
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for axis, turn in ((axes.xaxis, 90 if longest * len(names) > 30 else 0), (axes.yaxis, 0)):
        axis.set_ticks(range(len(names)))
        options = {"font": Path(font.path)} if isinstance(font.path, str) else {}  # Pillow's own has no file
        axis.set_ticklabels(texts, rotation=turn, fontsize=9, parse_math=False, **options)
    axes.set_xlabel("prediction")
    axes.set_ylabel("label")
    if len(names) < len(report["classes"]):
        axes.set_title(f"the {len(names)} classes of {len(report['classes'])} with the most mistakes", fontsize=9)
    if len(names) <= NUMBERED:
        for row, column in np.ndindex(*counts.shape):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, int(counts[row, column]), ha="center", va="center", color=colour, fontsize=9)
    figure.colorbar(picture, ax=axes, fraction=0.046, label="share of the label's images")
    return _drawn(figure)


def _most_confused(report: Mapping) -> tuple[list[str], np.ndarray]:
    """Names and counts of the classes to show, in the order of the classes."""
    names = [about["name"] for about in report["classes"]]
    matrix = np.array(report["confusion_matrix"]) if report["confusion_matrix"] else _frequent_confusions(report)
    wrong = matrix.sum(0) + matrix.sum(1) - 2 * matrix.diagonal()
    chosen = np.sort(np.argsort(-wrong, kind="stable")[:MOST_SHOWN])
    return [names[k] for k in chosen], matrix[np.ix_(chosen, chosen)]


def _frequent_confusions(report: Mapping) -> np.ndarray:
    place_of = {about["name"]: k for k, about in enumerate(report["classes"])}
    matrix = np.diag([round(about["recall"] * about["support"]) for about in report["classes"]])
    for about in report["confusions"]:
        matrix[place_of[about["label"]], place_of[about["predict"]]] = about["n_images"]
    return matrix


def calibration_figure(report: Mapping) -> Image.Image:
    """Left: accuracy by confidence; right: what is answered, and how well, for each `--min_probability`."""
    figure = _figure(8.4, 3.6, layout=None)  # nothing in it grows: a layout would take as long as the drawing
    figure.subplots_adjust(left=0.045, right=0.985, bottom=0.14, top=0.91, wspace=0.12)
    left, right = figure.subplots(1, 2)
    bins = [about for about in report["calibration"] if about["n_images"]]
    most = max(about["n_images"] for about in bins)
    left.plot([0, 1], [0, 1], color="grey", linestyle=":", label="as it should be")
    left.bar(
        [about["from"] for about in report["calibration"]],
        [about["n_images"] / most for about in report["calibration"]],
        width=1 / len(report["calibration"]),
        align="edge",
        color="lightgrey",
        label=f"images (at most {most})",
    )
    left.plot([about["confidence"] for about in bins], [about["accuracy"] for about in bins], "o-", label="accuracy")
    left.set_xlabel("probability of the prediction")
    left.set_title(f"calibration error {report['expected_calibration_error']:.4f}", fontsize=10)
    rows = [about for about in report["answered"] if about["n_answered"]]
    p = [about["min_probability"] for about in rows]
    right.plot(p, [about["accuracy"] for about in rows], label="accuracy of the answers")
    right.plot(p, [about["share"] for about in rows], label="share answered")
    right.set_xlabel("--min_probability")
    right.set_title("what `unknown` costs and brings", fontsize=10)
    for axes in (left, right):
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1.02)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="lower left" if axes is right else "upper left")
    return _drawn(figure)


def _figure(width: float, height: float, layout: str | None = "constrained") -> Figure:
    # its news of a font cache that it builds, or of a folder it cannot write to, is nothing to the user
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=100, layout=layout)


def _drawn(figure: Figure) -> Image.Image:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def _short(text: str, most: int = 24) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."


# --- photos -----------------------------------------------------------------------------------


# --- files ------------------------------------------------------------------------------------


def figures_of(
    report: Mapping, open_photo: Callable[[str], torch.Tensor], seconds: float | None = None
) -> dict[str, Image.Image]:
    """The figures of one split's report, by name; `seconds` may be spent on photos."""
    made = confusion_figure(report), calibration_figure(report), mistakes_sheet(report, open_photo, seconds)
    return {name: picture for name, picture in zip(FIGURES, made, strict=True) if picture is not None}


def save_picture(path: str | Path, picture: Image.Image) -> None:
    """Writes a PNG atomically, marked as one of this tool."""
    from PIL.PngImagePlugin import PngInfo

    about, content = PngInfo(), io.BytesIO()
    about.add_text("Software", SOFTWARE)
    picture.save(content, "PNG", pnginfo=about)
    with atomic_write(path) as file:
        file.write(content.getvalue())
