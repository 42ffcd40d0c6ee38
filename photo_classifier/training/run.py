"""One run: its record, the saves that a resume needs, and what is said when it ends early."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from photo_classifier.data.samples import Splits
from photo_classifier.runtime import signals
from photo_classifier.runtime.errors import UserError, WriteError
from photo_classifier.runtime.files import write_text
from photo_classifier.training.best_checkpoint import BestCheckpoint
from photo_classifier.training.epoch_log import EpochLog
from photo_classifier.training.results import Diverged, EpochResult
from photo_classifier.training.run_folder import (
    claim_folder,
    release_folder,
    resume_command,
    write_config,
    write_splits,
)
from photo_classifier.training.run_state import FINISHED, SAMPLES, StoppedRun, write_backbone, write_images, write_last
from photo_classifier.training.skipped_images import SkippedImages


class Run:
    """Records a run in its folder and on the console: the `trainer.Recorder` of the main process.

    Args:
        stopped: the run to go on with, which may be a new one.
        n_epochs: of the whole run.
        max_bad: the share of unreadable images above which the run ends.
        save_every: seconds between two saves within an epoch.

    Raises:
        UserError: the folder holds something else, or cannot be written.
    """

    def __init__(self, folder: str | Path, stopped: StoppedRun, n_epochs: int, max_bad: float, save_every: float):
        self.folder, self.state, self.save_every = Path(folder), stopped.state, save_every
        self.splits, self.n_found = stopped.images.splits, stopped.images.n_found
        claim_folder(self.folder, stopped.is_new)
        # now, as the working folder may be removed while the run goes on
        self._location = {"cwd": os.getcwd(), "folder": os.path.realpath(folder)}
        self.epochs = EpochLog(self.folder, stopped.state.rows, n_epochs, stopped.is_new)
        self.skipped = SkippedImages(self.folder, stopped.state.skipped, self.n_found, max_bad)
        self.checkpoint: BestCheckpoint | None = None
        self._best = stopped.trainer["best"]["epoch"] + 1 if stopped.trainer.get("best") else None
        self._start = time.monotonic()
        self._saved_at: float | None = None if stopped.is_new else time.monotonic()

    def begin(
        self, config: Mapping[str, object], splits: Splits, checkpoint: BestCheckpoint, computing: Mapping[str, object]
    ) -> None:
        """Writes the flags and which image is where; after a resume, also the tables as they were at the last save.

        Args:
            splits: the samples that the run trains and measures on.
            checkpoint: keeps the best weights.
            computing: `device`, `dtype` and `is_folded`, which the numbers depend on.
        """
        self.splits, self.checkpoint = splits, checkpoint
        self.state = replace(self.state, **self._location, config=dict(config), **computing)
        write_config(self.folder, config)
        if not (self.folder / SAMPLES).exists():
            write_splits(self.folder, splits)
            write_images(self.folder, splits, self.n_found)
        self.epochs.write()
        self.skipped.write()

    # --- the recorder -------------------------------------------------------------------------

    def log(self, result: EpochResult, is_best: bool) -> None:
        """Records an epoch on the console, in `metrics.csv` and in TensorBoard."""
        self.epochs.add(result, is_best)

    def log_rates(self, rates: Mapping[str, float], step: int) -> None:
        """Records the learning rates after that many epochs."""
        self.epochs.add_rates(rates, step)

    def save_best(self, result: EpochResult) -> None:
        """Writes the checkpoint as soon as an epoch is known to be the best so far."""
        self.checkpoint.save({"epoch": result.epoch + 1, "valid": result.valid.metrics()})
        self._best = result.epoch + 1

    def skip(self, bad: Sequence[tuple[int, str]], split: str) -> None:
        """Records images that could not be read, by their index in a split, with the reasons."""
        samples = getattr(self.splits, split)
        self.skipped.add({samples[index].path: reason for index, reason in bad})

    def is_save_due(self) -> bool:
        """Returns whether it is time to save within an epoch."""
        return self._saved_at is not None and time.monotonic() - self._saved_at >= self.save_every

    def save_last(self, state: dict) -> None:
        """Writes `last.pth`: the state of the trainer and where the run stands.

        Raises:
            WriteError: it cannot be written, or the folder is gone.
        """
        self.epochs.flush()
        now = replace(self.state, skipped=dict(self.skipped.reasons), rows=list(self.epochs.rows))
        write_last(self.folder, now, state)
        self._saved_at = time.monotonic()

    # --- beginning and end --------------------------------------------------------------------

    def save_first(self, state: dict, backbone: Mapping[str, torch.Tensor] | None) -> None:
        """Makes it possible to continue the run, before its first step.

        Args:
            backbone: the frozen weights, where the state does not hold them.
        """
        if backbone:
            write_backbone(self.folder, backbone)
        self.state = replace(self.state, has_backbone=bool(backbone))
        self.save_last(state)

    @property
    def last_model(self) -> Path:
        """The file of the last epoch's weights, as `--model_fn` is that of the best."""
        return self.folder / "last_model.pth"

    @property
    def spare_seconds(self) -> float:
        """How long reports may take: 1 % of a run of over five minutes, otherwise a time that nobody notices."""
        seconds = time.monotonic() - self._start
        return 0.01 * seconds if seconds > 300 else 0.8

    def finish(self) -> None:
        """Records that nothing is left to do."""
        write_text(self.folder / FINISHED, json.dumps({"epochs": len(self.epochs.rows)}) + "\n")

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Makes errors inside the block say what was kept and how to continue; frees a folder that holds no save."""
        try:
            with self._explained():
                yield
        except UserError:
            if self._saved_at is None:
                release_folder(self.folder)
            raise

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except signals.Stopped as stopped:
            stopped.hint = self._how_to_continue()
            if self._saved_at is None:  # or the same command would find the folder in its way
                with contextlib.suppress(WriteError):
                    self.epochs.close()
                shutil.rmtree(self.folder, ignore_errors=True)
            raise
        except Diverged as error:
            raise UserError(f"{error}; {self._what_is_kept()}; try a lower --lr in a new run") from error
        except WriteError as error:
            raise UserError(f"{error}{self._how_to_continue()}") from error
        except (RuntimeError, MemoryError, OSError) as error:
            if not (reason := signals.resource_hint(error)):
                raise
            raise UserError(f"{reason}{self._how_to_continue()}") from error

    def _how_to_continue(self) -> str:
        if self._saved_at is None:
            return "; nothing was saved yet"
        return f"; continue with: {resume_command(self.folder)}"

    def _what_is_kept(self) -> str:
        if self._best is None:
            return "no epoch was finished before, so there is no checkpoint"
        return f"{self.checkpoint.path} keeps the best weights so far, those of epoch {self._best}"


class SilentRun:
    """Records nothing: the `trainer.Recorder` of all processes but the main one."""

    def begin(self, *_: object) -> None:
        """Does nothing."""

    log = log_rates = save_best = skip = save_last = save_first = begin

    def is_save_due(self) -> bool:
        """Returns False: the main process decides."""
        return False

    def guarded(self) -> contextlib.AbstractContextManager:
        """Returns a block that leaves errors to the main process."""
        return contextlib.nullcontext()
