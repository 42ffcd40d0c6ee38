"""One run's folder: what each epoch leaves there."""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from samples import Sample, Splits
from trainer import EpochResult
from utils import UserError, write_text

METRICS = ("epoch", "train_loss", "train_accuracy", "valid_loss", "valid_accuracy", "lr", "images_per_s", "seconds")


class Run:
    """Console, TensorBoard, `metrics.csv` and the best checkpoint of one training.

    Args:
        save: writes the checkpoint of the present weights, given the epoch's metrics.
    """

    def __init__(
        self, folder: str | Path, splits: Splits, n_epochs: int, save: Callable[[dict], None], verbose: int = 1
    ) -> None:
        self.folder = Path(folder)
        self.splits = splits
        self.n_epochs = n_epochs
        self.save = save
        self.verbose = verbose
        self.skipped: dict[str, str] = {}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.board = SummaryWriter(str(self.folder))
        except OSError as error:
            raise UserError(f"cannot write the run folder {folder}: {error.strerror}; give --run_dir DIR") from error
        self._rows: list[list] = []

    def write_config(self, config: Mapping[str, object]) -> None:
        """`config.json` and `splits.csv`: what was asked for, and which image is where."""
        write_text(self.folder / "config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")
        rows = [
            (sample.path, sample.label, split)
            for split, samples in self.splits.by_name().items()
            for sample in samples
        ]
        _write_csv(self.folder / "splits.csv", ("path", "label", "split"), rows)

    def log(self, result: EpochResult, is_best: bool) -> None:
        """One line on the console, one in `metrics.csv`, one point in every curve."""
        train, valid, step = result.train, result.valid, result.epoch + 1
        scalars = {
            "Train/Loss": train.loss,
            "Train/Accuracy": train.accuracy,
            "Validation/Loss": valid.loss,
            "Validation/Accuracy": valid.accuracy,
            "LearningRate/head": result.lr,
            "Speed/images_per_second": train.images_per_second,
        }
        for tag, value in scalars.items():
            self.board.add_scalar(tag, value, step)
        self.board.flush()
        seconds = train.seconds + valid.seconds
        values = (train.loss, train.accuracy, valid.loss, valid.accuracy, result.lr, train.images_per_second, seconds)
        self._rows.append([step, *(f"{value:.6g}" for value in values)])
        _write_csv(self.folder / "metrics.csv", METRICS, self._rows)
        if self.verbose:
            width = len(str(self.n_epochs))
            print(
                f"epoch {step:{width}d}/{self.n_epochs}  train loss {train.loss:.4f} acc {train.accuracy:.4f}  "
                f"val loss {valid.loss:.4f} acc {valid.accuracy:.4f}  lr {result.lr:.2g}  "
                f"{train.images_per_second:.0f} images/s{'  * best' if is_best else ''}",
                flush=True,
            )

    def save_best(self, result: EpochResult) -> None:
        """Writes the checkpoint the moment that a better epoch is known."""
        self.save({"epoch": result.epoch + 1, "valid": phase_metrics(result.valid)})

    def skip(self, bad: Sequence[tuple[int, str]], phase: str) -> None:
        """Lists images that could not be read in `skipped.csv`, each once."""
        samples: list[Sample] = getattr(self.splits, phase)
        new = {samples[index].path: reason for index, reason in bad if samples[index].path not in self.skipped}
        if new:
            self.skipped |= new
            _write_csv(self.folder / "skipped.csv", ("path", "reason"), sorted(self.skipped.items()))

    def close(self) -> None:
        """Ends the TensorBoard file."""
        self.board.close()


def phase_metrics(phase) -> dict[str, float | int]:
    """A pass as plain values, for the checkpoint."""
    return {"loss": phase.loss, "accuracy": phase.accuracy, "correct": phase.correct, "n_images": phase.n_images}


def default_run_dir(model_name: str) -> str:
    """`runs/<model_name>-<time>`, a name that is not there yet."""
    base = os.path.join("runs", f"{model_name.replace('/', '_')}-{time.strftime('%Y%m%d-%H%M%S')}")
    name, n = base, 2
    while os.path.exists(name):
        name, n = f"{base}-{n}", n + 1
    return name


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence]) -> None:
    import io

    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())
