"""What continuing a run needs: written as the run goes, and checked before it is believed."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch
from torch import nn

from photo_classifier.config import TrainConfig, checkpoint_name
from photo_classifier.data.samples import SPLIT_FOLDERS, Sample, Splits
from photo_classifier.models import tensor_files
from photo_classifier.models.state_dicts import check_fit, load_into, state_dict_of
from photo_classifier.runtime import distributed
from photo_classifier.runtime.console import say, warn
from photo_classifier.runtime.errors import UserError, did_you_mean_path
from photo_classifier.runtime.files import file_state, read_json, write_text
from photo_classifier.runtime.flags import check_values
from photo_classifier.runtime.plain_values import first_failed, first_mismatch
from photo_classifier.runtime.text import pluralize, shell_command

if TYPE_CHECKING:
    from trainer import Trainer

FORMAT_VERSION = 1
LAST, SAMPLES, BACKBONE, FINISHED = "last.pth", "samples.json", "backbone.pth", "finished.json"

# Flags that may be given anew on --resume and why; any other that differs would change the result and is an error.
MAY_CHANGE = {
    "n_epochs": "it may grow, and the first epochs stay the same",
    "n_workers": "no draw depends on who makes it",
    "max_bad": "it only stops a run",
    "feature_cache": "what is missing there is computed again",
    "gpu_id": "another device of the same kind",
    "save_every": "a save changes nothing",
    "verbose": "words change nothing",
}


@dataclass(frozen=True)
class RunState:
    """Where a run stood when it was saved: all of `last.pth` but the state of the trainer.

    `has_backbone` tells that the frozen weights are in a file of their own, `events` are the name of the
    TensorBoard file and its bytes, `rows` those of `metrics.csv`.
    """

    run_id: str
    cwd: str
    folder: str
    config: dict
    device: str
    dtype: str
    is_folded: bool
    has_backbone: bool
    skipped: dict
    rows: list
    events: list


@dataclass(frozen=True)
class RunImages:
    """The images of a run as they were when it began; `files` are their sizes and times of change, by split."""

    splits: Splits
    n_found: int
    files: dict[str, list] = field(repr=False)


@dataclass(frozen=True)
class StoppedRun:
    """A run that was stopped, as its folder tells of it."""

    folder: Path
    progress: RunState
    trainer: dict
    found: RunImages

    @property
    def is_finished(self) -> bool:
        """Whether its last epoch was saved and all reports of it written."""
        return read_json(self.folder / FINISHED).get("epochs") == len(self.progress.rows)

    @property
    def is_where_it_was(self) -> bool:
        """Whether the folder is still in the place where the run wrote it."""
        # what was written is not resolved: /proc/self/cwd would make any folder of a stranger's one of this place
        return os.path.normcase(os.path.realpath(self.folder)) == os.path.normcase(self.progress.folder)


def resume_command(folder: str | Path) -> str:
    """What to type to continue the run of that folder."""
    script = sys.argv[0] if os.path.basename(sys.argv[0]) == "train.py" else "train.py"
    return shell_command("python", script, "--resume", folder)


class Checkpointer(Protocol):
    """Who keeps the best weights of a run."""

    path: str

    def __call__(self, metrics: dict) -> None:
        """Writes the present weights, with what they came to."""


# --- writing ----------------------------------------------------------------------------------


def write_last(folder: Path, progress: RunState, trainer: dict) -> None:
    """Writes `last.pth`."""
    tensor_files.write(folder / LAST, {"format_version": FORMAT_VERSION, **vars(progress), "trainer": trainer})


def write_found(folder: Path, splits: Splits, n_found: int) -> None:
    """Writes `samples.json`: the run goes on with these images, whatever the data folder holds by then."""
    names = [item.name for item in fields(Sample)]
    rows = {split: [[getattr(s, name) for name in names] for s in getattr(splits, split)] for split in SPLIT_FOLDERS}
    about = {**vars(splits), **rows}
    files = {name: [file_state(sample.path) for sample in part] for name, part in splits.by_name().items()}
    content = {"format_version": FORMAT_VERSION, "n_found": n_found, "columns": names, "splits": about, "files": files}
    write_text(folder / SAMPLES, json.dumps(content))  # ASCII: it keeps names that are no Unicode, too


def write_backbone(folder: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Writes `backbone.pth`, once: what is frozen does not change, and the file it came from may."""
    tensor_files.write(folder / BACKBONE, {"format_version": FORMAT_VERSION, "state_dict": dict(tensors)})


