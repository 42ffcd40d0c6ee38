"""What continuing a run needs: written as the run goes on, and checked before it is trusted."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypedDict

import msgspec
import torch
from torch import nn

from photo_classifier.data.new_photos import SAMPLES, SavedSamples
from photo_classifier.data.preprocess import Preprocess
from photo_classifier.data.samples import SPLIT_FOLDERS, Sample, Splits
from photo_classifier.models import tensor_files
from photo_classifier.models.state_dicts import check_fit, load_into, state_dict_of
from photo_classifier.runtime.errors import UserError, did_you_mean_path
from photo_classifier.runtime.files import file_state, read_json, write_text
from photo_classifier.runtime.plain_values import Finite, first_failed, first_mismatch
from photo_classifier.training.results import EpochResult
from photo_classifier.training.run_files import BACKBONE, FINISHED, LAST

FORMAT_VERSION = 1


@dataclass(frozen=True)
class RunState:
    """Where a run stood when it was saved: all of `last.pth` but the state of the trainer.

    `has_backbone` tells whether the frozen weights are in a file of their own; `rows` are those of `metrics.csv`;
    `seconds` is how long the run took until then.
    """

    run_id: str
    cwd: str
    folder: str
    config: dict[str, Any]
    device: str
    dtype: str
    is_folded: bool | None
    has_backbone: bool
    skipped: dict[str, str]
    rows: list[dict[str, str]]
    preprocess: dict[str, Any] | None = None  # older runs prepare images as the published weights expect
    seconds: Finite = 0.0  # older runs did not count them


@dataclass(frozen=True)
class RunImages:
    """The images of a run as they were when it began; `files` are their sizes and modification times, by split."""

    splits: Splits
    n_found: int
    files: dict[str, list[tuple[int, int] | None]] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class StoppedRun:
    """A run to go on with; a new one has no folder and no trainer state yet."""

    folder: Path | None
    state: RunState
    trainer: dict
    images: RunImages

    @property
    def is_new(self) -> bool:
        """Whether nothing of it was saved yet."""
        return not self.trainer

    @property
    def preprocess(self) -> Preprocess | None:
        """How the run prepares its images, if that was saved."""
        return msgspec.convert(self.state.preprocess, Preprocess) if self.state.preprocess else None

    @property
    def is_finished(self) -> bool:
        """Whether its last epoch was saved and all its reports were written."""
        return read_json(self.folder / FINISHED).get("epochs") == len(self.state.rows)

    @property
    def is_where_it_was(self) -> bool:
        """Whether the folder is still in the place where the run wrote it."""
        # the stored path is not resolved: with /proc/self/cwd a stranger's folder would always seem to be in place
        return os.path.normcase(os.path.realpath(self.folder)) == os.path.normcase(self.state.folder)


def new_run(splits: Splits) -> StoppedRun:
    """Returns a run with nothing in it but its images."""
    state = RunState(uuid.uuid4().hex, "", "", {}, "", "", None, False, {}, [])
    n_found = sum(map(len, splits.by_name().values())) + len(splits.unread)
    return StoppedRun(None, state, {}, RunImages(splits, n_found))


def write_last(folder: Path, state: RunState, trainer: dict) -> None:
    """Writes `last.pth`."""
    tensor_files.write(folder / LAST, {"format_version": FORMAT_VERSION, **vars(state), "trainer": trainer})


def write_images(folder: Path, splits: Splits, n_found: int) -> None:
    """Writes `samples.json`: the run goes on with these images, whatever the data folder holds by then."""
    columns = [item.name for item in fields(Sample)]
    rows = {split: [[getattr(s, name) for name in columns] for s in getattr(splits, split)] for split in SPLIT_FOLDERS}
    content = {
        "format_version": FORMAT_VERSION,
        "n_found": n_found,
        "columns": columns,
        "splits": {**vars(splits), **rows},
        "files": {name: [file_state(sample.path) for sample in part] for name, part in splits.by_name().items()},
    }
    write_text(folder / SAMPLES, json.dumps(content))  # ASCII, which also keeps names that are not valid Unicode


def write_backbone(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Writes `backbone.pth`, once: frozen weights do not change, but the file that they came from may."""
    tensor_files.write(folder / BACKBONE, {"format_version": FORMAT_VERSION, "state_dict": dict(tensors)})


