"""The checkpoint of a run: the best weights so far, under one name that no other run loses."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import torch

from photo_classifier.config import TrainConfig
from photo_classifier.data.samples import Splits
from photo_classifier.evaluation.calibration import fit_temperature
from photo_classifier.models import tensor_files
from photo_classifier.models.checkpoint import save_checkpoint
from photo_classifier.models.classifier import Classifier
from photo_classifier.models.inference import eval_batch_size
from photo_classifier.models.state_dicts import check_fit, load_into, state_dict_of
from photo_classifier.runtime import distributed, launcher
from photo_classifier.runtime.console import warn
from photo_classifier.runtime.errors import UserError
from photo_classifier.runtime.files import remove_leftovers
from photo_classifier.runtime.plain_values import first_mismatch
from photo_classifier.training.results import EpochResult, PhaseResult
from photo_classifier.training.run import phase_metrics


class BestCheckpoint:
    """Writes the run's checkpoint and reads its best weights back."""

    def __init__(self, path: str, model: Classifier, config: TrainConfig, splits: Splits, run_id: str) -> None:
        self.path, self.model, self.run_id = path, model, run_id
        self.previous = f"{path}.prev" if os.path.exists(path) and not tensor_files.is_of_run(path, run_id) else None
        if launcher.is_main():
            remove_leftovers(path)
        held_out = {
            name: [[sample.path, sample.label] for sample in part]
            for name, part in splits.by_name().items()
            if name != "train"
        }
        self.about = {
            "model_name": config.model_name,
            "class_names": splits.class_names,
            "splits": {"cwd": os.getcwd(), "held_out": splits.held_out, **held_out},
            "temperature": 1.0,
            "precision": config.precision,
            "eval_batch_size": eval_batch_size(config.batch_size),
            "config": asdict(config),
            "run_id": run_id,
        }

    @launcher.main_only
    def __call__(self, metrics: dict, path: str | Path | None = None) -> None:
        """Writes the present weights with those metrics, as plain values.

        Args:
            path: another place; at the run's own a file of another run, whenever it came, is kept as `.prev`.

        Raises:
            Obstacle: it cannot be written; what was there stays.
        """
        keep_previous = path is None and not tensor_files.is_of_run(self.path, self.run_id)
        save_checkpoint(path or self.path, self.model, {**self.about, "metrics": metrics}, keep_previous)

    @launcher.main_only
    def finish(self, epoch: int, results: Mapping[str, PhaseResult], path: str | Path | None = None) -> None:
        """Writes the present weights, those of that epoch, with their temperature and all that was measured."""
        outputs = results["valid"].outputs
        self.about["temperature"] = fit_temperature(outputs.logits, outputs.labels)
        metrics = {name: phase_metrics(result) for name, result in results.items()}
        self({"epoch": epoch + 1, **metrics}, path)

    def restore(self, best: EpochResult, n_done: int) -> EpochResult:
        """Puts the best weights back into the model, and tells of which epoch they are.

        That is another one where a run was killed between its two files, and the epoch that it had to repeat came to
        other numbers, as GPUs let it: its outputs are then to be measured.

        Args:
            n_done: epochs of the run so far.

        Raises:
            UserError: the file is gone, or another run has written it since.
        """
        epoch = distributed.broadcast_from_main(lambda: self._restore(n_done)) - 1
        distributed.broadcast_model(self.model.net)
        if epoch == best.epoch:
            return best
        warn(f"{self.path} holds epoch {epoch + 1}, which came to other numbers when it was repeated; it is kept")
        return replace(best, epoch=epoch, valid=replace(best.valid, outputs=None))

    def _restore(self, n_done: int) -> int:
        content = tensor_files.read(self.path)
        if content.get("run_id") != self.run_id:
            raise UserError(f"{self.path} was written by another run; give each run a --model_fn of its own")
        if first_mismatch(content, {"metrics": {"epoch": int}}) or not 1 <= content["metrics"]["epoch"] <= n_done:
            raise UserError(f"{self.path} is of no epoch of this run; give the run's own checkpoint its place again")
        tensors = state_dict_of(content, self.path)
        check_fit(self.model.net.state_dict(), tensors, self.path)
        load_into(self.model.net, tensors)
        return content["metrics"]["epoch"]

    def backbone(self) -> dict[str, torch.Tensor]:
        """The tensors of all but the head."""
        head = f"{self.model.head_name}."
        return {name: value for name, value in self.model.net.state_dict().items() if not name.startswith(head)}
