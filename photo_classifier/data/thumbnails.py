"""A small grey copy of a photo and a few numbers: what is needed to compare photos, and to see what is wrong in one."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from photo_classifier.runtime.uncompiled import v2

SIDE = 64  # pixels; the whole photo is squeezed into a square
LEAST = 32  # pixels of the shorter side: below, different pictures look alike, as the digits of 8 x 8 pixels do
DETAIL = 256  # pixels of the shorter side at which sharpness is measured
CELLS = 8  # along each side: the sharpest part counts, as a subject may stand before a blurred background
NOISE = 2.0  # of a Laplacian: the rounding of pixels alone makes about 1.3


class Traits(NamedTuple):
    """What is measured in a photo.

    `light` is the brightness that 99 % of the pixels stay below, and `spread` the range of the middle 98 %, both of 255
    levels. `sharpness` compares the finest detail with that of four times its size. `flatness` is the share of pixels
    that equal their neighbours, and `edges` the share of those that differ from one by more than a quarter of all
    levels.
    """

    light: float
    spread: float
    sharpness: float
    flatness: float
    edges: float


ROW = SIDE * SIDE + 4 * len(Traits._fields)  # bytes


def thumbnail_row(photo: torch.Tensor) -> torch.Tensor:
    """Returns what is stored of a photo, uint8 (3, height, width): its grey thumbnail and its traits, uint8 (ROW,).

    The thumbnail of a tiny photo is black: copies of it cannot be told from other photos.
    """
    image = Image.fromarray(photo.permute(1, 2, 0).contiguous().numpy())
    factor = max(1, min(image.size) // DETAIL)
    small = image.reduce(factor) if factor > 1 else image
    grey = small.convert("L")
    thumbnail = np.asarray(grey.resize((SIDE, SIDE), Image.Resampling.BOX))
    if min(image.size) < LEAST:
        thumbnail = np.zeros_like(thumbnail)  # which is like no other
    traits = np.array(_traits(small, np.asarray(grey)), np.float32)
    return torch.from_numpy(np.concatenate([thumbnail.ravel(), traits.view(np.uint8)]))


def small_picture(photo: torch.Tensor, side: int) -> torch.Tensor:
    """Returns a photo, uint8 (3, height, width), as uint8 (height, width, 3) of at most `side` pixels a side."""
    longer = max(photo.shape[-2:])
    if longer > side:
        size = [max(1, round(length * side / longer)) for length in photo.shape[-2:]]
        photo = v2.functional.resize(photo, size)
    return photo.permute(1, 2, 0).contiguous()


def unpack_rows(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the thumbnails, uint8 (n, SIDE, SIDE), and the traits, fp32 (n, number of them), of stored rows."""
    pixels, traits = rows.contiguous().split([SIDE * SIDE, rows.shape[1] - SIDE * SIDE], 1)
    return pixels.reshape(-1, SIDE, SIDE), traits.contiguous().view(torch.float32)


def _traits(image: Image.Image, grey: np.ndarray) -> Traits:
    counts = np.array(image.histogram()).reshape(3, 256).cumsum(1) / grey.size
    low, high = (counts < 0.01).sum(1), (counts < 0.99).sum(1)
    levels = grey.astype(np.int16)
    most = np.maximum(np.abs(levels[1:, 1:] - levels[:-1, 1:]), np.abs(levels[1:, 1:] - levels[1:, :-1]))
    flatness, edges = ((most == 0).mean(), (most > 64).mean()) if most.size else (1.0, 0.0)
    return Traits(high.max(), (high - low).max(), _sharpness(grey.astype(np.float32)), flatness, edges)


def _sharpness(grey: np.ndarray) -> float:
    """Returns the finest detail, relative to that of four times its size, where both are strongest."""
    quarter = _halved(_halved(grey))
    if min(quarter.shape) < 2 * CELLS:
        return 1.0
    fine, coarse = (np.percentile(_energies(level), 95) for level in (grey, quarter))
    return float(max(0.0, fine - NOISE) / (coarse + NOISE))


def _halved(grey: np.ndarray) -> np.ndarray:
    height, width = (length // 2 * 2 for length in grey.shape)
    rows = grey[:height:2, :width] + grey[1:height:2, :width]
    return (rows[:, ::2] + rows[:, 1::2]) / 4


def _energies(grey: np.ndarray) -> np.ndarray:
    """Returns the root mean square of the Laplacian in each of the cells."""
    inner = 4 * grey[1:-1, 1:-1] - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]
    height, width = (length // CELLS for length in inner.shape)
    cells = inner[: height * CELLS, : width * CELLS].reshape(CELLS, height, CELLS, width)
    return np.sqrt((cells**2).mean(3).mean(1))
