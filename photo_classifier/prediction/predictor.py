"""A checkpoint that predicts: images in, one `Prediction` each out.

from photo_classifier import Predictor

predictor = Predictor("resnet.pth")
for prediction in predictor(["a.jpg", "b.png"]):
    print(prediction.file_dir, prediction.predict, prediction.probability)
"""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from photo_classifier.data.batches import Batch, SampleDataset, StreamBatchSampler, make_stream_loader
from photo_classifier.data.image_files import MAX_PIXELS
from photo_classifier.data.samples import Sample
from photo_classifier.data.seen_files import SeenFiles
from photo_classifier.models.checkpoint import Description, load_checkpoint, novelty_of
from photo_classifier.models.compiled import ENGINES, PACKAGE
from photo_classifier.models.conformal import bound
from photo_classifier.models.heat_maps import NO_PLACES, HeatMaps, heat_values
from photo_classifier.models.inference import Engine, Measure
from photo_classifier.prediction.photos import Photo, path_of, samples_from
from photo_classifier.prediction.results import Prediction, answer, failure, refused
from photo_classifier.runtime.device import choose_device, choose_precision
from photo_classifier.runtime.errors import UserError, choose
from photo_classifier.runtime.limits import PassTooLarge, memory_that_ran_out
from photo_classifier.runtime.text import pluralize

PICTURE_SIDE = 240  # pixels, of the pictures under heat maps
ROUNDING = 1e-6  # of a probability in single precision
NOT_FINITE = "the model's output is not a finite number; try --precision fp32"

# Threads take turns: each computation uses all cores anyway, and torch's precision is a setting of the whole process.
_TURN = threading.Lock()
if hasattr(os, "register_at_fork"):  # a child must not inherit the lock from a thread that it does not have
    os.register_at_fork(before=_TURN.acquire, after_in_parent=_TURN.release, after_in_child=_TURN.release)
_IMPORTED_IN = os.getpid()


def _use_one_thread_in_a_fork() -> None:
    """Computes with one thread in a process that was forked: OpenMP would wait for the parent's threads forever."""
    if os.getpid() != _IMPORTED_IN and torch.get_num_threads() > 1:
        torch.set_num_threads(1)


