"""Predicts the classes of images: checkpoint + images -> result.csv."""

from __future__ import annotations

import contextlib
import glob
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING

from photo_classifier.config import PredictConfig
from photo_classifier.evaluation.report_files import FIGURES, is_own_picture, is_own_report
from photo_classifier.prediction.results import UNKNOWN, Totals, columns_of, row_of, share_text
from photo_classifier.runtime import distributed, launcher
from photo_classifier.runtime.console import progress, say, warn
from photo_classifier.runtime.errors import UserError, did_you_mean_path
from photo_classifier.runtime.files import check_target, sha256_file
from photo_classifier.runtime.flags import parse_flags
from photo_classifier.runtime.launcher import is_main
from photo_classifier.runtime.text import pluralize, shell_command
from utils import run_main

if TYPE_CHECKING:  # torch is imported after the arguments are parsed, so that --help answers at once
    import torch

    from photo_classifier.data.samples import Sample
    from photo_classifier.evaluation.metrics import StreamingMetrics
    from photo_classifier.prediction.predictor import Predictor
    from photo_classifier.prediction.result_file import ResultFile, StdoutRows

STDOUT = "-"


EXAMPLES = """examples:
  python predict.py --model_fn resnet.pth                     the held-out images of its training
  python predict.py --model_fn resnet.pth --input photos a.jpg
  python predict.py --model_fn resnet.pth --input "photos/**/*.jpg" --min_probability 0.8
  find photos -name "*.jpg" | python predict.py --model_fn resnet.pth --input - --result -
"""


def parse_args(argv: list[str] | None = None) -> dict:
    """The flags that were given, and only those."""
    about = "Predicts the classes of images."
    return parse_flags(PredictConfig, argv, paths_flag="--input", prog="predict.py", description=about, epilog=EXAMPLES)


def main(argv: list[str] | None = None) -> int:
    """Parses and predicts; the exit status: 3 where some inputs could not be read."""
    config = PredictConfig(**parse_args(argv))
    check_files(config)
    with distributed.process_group(config.gpu_id):
        return serve(config, argv)


def serve(config: PredictConfig, argv: list[str] | None) -> int:
    """Predicts into a file or to stdout; the exit status."""
    if config.result != STDOUT:
        return predict(config, shell_command("python", "predict.py", *(sys.argv[1:] if argv is None else argv)))
    rows = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    with contextlib.suppress(BrokenPipeError), rows as pipe, contextlib.redirect_stdout(sys.stderr):
        return predict(config, pipe=pipe)
    return 141  # as other programs whose reader, such as head, has seen enough


def check_files(config: PredictConfig) -> None:
    """What can be known to go wrong before anything is imported that takes seconds."""
    from photo_classifier.data.image_files import is_image_name

    if not os.path.isfile(config.model_fn):
        here = ", ".join(sorted(glob.glob("*.pth")))
        hint = f"this folder has {here}" if here else "train one with python train.py"
        hint += did_you_mean_path(config.model_fn)
        is_folder = os.path.isdir(config.model_fn)
        what = f"{config.model_fn} is a folder" if is_folder else f"there is no checkpoint {config.model_fn}"
        raise UserError(f"{what}; {hint}; name it with --model_fn FILE")
    check_pictures(config)
    if config.result == STDOUT:
        return
    check_target(config.result, "--result")
    if config.result.endswith(".pth") or is_image_name(config.result):
        raise UserError(f"--result {config.result} would overwrite a model or a photo; give a name like result.csv")


def check_pictures(config: PredictConfig) -> None:
    """Whether the sheet and the report can be written, over nothing but those of an earlier run."""
    if config.sheet:
        check_target(config.sheet, "--sheet")
        if not config.sheet.lower().endswith(".png"):
            raise UserError(f"--sheet {config.sheet} does not end in .png; give a name like result.png")
        if os.path.exists(config.sheet) and not is_own_picture(config.sheet):
            raise UserError(f"--sheet {config.sheet} is a picture of yours; give another name")
    if config.report:
        check_target(os.path.join(config.report, "report.json"), "--report")
        if os.path.exists(os.path.join(config.report, "splits.csv")):
            raise UserError(f"--report {config.report} is the folder of a run; give one of its own")
        for name in (*(f"{figure}.png" for figure in FIGURES), "report.json"):
            path = os.path.join(config.report, name)
            if os.path.exists(path) and not (is_own_picture if name.endswith(".png") else is_own_report)(path):
                raise UserError(f"--report {config.report}: {path} is a file of yours; give a folder of its own")


