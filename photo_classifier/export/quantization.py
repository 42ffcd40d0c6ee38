"""A model of 8 bits beside the exported one, kept only if it is faster here and hardly less accurate."""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np

from photo_classifier.data.samples import Sample
from photo_classifier.export.onnx_files import int8_name
from photo_classifier.prediction.results import Prediction
from photo_classifier.runtime.errors import UserError

N_CALIBRATION, N_TIMED = 200, 25  # photos
MOST_LOSS = 0.01  # of accuracy, at the upper end of its interval
# what onnxruntime computes in 8 bits without leaving them in between; the preparation stays in fp32
OPERATIONS = "Conv Gemm MatMul Add Clip Relu MaxPool AveragePool GlobalAveragePool ReduceMean Concat".split()


def add_int8(
    model: Path, file: ModuleType, training: Sequence[Sample], held_out: Sequence[Sample], ours: Sequence[Prediction]
) -> dict:
    """Writes `<model>_int8.onnx` beside a model, and removes it again if it is not worth it; returns what it came to.

    Args:
        file: the one-file predictor of the model.
        training: photos to calibrate the ranges of values on.
        held_out, ours: labelled photos, and the checkpoint's predictions for them.

    Raises:
        UserError: there are no photos for it.
    """
    if not training:
        raise UserError("8 bits are calibrated on training photos, and none are known; name the run folder (--splits)")
    if not any(p.label for p in ours if p.status == "ok"):
        raise UserError("8 bits may cost accuracy, and no label is known to measure it; give photos with labels")
    small = int8_name(model)
    exact = file.Predictor(model)
    _quantize(model, small, exact, training[:: math.ceil(len(training) / N_CALIBRATION)])
    quantized = file.Predictor(small)
    both = zip(ours, quantized.stream(held_out), strict=True)
    pairs = [(p.best_guess, q.best_guess, p.label) for p, q in both if p.status == "ok"]
    n_lost = sum(p == label != q for p, q, label in pairs if label)
    n_won = sum(q == label != p for p, q, label in pairs if label)
    n = sum(bool(label) for *_, label in pairs)
    times = _times(exact, quantized)
    low, high = paired_interval(n_lost, n_won, n)
    is_kept = high < MOST_LOSS and times["int8"] < times["fp32"]
    n_bytes = small.stat().st_size
    del quantized  # Windows removes no open file
    if not is_kept:
        small.unlink()
    return {
        "file": small.name,
        "kept": is_kept,
        "n_labelled": n,
        "changed_answers": sum(p != q for p, q, _ in pairs),
        "loss": (n_lost - n_won) / n,
        "loss_interval_95": [low, high],
        "model_milliseconds": times,
        "bytes": n_bytes,
    }


def paired_interval(n_lost: int, n_won: int, n: int) -> tuple[float, float]:
    """Returns the 95 % interval of a loss in accuracy on the same photos (Agresti and Min 2005, which adds 2 photos).

    Args:
        n_lost, n_won: photos that only the first or only the second model answers correctly.
    """
    lost, won, n = n_lost + 0.5, n_won + 0.5, n + 2
    loss = (lost - won) / n
    half = 1.96 * math.sqrt(max(0.0, lost + won - n * loss**2)) / n
    return loss - half, loss + half


def text_of(report: dict) -> str:
    """Returns a line about a model of 8 bits."""
    low, high = (100 * end for end in report["loss_interval_95"])
    speed = report["model_milliseconds"]["fp32"] / report["model_milliseconds"]["int8"]
    loss = f"loses {100 * report['loss']:.2f} points of accuracy (95 % interval {low:.2f} to {high:.2f})"
    what = f"{speed:.2f} times as fast as fp32, {loss} on {report['n_labelled']} photos"
    if report["kept"]:
        return f"kept {report['file']}: {what}"
    why = "it is no faster here" if speed <= 1 else "it may lose a point or more"
    return f"not kept, as {why}: {what}"


def _quantize(model: Path, small: Path, predictor: object, samples: Sequence[Sample]) -> None:
    """Writes the model of 8 bits, with the ranges of values that the photos give, and the metadata of the first."""
    import onnx
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        """Yields the photos that can be read."""

        def __init__(self) -> None:
            self.images: Iterator = (image for _, image in predictor._prepared(samples) if not isinstance(image, str))

        def get_next(self) -> dict[str, np.ndarray] | None:
            """Returns the next input, or None."""
            image = next(self.images, None)
            return None if image is None else {"images": image[None]}

    ready, level = small.with_suffix(".tmp"), logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        quant_pre_process(model, ready, skip_symbolic_shape=True)
        quantization.quantize_static(
            ready,
            small,
            Reader(),
            op_types_to_quantize=OPERATIONS,
            activation_type=quantization.QuantType.QUInt8,  # with signed ones x86 has no fast code
            per_channel=True,
            reduce_range=True,  # 7 bits of a weight: on processors without VNNI the sums of 8 would overflow
            extra_options={"CalibMovingAverage": True},
        )
    finally:
        logging.root.setLevel(level)
        ready.unlink(missing_ok=True)
    proto, source = onnx.load(small), onnx.load(model, load_external_data=False)
    onnx.helper.set_model_props(proto, {entry.key: entry.value for entry in source.metadata_props})
    onnx.save(proto, str(small))


def _times(exact: object, quantized: object) -> dict[str, float]:
    """Returns the median milliseconds of both models for one photo, taken in turns."""
    side = exact.preprocess.image_size
    image = np.random.default_rng(0).integers(0, 256, (1, side, side, 3)).astype(np.uint8)
    times: dict[str, list[float]] = {"fp32": [], "int8": []}
    for _ in range(N_TIMED):
        for name, predictor in (("fp32", exact), ("int8", quantized)):
            start = time.perf_counter()
            predictor.compute(image)
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}
