"""Predicts with an exported model, without torch: the part of the one-file predictor that is not shared.

`bundle.py` puts this module and all that it uses into one file, which needs only numpy, pillow and onnxruntime.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO

import numpy as np

from photo_classifier.data.decoding import BadImage, decode_pixels
from photo_classifier.data.image_files import MAX_PIXELS, is_image_name
from photo_classifier.data.inputs import input_samples, no_images
from photo_classifier.data.preprocess import Preprocess
from photo_classifier.data.samples import Sample
from photo_classifier.data.table_columns import Columns
from photo_classifier.export.resizing import prepare
from photo_classifier.prediction.formats import BOM, csv_lines, texts
from photo_classifier.prediction.photos import Photo, path_of, samples_from
from photo_classifier.prediction.results import Counts, Prediction, answer, columns_of, failure, row_of
from photo_classifier.runtime.console import say
from photo_classifier.runtime.errors import UserError
from photo_classifier.runtime.files import keep_previous
from photo_classifier.runtime.flags import number
from photo_classifier.runtime.packages import require
from photo_classifier.runtime.text import pluralize

MODEL = "model.onnx"  # beside the one file, which has the name of its own model here
AHEAD = 4  # photos per thread that are decoded before they are needed
READER_GONE = 141  # the exit status of predict.py then
NOT_A_NUMBER = "the model's output is not a finite number"


class Predictor:
    """A model that was exported as ONNX, with the answers of the checkpoint that it was made from.

    Args:
        model: an `.onnx` file; None is the one beside this file.
        top_k: how many classes `Prediction.top` holds.
        probabilities: whether to fill `Prediction.probabilities`.
        min_probability: answers `unknown` below it; None takes the one of the export.
        max_pixels: width x height above which an image is refused before it fills the memory.
        n_threads: threads that decode photos; None is the number of cores.
        providers: where onnxruntime computes.

    Raises:
        UserError: the file is not an exported model.
    """

    def __init__(
        self,
        model: str | os.PathLike | None = None,
        top_k: int = 1,
        probabilities: bool = False,
        min_probability: float | None = None,
        max_pixels: int = MAX_PIXELS,
        n_threads: int | None = None,
        providers: Iterable[str] = ("CPUExecutionProvider",),
    ) -> None:
        path = os.fspath(model or Path(__file__).with_name(MODEL))
        self.session = _session(path, providers)
        about = self.session.get_modelmeta().custom_metadata_map
        if "class_names" not in about:
            raise UserError(f"{path} was not written by export.py; give a model that was (--model)")
        self.class_names: list[str] = json.loads(about["class_names"])
        n = len(self.class_names)
        if not 1 <= top_k <= n:
            raise UserError(f"--top_k {top_k}: {path} has {n} classes; give a number from 1 to {n}")
        self.preprocess = Preprocess(**json.loads(about["preprocess"]))
        asked = float(about["min_probability"]) if min_probability is None else min_probability
        self.top_k, self.probabilities, self.min_probability = top_k, probabilities, asked
        self.max_pixels, self.n_threads = max_pixels, n_threads or os.cpu_count() or 1

    def __call__(self, photos: Photo | Iterable[Photo]) -> list[Prediction]:
        """Returns one `Prediction` for each path, content of a file (bytes), PIL image or array, in order.

        Arrays are RGB, uint8 (height, width, 3). A file that cannot be read has the status `error`.

        Raises:
            UserError: something else was given, or a folder.
        """
        return list(self.stream(samples_from(photos)))

    def stream(self, samples: Iterable[Sample]) -> Iterator[Prediction]:
        """Yields predictions in the order of the samples, which are read only as needed."""
        for sample, image in self._prepared(samples):
            if isinstance(image, str):
                yield failure(path_of(sample), sample.label, image)
                continue
            # one photo at a time: its numbers never depend on others, and a larger batch is no faster
            yield self._prediction(sample, *(output[0] for output in self.compute(image[None])))

    def compute(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns probabilities and logits, fp32 (n, classes), of RGB images, uint8 (n, size, size, 3)."""
        return self.session.run(["probabilities", "logits"], {"images": images})

    def _prepared(self, samples: Iterable[Sample]) -> Iterator[tuple[Sample, np.ndarray | str]]:
        """Yields each sample with its image, (size, size, 3), or with the reason why it has none."""
        pending: deque[tuple[Sample, Future]] = deque()
        with ThreadPoolExecutor(self.n_threads) as threads:
            for sample in samples:
                pending.append((sample, threads.submit(self._read, sample)))
                if len(pending) > AHEAD * self.n_threads:
                    first, image = pending.popleft()
                    yield first, image.result()
            yield from ((sample, image.result()) for sample, image in pending)

    def _read(self, sample: Sample) -> np.ndarray | str:
        p = self.preprocess
        if sample.reason:
            return sample.reason
        try:
            return prepare(decode_pixels(sample.path, p.decode_side, self.max_pixels, p.bit_depth), p)
        except BadImage as error:
            return str(error)

    def _prediction(self, sample: Sample, probabilities: np.ndarray, logits: np.ndarray) -> Prediction:
        if not np.isfinite(logits).all():
            return failure(path_of(sample), sample.label, NOT_A_NUMBER)
        ranks = np.argsort(-logits, kind="stable")[: self.top_k].tolist()
        every = probabilities.tolist()
        options = ([every[k] for k in ranks], every if self.probabilities else None, self.min_probability)
        return answer(path_of(sample), sample.label, self.class_names, ranks, *options)