def predict(config: PredictConfig, command: str = "", pipe: IO[bytes] | None = None) -> int:
    """Writes one row for every input and says what came out.

    Args:
        command: what was typed, for `result.json`.
        pipe: takes the rows in place of a file.
    """
    from photo_classifier.models.class_names import read_class_names
    from photo_classifier.prediction.predictor import Predictor
    from photo_classifier.prediction.task_queue import predict_distributed

    is_restart, agents = (
        distributed.n_restarts() > 0,
        distributed.agents(),
    )  # the launcher repeats the command as it was
    predictor = Predictor(
        config.model_fn,
        gpu_id=config.gpu_id,
        batch_size=config.batch_size,
        n_workers=config.n_workers,
        precision=config.precision,
        max_pixels=config.max_pixels,
        top_k=config.top_k or 1,
        probabilities=config.probabilities,
        min_probability=config.min_probability,
        model_name=config.model_name,
        class_names=read_class_names(config.class_names) if config.class_names else None,
    )
    if not is_main():
        list(predict_distributed(predictor, ()))
        return 0
    if config.min_probability and UNKNOWN in predictor.class_names:
        warn(f"a class is called {UNKNOWN!r}, as is no answer; below --min_probability the column `probability` tells")
    samples, title = find_samples(config, predictor)
    tally = make_tally(config, predictor)
    with open_target(config, predictor, pipe, agents) as target:
        if target.begin(config.resume or (is_restart and target.is_of_launch()), samples, tally):
            speed = write_rows(predictor, samples, target, tally)
            target.finish({"command": command, "counts": tally.state()["counts"]})
            print_counts(config, tally, speed)
        else:
            list(predict_distributed(predictor, ()))  # which lets the other processes go
            say(f"{config.result} is whole already: {pluralize(tally.counts.n_rows, 'row')}")
    show(config, predictor, tally, title)
    if tally.counts.n_labelled:
        say(f"{title} {tally.counts.accuracy_text}")
    if tally.counts.n_errors and launcher.is_launched():
        say("exit status 0, because the launcher starts a run with any other one again; see the rows with `error`")
        return 0
    return 3 if tally.counts.n_errors else 0


def make_tally(config: PredictConfig, predictor: Predictor) -> Totals:
    """What is added up while rows are written: counts, and what the flags ask for."""
    parts = {}
    if config.report:
        from photo_classifier.evaluation.metrics import StreamingMetrics

        parts["report"] = StreamingMetrics(predictor.class_names, predictor.temperature)
    if config.sheet:
        from photo_classifier.evaluation.contact_sheet import ContactSheet

        parts["sheet"] = ContactSheet()
    return Totals(parts)


def show(config: PredictConfig, predictor: Predictor, tally: Totals, title: str) -> None:
    """The contact sheet and the report, where they were asked for."""
    if not tally.parts:
        return
    from photo_classifier.evaluation.contact_sheet import photo_opener
    from photo_classifier.evaluation.figures import save_picture

    if tally.n_missing:
        n_missing = pluralize(tally.n_missing, "row")
        warn(f"not in the report or the sheet: {n_missing} of an earlier run, which did not keep its sums")
    open_photo = photo_opener(config.max_pixels, predictor.engine.model.preprocess.bit_depth)
    if config.sheet:
        if picture := tally.parts["sheet"].draw(open_photo):
            save_picture(config.sheet, picture)
        say(f"sheet   {tally.parts['sheet'].text(config.sheet)}")
    if config.report:
        show_report(config.report, tally.parts["report"], title, open_photo)


def show_report(folder: str, measures: StreamingMetrics, title: str, open_photo: Callable[[str], torch.Tensor]) -> None:
    """Text, `report.json` and figures of the images whose label is known."""
    from photo_classifier.evaluation.figures import figures_of, save_picture
    from photo_classifier.evaluation.report import report_lines, write_report

    if not measures.n_images:
        say("report  none: no label is known; labels come from class folders or from a table")
        return
    about, name = measures.report(), title.removesuffix("accuracy").strip() or "input"
    say("\n".join(report_lines(name, about)))
    write_report(os.path.join(folder, "report.json"), {name: about})
    for what, picture in figures_of(about, open_photo).items():
        save_picture(os.path.join(folder, f"{what}.png"), picture)
    say(f"report  {folder}")


