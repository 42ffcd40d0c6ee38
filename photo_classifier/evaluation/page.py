"""The page of a run or a prediction: report.html, one file that needs nothing else."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from photo_classifier.evaluation.charts import (
    TARGETS,
    curve_charts,
    learning_chart,
    reliability_chart,
    threshold_chart,
    threshold_for,
)
from photo_classifier.evaluation.drift import drift_text
from photo_classifier.evaluation.figures import most_confused
from photo_classifier.evaluation.metrics import wilson_interval
from photo_classifier.evaluation.page_doubts import MOST_ODD, label_content, table_rows
from photo_classifier.evaluation.page_photos import PagePhoto, embed
from photo_classifier.evaluation.report_files import PAGE, SOFTWARE
from photo_classifier.runtime.files import read_json, write_text
from photo_classifier.runtime.text import certainty, percent

MOST_BYTES = 4_900_000  # of the page
MOST_OTHER = 40  # photos of a split that is not the main one
MOST_SIMILAR = 60  # mistakes with similar training photos
MOST_CLASSES = 300  # rows of a table
MOST_EPOCHS = 100


@dataclass(frozen=True)
class About:
    """What a page is of.

    Args:
        title: such as `banana, efficientnet_lite0`.
        facts: what was trained on what: tables of names and values, by heading.
        training_counts: photos that each class was trained on.
        kept: the epoch whose weights were saved, counted from 1.
        predicted: what is known of photos without labels, from `UnlabelledAnswers.summary`.
        command: what to type next, where nothing better is known.
    """

    title: str
    facts: Mapping[str, Sequence[tuple[str, str]]]
    training_counts: Mapping[str, int] = field(default_factory=dict)
    kept: int | None = None
    predicted: Mapping | None = None
    command: str = ""


def write_page(
    folder: str | Path, about: About, open_photo: Callable[[str], Image.Image], seconds: float | None = None
) -> Path:
    """Writes `report.html` from what lies in the folder, and returns its path; `seconds` limits the time for photos.

    It takes `report.json`, `metrics.csv`, `suspects.csv`, `duplicates.csv` and `odd.csv`, each where it is there.
    """
    folder = Path(folder)
    content = page_content(folder, about)
    template = _template()
    n_bytes = len(template.render(content).encode("utf-8", "backslashreplace"))
    embed(content["photos"], MOST_BYTES - n_bytes, open_photo, seconds)
    write_text(folder / PAGE, template.render(content))
    return folder / PAGE


def page_content(folder: Path, about: About) -> dict:
    """Returns all that the template shows."""
    content = read_json(folder / "report.json")
    reports = {
        name: part for name, part in content.items() if isinstance(part, dict) and "accuracy_interval_95" in part
    }
    # what was not used to choose anything comes first; out-of-fold answers are several times as many as those of test
    first = ("out-of-fold", "test")
    order = sorted(reports, key=lambda name: first.index(name) if name in first else len(first))
    splits = [split_content(f"s{n}", name, reports[name], about, is_main=not n) for n, name in enumerate(order)]
    labels, drift = label_content(folder), drift_content(content.get("drift"))
    metrics = table_rows(folder / "metrics.csv")
    parts = [*splits, labels, about.predicted or {}, drift or {}]
    learning = content.get("learning_curve") or []
    return {
        "software": SOFTWARE,
        "about": about,
        "splits": splits,
        "curves": curve_charts(metrics, about.kept),
        "epochs": metrics[:: -(-len(metrics) // MOST_EPOCHS) or 1],
        "n_epochs": len(metrics),
        "learning": learning,
        "more_photos": content.get("more_photos") or "",
        "learning_chart": learning_chart(learning) if learning else None,
        "refusal": content.get("refusal") or [],
        "answers": content.get("answers"),
        "in_training": content.get("in_training"),
        "drift": drift,
        **labels,
        "next_steps": content.get("next_steps") or [],
        "photos": list(itertools.chain(*(part.get("photos", ()) for part in parts))),
    }


# --- a split with known labels ----------------------------------------------------------------


def split_content(key: str, name: str, report: Mapping, about: About, is_main: bool) -> dict:
    """Returns the view of a report; `key` begins the ids of its parts."""
    groups = _groups(key, report, None if is_main else MOST_OTHER)
    seen = [row for row in report["classes"] if row["support"]]
    common = max(seen, key=lambda row: row["support"])
    return {
        "key": key,
        "name": name,
        "report": report,
        "guess": {"name": common["name"], "accuracy": common["support"] / report["n_images"]},
        "weakest": min(seen, key=lambda row: row["recall"]),
        "matrix": _matrix(report, groups),
        "wrong": [group for group in groups if group["label"] != group["predict"]],
        "right": [group for group in groups if group["label"] == group["predict"]],
        "n_wrong": report["n_images"] - report["n_correct"],
        "without_heat": Counter(row["no_heat"] for row in report.get("examples", ()) if "no_heat" in row).most_common(),
        "has_heat": any("heat" in photo.values for group in groups for photo in group["photos"]),
        "n_shown": sum(len(group["photos"]) for group in groups if group["label"] != group["predict"]),
        "classes": _class_rows(report, about.training_counts),
        "n_classes": len(report["classes"]),
        "reliability": report.get("reliability"),
        "reliability_chart": reliability_chart(report["reliability"]) if report.get("reliability") else None,
        "threshold_chart": threshold_chart(report["answered"]),
        "thresholds": [_threshold_row(report["answered"], target) for target in TARGETS],
        "photos": [photo for group in groups for photo in group["photos"]],
    }


def _groups(key: str, report: Mapping, most: int | None) -> list[dict]:
    """Returns the photos of the cells of the confusion matrix, the fullest cells first."""
    examples = report.get("examples") or report["mistakes"]  # reports of earlier versions have no examples
    index = {row["name"]: k for k, row in enumerate(report["classes"])}
    counts = _cell_counts(report)
    cells: dict[tuple, list] = {}
    for n, row in enumerate(examples[:most]):
        similar = row.get("similar", ()) if n < MOST_SIMILAR else ()
        photo = PagePhoto(row["file_dir"], row, similar=[PagePhoto(other["path"], other) for other in similar])
        cells.setdefault((row["label"], row["predict"]), []).append(photo)
    groups = [
        {
            "id": f"{key}-{index[label]}-{index[predict]}",
            "label": label,
            "predict": predict,
            "photos": photos,
            "n_images": max(counts.get((label, predict), 0), len(photos)),
        }
        for (label, predict), photos in cells.items()
    ]
    return sorted(groups, key=lambda group: -group["n_images"])


def _cell_counts(report: Mapping) -> dict[tuple[str, str], int]:
    counts = {(row["label"], row["predict"]): row["n_images"] for row in report["confusions"]}
    if matrix := report["confusion_matrix"]:
        names = [row["name"] for row in report["classes"]]
        cells = itertools.product(range(len(names)), repeat=2)
        counts |= {(names[i], names[j]): matrix[i][j] for i, j in cells if matrix[i][j]}
    return counts | {(row["name"], row["name"]): round(row["recall"] * row["support"]) for row in report["classes"]}


def _matrix(report: Mapping, groups: Sequence[Mapping]) -> dict:
    """Returns the confusion matrix of the classes with the most mistakes; its cells lead to the groups."""
    names, counts = most_confused(report)
    ids = {(group["label"], group["predict"]): group["id"] for group in groups}
    support = {row["name"]: row["support"] for row in report["classes"]}

    def row(label: str, numbers: Sequence[int]) -> dict:
        """Returns a class with the number, share and group of each answer to its photos."""
        cells = [
            {"n": n, "share": n / max(support[label], 1), "id": ids.get((label, predict)), "predict": predict}
            for predict, n in zip(names, numbers, strict=True)
        ]
        return {"name": label, "support": support[label], "cells": cells}

    rows = [row(label, numbers) for label, numbers in zip(names, counts.tolist(), strict=True)]
    return {"names": names, "rows": rows, "n_classes": len(report["classes"])}


def _class_rows(report: Mapping, training_counts: Mapping[str, int]) -> list[dict]:
    """Returns the weakest classes, in the order of how many of their photos are found."""
    taken_for: dict[str, Mapping] = {}
    for pair in report["confusions"]:
        taken_for.setdefault(pair["label"], pair)
    rows = [
        {**row, "trained": training_counts.get(row["name"]), "taken_for": taken_for.get(row["name"])}
        for row in report["classes"]
    ]
    return sorted(rows, key=lambda row: (not row["support"], row["recall"]))[:MOST_CLASSES]


def _threshold_row(answered: Sequence[Mapping], target: float) -> dict:
    row = threshold_for(answered, target)
    if not row:
        return {"target": target}
    n_right = round(row["accuracy"] * row["n_answered"])
    return {"target": target, **row, "n_right": n_right, "interval": wilson_interval(n_right, row["n_answered"])}


def drift_content(drift: Mapping | None) -> dict | None:
    """Returns whether the photos as a whole look like those of the training, and the most unlike ones, if known."""
    if not drift or not drift["n_images"]:
        return None
    photos = [PagePhoto(row["file_dir"], row) for row in drift["most_unlike"][:MOST_ODD]]
    text = drift_text(drift).replace(" %", "\N{NO-BREAK SPACE}%")
    return {"text": f"{text[:1].upper()}{text[1:]}.", "photos": photos, "far": drift.get("far")}


# --- the template -----------------------------------------------------------------------------


@functools.cache
def _template() -> object:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "page_files"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for function in (percent, certainty):  # a line must not end before the sign
        environment.filters[function.__name__] = lambda *args, to=function: to(*args).replace(" ", "\N{NO-BREAK SPACE}")
    return environment.get_template("page.html")
