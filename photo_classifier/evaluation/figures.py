"""Figures of a report: confusion matrix, calibration, curves, and photos of mistakes."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from photo_classifier.evaluation.charts import TARGETS, curve_values, threshold_for
from photo_classifier.evaluation.fonts import font_for, readable
from photo_classifier.evaluation.photo_sheets import mistakes_sheet
from photo_classifier.evaluation.report_files import FIGURES, SOFTWARE
from photo_classifier.runtime.files import atomic_write
from photo_classifier.runtime.text import percent

MOST_SHOWN = 30  # classes in the picture of a confusion matrix: those with the most mistakes
NUMBERED = 15  # with at most this many classes, each cell shows its count


def figures_of(
    name: str, report: Mapping, open_photo: Callable[[str], Image.Image], seconds: float | None = None
) -> dict[str, Image.Image]:
    """Draws the figures of the report on a split of that name, by name; `seconds` limits the time for photos."""
    title = f"{name}: {percent(report['accuracy'])} of {report['n_images']:,} photos right"
    sheet = mistakes_sheet(report, title, open_photo, seconds)
    pictures = confusion_figure(report, title), calibration_figure(report, title), sheet
    return {name: picture for name, picture in zip(FIGURES, pictures, strict=True) if picture is not None}


def save_picture(path: str | Path, picture: Image.Image) -> None:
    """Writes a PNG atomically, marked as written by this tool."""
    metadata, content = PngInfo(), io.BytesIO()
    metadata.add_text("Software", SOFTWARE)
    picture.save(content, "PNG", pnginfo=metadata)
    with atomic_write(path) as file:
        file.write(content.getvalue())


def confusion_figure(report: Mapping, title: str) -> Image.Image:
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
        title += f"\nthe {len(names)} of {len(report['classes'])} classes with the most mistakes"
    figure.suptitle(title, fontsize=10)
    if len(names) <= NUMBERED:
        for row, column in np.ndindex(*counts.shape):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, int(counts[row, column]), ha="center", va="center", color=colour, fontsize=9)
    figure.colorbar(picture, ax=axes, fraction=0.046, label="share of the label's images")
    return _render(figure)


def calibration_figure(report: Mapping, title: str) -> Image.Image:
    """Draws how often answers are right by their probability, and what `--min_probability` does."""
    figure = _figure(9, 4.2, layout=None)  # all sizes are fixed; a layout would take as long as the drawing
    figure.subplots_adjust(left=0.065, right=0.985, bottom=0.12, top=0.83, wspace=0.17)
    figure.suptitle(title, fontsize=10)
    left, right = figure.subplots(1, 2)
    for axes, draw in ((left, _draw_calibration), (right, _draw_thresholds)):
        _show_shares(axes.yaxis)
        draw(axes, report)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="lower left" if axes is right else "upper left")
    return _render(figure)


def curves_figure(rows: Sequence[Mapping[str, str]], kept: int, result: str) -> Image.Image:
    """Draws loss and accuracy of training and validation by epoch, from the rows of `metrics.csv`.

    Args:
        kept: the epoch whose weights were saved, counted from 1.
        result: what these weights come to, for the title.
    """
    figure = _figure(9, 4, layout=None)
    figure.subplots_adjust(left=0.075, right=0.985, bottom=0.13, top=0.8, wspace=0.19)
    name = "step" if rows[kept - 1].get("C") else "epoch"
    figure.suptitle(f"saved: {name} {kept} of {len(rows)}; {result}", fontsize=10)
    epochs = [int(row["epoch"]) for row in rows]
    for axes, measure in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for (split, values), style in zip(curve_values(rows, measure).items(), ("--", "-"), strict=True):
            axes.plot(epochs, values, style, marker="o" if len(rows) <= 30 else "", markersize=4, label=split)
        axes.axvline(kept, color="grey", linestyle=":", label=f"saved {name}")
        axes.set_xlabel(name if name == "epoch" else "step from a strong to a weak penalty")
        axes.set_title(measure, fontsize=10)
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)  # a single epoch has one
        axes.yaxis.set_major_locator(_round_numbers())
        axes.grid(alpha=0.3)
    _show_shares(axes.yaxis)
    # above both, where no line can be under it
    lines = axes.get_legend_handles_labels()
    figure.legend(*lines, loc="upper center", bbox_to_anchor=(0.5, 0.945), ncols=3, fontsize=8, frameon=False)
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
    rows = report["reliability"]
    at, accuracies = ([row[name] for row in rows] for name in ("confidence", "accuracy"))
    lows, highs = zip(*(row["accuracy_interval_95"] for row in rows), strict=True)
    bars = np.abs(np.array([lows, highs]) - accuracies)  # from the dot down and up
    lowest = max(0.0, min(*at, *lows) - 0.04)
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", label="exactly as often as the probability says")
    label = f"right answers of about {report['n_images'] // len(rows):,} photos each, 95 % interval"
    axes.errorbar(at, accuracies, bars, fmt="o", capsize=3, label=label)
    axes.set_xlim(lowest, 1.01)
    axes.set_ylim(lowest, 1.01 + 0.16 * (1.01 - lowest))  # room for the legend
    _show_shares(axes.xaxis)
    axes.set_yticks([tick for tick in axes.get_xticks() if lowest <= tick <= 1])
    axes.set_xlabel("probability of the answer")
    axes.set_title(f"are answers at 80 % right four times in five? error {report['expected_calibration_error']:.3f}")
    axes.title.set_fontsize(10)


def _draw_thresholds(axes: Axes, report: Mapping) -> None:
    rows = [row for row in report["answered"] if row["n_answered"]]
    thresholds = [row["min_probability"] for row in rows]
    background = {"facecolor": "white", "edgecolor": "none", "pad": 1}
    axes.plot(thresholds, [row["accuracy"] for row in rows], label="right among the answers")
    axes.plot(thresholds, [row["share"] for row in rows], "--", label="answered")
    for n, target in enumerate(TARGETS):
        if row := threshold_for(report["answered"], target):
            at, text = row["min_probability"], f"{percent(target)} right: {row['min_probability']:.2f}"
            axes.axvline(at, color="grey", linestyle=":")
            side = {"ha": "right", "x": at - 0.01} if at > 0.35 else {"ha": "left", "x": at + 0.01}
            axes.text(**side, y=0.3 + 0.09 * n, s=text, fontsize=8, bbox=background, zorder=1)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("--min_probability")
    axes.set_title("answer only above a probability", fontsize=10)


def _show_shares(axis: Axis) -> None:
    """Labels an axis of shares in percent, at round numbers."""
    axis.set_major_locator(_round_numbers())
    axis.set_major_formatter(lambda value, _: f"{100 * value:.6g} %")


def _round_numbers() -> MaxNLocator:
    return MaxNLocator(8, steps=[1, 2, 5, 10])


def _figure(width: float, height: float, layout: str | None = "constrained") -> Figure:
    return Figure(figsize=(width, height), dpi=100, layout=layout)


def _render(figure: Figure) -> Image.Image:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())


def _short(text: str, most: int = 24) -> str:
    return text if len(text) <= most else f"{text[: most - 3]}..."
