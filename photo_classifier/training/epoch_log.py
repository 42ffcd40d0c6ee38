"""The record of a run: TensorBoard, `metrics.csv` and the console's line of each epoch."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import _AsyncWriterThread
from torch.utils.tensorboard import SummaryWriter

from photo_classifier.runtime.console import coloured, say
from photo_classifier.runtime.errors import WriteError
from photo_classifier.runtime.files import atomic_write
from photo_classifier.runtime.limits import write_reason
from photo_classifier.training.results import EpochResult
from photo_classifier.training.run_folder import check_folder, write_table

EVENTS = "events.out.tfevents.*"
PROJECTOR = "projector_config.pbtxt"  # names the embeddings, each in a folder called by its step
INDENT = " " * 8
REPORT = ".report"  # ends the name of the event file that a finished run writes last


class EpochLog:
    """Records epochs in the run folder and on the console; every method raises WriteError if a file cannot be written.

    Args:
        rows: of `metrics.csv`, those of an earlier part of the run.
        is_new: whether no epoch was begun before; otherwise curves go on after the last row.
    """

    def __init__(self, folder: Path, rows: Sequence[Mapping[str, str]], n_epochs: int, is_new: bool) -> None:
        self.folder, self.rows, self.n_epochs = folder, list(rows), n_epochs
        for path in (*folder.glob(f"{EVENTS}{REPORT}"), *folder.glob(PROJECTOR)):
            path.unlink()  # the run goes on after its report
        for embedding in folder.glob("[0-9]" * 5):
            shutil.rmtree(embedding, ignore_errors=True)
        newest = max((path.stat().st_mtime for path in folder.glob(EVENTS)), default=0.0)
        while int(newest) == int(time.time()):  # TensorBoard reads files in the order of the seconds in their names
            time.sleep(0.05)
        # hides what a killed run wrote after its last save
        self._purge_step = None if is_new else len(rows) + 1
        self.writer = self._open(purge_step=self._purge_step)
        self._n_bytes = 0
        self._phases: dict[str, SummaryWriter] = {}  # from the first epoch on, or a dry run would leave their folders

    def _open(self, folder: str = "", **options: Any) -> SummaryWriter:
        threading.excepthook = _leave_out_writer_thread
        with self.write_errors():
            return SummaryWriter(str(self.folder / folder), **options)

    @contextlib.contextmanager
    def write_errors(self) -> Iterator[None]:
        """Turns errors of TensorBoard's writer inside the block into WriteError."""
        try:
            yield
        except OSError as error:
            raise WriteError(f"cannot write TensorBoard's file in {self.folder}: {write_reason(error)}") from error

    def add(self, result: EpochResult, is_best: bool) -> None:
        """Records an epoch: a point in every curve, a row of `metrics.csv` and a line on the console."""
        self.rows[result.epoch :] = [metrics_row(result)]  # a head is solved again from the first C
        with self.write_errors():
            for tag, value in curves(result).items():
                self.writer.add_scalar(tag, value, result.epoch + 1)
        self._add_to_charts(result)
        self.add_rates(result.rates, result.epoch + 1)
        self.flush()
        self.write()
        say(self._line(result, is_best))
        say(self._details(result), level=2)

    def _add_to_charts(self, result: EpochResult) -> None:
        """Adds a point to the charts of loss and accuracy, which show training beside validation.

        TensorBoard draws curves of one tag in one chart if they are of several runs, and a run is a folder.
        """
        for name, phase in (("train", result.train), ("validation", result.valid)):
            if name not in self._phases:
                self._phases[name] = self._open(name, purge_step=self._purge_step)
            with self.write_errors():
                for what in ("accuracy", "loss"):
                    self._phases[name].add_scalar(f"Curves/{what}", getattr(phase, what), result.epoch + 1)

    def add_rates(self, rates: Mapping[str, float], step: int) -> None:
        """Adds a point to the curve of each learning rate."""
        with self.write_errors():
            for group, rate in rates.items():
                tag = "Regularization/C" if group == "C" else f"LearningRate/{group}"
                self.writer.add_scalar(tag, rate, step)

    def flush(self) -> None:
        """Writes the curves so far to the disk."""
        check_folder(self.folder)
        file = self.writer.file_writer.event_writer._file_name
        with self.write_errors():
            for writer in (*self._phases.values(), self.writer):
                writer.flush()
            n_bytes = os.path.getsize(file)
        if n_bytes < self._n_bytes:  # the writer has begun it anew
            raise WriteError(f"{file} was deleted or truncated during the run, with the curves so far")
        self._n_bytes = n_bytes

    def write(self) -> None:
        """Writes `metrics.csv` as it is now."""
        write_table(self.folder / "metrics.csv", self.rows)

    def add_picture(self, name: str, tag: str, image: Image.Image, step: int = 0) -> None:
        """Keeps a picture in the run folder as `<name>.png`, and in TensorBoard."""
        png = io.BytesIO()
        image.save(png, "PNG", compress_level=1)
        with atomic_write(self.folder / f"{name}.png") as file:
            file.write(png.getvalue())
        # not add_image: compressing the picture once more would take longer than all the rest
        shown = Summary.Image(height=image.height, width=image.width, colorspace=3, encoded_image_string=png.getvalue())
        with self.write_errors():
            self.writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=shown)]), step)

    def begin_report(self) -> None:
        """Begins the event file of the report, which a run that goes on leaves behind."""
        self.close()
        self.writer, self._n_bytes = self._open(filename_suffix=REPORT), 0

    def close(self) -> None:
        """Closes the event files."""
        with self.write_errors():
            for writer in (*self._phases.values(), self.writer):
                writer.close()

    def _line(self, result: EpochResult, is_best: bool) -> str:
        train, valid, rates = result.train, result.valid, result.rates
        figures = (
            f"train loss {train.loss:.4f} accuracy {train.accuracy:.4f}  "
            f"val loss {valid.loss:.4f} accuracy {valid.accuracy:.4f}"
        )
        kept = coloured("  * kept", "green") if is_best else ""
        if "C" in rates:
            return f"C {rates['C']:<8.3g} {figures}{kept}"
        width = len(str(self.n_epochs))
        return f"epoch {result.epoch + 1:{width}d}/{self.n_epochs}  {figures}{kept}"

    def _details(self, result: EpochResult) -> str:
        """Returns what else a row of `metrics.csv` holds."""
        rates, backbone = result.rates, ""
        if rates.get("backbone", rates.get("head")) != rates.get("head"):
            backbone = f" (backbone {rates['backbone']:.2g})"
        rate = f"lr {rates['head']:.2g}{backbone}, " if "head" in rates else ""
        speed = result.train.images_per_second
        return f"{INDENT}val f1 {result.valid.macro_f1:.4f}, {rate}{speed:.0f} images/s"


