"""One run's folder: what each epoch leaves there, how it stops and goes on."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from PIL import Image

from photo_classifier.data.samples import Sample, Splits, split_title
from photo_classifier.evaluation.metrics import wilson_interval
from photo_classifier.evaluation.report import write_report
from photo_classifier.runtime import distributed, launcher, signals
from photo_classifier.runtime.console import coloured, say
from photo_classifier.runtime.errors import UserError, WriteError
from photo_classifier.runtime.files import atomic_write, write_text
from photo_classifier.runtime.text import pluralize
from photo_classifier.training.board import Board
from photo_classifier.training.results import Diverged, EpochResult, PhaseResult
from photo_classifier.training.resume import (
    FINISHED,
    LAST,
    SAMPLES,
    Checkpointer,
    RunState,
    StoppedRun,
    resume_command,
    write_backbone,
    write_found,
    write_last,
)
from photo_classifier.training.run_folder import ENDED, agents_of, has_not_begun


class Run:
    """Console, TensorBoard, `metrics.csv`, the best checkpoint, what a resume needs and the files left out of one run.

    Args:
        splits: the samples as they were found.
        n_epochs: of the whole run, those before a resume among them.
        max_bad: the share of unreadable images above which the run stops.
        verbose: 0 keeps the lines of the epochs from the console.
        save_every: seconds between two saves within an epoch.
        saved: the run that this one goes on with, in its folder.

    Raises:
        UserError: the folder holds something else, or cannot be written.
    """

    def __init__(
        self,
        folder: str | Path,
        splits: Splits,
        n_epochs: int,
        max_bad: float = 1.0,
        verbose: int = 1,
        save_every: float = 600.0,
        saved: StoppedRun | None = None,
    ) -> None:
        self.folder = Path(folder)
        self.splits = splits
        self.n_found = saved.found.n_found if saved else sum(len(part) for part in splits.by_name().values())
        self.n_epochs = n_epochs
        self.max_bad = max_bad
        self.verbose = verbose
        self.save_every = save_every
        self.id = saved.progress.run_id if saved else uuid.uuid4().hex
        self.skipped: dict[str, str] = dict(saved.progress.skipped) if saved else {}
        self._start = time.monotonic()
        self.save: Checkpointer | None = None
        self._rows: list[dict[str, str]] = list(saved.progress.rows) if saved else []
        self._about: dict = {"has_backbone": saved.progress.has_backbone} if saved else {}
        # a resume begins with what was saved before it; only rank 0 saves
        self._saved_at: float | None = time.monotonic() if saved and launcher.is_main() else None
        self._best = saved.trainer["best"]["epoch"] + 1 if saved and saved.trainer.get("best") else None
        if launcher.is_main():
            self._open(saved)

    def _open(self, saved: StoppedRun | None) -> None:
        folder = self.folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # now: nobody can say it once the working folder is removed
            self._place = {"cwd": os.getcwd(), "folder": os.path.realpath(folder)}
            if saved:
                self._clear_up()
            elif has_not_begun(folder):
                for path in folder.iterdir():
                    path.unlink()
            elif any(folder.iterdir()) and launcher.agent() not in agents_of(folder):
                hint = f" (to continue its run: {resume_command(folder)})" if (self.folder / LAST).exists() else ""
                raise UserError(f"the run folder {folder} is not empty; give a new one, or leave --run_dir out{hint}")
        except OSError as error:
            raise UserError(f"cannot write the run folder {folder}: {error.strerror}; give --run_dir DIR") from error
        self.board = Board(self.folder, saved.progress.events if saved else None)

    def _clear_up(self) -> None:
        """Before a resume: the run is no longer finished, and files that a kill left half written are nobody's."""
        (self.folder / FINISHED).unlink(missing_ok=True)
        for path in [*self.folder.glob(".*.tmp"), *self.folder.glob(".*.tmp.prev")]:
            path.unlink(missing_ok=True)

    def begin(
        self,
        config: Mapping[str, object],
        splits: Splits,
        save: Checkpointer,
        computing: Mapping[str, object],
    ) -> None:
        """Writes what was asked for, which image is where, and on a resume the tables as they were at the last save.

        Args:
            splits: the samples as they are trained on.
            save: writes the checkpoint of the present weights, given the epoch's metrics.
            computing: `device`, `dtype` and `is_folded`, which the numbers depend on.
        """
        self.splits, self.save = splits, save
        self._about |= {"config": dict(config), **computing}
        self._write_beginning(config)

    @launcher.main_only
    def _write_beginning(self, config: Mapping[str, object]) -> None:
        write_text(self.folder / "config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")
        if not (self.folder / SAMPLES).exists():
            self._write_splits()
            write_found(self.folder, self.splits, self.n_found)
        self._write_tables()

    def _write_splits(self) -> None:
        samples = [(split, sample) for split, part in self.splits.by_name().items() for sample in part]
        fields = ("path", "label", "split", "group") if any(s.group for _, s in samples) else ("path", "label", "split")
        rows = [[split if name == "split" else getattr(sample, name) for name in fields] for split, sample in samples]
        write_csv(self.folder / "splits.csv", fields, rows)

    def _write_tables(self) -> None:
        """`metrics.csv` and `skipped.csv`; a run that was killed may have written more than it saved."""
        tables = {
            "metrics.csv": (list(self._rows[0]) if self._rows else (), [row.values() for row in self._rows]),
            "skipped.csv": (("path", "reason"), sorted(self.skipped.items())),
        }
        for name, (header, rows) in tables.items():
            if rows:
                write_csv(self.folder / name, header, rows)
            else:
                (self.folder / name).unlink(missing_ok=True)

    # --- to go on from here -------------------------------------------------------------------

    @launcher.main_only
    def save_last(self, state: dict) -> None:
        """Writes `last.pth`: this state of the trainer and where the run stands.

        Raises:
            Obstacle: it cannot be written, or the folder is gone.
        """
        self._check_folder()
        place = {"run_id": self.id, **self._place, **self._about}
        position = {"skipped": dict(self.skipped), "rows": list(self._rows), "events": list(self.board.position())}
        write_last(self.folder, RunState(**place, **position), state)
        self._saved_at = time.monotonic()

    @launcher.main_only
    def save_first(self, state: dict, backbone: Mapping[str, torch.Tensor] | None) -> None:
        """Makes the run one that can be continued, before its first step.

        Args:
            backbone: what is frozen, where the state does not hold it.
        """
        if backbone:
            write_backbone(self.folder, backbone)
        self._about["has_backbone"] = bool(backbone)
        self.save_last(state)

    def between_steps(self, state: Callable[[], dict] | None) -> None:
        """Saves the state where it is time; after a signal to any rank it saves and raises `stop.Stopped` on all."""
        is_time = self._saved_at is not None and time.monotonic() - self._saved_at >= self.save_every
        is_time, is_asked = distributed.all_reduce_max(is_time, signals.stop_requested())
        if state and (is_time or is_asked):
            self.save_last(state())
        if is_asked:
            signals.raise_stopped()

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Inside, what ends the run says what was kept and how to go on; without a save its folder is free again."""
        try:
            with self._explained():
                yield
        except UserError:
            if self._saved_at is None:
                self._free_folder()
            raise

    @launcher.main_only
    def _free_folder(self) -> None:
        with contextlib.suppress(UserError):  # the disk may be what ended it
            write_text(self.folder / ENDED, "{}\n")

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except signals.Stopped as stopped:
            stopped.hint = self._how_to_continue()
            if self._saved_at is None and launcher.is_main():  # or the same command would find it in its way
                self.board.close()
                shutil.rmtree(self.folder, ignore_errors=True)
            raise
        except Diverged as error:
            raise UserError(f"{error}; {self._what_is_kept()}; try a lower --lr in a new run") from error
        except WriteError as error:
            raise UserError(f"{error}{self._how_to_continue()}") from error
        except (RuntimeError, MemoryError) as error:
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
        return f"{self.save.path} keeps the best weights before, those of epoch {self._best}"

    def _check_folder(self) -> None:
        if not self.folder.is_dir():
            raise UserError(f"the run folder {self.folder} was removed under the run, with its saves; start again")

    @launcher.main_only
    def finish(self) -> None:
        """Notes that nothing is left to do."""
        write_text(self.folder / FINISHED, json.dumps({"epochs": self.n_logged}) + "\n")

    # --- the record ---------------------------------------------------------------------------

    def log(self, result: EpochResult, is_best: bool) -> None:
        """One line on the console, one in `metrics.csv`, one point in every curve."""
        self._rows.append(metrics_row(result))
        self._write_log(result, is_best)

    @launcher.main_only
    def _write_log(self, result: EpochResult, is_best: bool) -> None:
        train, valid, step = result.train, result.valid, result.epoch + 1
        scalars = {
            "Train/Loss": train.loss,
            "Train/Accuracy": train.accuracy,
            "Validation/Loss": valid.loss,
            "Validation/Accuracy": valid.accuracy,
            "Validation/MacroF1": valid.macro_f1,
            "Speed/images_per_second": train.images_per_second,
        }
        for tag, value in scalars.items():
            self.board.add_scalar(tag, value, step)
        self.log_rates(result.rates, step)
        self.board.flush()
        self._check_folder()
        write_csv(self.folder / "metrics.csv", list(self._rows[0]), [row.values() for row in self._rows])
        width, backbone = len(str(self.n_epochs)), ""
        if result.rates.get("backbone", result.rates["head"]) != result.rates["head"]:
            backbone = f" (backbone {result.rates['backbone']:.2g})"
        self.note(
            f"epoch {step:{width}d}/{self.n_epochs}  train loss {train.loss:.4f} acc {train.accuracy:.4f}  "
            f"val loss {valid.loss:.4f} acc {valid.accuracy:.4f} f1 {valid.macro_f1:.4f}  "
            f"lr {result.rates['head']:<7.2g}{backbone}  "
            f"{train.images_per_second:5.0f} images/s{coloured('  * kept', 'green') if is_best else ''}"
        )

    @launcher.main_only
    def log_rates(self, rates: Mapping[str, float], step: int) -> None:
        """A point in the curve of each learning rate."""
        for group, rate in rates.items():
            self.board.add_scalar(f"LearningRate/{group}", rate, step)

    def note(self, text: str) -> None:
        """A line for the console, unless it is to be quiet."""
        say(text)

    def save_best(self, result: EpochResult) -> None:
        """Writes the checkpoint the moment that a better epoch is known."""
        self.save({"epoch": result.epoch + 1, "valid": phase_metrics(result.valid)})
        self._best = result.epoch + 1

    def picture(self, name: str, tag: str, image: Image.Image, step: int = 0) -> None:
        """Keeps a picture in the run folder as `<name>.png`, and in TensorBoard."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        png = io.BytesIO()
        image.save(png, "PNG", compress_level=1)
        with atomic_write(self.folder / f"{name}.png") as file:
            file.write(png.getvalue())
        # not add_image: it would compress the picture once more, which takes longer than all the rest
        shown = Summary.Image(height=image.height, width=image.width, colorspace=3, encoded_image_string=png.getvalue())
        self.board.file_writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=shown)]), step)

    def skip(self, bad: Sequence[tuple[int, str]], split: str) -> None:
        """Takes note of images, by their place in a split, that could not be read."""
        samples: list[Sample] = getattr(self.splits, split)
        self.leave_out({samples[index].path: reason for index, reason in bad})

    def leave_out(self, reasons: Mapping[str, str]) -> None:
        """Lists images that could not be read in `skipped.csv`, each once.

        Raises:
            UserError: they are more than `max_bad` allows.
        """
        new = {path: reason for path, reason in reasons.items() if path not in self.skipped}
        if not new:
            return
        self.skipped |= new
        self._write_skipped()
        if len(self.skipped) > self.max_bad * self.n_found:
            path, reason = next(iter(new.items()))
            raise UserError(
                f"{len(self.skipped)} of {self.n_found} images cannot be read, more than --max_bad {self.max_bad:g}; "
                f"for example {path}: {reason}; they are listed in {self.folder / 'skipped.csv'}: mend or remove "
                "them, or raise --max_bad"
            )

    def report(self, judged: Mapping[str, Mapping]) -> None:
        """Writes `report.json`: how good the saved weights are, by split."""
        write_report(self.folder / "report.json", {split_title(name): about for name, about in judged.items()})

    @property
    def last_model(self) -> Path:
        """Where the weights of the last epoch are, as `--model_fn` has those of the best."""
        return self.folder / "last_model.pth"

    @property
    def spare_seconds(self) -> float:
        """What looking at the run may cost: 1 % of one of over five minutes, else as much as nobody notices."""
        seconds = time.monotonic() - self._start
        return 0.01 * seconds if seconds > 300 else 0.8

    def peers_text(self, epoch: int, n_images: int) -> str:
        """How many epochs the validation images cannot tell from that one, which therefore is not called better.

        Args:
            epoch: counts from 0.
            n_images: of validation.
        """
        accuracies = [float(row["valid_accuracy"]) for row in self._rows]
        low, high = wilson_interval(round(accuracies[epoch] * n_images), n_images)
        n = sum(low <= accuracy <= high for accuracy in accuracies) - 1
        if n < 1:
            return ""
        is_tie = accuracies.count(accuracies[epoch]) > 1 and self._about["config"]["monitor"] == "accuracy"
        return (
            f"{pluralize(n, 'other epoch')} of {len(accuracies)} cannot be told from it by {n_images} images: their "
            f"accuracy lies within its interval{'; of equals the first is kept, --monitor loss looks closer' * is_tie}"
        )

    @property
    def n_logged(self) -> int:
        """Epochs that were recorded."""
        return len(self._rows)

    @launcher.main_only
    def _write_skipped(self) -> None:
        self._check_folder()
        write_csv(self.folder / "skipped.csv", ("path", "reason"), sorted(self.skipped.items()))

    @launcher.main_only
    def close(self) -> None:
        """Ends the TensorBoard file."""
        self.board.close()


def metrics_row(result: EpochResult) -> dict[str, str]:
    """A line of `metrics.csv`; a rate is empty where nothing of its part trains."""
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
    texts = {name: "" if value is None else f"{value:.6g}" for name, value in values.items()}
    return {"epoch": str(result.epoch + 1), **texts}


def phase_metrics(phase: PhaseResult) -> dict[str, float | int]:
    """A pass as plain values, for the checkpoint."""
    return {"loss": phase.loss, "accuracy": phase.accuracy, "correct": phase.correct, "n_images": phase.n_images}


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence]) -> None:
    """Writes a table atomically, in UTF-8."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())
