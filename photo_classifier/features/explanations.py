"""Why a photo got its answer: where the class was seen, and which training photos are most similar."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence

import torch
from torch import nn

from photo_classifier.data.decoding import BadImage, decode
from photo_classifier.data.preprocess import Preprocess, eval_transform
from photo_classifier.data.samples import Sample
from photo_classifier.evaluation.contact_sheet import map_until
from photo_classifier.features.loader import SplitFeatures
from photo_classifier.models.heat_maps import HeatMaps

CHUNK = 8  # photos that are decoded and computed at once
N_SIMILAR = 3
ROWS_AT_ONCE = 4096  # training photos that are compared at once


def add_heat_maps(
    rows: Sequence[dict], maps: HeatMaps, class_names: Sequence[str], max_pixels: int, seconds: float = math.inf
) -> None:
    """Adds `heat` to rows with `file_dir` and `best` or `predict`: where the answered class was seen.

    That is `values`, the heat of each place as two hexadecimal digits, row by row, and `area`, the part of the photo
    that the network sees: left, top, right and bottom as shares of width and height. Rows that are not reached in that
    time, and photos that cannot be read, get none.
    """
    if not maps.layer:
        return
    preprocess, end = maps.engine.model.preprocess, time.monotonic() + seconds
    transform, index = eval_transform(preprocess), {name: k for k, name in enumerate(class_names)}

    def prepared(row: dict) -> tuple[torch.Tensor, list[float]] | None:
        """Returns the photo as the network takes it, and which part of it that is; None if it cannot be read."""
        with contextlib.suppress(BadImage):
            image = decode(row["file_dir"], preprocess.decode_side, max_pixels, preprocess.bit_depth)
            return transform(image), seen_area(preprocess, *image.shape[:0:-1])

    for start in range(0, len(rows), CHUNK):
        left = end - time.monotonic()
        if left <= 0:
            return
        chunk = rows[start : start + CHUNK]
        ready = [(row, *done) for row, done in map_until(prepared, chunk, min(left, 1e6)) if done]
        if ready:
            images = torch.stack([image for _, image, _ in ready])
            classes = torch.tensor([index[row["predict"]] for row, _, _ in ready])
            for (row, _, area), heat in zip(ready, maps(images, classes), strict=True):
                row["heat"] = {"values": bytes((255 * heat).round().byte().flatten().tolist()).hex(), "area": area}


def seen_area(preprocess: Preprocess, width: int, height: int) -> list[float]:
    """Returns the part of a photo that a network sees, as shares of its width and height: left, top, right, bottom."""
    if preprocess.fit == "squash":
        return [0.0, 0.0, 1.0, 1.0]
    side = max(width, height)
    if preprocess.fit == "crop":
        side = min(width, height) * preprocess.image_size / preprocess.resize
    across, down = side / width / 2, side / height / 2
    return [round(share, 4) for share in (0.5 - across, 0.5 - down, 0.5 + across, 0.5 + down)]


def add_similar(
    rows: Sequence[dict],
    held_out: SplitFeatures,
    samples: Sequence[Sample],
    train: SplitFeatures,
    train_samples: Sequence[Sample],
) -> None:
    """Adds `similar` to rows with `file_dir`: path, label and similarity of the most similar training photos.

    Similarity is the cosine of the stored features.
    """
    index = {sample.path: k for k, sample in enumerate(samples)}
    rows = [row for row in rows if held_out.is_readable[index[row["file_dir"]]]]
    if not rows:
        return
    asked = _directions(held_out, [index[row["file_dir"]] for row in rows])
    readable = train.is_readable.nonzero()[:, 0]
    cosines = torch.cat([_directions(train, part) @ asked.T for part in readable.split(ROWS_AT_ONCE)])
    n_best = min(N_SIMILAR + 1, len(cosines))  # one more, as by folds the photo itself is among them
    best = cosines.topk(n_best, dim=0)
    for row, values, places in zip(rows, best.values.T.tolist(), readable[best.indices].T.tolist(), strict=True):
        found = [(train_samples[k], value) for k, value in zip(places, values, strict=True)]
        others = [(sample, value) for sample, value in found if sample.path != row["file_dir"]][:N_SIMILAR]
        row["similar"] = [
            {"path": sample.path, "label": sample.label, "similarity": round(value, 3)} for sample, value in others
        ]


def _directions(features: SplitFeatures, indices: Sequence[int] | torch.Tensor) -> torch.Tensor:
    return nn.functional.normalize(features.rows(indices).flatten(1).float(), dim=1)