def _leave_out_writer_thread(error: threading.ExceptHookArgs) -> None:
    """Prints the error of a thread, but not that of TensorBoard's writer, which `flush` raises again."""
    if not isinstance(error.thread, _AsyncWriterThread):
        threading.__excepthook__(error)


def curves(result: EpochResult) -> dict[str, float]:
    """Returns the point of an epoch in each of TensorBoard's curves, by tag."""
    train, valid = result.train, result.valid
    return {
        "Train/Loss": train.loss,
        "Train/Accuracy": train.accuracy,
        "Validation/Loss": valid.loss,
        "Validation/Accuracy": valid.accuracy,
        "Validation/MacroF1": valid.macro_f1,
        "Speed/images_per_second": train.images_per_second,
    }


def metrics_row(result: EpochResult) -> dict[str, str]:
    """Returns a row of `metrics.csv`; a learning rate is empty where nothing of its group trains."""
    train, valid = result.train, result.valid
    values = {
        "train_loss": train.loss,
        "train_accuracy": train.accuracy,
        "valid_loss": valid.loss,
        "valid_accuracy": valid.accuracy,
        "valid_macro_f1": valid.macro_f1,
        "lr": result.rates.get("head"),
        "backbone_lr": result.rates.get("backbone"),
        "images_per_s": train.images_per_second,
        "seconds": train.seconds + valid.seconds,
    }
    if "C" in result.rates:
        values["C"] = result.rates["C"]
    texts = {name: "" if value is None else f"{value:.6g}" for name, value in values.items()}
    return {"epoch": str(result.epoch + 1), **texts}
