"""Predicts the classes of images: checkpoint + images -> result.csv."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING

from photo_classifier.config import PredictConfig
from photo_classifier.evaluation.report_files import FIGURES, PAGE, is_own_file, is_own_picture
from photo_classifier.prediction.results import UNKNOWN, Totals, columns_of, row_of
from photo_classifier.prediction.summary import answered_lines, seen_text, unreadable_lines
from photo_classifier.runtime import distributed, launcher
from photo_classifier.runtime.console import progress, say, say_loading, warn
from photo_classifier.runtime.errors import UserError
from photo_classifier.runtime.files import sha256_file
from photo_classifier.runtime.flags import parse_flags
from photo_classifier.runtime.launcher import is_main
from photo_classifier.runtime.limits import check_temporary_folder
from photo_classifier.runtime.text import pluralize, shell_command
from photo_classifier.unused_flags import PREDICTION, Predicting, warn_of_unused_flags
from utils import check_checkpoint, check_output_path, described, device_from_gpu_id, run_main

if TYPE_CHECKING:  # torch is imported after the arguments are parsed, so that --help answers at once
    from PIL import Image

    from photo_classifier.data.samples import Sample
    from photo_classifier.evaluation.page import About
    from photo_classifier.prediction.predictor import Predictor
    from photo_classifier.prediction.result_file import ResultFile
    from photo_classifier.prediction.results import Counts
    from photo_classifier.prediction.stdout_rows import StdoutRows

STDOUT = "-"
MOST_AHEAD, LOOK_AHEAD_SECONDS = 100_000, 1.0  # inputs that are listed for the total of the progress bar
SECONDS_OF_PHOTOS = 10.0  # that the page may take for reading them
READER_GONE = 141  # the usual exit status when the reader, such as `head`, has closed the pipe
EXAMPLES = """examples:
  python predict.py --model_fn resnet.pth                     the held-out images of its training
  python predict.py --model_fn resnet.pth --input photos a.jpg
  python predict.py --model_fn resnet.pth --input "photos/**/*.jpg" --min_probability 0.8
  find photos -name "*.jpg" | python predict.py --model_fn resnet.pth --input - --result -