def find_samples(config: PredictConfig, predictor: Predictor) -> tuple[Iterator[Sample], str]:
    """The samples to predict, and what their accuracy is called.

    Raises:
        UserError: there is not one.
    """
    from photo_classifier.data.inputs import input_samples
    from photo_classifier.data.tables import Columns

    if not config.input:
        if not predictor.about["splits"]:
            raise UserError(f"{config.model_fn} is a plain state_dict and knows no images; name some with --input")
        held_out, title = held_out_samples(predictor.about["splits"])
        return iter(held_out), title
    columns = Columns(config.path_column, config.label_column)
    samples = input_samples(config.input, predictor.class_names, columns)
    first = next(samples, None)
    if first is None:
        text = " ".join(config.input)
        raise UserError(f"--input {text}: no images were found; give photos, or folders of photos")
    return itertools.chain([first], samples), "accuracy"


def open_target(
    config: PredictConfig, predictor: Predictor, pipe: IO[bytes] | None, agents: list[str]
) -> ResultFile | StdoutRows:
    """Where the rows go; the file knows which agents of the launcher it was started by."""
    from photo_classifier.prediction.result_file import ResultFile, StdoutRows

    columns = columns_of(config.top_k, predictor.class_names if config.probabilities else ())
    if pipe:
        return StdoutRows(pipe, columns)
    checkpoint = {
        "file": config.model_fn,
        "sha256": sha256_file(config.model_fn),
        "model_name": predictor.about["model_name"],
        "class_names": predictor.class_names,
        "temperature": predictor.temperature,
    }
    settings = {
        "input": list(config.input),
        "min_probability": config.min_probability,
        "precision": str(predictor.engine.dtype).removeprefix("torch."),
        "max_pixels": config.max_pixels,
    }
    launch = {"launch": agents} if agents else {}
    return ResultFile(config.result, columns, {"checkpoint": checkpoint, "settings": settings, **launch})


def write_rows(
    predictor: Predictor, samples: Iterator[Sample], target: ResultFile | StdoutRows, tally: Totals
) -> float:
    """Predicts the samples and writes their rows as they come; the images per second."""
    from photo_classifier.prediction.task_queue import predict_distributed

    start, n_before = time.perf_counter(), target.n_rows
    with progress(desc="predicting", unit="image", initial=n_before) as bar:
        for predictions in predict_distributed(predictor, samples):
            tally.add(predictions)
            target.write([row_of(prediction) for prediction in predictions], tally)
            bar.update(len(predictions))
    return (target.n_rows - n_before) / (time.perf_counter() - start)


def print_counts(config: PredictConfig, tally: Totals, speed: float) -> None:
    """How many rows there are, of which kinds."""
    counts = tally.counts
    errors = f", {counts.n_errors} could not be read (status `error`)" if counts.n_errors else ""
    place = "stdout" if config.result == STDOUT else config.result
    say(f"wrote {place}: {pluralize(counts.n_rows, 'row')}{errors}; {speed:.1f} images/s")
    if config.min_probability:
        n_ok = counts.n_rows - counts.n_errors
        known = f"; accuracy of those {share_text(counts.n_known_correct, counts.n_known)}" if counts.n_known else ""
        answered = share_text(n_ok - counts.n_unknown, n_ok) if n_ok else "none"
        say(f"answered {answered}, `unknown` below {config.min_probability:g}{known}")


def held_out_samples(splits: dict) -> tuple[list, str]:
    """The images that training kept apart, and the name under which it reported their accuracy."""
    from photo_classifier.data.samples import Sample, split_title

    name = splits["held_out"]

    def here(path: str) -> str:
        # the folder of the training first: another one can hold other photos of the same names
        there = os.path.join(splits["cwd"], path)
        return there if os.path.exists(there) and os.getcwd() != splits["cwd"] else path

    samples = [Sample(here(path), label) for path, label in splits[name]]
    return samples, f"{split_title(name)} accuracy"


if __name__ == "__main__":
    run_main(main)
