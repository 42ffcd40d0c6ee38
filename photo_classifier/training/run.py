"""One run: its record, and the saves that a resume needs."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from photo_classifier.data.new_photos import SAMPLES
from photo_classifier.data.samples import Splits
from photo_classifier.runtime.files import write_text
from photo_classifier.training.best_checkpoint import BestCheckpoint
from photo_classifier.training.epoch_log import EpochLog
from photo_classifier.training.results import EpochResult, Results
from photo_classifier.training.run_folder import claim_folder, release_folder, write_splits
from photo_classifier.training.run_state import BACKBONE, FINISHED, StoppedRun, write_backbone, write_images, write_last
from photo_classifier.training.skipped_images import SkippedImages


class Run:
    """Records a run in its folder and on the console: the `trainer.Recorder` of the main process.

    `save_every` is in seconds, `max_bad` the share of unreadable images above which the run ends. Raises UserError
    if the folder holds something else, or cannot be written.
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
        self.best_epoch = stopped.trainer["best"]["epoch"] + 1 if stopped.trainer.get("best") else None
        self._start = time.monotonic()
        self._saved_at: float | None = None if stopped.is_new else time.monotonic()

    def begin(
        self,
        config: Mapping[str, object],
        splits: Splits,
        used: Splits,
        checkpoint: BestCheckpoint,
        computing: Mapping[str, object],
    ) -> None:
        """Writes the flags and which image is where; after a resume, also the tables as they were at the last save.

        Args:
            used: the same splits as the run uses them, which by folds trains on all that are not test.
            computing: what the numbers depend on: `device`, `dtype` and `is_folded`.
        """
        self.splits, self.checkpoint = used, checkpoint
        self.state = replace(self.state, **self._location, config=dict(config), **computing)
        write_text(self.folder / "config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")
        if not (self.folder / SAMPLES).exists():
            write_splits(self.folder, splits)
            write_images(self.folder, splits, self.n_found)
        self.epochs.write()
        self.skipped.write()

    def log(self, result: EpochResult, is_best: bool) -> None:
        """Records an epoch on the console, in `metrics.csv` and in TensorBoard."""
        self.epochs.add(result, is_best)

    def save_best(self, result: EpochResult) -> None:
        """Writes the checkpoint as soon as an epoch is known to be the best so far."""
        self.checkpoint.save({"epoch": result.epoch + 1, "valid": result.valid.metrics()})
        self.best_epoch = result.epoch + 1

    def skip(self, bad: Sequence[tuple[int, str]], split: str) -> None:
        """Records images that could not be read, by their index in a split, with the reasons."""
        samples = getattr(self.splits, split)
        self.skipped.add({samples[index].path: reason for index, reason in bad})

    def is_save_due(self) -> bool:
        """Returns whether it is time to save within an epoch."""
        return self._saved_at is not None and time.monotonic() - self._saved_at >= self.save_every

    def save_last(self, state: dict) -> None:
        """Writes `last.pth`: the state of the trainer and where the run stands; raises WriteError."""
        self.epochs.flush()
        now = replace(self.state, skipped=dict(self.skipped.reasons), rows=list(self.epochs.rows))
        write_last(self.folder, now, state)
        self._saved_at = time.monotonic()

    def save_first(
        self, state: dict, backbone: Mapping[str, torch.Tensor] | None, warmup: Mapping[str, float] | None
    ) -> None:
        """Makes it possible to continue the run, before the first step of a part of it.

        Args:
            backbone: the frozen weights, where the state does not hold them.
            warmup: the learning rates that a warm-up begins with: the ends of the epochs alone would not show it.
        """
        if warmup:
            self.epochs.add_rates(warmup, 0)
        if backbone and not self.state.has_backbone:  # that of the first part holds all that the second keeps frozen
            write_backbone(self.folder, backbone)
        self.state = replace(self.state, has_backbone=bool(backbone))
        self.save_last(state)
        if not backbone:  # it trains from here on
            (self.folder / BACKBONE).unlink(missing_ok=True)

    def save_measured(self, epoch: int, results: Results, is_best: bool) -> None:
        """Writes the present weights, those of that epoch, with all that was measured: the best or the last ones."""
        self.checkpoint.save_measured(epoch, results, None if is_best else self.last_model)

    @property
    def is_saved(self) -> bool:
        """Whether the run can be continued."""
        return self._saved_at is not None

    @property
    def n_skipped(self) -> int:
        """The number of images that could not be read so far."""
        return len(self.skipped.reasons)

    @property
    def last_model(self) -> Path:
        """The file of the last epoch's weights, as `--model_fn` is that of the best."""
        return self.folder / "last_model.pth"

    @property
    def spare_seconds(self) -> float:
        """How long reports may take: 1 % of a run of over five minutes, otherwise a time that nobody notices."""
        return 0.01 * self.seconds if self.seconds > 300 else 0.8

    @property
    def seconds(self) -> float:
        """How long the run has taken, since it was continued if it was."""
        return time.monotonic() - self._start

    def finish(self) -> None:
        """Records that nothing is left to do."""
        write_text(
            self.folder / FINISHED, json.dumps({"epochs": len(self.epochs.rows), "seconds": self.seconds}) + "\n"
        )

    def close(self) -> None:
        """Ends a run that has saved nothing; the next one may use its folder."""
        self.epochs.close()
        release_folder(self.folder)


class SilentRun:
    """Records nothing: the `trainer.Recorder` of all processes but the main one."""

    n_skipped = 0

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def begin(self, *_: object, **__: object) -> None:
        """Does nothing."""

    log = save_best = save_measured = skip = save_last = save_first = close = begin

    def is_save_due(self) -> bool:
        """Returns False: the main process decides."""
        return False
