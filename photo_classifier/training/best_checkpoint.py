"""The checkpoint of a run: the best weights so far, under one name, without losing those of another run."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import nn

from photo_classifier.data.samples import Splits
from photo_classifier.data.seen_files import content_ids
from photo_classifier.evaluation.calibration import fit_temperature
from photo_classifier.models import tensor_files
from photo_classifier.models.checkpoint import save_checkpoint
from photo_classifier.models.classifier import Classifier
from photo_classifier.models.conformal import kept_scores, label_scores
from photo_classifier.models.novelty import Novelty
from photo_classifier.models.state_dicts import check_fit, load_into, state_dict_of
from photo_classifier.runtime import data_parallel, distributed, launcher
from photo_classifier.runtime.console import warn
from photo_classifier.runtime.errors import UserError
from photo_classifier.runtime.files import remove_leftovers
from photo_classifier.training.results import EpochResult, Results


class BestCheckpoint:
    """Writes the run's checkpoint, with that metadata, and reads its best weights back."""

    def __init__(
        self, path: str, model: Classifier, splits: Splits, run_id: str, metadata: Mapping[str, object]
    ) -> None:
        self.path, self.model, self.run_id = path, model, run_id
        self.previous = f"{path}.prev" if os.path.exists(path) and not tensor_files.is_of_run(path, run_id) else None
        if launcher.is_main():
            remove_leftovers(path)
        held_out = {splits.held_out: []} | {  # of a run by folds without a test split none is held out
            name: [[sample.path, sample.label] for sample in part]
            for name, part in splits.by_name().items()
            if part is not splits.train
        }
        self.temperature = 1.0
        self.novelty: Novelty | None = None  # of a run with stored features
        self.no_novelty = ""  # why not
        self.label_scores: torch.Tensor | None = None
        self._trained_on = [sample.path for sample in splits.train]
        self._written: tuple[int, ...] | None = None
        self.metadata = {
            **metadata,
            "class_names": splits.class_names,
            "splits": {"cwd": os.getcwd(), "held_out": splits.held_out, **held_out},
            "run_id": run_id,
        }

    def save(self, metrics: Mapping[str, object], path: str | Path | None = None) -> None:
        """Writes the present weights with those metrics; raises WriteError, and what was there stays.

        Under the run's own name a file of another run is kept as `.prev`, whenever it came.
        """
        content = {**self.metadata, "temperature": self.temperature, "metrics": metrics}
        content["training_files"] = self.training_files
        if self.novelty:
            content["novelty"] = asdict(self.novelty)
        if self.no_novelty:
            content["no_novelty"] = self.no_novelty
        if self.label_scores is not None:
            content["label_scores"] = self.label_scores
        save_checkpoint(path or self.path, self.model, content, keep_existing=path is None and not self._is_own())
        if path is None:
            self._written = _identity(self.path)

    @functools.cached_property
    def training_files(self) -> torch.Tensor:
        """What `SeenFiles` recognises the training photos by: the photos themselves may move or be renamed."""
        return content_ids(self._trained_on)

    def _is_own(self) -> bool:
        """Returns whether the file under the run's name is of this run; one that it wrote itself need not be read."""
        if self._written and _identity(self.path) == self._written:
            return True
        return tensor_files.is_of_run(self.path, self.run_id)

    def save_measured(self, epoch: int, results: Results, path: str | Path | None = None) -> None:
        """Writes the present weights, those of that epoch, with their temperature and all that was measured."""
        outputs = results["valid"].outputs
        self.temperature = fit_temperature(outputs.logits, outputs.labels)
        self.label_scores = kept_scores(label_scores(outputs.logits, outputs.labels, self.temperature))
        self.save({"epoch": epoch + 1, **{name: result.metrics() for name, result in results.items()}}, path)

    def restore(self, best: EpochResult, n_epochs: int) -> EpochResult:
        """Loads the best weights back into the model, and returns the epoch that they are of.

        That may be another one: if a run was killed between writing its two files, it repeats an epoch, which on a GPU
        can come to other numbers. Its outputs have to be measured then. Every process has to call it.

        Args:
            n_epochs: epochs of the run so far.

        Raises:
            UserError: the file is gone, or another run has overwritten it.
        """
        epoch = distributed.broadcast_from_main(lambda: self._restore(n_epochs)) - 1
        data_parallel.broadcast_model(self.model.net)
        if epoch == best.epoch:
            return best
        warn(f"{self.path} holds epoch {epoch + 1}, whose repetition gave different numbers; it is kept")
        return replace(best, epoch=epoch, valid=replace(best.valid, outputs=None))

    def _restore(self, n_epochs: int) -> int:
        content = tensor_files.read(self.path)
        if content.get("run_id") != self.run_id:
            raise UserError(f"{self.path} was written by another run; give each run its own --model_fn")
        epoch = content["metrics"].get("epoch") if isinstance(content.get("metrics"), dict) else None
        if type(epoch) is not int or not 1 <= epoch <= n_epochs:
            raise UserError(f"{self.path} is not from an epoch of this run; put the run's own checkpoint back")
        tensors = state_dict_of(content, self.path)
        check_fit(self.model.net.state_dict(), tensors, self.path)
        load_into(self.model.net, tensors)
        return epoch

    def tensors_beside(self, part: nn.Module) -> dict[str, torch.Tensor]:
        """Returns the network's tensors that a part of it, which shares them, does not have."""
        own = {id(tensor) for tensor in part.state_dict(keep_vars=True).values()}
        tensors = self.model.net.state_dict(keep_vars=True)
        return {name: tensor.detach() for name, tensor in tensors.items() if id(tensor) not in own}


def _identity(path: str) -> tuple[int, ...] | None:
    """Returns what changes as soon as a file is replaced or written to; None if there is none."""
    with contextlib.suppress(OSError):
        stat = os.stat(path)
        return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
    return None
