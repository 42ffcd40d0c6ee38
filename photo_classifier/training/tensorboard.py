"""What TensorBoard shows of a finished run beside its curves: precision and recall, an embedding, hyperparameters."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torchvision.transforms.v2 import functional

from data_loader import ImageDataset
from photo_classifier.data.batches import stack
from photo_classifier.data.preprocess import eval_transform
from photo_classifier.data.samples import split_title
from photo_classifier.evaluation.contact_sheet import map_until
from photo_classifier.models.inference import Engine, run_in_fixed_batches
from photo_classifier.runtime.seeding import derive_seed
from photo_classifier.runtime.text import escape_surrogates

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from photo_classifier.features.loader import SplitFeatures
    from photo_classifier.training.results import Outputs, PhaseResult

MOST_CURVES = 50  # classes with a curve of precision and recall: the most frequent ones
MOST_IMAGES = 1000  # in the embedding
MOST_DIMENSIONS = 64  # of the embedding; the projector works with principal components anyway
THUMBNAIL = 40  # pixels a side
CHUNK = 16  # images whose features are computed at once


@dataclass(frozen=True)
class EmbeddingSource:
    """How the images of the embedding are decoded, and what gives their features.

    `compute` takes uint8 images (n, 3, size, size) and their places in the split and gives features (n, ...).
    """

    dataset: ImageDataset
    compute: Callable[[torch.Tensor, list[int]], torch.Tensor]


def add_curves(
    board: SummaryWriter, class_names: Sequence[str], logits: torch.Tensor, labels: torch.Tensor, step: int
) -> None:
    """A curve of precision and recall for each class, one against the rest.

    Args:
        logits: fp32 (n, classes), divided by the temperature.
        labels: int64 (n,).
    """
    probabilities = logits.softmax(1).numpy()
    frequent = torch.bincount(labels, minlength=len(class_names)).argsort(descending=True, stable=True)
    for k in sorted(frequent[:MOST_CURVES].tolist()):
        board.add_pr_curve(f"PrecisionRecall/{class_names[k]}", (labels == k).numpy(), probabilities[:, k], step)


def final_metrics(epoch: int, results: Mapping[str, PhaseResult], judged: Mapping[str, Mapping]) -> dict[str, float]:
    """What runs are compared by: how good the saved weights are on each split, by tag.

    TensorBoard sorts the tags: an accuracy is to be the first, and the epoch that validation chose behind it.
    """
    metrics = {"Final/validation_epoch": float(epoch)}
    for name, result in results.items():
        title = f"Final/{split_title(name)}"
        metrics[f"{title}_accuracy"] = result.accuracy
        metrics[f"{title}_macro_f1"] = judged[name]["macro_f1"]
        metrics[f"{title}_loss"] = result.loss
    return metrics


def add_hyperparameters(
    board: SummaryWriter, hyperparameters: Mapping[str, str | float], metrics: Mapping[str, float], step: int
) -> None:
    """The row of this run in the HParams tab, in the run's own events.

    `SummaryWriter.add_hparams` would write them into a second run with the time as its name. The summary that
    lists the columns is left out: without it TensorBoard collects them from all runs and puts those flags first
    in which the runs differ.

    Args:
        metrics: by tag.
    """
    from torch.utils.tensorboard.summary import hparams

    _columns, start, end = hparams(dict(hyperparameters), {})
    for summary in (start, end):
        board._get_file_writer().add_summary(summary)
    for tag, value in metrics.items():
        board.add_scalar(tag, value, step)


# --- the embedding ----------------------------------------------------------------------------


def add_embedding(
    board: SummaryWriter,
    class_names: Sequence[str],
    paths: Sequence[str],
    outputs: Outputs,
    reader: EmbeddingSource,
    step: int,
    seconds: float,
) -> None:
    """Features of up to 1,000 images for the projector, with thumbnails, labels and predictions.

    Args:
        paths: of the whole split.
        outputs: of the images that could be read.
        seconds: to spend; what the clock cuts off is a random part of the images.
    """
    predicted = dict(zip(outputs.indices.tolist(), outputs.logits.argmax(1).tolist(), strict=True))
    labels = dict(zip(outputs.indices.tolist(), outputs.labels.tolist(), strict=True))
    parts = list(_read_until(outputs.indices, reader, time.monotonic() + seconds))
    places = [place for _, _, read_places in parts for place in read_places]
    if len(places) < 2:
        return
    features = torch.cat([features for features, _, _ in parts])
    thumbnails = torch.cat([thumbnails for _, thumbnails, _ in parts])
    rows = []
    for p in places:
        verdict = "right" if labels[p] == predicted[p] else "wrong"
        rows.append([_cell(text) for text in (class_names[labels[p]], class_names[predicted[p]], verdict, paths[p])])
    folder = Path(board.log_dir) / f"{step:05d}"
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped just here
    header = ["label", "prediction", "verdict", "file"]
    board.add_embedding(principal_components(features), rows, thumbnails / 255, step, "features", header)


def _cell(text: str) -> str:
    """Text that cannot end its cell of a table with tabs."""
    return escape_surrogates(" ".join(text.split())) or " "


def _read_until(indices: torch.Tensor, reader: EmbeddingSource, end: float) -> Iterator[tuple]:
    """Features, thumbnails uint8 (n, 3, 40, 40) and places of chunks of the images in a random order."""
    generator = torch.Generator().manual_seed(derive_seed("embedding"))
    order = indices[torch.randperm(len(indices), generator=generator)][:MOST_IMAGES]
    for part in order.split(CHUNK):
        images, good = _decoded(reader.dataset, part.tolist(), end - time.monotonic())
        if good:
            features = reader.compute(images, good).float().cpu()
            yield _pooled(features), functional.resize(images, [THUMBNAIL, THUMBNAIL], antialias=True), good
        if time.monotonic() > end:
            return


def _pooled(features: torch.Tensor) -> torch.Tensor:
    return features.mean((2, 3)) if features.dim() == 4 else features.flatten(1)


def principal_components(features: torch.Tensor) -> torch.Tensor:
    """Features fp32 (n, d) -> their first principal components (n, at most 64).

    Only the products of the n images are needed, and n is mostly smaller than d.
    """
    features = features - features.mean(0)
    values, vectors = torch.linalg.eigh(features @ features.T)
    n = min(MOST_DIMENSIONS, len(features))
    return (vectors[:, -n:] * values[-n:].clamp(min=0).sqrt()).flip(1)


def stored_reader(extracted: SplitFeatures) -> EmbeddingSource:
    """For features that are stored: only thumbnails are decoded."""
    images = extracted.dataset
    small = images.preprocess.at(THUMBNAIL, None, images.preprocess.bit_depth)
    dataset = ImageDataset(images.samples, (), small, eval_transform(small), max_pixels=images.max_pixels)
    return EmbeddingSource(dataset, lambda _, places: extracted.rows(places))


def image_reader(dataset: ImageDataset, engine: Engine) -> EmbeddingSource:
    """For a model whose features change as it trains: they are computed with the engine's present weights."""

    def compute(images: torch.Tensor, _places: list[int]) -> torch.Tensor:
        return run_in_fixed_batches(engine.evaluated.features, images, CHUNK, engine.device, engine.dtype)

    return EmbeddingSource(dataset, compute)


def _decoded(dataset: ImageDataset, places: list[int], seconds: float) -> tuple[torch.Tensor, list[int]]:
    """Images uint8 (n, 3, size, size) and their places: those begun in that time that can still be read."""
    items = [item for _, item in map_until(lambda place: dataset[0, place], places, seconds)]
    good = [(place, image) for place, _, image in items if not isinstance(image, str)]
    return stack([image for _, image in good]), [place for place, _ in good]