class Predictor:
    """A model restored from a checkpoint. Threads may share it, and each process of a pool may load its own.

    Args:
        model_fn: a checkpoint that train.py wrote, or a plain state_dict.
        device: None (the first GPU, else the CPU), "cpu", "cuda", "cuda:1", "mps" or a torch.device.
        batch_size: images per pass; None uses that of training.
        n_workers: processes that decode images; None chooses by the cores and the images.
        precision: auto, fp32, bf16 or fp16; None uses that of training.
        engine: torch, openvino (faster on a CPU, after seconds of start), or auto: that of training, if it is here.
        max_pixels: width x height above which an image is refused before it fills the memory.
        top_k: how many classes `Prediction.top` holds.
        probabilities: whether to fill `Prediction.probabilities`.
        min_probability: answers `unknown` below it.
        unknown: whether photos that are unlike the training photos are answered `unknown`.
        false_alarm: the share of photos like the training photos that `unknown` may refuse.
        coverage: the share of photos whose class `Prediction.set` shall hold; None makes no sets.
        heat: whether to fill `Prediction.heat` and `Prediction.picture`.
        model_name, class_names: needed for a plain state_dict, which does not contain them.
        description: further fields of `models.checkpoint.Description`, for a plain state_dict alone, such as
            `image_size`, `mean` and `std`.

    Raises:
        UserError: the checkpoint or a value cannot be used.
    """

    def __init__(
        self,
        model_fn: str | Path = "resnet.pth",
        device: str | torch.device | None = None,
        batch_size: int | None = None,
        n_workers: int | None = None,
        precision: str | None = None,
        max_pixels: int = MAX_PIXELS,
        top_k: int = 1,
        probabilities: bool = False,
        min_probability: float = 0.0,
        unknown: bool = False,
        false_alarm: float = 0.05,
        coverage: float | None = None,
        engine: str = "auto",
        heat: bool = False,
        model_name: str | None = None,
        class_names: Sequence[str] | None = None,
        **description: object,
    ) -> None:
        _use_one_thread_in_a_fork()
        device = choose_device(device)
        model, self.metadata = load_checkpoint(model_fn, Description(model_name, class_names, **description))
        self.class_names: list[str] = self.metadata["class_names"]
        self.temperature: float = self.metadata.get("temperature", 1.0)
        n = len(self.class_names)
        if not 1 <= top_k <= n:
            raise UserError(f"--top_k {top_k}: {model_fn} has {n} classes; give a number from 1 to {n}")
        dtype = choose_precision(precision or self.metadata["precision"], device)
        self.engine = Engine(model, device, dtype, batch_size or self.metadata["eval_batch_size"])
        self.engine_note = self._choose_engine(choose("--engine", engine, ENGINES))
        self.n_workers, self.max_pixels = n_workers, max_pixels
        self.top_k, self.probabilities, self.min_probability = top_k, probabilities, min_probability
        novelty = novelty_of(self.metadata)
        self.novelty = novelty and novelty.to(device)
        self.seen_files = SeenFiles(self.metadata.get("training_files"))
        self.unknown = unknown
        self.most_distant = self._most_distant(false_alarm, model_fn) if unknown else None
        self.least_in_set = None if coverage is None else self._least_in_set(coverage, model_fn)
        self.maps = HeatMaps(self.engine) if heat else None
        if self.maps and not self.maps.layer:
            raise UserError(f"{NO_PLACES}; leave --explain out, or use another")

    def _choose_engine(self, name: str) -> str:
        """Lets OpenVINO compute the features if it was asked for, or did so in training.

        Returns:
            Why torch computes instead; empty if it does not.

        Raises:
            UserError: OpenVINO was asked for, and cannot compute here.
        """
        if name == PACKAGE:
            self.engine.compile()
        elif name == "auto" and self.metadata.get("engine") == PACKAGE and self.engine.device.type == "cpu":
            try:
                self.engine.compile()
            except UserError as error:
                return f"{error}; torch computes instead, and the last decimals may differ from training"
        return ""

    def __call__(self, images: Photo | Iterable[Photo]) -> list[Prediction]:
        """Returns one `Prediction` for each path, content of a file (bytes), PIL image or array, in order.

        Arrays are RGB, uint8 (height, width, 3). A file that cannot be read has the status `error`.

        Raises:
            UserError: something else was given, or a folder.
        """
        return list(itertools.chain.from_iterable(self.stream(samples_from(images))))

    def stream(self, samples: Iterable[Sample]) -> Iterator[list[Prediction]]:
        """Yields batches of predictions in the order of the samples, which are read only as needed."""
        _use_one_thread_in_a_fork()
        batches = StreamBatchSampler(samples, self.engine.batch_size)
        side = PICTURE_SIDE if self.maps else None
        dataset = SampleDataset(self.class_names, self.engine.model.preprocess, self.max_pixels, side)
        loader = make_stream_loader(dataset, batches, self._n_workers(), self.engine.device.type == "cuda")
        for batch in loader:
            yield self._predict_batch(batches.handed_out.popleft(), batch)

    def _n_workers(self) -> int | None:
        """Returns how many processes decode: none where a fork would be refused, or would copy other threads' locks."""
        if multiprocessing.current_process().daemon:
            return 0
        is_main_thread = threading.current_thread() is threading.main_thread()
        return 0 if self.n_workers is None and not is_main_thread else self.n_workers

    def _predict_batch(self, samples: Sequence[Sample], batch: Batch) -> list[Prediction]:
        by_index = {n: failure(path_of(samples[n]), samples[n].label, reason) for n, reason in batch.bad}
        if len(batch.indices):
            readable = [samples[n] for n in batch.indices.tolist()]
            with _TURN:
                logits, distances, heat = self._outputs(batch.images)
            predictions = self._from_logits(logits, distances, batch.labels, readable)
            if heat is not None:
                predictions = map(_with_heat, predictions, heat.cpu(), batch.small_pictures())
            by_index.update(zip(batch.indices.tolist(), predictions, strict=True))
        return [by_index[n] for n in range(len(samples))]

    def _most_distant(self, false_alarm: float, model_fn: str | Path) -> float:
        if not self.novelty:
            reason = self.metadata.get("no_novelty") or "start a new run with --freeze and this version"
            raise UserError(
                f"{model_fn} keeps no distances to its training photos (--unknown): {reason}; or use --min_probability"
            )
        return self.novelty.threshold(false_alarm)

    def _least_in_set(self, coverage: float, model_fn: str | Path) -> float:
        """Returns the probability from which on a class belongs to the set of a photo."""
        scores = self.metadata.get("label_scores")
        if scores is None:
            raise UserError(
                f"{model_fn} keeps no probabilities of held-out photos (--coverage); train again with this version"
            )
        most = math.floor(1000 * len(scores) / (len(scores) + 1)) / 1000
        return 1 - bound(scores, coverage, f"--coverage {coverage:g}", f"at most {most:g}")

    def _outputs(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Returns the logits of images, their distances if the checkpoint knows them, and heat if it was asked for.

        Raises:
            UserError: a pass is too large for the memory.
        """
        try:
            maps, measures = self.maps, []
            if self.novelty:
                measures.append(Measure("", lambda inputs, _: self.novelty.distances(inputs)[:, None]))
            if is_seen := maps and maps.weight is not None and not self.engine.compiled:
                measures.append(Measure(maps.layer, maps.of_answers))
            logits, *found = self.engine.observe(images, *measures) if measures else [self.engine(images)]
            heat = found.pop() if is_seen else maps(images, logits.argmax(1)).flatten(1) if maps else None
            return logits, found[0][:, 0] if found else None, heat
        except PassTooLarge as error:
            what = f"{memory_that_ran_out(error)} ran out in a pass of {pluralize(error.n_images, 'image')}"
            fewer = f"give --batch_size {error.n_images // 2}" if error.n_images > 1 else "end other programs"
            on_cpu = ", or predict on the CPU (--gpu_id -1)" if self.engine.device.type != "cpu" else ""
            raise UserError(f"{what}; {fewer}{on_cpu}") from error

    def _from_logits(
        self, logits: torch.Tensor, distances: torch.Tensor | None, labels: torch.Tensor, samples: Sequence[Sample]
    ) -> Iterator[Prediction]:
        # ranked before the temperature, as rounding could make ties; a stable sort starts with the argmax
        ranks = logits.sort(dim=1, descending=True, stable=True).indices[:, : self.top_k]
        log_p = (logits / self.temperature).log_softmax(1)
        likelihoods = log_p.gather(1, labels.clamp(min=0)[:, None].to(log_p.device))[:, 0]
        p = log_p.exp()
        distances = logits.new_zeros(len(logits)) if distances is None else distances
        every = p if self.probabilities or self.least_in_set is not None else ranks
        columns = (ranks, p.gather(1, ranks), every, labels, likelihoods, distances)
        is_finite = logits.isfinite().all(1)
        for sample, ok, *row in zip(samples, is_finite.tolist(), *(c.tolist() for c in columns), strict=True):
            yield self._prediction(sample, *row) if ok else failure(path_of(sample), sample.label, NOT_FINITE)

    def _prediction(
        self,
        sample: Sample,
        ranks: list[int],
        top: list[float],
        every: list,
        label: int,
        log_likelihood: float,
        distance: float,
    ) -> Prediction:
        known = log_likelihood if label >= 0 else None
        everything = every if self.probabilities else None
        options = (self.class_names, ranks, top, everything, self.min_probability, known)
        prediction = answer(path_of(sample), sample.label, *options)
        if self.least_in_set is not None:
            inside = (
                name for name, p in zip(self.class_names, every, strict=True) if p >= self.least_in_set - ROUNDING
            )
            prediction = replace(prediction, set=tuple(inside))
        if self.novelty:
            prediction = replace(prediction, distance=distance)
        is_refused = self.unknown and not distance <= self.most_distant
        return refused(prediction, self.most_distant) if is_refused else prediction


def _with_heat(prediction: Prediction, heat: torch.Tensor, picture: torch.Tensor) -> Prediction:
    return replace(prediction, heat=heat_values(heat), picture=picture.numpy())
