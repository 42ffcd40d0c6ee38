"""What the folder of a finished run says: settings, data, measures, and the answer for each held-out photo."""

from __future__ import annotations

import contextlib
import csv
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import msgspec

from photo_classifier.data.new_photos import SAMPLES
from photo_classifier.data.samples import split_title
from photo_classifier.runtime.errors import UserError, did_you_mean_path
from photo_classifier.runtime.files import read_json
from photo_classifier.runtime.plain_values import Finite, first_mismatch
from photo_classifier.runtime.text import escape_surrogates
from photo_classifier.training.run_files import CONFIG, ENDED, FINISHED, LAST, PREDICTIONS, REPORT

# Of several the first is shown: out-of-fold answers are several times as many as those of a test split, and validation
# has chosen the epoch, so that its accuracy is a little too high.
VALID, UNSEEN = split_title("valid"), ("out-of-fold", split_title("test"))
TITLES = (*UNSEEN, VALID)


class Measures(TypedDict):
    """What is compared of a split in `report.json`."""

    n_images: int
    n_correct: int
    accuracy: Finite
    accuracy_interval_95: tuple[Finite, Finite]
    negative_log_likelihood: Finite | None


class Answer(NamedTuple):
    """The label of a held-out photo, what the run says, and the photo's name in the data with its size, if known."""

    label: str
    predict: str
    photo: str


@dataclass(frozen=True)
class FinishedRun:
    """A run that was trained to its end. `answers` are by the real path of the photo; older runs have none.

    They are those of all photos that chose nothing, so that a run by folds shares its test photos with other runs, or
    those of validation if there are no others.
    """

    folder: str
    settings: Mapping[str, Any]
    n_train: int
    title: str  # of the split that is shown
    measures: Measures
    seconds: float | None  # older runs did not count them
    answers: Mapping[str, Answer] = field(repr=False)

    @property
    def data(self) -> str:
        """The name of the data."""
        source = self.settings.get("dataset_name") or self.settings.get("data_dir") or self.settings.get("labels") or ""
        return escape_surrogates(os.path.basename(os.path.normpath(str(source))))


def find_folders(paths: Iterable[str]) -> list[str]:
    """Returns the run folders that are named: a folder that is none stands for all runs below it."""
    found: dict[str, str] = {}
    for path in paths:
        is_run = os.path.exists(os.path.join(path, CONFIG))
        below = [] if is_run else sorted(str(file.parent) for file in Path(path).rglob(CONFIG))
        for folder in below or [os.path.normpath(path)]:
            found.setdefault(os.path.realpath(folder), folder)
    return list(found.values())


def load_run(folder: str) -> FinishedRun:
    """Reads a run folder; raises UserError if it holds no finished run, or its files are broken."""
    if not os.path.isdir(folder):
        raise UserError(f"there is no folder {folder}{did_you_mean_path(folder)}")
    settings, report, finished = (read_json(os.path.join(folder, name)) for name in (CONFIG, REPORT, FINISHED))
    if os.path.exists(os.path.join(folder, ENDED)):
        raise UserError(f"{folder} is a dry run, or a run that ended before its first save")
    if not {"n_epochs", "model_name"} <= settings.keys():
        raise UserError(f"{folder} is not the folder of a training run")
    if not finished:
        hint = " (train.py --resume continues it)" if os.path.exists(os.path.join(folder, LAST)) else ""
        raise UserError(f"{folder} is not finished{hint}")
    title = next((title for title in TITLES if title in report), "")
    if wrong := first_mismatch(report.get(title), Measures):
        raise UserError(f"{os.path.join(folder, REPORT)} cannot be used: {wrong}")
    measures, seconds = msgspec.convert(report[title], Measures), finished.get("seconds")
    known = None if first_mismatch(seconds, Finite) else seconds
    counts = Counter(row["split"] for row in _rows(folder, "splits.csv", {"split"}))
    n_train = counts["train"] + counts["valid"] * ("out-of-fold" in report)
    return FinishedRun(folder, settings, n_train, title, measures, known, _answers(folder, title))


def _answers(folder: str, title: str) -> dict[str, Answer]:
    rows, photos = _rows(folder, PREDICTIONS, {"path", "label", "predict", "split"}), _photos(folder)
    return {
        os.path.realpath(row["path"].replace("\0", "")): Answer(
            row["label"], row["predict"], photos.get(row["path"], "")
        )
        for row in rows
        if row["split"] in (UNSEEN if title in UNSEEN else [title])
    }


def _photos(folder: str) -> dict[str, str]:
    """Returns what a photo is known by where the data was moved or is on another machine: its key and size, by path."""
    content, known = read_json(os.path.join(folder, SAMPLES)), {}
    with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):  # it is broken
        names = content["columns"]
        path, key = names.index("path"), names.index("key")
        for split, files in content["files"].items():
            rows = zip(content["splits"][split], files, strict=True)
            known |= {row[path]: f"{row[key]} {file[0]}" for row, file in rows if file}
    return known


def _rows(folder: str, name: str, columns: set[str]) -> list[dict[str, str]]:
    """Returns the rows of a table of the run; none if it is missing, broken or lacks a column."""
    try:
        with open(os.path.join(folder, name), encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error):
        return []
    return rows if all(columns <= {key for key, value in row.items() if value is not None} for row in rows) else []
