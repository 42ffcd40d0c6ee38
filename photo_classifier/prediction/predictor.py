"""A checkpoint that predicts: images in, one `Prediction` each out.

from photo_classifier import Predictor

predictor = Predictor("resnet.pth")
for prediction in predictor(["a.jpg", "b.png"]):
    print(prediction.file_dir, prediction.predict, prediction.probability)
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image

from photo_classifier.data.batches import Batch, SampleDataset, StreamBatchSampler, make_stream_loader
from photo_classifier.data.image_files import MAX_PIXELS
from photo_classifier.data.samples import Sample
from photo_classifier.models.checkpoint import Description, load_checkpoint
from photo_classifier.models.inference import Engine
from photo_classifier.prediction.results import UNKNOWN, Prediction
from photo_classifier.runtime.device import choose_device, choose_precision
from photo_classifier.runtime.errors import UserError
from photo_classifier.runtime.limits import PassTooLarge, memory_that_ran_out
from photo_classifier.runtime.text import pluralize

NOT_FINITE = "the model's output is not a finite number; try --precision fp32"


class Predictor:
    """A model restored from a checkpoint.

    Args:
        model_fn: a checkpoint that train.py wrote, or a plain state_dict.
        device: None (the first GPU, else the CPU), "cpu", "cuda", "cuda:1", "mps" or a torch.device.
        batch_size: images per pass; None uses that of training.
        n_workers: processes that decode images; None chooses by the cores and the images.
        precision: auto, fp32, bf16 or fp16; None uses that of training.
        max_pixels: width x height above which an image is refused before it fills the memory.
        top_k: how many classes `Prediction.top` holds.
        probabilities: whether to fill `Prediction.probabilities`.
        min_probability: answers `unknown` below it.
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
        model_name: str | None = None,
        class_names: Sequence[str] | None = None,
        **description: object,
    ) -> None:
        device = choose_device(device)
        model, self.metadata = load_checkpoint(model_fn, Description(model_name, class_names, **description))
        self.class_names: list[str] = self.metadata["class_names"]
        self.temperature: float = self.metadata.get("temperature", 1.0)
        if not 1 <= top_k <= (n := len(self.class_names)):
            raise UserError(f"--top_k {top_k}: {model_fn} has {n} classes; give a number from 1 to {n}")
        dtype = choose_precision(precision or self.metadata["precision"], device)
        self.engine = Engine(model, device, dtype, batch_size or self.metadata["eval_batch_size"])
        self.n_workers, self.max_pixels = n_workers, max_pixels
        self.top_k, self.probabilities, self.min_probability = top_k, probabilities, min_probability

    def __call__(self, images: Iterable[str | os.PathLike | Image.Image]) -> list[Prediction]:
        """Returns one `Prediction` for each path or PIL image, in order."""
        if isinstance(images, str | os.PathLike | Image.Image):
            images = [images]
        samples = (Sample(image if isinstance(image, Image.Image) else os.fspath(image)) for image in images)
        return [prediction for batch in self.stream(samples) for prediction in batch]

    def stream(self, samples: Iterable[Sample]) -> Iterator[list[Prediction]]:
        """Yields batches of predictions in the order of the samples, which are read only as needed."""
        batches = StreamBatchSampler(samples, self.engine.batch_size)
        dataset = SampleDataset(self.class_names, self.engine.model.preprocess, self.max_pixels)
        loader = make_stream_loader(dataset, batches, self.n_workers, self.engine.device.type == "cuda")
        for batch in loader:
            yield self._predict_batch(batches.handed_out.popleft(), batch)

    def _predict_batch(self, samples: Sequence[Sample], batch: Batch) -> list[Prediction]:
        by_index = {n: _failed(samples[n], reason) for n, reason in batch.bad}
        if len(batch.indices):
            readable = [samples[n] for n in batch.indices.tolist()]
            predictions = self._from_logits(self._logits(batch.images), batch.labels, readable)
            by_index.update(zip(batch.indices.tolist(), predictions, strict=True))
        return [by_index[n] for n in range(len(samples))]

    def _logits(self, images: torch.Tensor) -> torch.Tensor:
        """Returns the logits of images; raises UserError if a pass is too large for the memory."""
        try:
            return self.engine(images)
        except PassTooLarge as error:
            what = f"{memory_that_ran_out(error)} ran out in a pass of {pluralize(error.n_images, 'image')}"
            fewer = f"give --batch_size {error.n_images // 2}" if error.n_images > 1 else "end other programs"
            on_cpu = ", or predict on the CPU (--gpu_id -1)" if self.engine.device.type != "cpu" else ""
            raise UserError(f"{what}; {fewer}{on_cpu}") from error

    def _from_logits(
        self, logits: torch.Tensor, labels: torch.Tensor, samples: Sequence[Sample]
    ) -> Iterator[Prediction]:
        # ranked before the temperature, as rounding could make ties; a stable sort starts with the argmax
        ranks = logits.sort(dim=1, descending=True, stable=True).indices[:, : self.top_k]
        log_p = (logits / self.temperature).log_softmax(1)
        likelihoods = log_p.gather(1, labels.clamp(min=0)[:, None].to(log_p.device))[:, 0]
        p = log_p.exp()
        columns = (ranks, p.gather(1, ranks), p if self.probabilities else ranks, labels, likelihoods)
        is_finite = logits.isfinite().all(1)
        for sample, ok, *row in zip(samples, is_finite.tolist(), *(c.tolist() for c in columns), strict=True):
            yield self._prediction(sample, *row) if ok else _failed(sample, NOT_FINITE)

    def _prediction(
        self, sample: Sample, ranks: list[int], top: list[float], every: list, label: int, log_likelihood: float
    ) -> Prediction:
        names = self.class_names
        return Prediction(
            _path_of(sample),
            predict=names[ranks[0]] if top[0] >= self.min_probability else UNKNOWN,
            probability=top[0],
            top=tuple((names[k], p) for k, p in zip(ranks, top, strict=True)),
            probabilities=dict(zip(names, every, strict=True)) if self.probabilities else None,
            log_likelihood=log_likelihood if label >= 0 else None,
            label=sample.label or "",
        )


def _failed(sample: Sample, reason: str) -> Prediction:
    return Prediction(_path_of(sample), label=sample.label or "", status="error", reason=reason)


def _path_of(sample: Sample) -> str:
    return str(getattr(sample.path, "filename", "")) if isinstance(sample.path, Image.Image) else sample.path