def _session(path: str, providers: Iterable[str]) -> object:
    runtime = require("onnxruntime", "an exported model", "onnxruntime")
    if not os.path.isfile(path):
        raise UserError(f"there is no model {path}; name it with --model FILE")
    options = runtime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # leaves the cores to those who decode
    try:
        return runtime.InferenceSession(path, options, providers=list(providers))
    except Exception as error:  # onnxruntime has many kinds of errors, none of them public
        raise UserError(f"{path} cannot be loaded: {' '.join(str(error).split())}") from error


EXAMPLES = """from Python:
  from {module} import Predictor
  for prediction in Predictor()(["a.jpg", "b.png"]):
      print(prediction.file_dir, prediction.predict, prediction.probability)
"""


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Returns the flags, which are those of predict.py."""
    parser = argparse.ArgumentParser(
        description="Predicts the classes of photos: a row of result.csv for each.",
        epilog=EXAMPLES.format(module=Path(__file__).stem),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--input", nargs="+", required=True, metavar="PATH", help="photos, folders, patterns, or - for names on stdin")
    add("--result", default="result.csv", metavar="CSV", help="the table to write, or - for stdout (%(default)s)")
    add("--model", metavar="FILE", help=f"the exported model (default: {MODEL} beside this file)")
    add("--top_k", type=number(int, 1), metavar="K", help="add columns for the K most probable classes")
    add("--probabilities", action="store_true", help="add a column for the probability of every class")
    low = "answer `unknown` below it (default: as exported)"
    add("--min_probability", type=number(float, 0, 1), metavar="P", help=low)
    large = "width x height above which a photo is refused"
    add("--max_pixels", type=number(int, 1), default=MAX_PIXELS, metavar="N", help=large)
    add("--path_column", metavar="NAME", help="a table's column of paths (default: found by its usual names)")
    add("--label_column", metavar="NAME", help="a table's column of labels (default: found by its usual names)")
    return parser.parse_args(argv)


def predict(args: argparse.Namespace, output: IO[bytes] | None) -> Counts:
    """Writes a row for every input, to `output` or to the file that the flags name; returns their counts."""
    top_k = 1 if args.top_k is None else args.top_k
    predictor = Predictor(args.model, top_k, args.probabilities, args.min_probability, args.max_pixels)
    samples = input_samples(args.input, predictor.class_names, Columns(args.path_column, args.label_column))
    if not (first := next(samples, None)):
        raise no_images(args.input)
    every = predictor.class_names if args.probabilities else ()
    columns, counts = columns_of(args.top_k, every, predictor.min_probability), Counts()
    partial, ends = f"{args.result}.partial", "\n" if output else "\r\n"
    with contextlib.nullcontext(output) if output else open(partial, "wb") as file:
        file.write((b"" if output else BOM) + csv_lines([columns], ends))
        for p in predictor.stream(itertools.chain([first], samples)):
            counts.add(p.status, p.best_guess, p.predict, p.label, p.reason)
            file.write(csv_lines([texts(row_of(p), columns)], ends))
            file.flush()
    if not output:
        keep_previous(args.result)
        os.replace(partial, args.result)
    return counts


def main(argv: list[str] | None = None) -> int:
    """Predicts; returns the exit status: 0, 2 for a mistake in the command, 3 if some inputs could not be read."""
    args = parse_args(argv)
    is_pipe = args.result == "-"
    try:
        if not is_pipe and (is_image_name(args.result) or not args.result.endswith(".csv")):
            raise UserError(f"--result {args.result} does not end in .csv; give a name like result.csv")
        if os.path.isdir(args.result):
            raise UserError(f"--result {args.result} is a folder; give the name of a file")
        os.makedirs(os.path.dirname(args.result) or ".", exist_ok=True)
        with contextlib.redirect_stdout(sys.stderr) if is_pipe else contextlib.nullcontext():
            counts = predict(args, sys.__stdout__.buffer if is_pipe else None)
            say(f"wrote {args.result}: {pluralize(counts.n_rows, 'row')}, {counts.n_errors} with the status `error`")
            if counts.n_labelled:
                say(f"accuracy {counts.accuracy_text}")
    except BrokenPipeError:  # the reader has gone, such as `head`; what is left to flush goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())
        return READER_GONE
    except (UserError, OSError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    return 3 if counts.n_errors else 0


if __name__ == "__main__":
    raise SystemExit(main())
