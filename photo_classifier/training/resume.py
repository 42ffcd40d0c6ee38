"""What a stopped run goes on with: its flags, working folder and images; and what is said of a finished one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path

from photo_classifier.config import TrainConfig, checkpoint_name, n_folds, parts
from photo_classifier.data.samples import Splits
from photo_classifier.evaluation.thumbnails import MANY, Thumbnails
from photo_classifier.models.tensor_files import is_of_run
from photo_classifier.runtime.console import say, warn
from photo_classifier.runtime.errors import UserError
from photo_classifier.runtime.files import file_state, read_json
from photo_classifier.runtime.flags import check_values
from photo_classifier.runtime.text import pluralize
from photo_classifier.training.run_files import FINISHED, LAST
from photo_classifier.training.run_folder import resume_command
from photo_classifier.training.run_page import write_run_page
from photo_classifier.training.run_state import RunImages, StoppedRun
from photo_classifier.training.summary import finished_training

# Flags that may change on --resume, and why; any other change would change the result and is an error.
MAY_CHANGE = {
    "n_epochs": "it may grow, and the first epochs stay the same",
    "n_workers": "no draw depends on who makes it",
    "accumulate": "the same step in smaller passes, but for rounding, batch norm and dropout",
    "max_bad": "it only stops a run",
    "feature_cache": "what is missing there is computed again",
    "early_stop": "it only ends a run",
    "gpu_id": "another device of the same kind",
    "save_every": "a save changes nothing",
    "verbose": "output changes nothing",
}


def merge_flags(stopped: StoppedRun, given: Mapping[str, object]) -> TrainConfig:
    """Returns the flags of the run, with those given again; raises UserError if one would change the result."""
    path, config = stopped.folder / LAST, stopped.state.config
    if unknown := config.keys() - {item.name for item in fields(TrainConfig)}:
        raise UserError(f"{path} has the unknown flag {min(unknown)}, from a newer version; update the tool")
    check_values(TrainConfig, config, path)
    old = TrainConfig(**config)
    for name, value in given.items():
        if name not in ("resume", *MAY_CHANGE) and not _is_same(name, value, getattr(old, name), stopped):
            raise UserError(
                f"--{name} {_text(value)} would change the result of the run, which has {_text(getattr(old, name))}; "
                f"leave it out, or start a new run (--resume takes {', '.join('--' + name for name in MAY_CHANGE)})"
            )
    _check_epochs(old, given.get("n_epochs", old.n_epochs))
    new = {name: value for name, value in given.items() if name in MAY_CHANGE}
    return replace(old, **new, resume=None, run_dir=str(given["resume"]))


def _is_same(name: str, value: object, old: object, stopped: StoppedRun) -> bool:
    if name == "run_dir":
        return os.path.realpath(str(value)) == os.path.realpath(stopped.folder)
    if old is None:  # which is settled by now if it is about the preparation of images
        old = getattr(stopped.preprocess, name, None)
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


def _why_finished(stopped: StoppedRun, config: TrainConfig) -> str:
    """Returns why a finished run has nothing left to train, and what would train on; an empty text if it trains on."""
    n_epochs, best = stopped.trainer["epoch"], stopped.trainer["best"]
    if not (stopped.is_finished and best):
        return ""
    planned = stopped.state.config["n_epochs"]
    early = early_stop_text(config, n_epochs, stopped.trainer.get("improved", best["epoch"]), planned)
    if n_epochs >= config.n_epochs and config.scheduler == "cosine":
        return "its cosine schedule was planned for that many epochs: to train longer start a new run"
    return early or ("raise --n_epochs to train longer" if n_epochs >= config.n_epochs else "")


def finished_text(stopped: StoppedRun, config: TrainConfig) -> str:
    """Returns what to say of a finished run that has nothing left to train; an empty text if it trains on.

    Raises:
        UserError: more epochs were asked for, and would not be trained.
    """
    is_solved = stopped.is_finished and config.head == "logistic"
    reason = "" if is_solved else _why_finished(stopped, config)
    if not is_solved and not reason:
        return ""
    if reason and config.n_epochs > stopped.state.config["n_epochs"]:
        raise UserError(f"--n_epochs {config.n_epochs} would not train {config.run_dir} any further: {reason}")
    name = checkpoint_name(config)
    files = [file for file in (name, f"{name}.prev") if is_of_run(file, stopped.state.run_id)]
    where = f"the best weights are in {files[0]}" if files else f"the best weights are no longer in {name}"
    if is_solved:
        return f"{config.run_dir} is finished: its head is solved, which takes no epochs; {where}"
    return f"{config.run_dir} is finished: {pluralize(len(stopped.state.rows), 'epoch')}, {where}; {reason}"


def write_page_again(config: TrainConfig, stopped: StoppedRun) -> Path:
    """Writes the page of a finished run, which may have been lost or be of an earlier version; returns its path."""
    splits = stopped.images.splits.pooled() if n_folds(config) else stopped.images.splits
    bit_depth = stopped.preprocess.bit_depth if stopped.preprocess else 16
    open_photo = Thumbnails(config.max_pixels, bit_depth, MANY + 1)
    kept, seconds = stopped.trainer["best"]["epoch"] + 1, read_json(stopped.folder / FINISHED).get("seconds")
    return write_run_page(stopped.folder, stopped.state, splits, finished_training(config, kept, seconds), open_photo)


def early_stop_text(config: TrainConfig, n_epochs: int, improved: int, planned: int) -> str:
    """Returns why a run ends early after that many epochs, and how to train on; an empty text if it does not.

    Args:
        improved: the last epoch with a higher score, from 0.
        planned: the `--n_epochs` that the run has saved; another one is to be repeated.
    """
    n_worse = n_epochs - max(improved + 1, parts(config)[-1].start)
    if not config.early_stop or n_worse < config.early_stop:
        return ""
    total = config.n_epochs if n_epochs < config.n_epochs else config.n_epochs + n_worse
    more = ("--n_epochs", total) if total != planned else ()
    command = resume_command(config.run_dir, *more, "--early_stop", n_worse + config.early_stop)
    last = "the last epoch was not" if n_worse == 1 else f"none of the last {n_worse} epochs was"
    return f"{last} better than epoch {improved + 1} (--early_stop {config.early_stop}); train on with: {command}"


def enter_working_folder(stopped: StoppedRun, config: TrainConfig, given: Mapping[str, object]) -> TrainConfig:
    """Changes to the folder that the run was started in, as its flags hold paths relative to that.

    A run folder that was moved here from elsewhere stays here, and keeps its features here. Raises UserError if it
    would write its checkpoint outside of this folder, and nobody here has named that place.
    """
    cwd = stopped.state.cwd
    if stopped.is_where_it_was and os.path.isdir(cwd):
        if os.path.realpath(cwd) != os.path.realpath(os.curdir):
            say(f"the run was started in {cwd} and continues there")
            config = replace(config, run_dir=os.path.abspath(config.run_dir))
            os.chdir(cwd)
        return config
    if "model_fn" not in given and not _is_below_here(checkpoint_name(config)):
        raise UserError(
            f"{stopped.folder} was moved here, and its run writes to {checkpoint_name(config)}; if that is right, "
            "repeat it as --model_fn"
        )
    if "feature_cache" not in given and not _is_below_here(config.feature_cache):
        config = replace(config, feature_cache=TrainConfig.feature_cache)
    return config


def _is_below_here(path: str) -> bool:
    here, there = Path(os.path.realpath(os.curdir)), Path(os.path.realpath(path))
    return there.is_relative_to(here)


def warn_of_changes(images: RunImages, load_data: Callable[[], Splits]) -> None:
    """Warns of images that are missing or have changed since the run began, after reading the data once more.

    That unpacks an archive, or makes a known data set, if its images are gone.
    """
    missing, changed = changed_files(images)
    if missing:
        with contextlib.suppress(UserError):
            load_data()
            missing, changed = changed_files(images)
    if missing:
        n_missing = pluralize(len(missing), "image")
        warn(f"missing since the run began: {n_missing} ({missing[0]}), which changes the result")
    if changed:
        n_changed = pluralize(len(changed), "image")
        warn(f"modified since the run began: {n_changed} ({changed[0]}); new content changes the result")


def changed_files(images: RunImages) -> tuple[list[str], list[str]]:
    """Returns the paths of images that are missing, and of those that are no longer the same file."""
    missing, changed = [], []
    for name, part in images.splits.by_name().items():
        for sample, before in zip(part, images.files.get(name, []), strict=False):
            now = file_state(sample.path)
            if now is None and before is not None:
                missing.append(sample.path)
            elif now != before:
                changed.append(sample.path)
    return missing, changed