def load_backbone(stopped: StoppedRun, net: nn.Module) -> None:
    """Loads the frozen backbone of a run, if it has one; raises UserError if its file is missing or does not fit."""
    if not stopped.state.has_backbone:
        return
    path = stopped.folder / BACKBONE
    if not path.exists():
        raise UserError(f"the run has lost its {BACKBONE} in {stopped.folder}; restore it, or start a new run")
    tensors = state_dict_of(tensor_files.read(path), path)
    check_fit({name: value for name, value in net.state_dict().items() if name in tensors}, tensors, path)
    load_into(net, tensors, strict=False)


class LaterTrainerState(TypedDict, total=False):
    """What runs of earlier versions lack."""

    improved: int | None
    first_epoch: int


class TrainerState(LaterTrainerState):
    """The state of the trainer; whether its parts fit is seen where they are put back."""

    model: dict[str, torch.Tensor]
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    scaler: dict[str, Any]
    step: int
    epoch: int
    sums: dict[str, Any] | None
    best: EpochResult | None
    last: EpochResult | None


class Saved(TypedDict):
    """What `last.pth` holds beside a `RunState`."""

    trainer: TrainerState


class SavedImages(SavedSamples):
    """What `samples.json` holds: the images, and how many were found."""

    n_found: int


def load_stopped_run(folder: str | Path, flag: str = "--resume") -> StoppedRun:
    """Reads the folder of a stopped run, which a flag names.

    Raises:
        UserError: its files are missing, broken or from a newer version.
    """
    folder = Path(folder)
    _check_folder(folder, flag)
    content = tensor_files.read(folder / LAST)
    _check_format(content, folder / LAST)
    wrong = first_mismatch(content, RunState) or first_mismatch(content, Saved) or _first_contradiction(content)
    if wrong:
        raise UserError(f"{folder / LAST} cannot be used: {wrong}; start a new run")
    # absolute, as the working folder may change before it is read again
    state = msgspec.convert(content, RunState)
    return StoppedRun(folder.absolute(), state, content["trainer"], _read_images(folder))


def _check_folder(folder: Path, flag: str) -> None:
    if folder.is_file():
        raise UserError(f"{folder} is a file; give the folder of the run, such as {folder.parent} ({flag})")
    if not folder.is_dir():
        hint = did_you_mean_path(folder)
        raise UserError(f"there is no folder {folder}{hint}; give the run folder of a training ({flag})")
    if not (folder / LAST).is_file():
        raise UserError(
            f"there is no {LAST} in {folder}; give the run folder of a training ({flag}), or start a new run if "
            "that one was stopped before its first save"
        )


def _check_format(content: object, path: Path) -> None:
    if not tensor_files.has_format(content, FORMAT_VERSION, path):
        raise UserError(f"{path} was not written by this tool; start a new run")


def _first_contradiction(content: Mapping) -> str:
    """Returns the first thing that has the right type but makes no sense, or an empty text."""
    rows, trainer = content["rows"], content["trainer"]
    epochs = [result["epoch"] for result in (trainer["best"], trainer["last"]) if result]
    epochs += [trainer["improved"]] if trainer.get("improved") is not None else []
    claims = {
        "rows do not match its epochs": len(rows) == trainer["epoch"]
        and all(row.get("epoch") == str(n + 1) and row.keys() == rows[0].keys() for n, row in enumerate(rows)),
        "valid_accuracy of a row is not a number": all(_is_number(row.get("valid_accuracy")) for row in rows),
        "preprocess does not say how images are prepared": not content.get("preprocess")
        or not first_mismatch(content["preprocess"], Preprocess),
        "best or last names an epoch that was never trained": all(0 <= epoch < trainer["epoch"] for epoch in epochs),
    }
    return first_failed(claims)


def _is_number(text: str | None) -> bool:
    try:
        return text is not None and float(text) >= 0
    except ValueError:
        return False


def _read_images(folder: Path) -> RunImages:
    path = folder / SAMPLES
    try:
        content = json.loads(path.read_text(encoding="ascii"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "it is broken"
        raise UserError(f"cannot read {path}: {reason}; start a new run") from error
    _check_format(content, path)
    try:
        saved = msgspec.convert(content, SavedImages)
        rows = {
            name: [dict(zip(saved["columns"], row, strict=True)) for row in saved["splits"][name]]
            for name in SPLIT_FOLDERS
        }
        splits = msgspec.convert({**saved["splits"], **rows}, Splits)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} cannot be used ({error}); start a new run") from error
    if any(sample.label not in splits.class_names for part in splits.by_name().values() for sample in part):
        raise UserError(f"{path} cannot be used: it has a sample without a known label; start a new run")
    return RunImages(splits, saved["n_found"], saved["files"])