"""


def parse_args(argv: list[str] | None = None) -> dict:
    """Returns the flags that were given, and no defaults."""
    text = "Predicts the classes of images."
    return parse_flags(PredictConfig, argv, paths_flag="--input", prog="predict.py", description=text, epilog=EXAMPLES)


def main(argv: list[str] | None = None) -> int:
    """Parses, checks and predicts; returns the exit status, 3 if some inputs could not be read."""
    given = parse_args(argv)
    config = PredictConfig(**given)
    check_checkpoint(config.model_fn)
    check_report(config)
    check_result(config)
    warn_of_unused_flags(PREDICTION, given, Predicting(config))
    with distributed.process_group(lambda: device_from_gpu_id(config.gpu_id)):
        if config.result == STDOUT:
            return predict_to_stdout(config)
        return predict(config, shell_command("python", "predict.py", *(sys.argv[1:] if argv is None else argv)))


def predict_to_stdout(config: PredictConfig) -> int:
    """Predicts with the rows on stdout and everything else on stderr; returns the exit status."""
    rows = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    with contextlib.suppress(BrokenPipeError), rows as pipe, contextlib.redirect_stdout(sys.stderr):
        return predict(config, pipe=pipe)
    return READER_GONE


def predict(config: PredictConfig, command: str = "", pipe: IO[bytes] | None = None) -> int:
    """Writes one row for every input, then counts, sheet and report; returns the exit status.

    Args:
        command: the command line, for `result.json`.
        pipe: takes the rows instead of a file.
    """
    say_loading()
    from photo_classifier.prediction.task_queue import predict_distributed

    is_restart, agents = distributed.n_restarts() > 0, distributed.agents()
    predictor = make_predictor(config)
    if not is_main():
        list(predict_distributed(predictor, ()))
        return 0
    samples, n_samples, title = find_samples(config, predictor)
    totals = make_totals(config, predictor)
    with open_target(config, predictor, pipe, agents) as target:
        if target.begin(config.resume, samples, totals, is_restart):
            speed = write_rows(predictor, samples, n_samples, target, totals)
            target.finish({"command": command, "counts": totals.state()["counts"]})
            print_counts(config, totals, speed)
        else:
            list(predict_distributed(predictor, ()))  # lets the other processes end
            say(f"{config.result} is already complete: {pluralize(totals.counts.n_rows, 'row')}")
    write_pictures(config, predictor, totals, title)
    return finish(totals.counts, title)


def check_report(config: PredictConfig) -> None:
    """Raises a UserError if the sheet or the report would overwrite files that this tool did not write."""
    if config.sheet:
        check_output_path(config.sheet, "--sheet")
        if not config.sheet.lower().endswith(".png"):
            raise UserError(f"--sheet {config.sheet} does not end in .png; give a name like result.png")
        if os.path.exists(config.sheet) and not is_own_picture(config.sheet):
            raise UserError(f"--sheet {config.sheet} was not written by this tool; give another name")
    if config.explain:
        check_output_path(os.path.join(config.explain, "photo.jpg"), "--explain")
    if config.report:
        check_temporary_folder()
        check_output_path(os.path.join(config.report, "report.json"), "--report")
        if os.path.exists(os.path.join(config.report, "splits.csv")):
            raise UserError(f"--report {config.report} is the folder of a training run; give another folder")
        for name in (*(f"{figure}.png" for figure in FIGURES), "report.json", PAGE):
            path = os.path.join(config.report, name)
            if os.path.exists(path) and not is_own_file(path):
                raise UserError(f"--report {config.report}: {path} was not written by this tool; give another folder")


def check_result(config: PredictConfig) -> None:
    """Raises a UserError if the result cannot be written, or its name is that of a model or a photo."""
    from photo_classifier.data.image_files import is_image_name

    if config.result == STDOUT:
        return
    check_output_path(config.result, "--result")
    if config.result.endswith(".pth") or is_image_name(config.result):
        raise UserError(f"--result {config.result} would overwrite a model or a photo; give a name like result.csv")


def make_predictor(config: PredictConfig) -> Predictor:
    """Loads the checkpoint."""
    from photo_classifier.prediction.predictor import Predictor

    predictor = Predictor(
        config.model_fn,
        device=device_from_gpu_id(config.gpu_id),
        batch_size=config.batch_size,
        n_workers=config.n_workers,
        precision=config.precision,
        engine=config.engine,
        max_pixels=config.max_pixels,
        top_k=config.top_k or 1,
        probabilities=config.probabilities,
        min_probability=config.min_probability,
        unknown=config.unknown,
        false_alarm=config.false_alarm,
        coverage=config.coverage,
        heat=config.explain is not None,
        **described(config),
    )
    if predictor.engine_note:
        say(f"engine  {predictor.engine_note}")
    if is_main() and not predictor.metadata["splits"]:
        for note in predictor.metadata["notes"]:
            say(note)
        preprocess = predictor.engine.model.preprocess
        say(f"images  {preprocess.text()}; as {config.model_name} expects unless flags say otherwise")
    if is_main() and (config.min_probability or config.unknown) and UNKNOWN in predictor.class_names:
        warn(
            f"a class is called {UNKNOWN!r}, like the answer to photos that are refused; the column `reason` tells "
            "them apart: it is empty for answers"
        )
    return predictor


def find_samples(config: PredictConfig, predictor: Predictor) -> tuple[Iterator[Sample], int | None, str]:
    """Returns the samples to predict, their number if it is known already, and what to call their accuracy.

    Raises:
        UserError: no images were found.
    """
    from photo_classifier.data.inputs import STDIN, input_samples, no_images
    from photo_classifier.data.samples import split_title
    from photo_classifier.data.table_columns import Columns
    from photo_classifier.prediction.photos import held_out_samples

    if not config.input:
        splits = predictor.metadata["splits"]
        held_out = held_out_samples(splits, config.model_fn)
        return iter(held_out), len(held_out), f"{split_title(splits['held_out'])} accuracy"
    columns = Columns(config.path_column, config.label_column)
    samples = input_samples(config.input, predictor.class_names, columns)
    # names may arrive slowly on stdin
    samples, n_samples = look_ahead(samples, most=1 if STDIN in config.input else MOST_AHEAD)
    if n_samples == 0:
        raise no_images(config.input)
    return samples, n_samples, "accuracy"


def look_ahead(samples: Iterator[Sample], most: int) -> tuple[Iterator[Sample], int | None]:
    """Lists the samples that a second is enough for; returns all of them, and their number if that was the last.

    Args:
        most: samples to list, as they fill the memory.
    """
    start, ahead = time.monotonic(), []
    for sample in samples:
        ahead.append(sample)
        if len(ahead) == most or time.monotonic() - start > LOOK_AHEAD_SECONDS:
            return itertools.chain(ahead, samples), None
    return iter(ahead), len(ahead)


def make_totals(config: PredictConfig, predictor: Predictor) -> Totals:
    """Returns what is accumulated while rows are written: counts, and what the flags ask for."""
    parts = {}
    if config.report:
        from photo_classifier.evaluation.metrics import StreamingMetrics

        parts["report"] = StreamingMetrics(predictor.class_names, predictor.temperature)
        if predictor.novelty:
            from photo_classifier.evaluation.drift import Drift

            parts["drift"] = Drift(predictor.novelty.held_out.tolist())
    if config.sheet:
        from photo_classifier.evaluation.photo_sheets import PredictionSheet

        parts["sheet"] = PredictionSheet()
    if config.explain:
        from photo_classifier.features.overlays import Overlays

        parts["explain"] = Overlays(config.explain, predictor.engine.model.preprocess, config.max_pixels)
    return Totals(parts, predictor.seen_files, of_new=("drift",))


def open_target(
    config: PredictConfig, predictor: Predictor, pipe: IO[bytes] | None, agents: list[str]
) -> ResultFile | StdoutRows:
    """Returns the target of the rows; a file also records which agents of the launcher started this run."""
    from photo_classifier.prediction.result_file import ResultFile
    from photo_classifier.prediction.stdout_rows import StdoutRows

    every = predictor.class_names if config.probabilities else ()
    hides_guess, has_distance = bool(config.min_probability or config.unknown), bool(predictor.novelty)
    columns = columns_of(config.top_k, every, hides_guess, has_distance, config.coverage is not None)
    if pipe:
        return StdoutRows(pipe, columns)
    checkpoint = {
        "file": config.model_fn,
        "sha256": sha256_file(config.model_fn),
        "model_name": predictor.metadata["model_name"],
        "class_names": predictor.class_names,
        "temperature": predictor.temperature,
    }
    settings = {
        "input": list(config.input),
        "min_probability": config.min_probability,
        "false_alarm": config.false_alarm if config.unknown else None,
        "coverage": config.coverage,
        "precision": str(predictor.engine.dtype).removeprefix("torch."),
        "max_pixels": config.max_pixels,
    }
    if predictor.engine.compiled:
        settings["engine"] = predictor.engine.computed_by
    launch = {"launch": agents} if agents else {}
    return ResultFile(config.result, columns, {"checkpoint": checkpoint, "settings": settings, **launch})


def write_rows(
    predictor: Predictor,
    samples: Iterator[Sample],
    n_samples: int | None,
    target: ResultFile | StdoutRows,
    totals: Totals,
) -> float:
    """Predicts the samples and writes their rows batch by batch; returns the images per second.

    Args:
        n_samples: with those that have a row already; the progress bar has no total without it.
    """
    from photo_classifier.prediction.task_queue import predict_distributed

    start, n_before = time.perf_counter(), target.n_rows
    with progress(desc="predicting", unit="image", initial=n_before, total=n_samples) as bar:
        for predictions in predict_distributed(predictor, samples):
            totals.add(predictions)
            target.write([row_of(prediction) for prediction in predictions], totals)
            bar.update(len(predictions))
    return (target.n_rows - n_before) / (time.perf_counter() - start)


def print_counts(config: PredictConfig, totals: Totals, speed: float) -> None:
    """Prints the number of rows, the photos that could not be read, and how many were answered."""
    counts = totals.counts
    errors = f", {counts.n_errors} could not be read (status `error`)" if counts.n_errors else ""
    target = "stdout" if config.result == STDOUT else config.result
    say(f"wrote {target}: {pluralize(counts.n_rows, 'row')}{errors}; {speed:.1f} images/s")
    lines = unreadable_lines(totals, f"in {target}")
    if config.min_probability or config.unknown:
        lines += answered_lines(counts, config.min_probability, config.false_alarm if config.unknown else None)
    for line in lines:
        say(line)


def write_pictures(config: PredictConfig, predictor: Predictor, totals: Totals, title: str) -> None:
    """Writes the contact sheet and the report that the flags ask for."""
    if not totals.parts:
        return
    from photo_classifier.evaluation.thumbnails import MANY, Thumbnails

    if totals.n_missing:
        n_missing = pluralize(totals.n_missing, "row")
        warn(f"the report and the sheet lack {n_missing} of an earlier run, which saved no data for them")
    open_photo = Thumbnails(config.max_pixels, predictor.engine.model.preprocess.bit_depth, MANY + 1)
    if config.sheet:
        from photo_classifier.evaluation.figures import save_picture

        if picture := totals.parts["sheet"].draw(open_photo):
            save_picture(config.sheet, picture)
        say(f"sheet   {totals.parts['sheet'].text(config.sheet)}")
    if config.explain:
        totals.parts["explain"].finish()
        which = "a picture for each photo that could be read" if totals.counts.n_errors else "a picture for each photo"
        text = f"{config.explain}: {which}; red marks what speaks most for the answer"
        say(f"heat    {text if totals.counts.n_ok else 'none: no photo could be read'}")
    if config.report:
        write_report_folder(config, predictor, totals, title, open_photo)


def write_report_folder(
    config: PredictConfig,
    predictor: Predictor,
    totals: Totals,
    title: str,
    open_photo: Callable[[str], Image.Image],
) -> None:
    """Prints the report of the images whose label is known, and writes `report.json`, figures and the page."""
    from photo_classifier.evaluation.figures import figures_of, save_picture
    from photo_classifier.evaluation.page import write_page
    from photo_classifier.evaluation.report import metrics_report, report_lines, write_report
    from photo_classifier.features.explanations import add_heat_maps
    from photo_classifier.models.heat_maps import HeatMaps

    folder, metrics = config.report, totals.parts["report"]
    for name in (*(f"{figure}.png" for figure in FIGURES), "report.json"):  # of an earlier prediction
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(folder, name))
    content = answers_of(config, predictor, totals.counts) | compare_with_training(totals) | in_training(totals.counts)
    if metrics.n_images:
        report, name = metrics_report(metrics), title.removesuffix("accuracy").strip() or "input"
        if wrong := [row for row in report["examples"] if row["label"] != row["predict"]]:
            maps = HeatMaps(predictor.engine)
            add_heat_maps(wrong, maps, predictor.class_names, config.max_pixels, SECONDS_OF_PHOTOS)
        say("\n".join(report_lines(name, report)))
        content = {name: report, **content}
        for figure, picture in figures_of(name, report, open_photo).items():
            save_picture(os.path.join(folder, f"{figure}.png"), picture)
    else:
        why = "no labels are known, so it shows only the answers; give class folders or a table with labels"
        say(f"report  {why if totals.counts.n_ok else 'no photo could be read, so there is nothing to show'}")
    if content:
        write_report(os.path.join(folder, "report.json"), content)
    path = write_page(folder, about_prediction(config, predictor, totals), open_photo, SECONDS_OF_PHOTOS)
    say(f"report  {path}")


def answers_of(config: PredictConfig, predictor: Predictor, counts: Counts) -> dict:
    """Returns for `report.json` how many photos were answered, if some may be refused."""
    if not (config.min_probability or config.unknown):
        return {}
    numbers = {"n_images": counts.n_ok, "n_answered": counts.n_ok - counts.n_unknown, "n_unlike": counts.n_unlike}
    numbers |= {"n_unsure": counts.n_unknown - counts.n_unlike, "min_probability": config.min_probability}
    numbers |= {"most_distant": predictor.most_distant, "n_known": counts.n_known}
    return {"answers": {**numbers, "n_known_correct": counts.n_known_correct}}


def in_training(counts: Counts) -> dict:
    """Returns for `report.json` how many photos the model was trained on, if there are any."""
    if not counts.n_seen:
        return {}
    numbers = {"n_images": counts.n_seen, "n_labelled": counts.n_seen_labelled, "n_correct": counts.n_seen_correct}
    return {"in_training": {**numbers, "text": seen_text(counts)}}


def compare_with_training(totals: Totals) -> dict:
    """Prints whether the photos are like those of the training, if that is known; returns it for `report.json`."""
    from photo_classifier.evaluation.drift import drift_lines

    if "drift" not in totals.parts:
        return {}
    drift = totals.parts["drift"].report()
    for line in drift_lines(drift):
        say(line)
    return {"drift": drift}


def about_prediction(config: PredictConfig, predictor: Predictor, totals: Totals) -> About:
    """Returns what the page of a prediction says about the inputs and the model."""
    from photo_classifier.evaluation.page import About
    from photo_classifier.runtime.packages import version_rows

    model, counts = predictor.engine.model, totals.counts
    facts = {
        "Photos": [
            ("input", " ".join(config.input) or "the held-out photos of the training"),
            ("answered", f"{counts.n_ok - counts.n_unknown:,} of {counts.n_ok:,}"),
            ("refused, unlike the training photos", f"{counts.n_unlike:,}" if config.unknown else "not asked for"),
            ("refused, probability too low", f"{counts.n_unknown - counts.n_unlike:,}"),
            ("were in training", f"{counts.n_seen:,}" if len(predictor.seen_files) else "not known"),
            ("could not be read", f"{counts.n_errors:,}"),
            ("--min_probability", f"{config.min_probability:g}"),
            *([("--false_alarm", f"{config.false_alarm:g}")] if config.unknown else []),
        ],
        "Model": [
            ("checkpoint", config.model_fn),
            ("network", predictor.metadata["model_name"]),
            ("classes", f"{len(predictor.class_names):,}"),
            ("image size", f"{model.preprocess.image_size} x {model.preprocess.image_size} pixels"),
        ],
        "Computed with": [
            ("device", predictor.engine.device.type),
            ("precision", str(predictor.engine.dtype).removeprefix("torch.")),
            *version_rows("torch", "torchvision", "timm"),
        ],
    }
    return About(f"Prediction of {config.model_fn}", facts, predicted=totals.parts["report"].unlabelled.summary())


def finish(counts: Counts, title: str) -> int:
    """Prints the accuracy if labels are known; returns the exit status."""
    if text := seen_text(counts):
        say(f"seen    {text}")
    if counts.n_labelled:
        say(f"{title} {counts.accuracy_text}")
    if counts.n_errors and launcher.is_launched():
        say("exit status 0, or the launcher would repeat the run; the rows with status `error` name the errors")
        return 0
    return 3 if counts.n_errors else 0


if __name__ == "__main__":
    run_main(main)
