"""What the folder of a finished run says: settings, data, measures, and the answer for each held-out photo."""

from __future__ import annotations

import contextlib
import csv
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypedDict

import msgspec

from photo_classifier.data.new_photos import SAMPLES
from photo_classifier.data.samples import split_title
from photo_classifier.runtime.errors import UserError, did_you_mean_path
from photo_classifier.runtime.files import read_json
from photo_classifier.runtime.plain_values import first_failed, first_mismatch
from photo_classifier.runtime.text import escape_surrogates, own_name
from photo_classifier.training.run_files import CONFIG, ENDED, FINISHED, LAST, PREDICTIONS, REPORT

# Of several the first is shown: out-of-fold answers are several times as many as those of a test split, and validation
# has chosen the epoch, so that its accuracy is a little too high.
VALID, UNSEEN = split_title("valid"), ("out-of-fold", split_title("test"))
TITLES = (*UNSEEN, VALID)
MARKS = (CONFIG, LAST, FINISHED)  # any of them tells the folder of a run, also of one that has lost the others


Count = Annotated[int, msgspec.Meta(ge=0)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
AtLeast0 = Annotated[float, msgspec.Meta(ge=0, le=1e300)]


class Measures(TypedDict):
    """What is compared of a split in `report.json`."""

    n_images: Annotated[int, msgspec.Meta(ge=1)]
    n_correct: Count
    accuracy: Share
    accuracy_interval_95: tuple[Share, Share]
    negative_log_likelihood: AtLeast0 | None


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
    n_train: int | None  # None if it is not known
    title: str  # of the split that is shown
    measures: Measures
    seconds: float | None  # older runs did not count them
    answers: Mapping[str, Answer] = field(repr=False)
    faults: Sequence[str] = ()  # what is wrong with its tables

    @property
    def is_old(self) -> bool:
        """Whether the run has no table of answers; a damaged one is a fault."""
        return not os.path.exists(os.path.join(self.folder, PREDICTIONS))

    @property
    def data(self) -> str:
        """The name of the data."""
        source = self.settings.get("dataset_name") or self.settings.get("data_dir") or self.settings.get("labels") or ""
        return escape_surrogates(own_name(str(source))) if source else "-"


def find_folders(paths: Iterable[str]) -> list[str]:
    """Returns the run folders that are named: a folder that is none stands for all runs below it."""
    found: dict[str, str] = {}
    for path in paths:
        files = () if _is_of_a_run(path) else (file for name in MARKS for file in Path(path).rglob(name))
        below = sorted({str(file.parent) for file in files})
        for folder in below or [os.path.normpath(path)]:
            found.setdefault(os.path.realpath(folder), folder)
    return list(found.values())


def _is_of_a_run(folder: str) -> bool:
    return any(os.path.exists(os.path.join(folder, name)) for name in MARKS)


def load_run(folder: str) -> FinishedRun:
    """Reads a run folder; raises UserError if it holds no finished run, or its files are broken."""
    if not os.path.isdir(folder):
        raise UserError(f"there is no folder {folder}{did_you_mean_path(folder)}")
    settings, report, finished = (_json(folder, name) for name in (CONFIG, REPORT, FINISHED))
    if not settings and _is_of_a_run(folder):
        raise UserError(f"there is no {os.path.join(folder, CONFIG)}")
    if os.path.exists(os.path.join(folder, ENDED)):
        raise UserError(f"{folder} is a dry run, or a run that ended before its first save")
    if not {"n_epochs", "model_name"} <= settings.keys():
        raise UserError(f"{folder} is not the folder of a training run")
    if not finished:
        hint = " (train.py --resume continues it)" if os.path.exists(os.path.join(folder, LAST)) else ""
        raise UserError(f"{folder} is not finished{hint}")
    title, measures = _measures(folder, report)
    seconds, faults, answers, n_train = finished.get("seconds"), [], {}, None
    if first_mismatch(seconds, AtLeast0 | None):
        faults.append(f"{os.path.join(folder, FINISHED)} is damaged: seconds is no time")
        seconds = None
    try:
        answers = _answers(folder, title, measures["n_images"])
    except UserError as error:
        faults.append(f"{error}; so {folder} is not compared photo by photo")
    try:
        n_train = _n_train(folder, title, measures["n_images"])
    except UserError as error:
        faults.append(f"{error}; so the number of training photos is not known")
    return FinishedRun(folder, settings, n_train, title, measures, seconds, answers, faults)


def _json(folder: str, name: str) -> dict:
    path = os.path.join(folder, name)
    content = read_json(path)
    if not content and os.path.exists(path):
        raise UserError(f"{path} is damaged: it is not a JSON object, or an empty one")
    return content


def _measures(folder: str, report: Mapping) -> tuple[str, Measures]:
    """Returns the split that is shown, and its measures; raises UserError if they are damaged."""
    path = os.path.join(folder, REPORT)
    title = next((title for title in TITLES if title in report), "")
    if not title:
        raise UserError(f"{path} has no accuracy of held-out photos" if report else f"there is no {path}")
    if wrong := first_mismatch(report[title], Measures):
        raise UserError(f"{path} is damaged: {title}: {wrong}")
    m = msgspec.convert(report[title], Measures)
    low, high = m["accuracy_interval_95"]
    claims = {
        "accuracy is not n_correct of n_images": abs(m["accuracy"] - m["n_correct"] / m["n_images"]) < 1e-4,
        "accuracy is outside its interval": low - 1e-4 <= m["accuracy"] <= high + 1e-4,
    }
    if wrong := first_failed(claims):
        raise UserError(f"{path} is damaged: {title}: {wrong}")
    return title, m


def _n_train(folder: str, title: str, n: int) -> int:
    """Returns the number of training photos; raises UserError if the table lacks some of the `n` photos shown."""
    counts = Counter(row["split"] for row in _rows(folder, "splits.csv", {"split"}))
    pooled = counts["train"] + counts["valid"]
    held_out = {"out-of-fold": pooled, VALID: counts["valid"]}.get(title, counts["test"])
    if not counts["train"] or held_out < n:
        raise UserError(f"{os.path.join(folder, 'splits.csv')} is damaged: photos are missing")
    return pooled if title == "out-of-fold" else counts["train"]


def _answers(folder: str, title: str, n: int) -> dict[str, Answer]:
    """Returns the answers, of which `n` are of the split that is shown; none if an earlier version made the run."""
    if not os.path.exists(path := os.path.join(folder, PREDICTIONS)):
        return {}
    rows, photos = _rows(folder, PREDICTIONS, {"path", "label", "predict", "split"}), _photos(folder)
    if (found := sum(row["split"] == title for row in rows)) != n:
        raise UserError(f"{path} is damaged: it has {found} {title} answers, and {REPORT} is of {n}")
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
    """Returns the rows of a table of the run; raises UserError if it is missing, broken or lacks a cell."""
    path = os.path.join(folder, name)
    try:
        with open(path, encoding="utf-8", newline="") as file:
            table = csv.DictReader(file)
            rows, names = list(table), table.fieldnames or ()
    except FileNotFoundError:
        raise UserError(f"there is no {path}") from None
    except (OSError, ValueError, csv.Error):
        raise UserError(f"{path} is damaged: it cannot be read as a table in UTF-8") from None
    if missing := sorted(columns.difference(names)):
        raise UserError(f"{path} is damaged: it has no column {missing[0]}")
    if any(row[name] is None for row in rows for name in columns):
        raise UserError(f"{path} is damaged: a row is cut short")
    return rows