def load_backbone(saved: StoppedRun, net: nn.Module) -> None:
    """Puts the frozen backbone of a run into the network, where the run has one.

    Raises:
        UserError: its file is broken or does not fit.
    """
    path = saved.folder / BACKBONE
    if not path.exists() and saved.progress.has_backbone:
        raise UserError(f"the run has no {BACKBONE} in {saved.folder} any more; bring it back, or start it again")
    if not saved.progress.has_backbone:
        return
    tensors = state_dict_of(tensor_files.read(path), path)
    check_fit({name: value for name, value in net.state_dict().items() if name in tensors}, tensors, path)
    load_into(net, tensors, strict=False)


# --- reading ----------------------------------------------------------------------------------

ANYTHING = {str: object}
PHASE = {**dict.fromkeys(("correct", "n_images"), int), **dict.fromkeys(("loss", "seconds", "macro_f1"), float)}
RESULT = {"epoch": int, "train": PHASE, "valid": PHASE, "rates": {str: float}}
SUMS = {**dict.fromkeys(("loss", "confusion", "n_finite"), torch.Tensor), "n_steps": int, "n_batches": int}
PROGRESS = {
    **dict.fromkeys(("run_id", "cwd", "folder", "device", "dtype"), str),
    "config": ANYTHING,
    "is_folded": bool,
    "has_backbone": bool,
    "skipped": {str: str},
    "rows": [{str: str}],
    "events": [(str, int)],
    "trainer": {
        "model": {str: torch.Tensor},
        "step": int,
        "epoch": int,
        **dict.fromkeys(("optimizer", "schedule", "scaler"), ANYTHING),
        "sums": (None, {**SUMS, "seconds": float}),
        **dict.fromkeys(("best", "last"), (None, RESULT)),
    },
}
EVENTS_NAME = re.compile(r"events\.out\.tfevents\.[^/\\:\0]+")  # cut back by a resume: a name in the folder, no way out
FOUND = {"n_found": int, "columns": [str], "splits": {str: object}, "files": {str: [(None, [int])]}}
ROWS = [[object]]
SPLITS = {"layout": str, "root": str, "class_names": [str], "passed_over": {str: int}}
SPLITS |= {"train": ROWS, "valid": ROWS, "test": ROWS, "made": [str], "notes": [str]}


