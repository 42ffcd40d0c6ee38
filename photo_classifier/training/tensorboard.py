"""What TensorBoard shows of a finished run beside its curves: precision and recall, an embedding, hyperparameters."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.data import Dataset
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from photo_classifier.data.batches import stack
from photo_classifier.evaluation.contact_sheet import map_until
from photo_classifier.models.inference import Engine, run_in_fixed_batches
from photo_classifier.runtime.seeding import derive_seed
from photo_classifier.runtime.text import escape_surrogates
from photo_classifier.runtime.uncompiled import v2
from photo_classifier.training.results import Outputs, Results

MOST_CURVES = 50  # classes with a curve of precision and recall: the most frequent ones
MOST_IMAGES = 1000  # in the embedding
MOST_DIMENSIONS = 64  # of the embedding; the projector works with principal components anyway
THUMBNAIL = 40  # pixels per side
CHUNK = 16  # images whose features are computed at once


def add_pr_curves(
    writer: SummaryWriter, class_names: Sequence[str], logits: torch.Tensor, labels: torch.Tensor, step: int
) -> None:
    """Adds a curve of precision and recall for each class, one against the rest.

    `logits` are fp32 (n, classes), divided by the temperature; `labels` int64 (n,).
    """
    probabilities = logits.softmax(1).numpy()
    frequent = torch.bincount(labels, minlength=len(class_names)).argsort(descending=True, stable=True)
    for k in sorted(frequent[:MOST_CURVES].tolist()):
        writer.add_pr_curve(f"PrecisionRecall/{class_names[k]}", (labels == k).numpy(), probabilities[:, k], step)


def final_metrics(
    epoch: int, results: Results, reports: Mapping[str, Mapping], titles: Mapping[str, str]
) -> dict[str, float]:
    """Returns what runs are compared by, by column: how good the saved weights are on each split.

    TensorBoard sorts the columns: the arrow puts them after the settings, accuracies first.
    """
    metrics = {"→ epoch kept": float(epoch)}
    for name, result in results.items():
        metrics[f"→ accuracy {titles[name]}"] = result.accuracy
        metrics[f"→ macro F1 {titles[name]}"] = reports[name]["macro_f1"]
        metrics[f"→ loss {titles[name]}"] = result.loss
    return metrics


def add_hyperparameters(
    writer: SummaryWriter, hyperparameters: Mapping[str, str | float], metrics: Mapping[str, float]
) -> None:
    """Adds the row of this run in the HParams tab, to the run's own events.

    `SummaryWriter.add_hparams` would write them into a second run named after the time. The summary that lists the
    columns is left out: without it TensorBoard collects them from all runs, and puts those first in which they differ.
    The metrics are columns like the others: as scalars each would be a chart with a single dot.
    """
    _columns, start, end = hparams({**hyperparameters, **metrics}, {})
    for summary in (start, end):
        writer.file_writer.add_summary(summary)


@dataclass(frozen=True)
class EmbeddingSource:
    """Where the images of the embedding come from.

    An item `(epoch, index)` of `dataset` is `(index, label, image)`. `compute` takes uint8 images (n, 3, size, size)
    and their indices in the split, and returns features (n, ...).
    """

    dataset: Dataset
    compute: Callable[[torch.Tensor, list[int]], torch.Tensor]


def engine_source(dataset: Dataset, engine: Engine) -> EmbeddingSource:
    """Returns a source that computes features with the present weights."""
    engine.refresh()

    def compute(images: torch.Tensor, _indices: list[int]) -> torch.Tensor:
        return run_in_fixed_batches(engine.evaluated.features, images, CHUNK, engine.device, engine.dtype)

    return EmbeddingSource(dataset, compute)


def add_embedding(
    writer: SummaryWriter,
    class_names: Sequence[str],
    paths: Sequence[str],
    outputs: Outputs,
    source: EmbeddingSource,
    step: int,
    seconds: float,
) -> None:
    """Adds features of up to 1,000 images to the projector, with thumbnails, labels and predictions.

    `paths` are those of the whole split. When `seconds` are up, a random part of the images is left out.
    """
    predicted = dict(zip(outputs.indices.tolist(), outputs.logits.argmax(1).tolist(), strict=True))
    labels = dict(zip(outputs.indices.tolist(), outputs.labels.tolist(), strict=True))
    chunks = list(_read_until(outputs.indices, source, time.monotonic() + seconds))
    indices = [index for _, _, read in chunks for index in read]
    if len(indices) < 2:
        return
    features = torch.cat([features for features, _, _ in chunks])
    thumbnails = torch.cat([thumbnails for _, thumbnails, _ in chunks])
    rows = []
    for k in indices:
        verdict = "right" if labels[k] == predicted[k] else "wrong"
        rows.append([_cell(text) for text in (class_names[labels[k]], class_names[predicted[k]], verdict, paths[k])])
    shutil.rmtree(Path(writer.log_dir) / f"{step:05d}", ignore_errors=True)  # of a run that was stopped just here
    header = ["label", "prediction", "verdict", "file"]
    writer.add_embedding(principal_components(features), rows, thumbnails / 255, step, "features", header)


def _cell(text: str) -> str:
    """Returns text that cannot end its cell in a table with tabs."""
    return escape_surrogates(" ".join(text.split())) or " "


def _read_until(indices: torch.Tensor, source: EmbeddingSource, end: float) -> Iterator[tuple]:
    """Yields features, thumbnails uint8 (n, 3, 40, 40) and indices of images, a chunk at a time in random order."""
    generator = torch.Generator().manual_seed(derive_seed("embedding"))
    order = indices[torch.randperm(len(indices), generator=generator)][:MOST_IMAGES]
    for chunk in order.split(CHUNK):
        images, read = _decode(source.dataset, chunk.tolist(), end - time.monotonic())
        if read:
            features = source.compute(images, read).float().cpu()
            yield _pooled(features), v2.functional.resize(images, [THUMBNAIL, THUMBNAIL], antialias=True), read
        if time.monotonic() > end:
            return


def _decode(dataset: Dataset, indices: list[int], seconds: float) -> tuple[torch.Tensor, list[int]]:
    """Returns images uint8 (n, 3, size, size) and their indices: those begun in that time that can be read."""
    items = [item for _, item in map_until(lambda index: dataset[0, index], indices, seconds)]
    good = [(index, image) for index, _, image in items if not isinstance(image, str)]
    return stack([image for _, image in good]), [index for index, _ in good]


def _pooled(features: torch.Tensor) -> torch.Tensor:
    return features.mean((2, 3)) if features.dim() == 4 else features.flatten(1)


def principal_components(features: torch.Tensor) -> torch.Tensor:
    """Returns the first principal components (n, at most 64) of features, fp32 (n, d).

    They come from the products of the n images, as n is mostly smaller than d.
    """
    features = features - features.mean(0)
    values, vectors = torch.linalg.eigh(features @ features.T)
    n = min(MOST_DIMENSIONS, len(features))
    return (vectors[:, -n:] * values[-n:].clamp(min=0).sqrt()).flip(1)
