"""One run's folder: what each epoch leaves there."""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from report import split_title, write_report
from splits import Sample, Splits
from trainer import EpochResult
from utils import UserError, atomic_write, write_text


class Run:
    """Console, TensorBoard, `metrics.csv`, the best checkpoint and the files left out of one training.

    Args:
        splits: the samples as they were found.
        max_bad: the share of unreadable images above which the run stops.
    """

    def __init__(
        self, folder: str | Path, splits: Splits, n_epochs: int, max_bad: float = 1.0, verbose: int = 1
    ) -> None:
        self.folder = Path(folder)
        self.splits = splits
        self.n_found = sum(len(part) for part in splits.by_name().values())
        self.n_epochs = n_epochs
        self.max_bad = max_bad
        self.verbose = verbose
        self.skipped: dict[str, str] = {}
        self._start = time.monotonic()
        self.save: Callable[[dict], None] = lambda metrics: None
        self._rows: list[dict[str, str]] = []
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if any(self.folder.iterdir()):
                raise UserError(f"the run folder {folder} is not empty; give a new one, or leave --run_dir out")
            self.board = SummaryWriter(str(self.folder))
        except OSError as error:
            raise UserError(f"cannot write the run folder {folder}: {error.strerror}; give --run_dir DIR") from error

    def begin(self, config: Mapping[str, object], splits: Splits, save: Callable[[dict], None]) -> None:
        """Writes `config.json` and `splits.csv`: what was asked for, and which image is where.

        Args:
            splits: the samples as they are trained on.
            save: writes the checkpoint of the present weights, given the epoch's metrics.
        """
        self.splits, self.save = splits, save
        write_text(self.folder / "config.json", json.dumps(config, indent=2, ensure_ascii=False) + "\n")
        samples = [(split, sample) for split, part in self.splits.by_name().items() for sample in part]
        fields = ("path", "label", "split", "group") if any(s.group for _, s in samples) else ("path", "label", "split")
        rows = [[{"split": split, **vars(sample)}[name] for name in fields] for split, sample in samples]
        write_csv(self.folder / "splits.csv", fields, rows)

    def log(self, result: EpochResult, is_best: bool) -> None:
        """One line on the console, one in `metrics.csv`, one point in every curve."""
        train, valid, step = result.train, result.valid, result.epoch + 1
        scalars = {
            "Train/Loss": train.loss,
            "Train/Accuracy": train.accuracy,
            "Validation/Loss": valid.loss,
            "Validation/Accuracy": valid.accuracy,
            "Validation/MacroF1": valid.macro_f1,
            **{f"LearningRate/{group}": rate for group, rate in result.rates.items()},
            "Speed/images_per_second": train.images_per_second,
        }
        for tag, value in scalars.items():
            self.board.add_scalar(tag, value, step)
        self.board.flush()
        self._rows.append(metrics_row(result))
        write_csv(self.folder / "metrics.csv", list(self._rows[0]), [row.values() for row in self._rows])
        width, backbone = len(str(self.n_epochs)), ""
        if result.rates.get("backbone", result.rates["head"]) != result.rates["head"]:
            backbone = f" (backbone {result.rates['backbone']:.2g})"
        self.note(
            f"epoch {step:{width}d}/{self.n_epochs}  train loss {train.loss:.4f} acc {train.accuracy:.4f}  "
            f"val loss {valid.loss:.4f} acc {valid.accuracy:.4f} f1 {valid.macro_f1:.4f}  "
            f"lr {result.rates['head']:.2g}{backbone}  "
            f"{train.images_per_second:.0f} images/s{'  * best' if is_best else ''}"
        )

    def note(self, text: str) -> None:
        """A line for the console, unless it is to be quiet."""
        if self.verbose:
            print(text, flush=True)

    def save_best(self, result: EpochResult) -> None:
        """Writes the checkpoint the moment that a better epoch is known."""
        self.save({"epoch": result.epoch + 1, "valid": phase_metrics(result.valid)})

    def picture(self, name: str, tag: str, image: Image.Image) -> None:
        """Keeps a picture in the run folder as `<name>.png`, and in TensorBoard."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        png = io.BytesIO()
        image.save(png, "PNG", compress_level=1)
        with atomic_write(self.folder / f"{name}.png") as file:
            file.write(png.getvalue())
        # not add_image: it would compress the picture once more, which takes longer than all the rest
        shown = Summary.Image(height=image.height, width=image.width, colorspace=3, encoded_image_string=png.getvalue())
        self.board.file_writer.add_summary(Summary(value=[Summary.Value(tag=tag, image=shown)]), 0)

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
        write_csv(self.folder / "skipped.csv", ("path", "reason"), sorted(self.skipped.items()))
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
        """What looking at the run may cost: 1 % of its time, or as much as nobody notices."""
        return max(0.6, 0.01 * (time.monotonic() - self._start))

    @property
    def n_logged(self) -> int:
        """Epochs that were recorded."""
        return len(self._rows)

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


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence]) -> None:
    """Writes a table atomically, in UTF-8."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(header)
    writer.writerows(rows)
    write_text(path, text.getvalue())