def load_stopped_run(folder: str | Path) -> StoppedRun:
    """Reads the folder of a stopped run.

    Raises:
        UserError: it is no such folder, or its files are broken, of a newer version or not what they should be.
    """
    folder = Path(folder)
    if folder.is_file():
        raise UserError(f"--resume {folder} is a file; give the folder of the run, such as {folder.parent}")
    if not folder.is_dir():
        hint = did_you_mean_path(folder)
        raise UserError(f"--resume {folder}: there is no such folder{hint}; give the run folder of a training")
    if not (folder / LAST).is_file():
        raise UserError(
            f"--resume {folder}: there is no {LAST} in it; give the run folder of a training, or start anew if that "
            "was stopped before its first save"
        )
    content = tensor_files.read(folder / LAST)
    _check(content, PROGRESS, folder / LAST)
    if wrong := _first_wrong(content, folder):
        raise UserError(f"{folder / LAST} cannot be used: {wrong}; start the run again")
    progress = RunState(**{item.name: content[item.name] for item in fields(RunState)})
    try:
        found = json.loads((folder / SAMPLES).read_text(encoding="ascii"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or "it is broken"
        raise UserError(f"--resume {folder}: cannot read {SAMPLES}: {reason}; start the run again") from error
    # absolute, as the working folder may change before it is read again
    return StoppedRun(folder.absolute(), progress, content["trainer"], _found(found, folder / SAMPLES))


def _check(content: object, kind: Mapping, path: Path) -> None:
    if not tensor_files.has_format(content, FORMAT_VERSION, path):
        raise UserError(f"{path} was not written by this tool; start the run again")
    if wrong := first_mismatch(content, kind):
        raise UserError(f"{path} cannot be used: {wrong}; start the run again")


def _first_wrong(content: Mapping, folder: Path) -> str:
    """What has the right type and no sense, or nothing."""
    events, rows, state = content["events"], content["rows"], content["trainer"]
    has_events = len(events) == 2 and [type(part) for part in events] == [str, int]
    epochs = [result["epoch"] for result in (state["best"], state["last"]) if result]
    right = {
        "events is not the name of a TensorBoard file and its bytes": has_events
        and EVENTS_NAME.fullmatch(events[0])
        and events[1] >= 0,
        "its TensorBoard file is a link": not has_events or not (folder / events[0]).is_symlink(),
        "rows are not those of its epochs": len(rows) == state["epoch"]
        and all(row.get("epoch") == str(n + 1) and row.keys() == rows[0].keys() for n, row in enumerate(rows)),
        "valid_accuracy of a row is no number": all(_is_number(row.get("valid_accuracy")) for row in rows),
        "best or last is of no epoch that was": all(0 <= epoch < state["epoch"] for epoch in epochs),
    }
    return first_failed(right)


def _is_number(text: str | None) -> bool:
    try:
        return text is not None and float(text) >= 0
    except ValueError:
        return False


def _found(content: dict, path: Path) -> RunImages:
    _check(content, FOUND, path)
    about = content["splits"]
    if wrong := first_mismatch(about, SPLITS):
        raise UserError(f"{path} cannot be used: {wrong}; start the run again")
    try:
        columns = content["columns"]
        samples = {
            name: [Sample(**dict(zip(columns, row, strict=True))) for row in about[name]] for name in SPLIT_FOLDERS
        }
        splits = Splits(**{**about, **samples, "made": tuple(about["made"]), "notes": tuple(about["notes"])})
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} is of another version of this tool; start the run again") from error
    known = set(splits.class_names)
    for sample in (sample for part in samples.values() for sample in part):
        values = {name: getattr(sample, name) for name in columns}
        if first_mismatch(values, dict.fromkeys(columns, str)) or sample.label not in known:
            raise UserError(f"{path} cannot be used: it has a sample without a path or a known label")
    return RunImages(splits, content["n_found"], content["files"])


def changed_files(found: RunImages) -> tuple[list[str], list[str]]:
    """Paths of images that are gone, and of those that are no longer the same file, since the run began."""
    gone, changed = [], []
    for name, part in found.splits.by_name().items():
        for sample, before in zip(part, found.files.get(name, []), strict=False):
            now = file_state(sample.path)
            if now is None and before is not None:
                gone.append(sample.path)
            elif now != (before and tuple(before)):
                changed.append(sample.path)
    return gone, changed


def warn_of_changes(found: RunImages, bring_again: Callable[[], object]) -> None:
    """Warns of images that are gone or changed since the run began.

    Args:
        bring_again: reads the data anew, which unpacks an archive or makes a known set again.
    """
    gone, changed = changed_files(found)
    if gone:
        with contextlib.suppress(UserError):
            bring_again()
            gone, changed = changed_files(found)
    if gone:
        warn(f"without {pluralize(len(gone), 'image')} of the run ({gone[0]}), now gone, which changes the result")
    if changed:
        n_changed = pluralize(len(changed), "image")
        warn(f"written since the run began: {n_changed} ({changed[0]}); new content changes the result")


def restore_training_state(
    saved: StoppedRun, trainer: Trainer, saver: Checkpointer, computing: Mapping[str, object]
) -> None:
    """Puts the state of a stopped run into the trainer.

    Raises:
        UserError: it does not fit, or the best weights so far have another name now.
    """
    before = {name: getattr(saved.progress, name) for name in ("device", "dtype")}
    if any(before[name] != computing[name] for name in before):
        words = [f"{about['dtype'].removeprefix('torch.')} on {about['device']}" for about in (before, computing)]
        warn(f"the run computed in {words[0]} and goes on in {words[1]}, which changes the result a little")
    check_fit(trainer.model.state_dict(), saved.trainer["model"], saved.folder / LAST)
    try:
        _check_state(saved.trainer, trainer, len(saved.found.splits.class_names))
        trainer.load_state_dict(saved.trainer)
    except (KeyError, ValueError, TypeError, RuntimeError, AttributeError, IndexError) as error:
        raise UserError(f"{saved.folder / LAST} does not fit the run ({error}); start it again") from error
    run_id = saved.progress.run_id
    if trainer.best and not distributed.broadcast_from_main(lambda: tensor_files.is_of_run(saver.path, run_id)):
        lost = f"the best weights so far (epoch {trainer.best.epoch + 1}) were in {saver.path}, another file by now"
        if distributed.broadcast_from_main(lambda: tensor_files.is_of_run(f"{saver.path}.prev", run_id)):
            raise UserError(f"{lost}: they are in {saver.path}.prev; give both files their names back, then continue")
        warn(f"{lost}; the best is chosen among the epochs to come")
        trainer.best = None


def _check_state(state: Mapping, trainer: Trainer, n_classes: int) -> None:
    """Raises an error of `restore_training_state` where values are of other types or shapes than the trainer's own."""
    optimizer, sums = trainer.recipe.optimizer, state["sums"] or {}
    parts = {"schedule": trainer.recipe.schedule.state_dict(), "scaler": trainer.scaler.state_dict()}
    same_kind = _is_alike(state["optimizer"]["param_groups"], optimizer.state_dict()["param_groups"])
    if not (same_kind and all(_is_alike(state[name], own) for name, own in parts.items())):
        raise ValueError("the optimizer or its schedule is of another kind")
    shapes = [parameter.shape for group in optimizer.param_groups for parameter in group["params"]]
    memory = [(value, shapes[n]) for n, about in state["optimizer"]["state"].items() for value in about.values()]
    memory += [(value, (n_classes, n_classes) if name == "confusion" else ()) for name, value in sums.items()]
    if any(torch.is_tensor(value) and value.shape not in ((), shape) for value, shape in memory):
        raise ValueError("the optimizer's memory, or a sum of the epoch, has another shape")


def _is_alike(value: object, own: object) -> bool:
    """Whether plain values are of the types of others; keys that only one has are left to their reader."""
    if isinstance(own, dict):
        return isinstance(value, dict) and all(_is_alike(value[key], own[key]) for key in own.keys() & value.keys())
    if isinstance(own, (list, tuple)):
        return isinstance(value, type(own)) and len(value) == len(own) and all(map(_is_alike, value, own))
    numbers = {int, float}
    return own is None or type(value) is type(own) or {type(value), type(own)} == numbers


def enter_working_folder(saved: StoppedRun, config: TrainConfig, given: Mapping[str, object]) -> TrainConfig:
    """Goes to the folder that the run was started in, whose relative paths its flags hold.

    A run folder that was brought here from elsewhere stays here, and keeps its features here.

    Raises:
        UserError: it would write its checkpoint to a place outside that nobody here has named.
    """
    cwd = saved.progress.cwd
    if saved.is_where_it_was and os.path.isdir(cwd):
        if os.path.realpath(cwd) != os.path.realpath(os.curdir):
            say(f"the run was started in {cwd}, and goes on there")
            config = replace(config, run_dir=os.path.abspath(config.run_dir))
            os.chdir(cwd)
        return config
    if "model_fn" not in given and not _is_below_here(checkpoint_name(config)):
        raise UserError(
            f"{saved.folder} was moved here, and its run writes to {checkpoint_name(config)}; if that is right, repeat "
            "it as --model_fn"
        )
    if "feature_cache" not in given and not _is_below_here(config.feature_cache):
        config = replace(config, feature_cache=TrainConfig.feature_cache)
    return config


def _is_below_here(path: str) -> bool:
    here, there = Path(os.path.realpath(os.curdir)), Path(os.path.realpath(path))
    return there.is_relative_to(here)


# --- flags ------------------------------------------------------------------------------------


def merge_flags(saved: StoppedRun, given: Mapping[str, object]) -> TrainConfig:
    """The flags of the run, with those that were given anew.

    Raises:
        UserError: one of them would change the result, or the run's own are not what they should be.
    """
    path, config = saved.folder / LAST, saved.progress.config
    if unknown := config.keys() - {item.name for item in fields(TrainConfig)}:
        raise UserError(f"{path} has the unknown flag {min(unknown)}; it is of a newer version: update the tool")
    check_values(TrainConfig, config, path)
    old = TrainConfig(**config)
    for name, value in given.items():
        if name not in ("resume", *MAY_CHANGE) and not _same(name, value, getattr(old, name), saved):
            raise UserError(
                f"--{name} {_text(value)} would change the result of the run, which has {_text(getattr(old, name))}; "
                f"leave it out, or start a new run (--resume takes {', '.join('--' + name for name in MAY_CHANGE)})"
            )
    _check_epochs(old, given.get("n_epochs", old.n_epochs))
    new = {name: value for name, value in given.items() if name in MAY_CHANGE}
    return replace(old, **new, resume=None, run_dir=str(given["resume"]))


def _same(name: str, value: object, old: object, saved: StoppedRun) -> bool:
    if name == "run_dir":
        return os.path.realpath(str(value)) == os.path.realpath(saved.folder)
    return value == old


def _text(value: object) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _check_epochs(old: TrainConfig, n_epochs: int) -> None:
    if n_epochs != old.n_epochs and old.scheduler == "cosine":
        raise UserError(
            f"--n_epochs {n_epochs}: the run was planned for {old.n_epochs}, and under --scheduler cosine the learning "
            "rate of every epoch depends on that number; leave it out, or start a new run"
        )
    if n_epochs < old.n_epochs:
        raise UserError(f"--n_epochs {n_epochs} is less than the {old.n_epochs} of the run; it may only grow")
