"""Prepares images in numpy, to the bit as `data/preprocess.py` does with torch.

torch resizes images of 8 bits in integers: with weights of 16 bits, first along the rows, then along the columns.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from photo_classifier.data.preprocess import Preprocess
from photo_classifier.runtime.errors import UserError

MOST_BITS, MOST_WEIGHT = 22, 2**15


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(0, 1 - np.abs(x))


def _cubic(x: np.ndarray) -> np.ndarray:
    """Returns Keys's kernel with a = -0.5."""
    x = np.abs(x)
    return np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, np.where(x < 2, (((x - 5) * x + 8) * x - 4) * -0.5, 0))


KERNELS = {"bilinear": (1, _triangle), "bicubic": (2, _cubic)}  # half their width, and their shape


def prepare(image: np.ndarray, p: Preprocess) -> np.ndarray:
    """Returns a decoded image, uint8 (height, width, 3), as a square, uint8 (image_size, image_size, 3)."""
    height, width = image.shape[:2]
    if p.fit == "squash":
        return _resize(image, p.image_size, p.image_size, p.interpolation)
    if p.fit == "pad":
        longer = max(height, width)
        height, width = (max(1, round(length * p.image_size / longer)) for length in (height, width))
        colour = np.array([round(255 * mean) for mean in p.mean]).astype(np.uint8)
        square = np.full((p.image_size, p.image_size, 3), colour)
        _centre(square, height, width, floor=True)[:] = _resize(image, height, width, p.interpolation)
        return square
    image = _centre(image, min(height, 4 * width), min(width, 4 * height))
    height, width = image.shape[:2]
    shorter = min(height, width)
    height, width = (int(p.resize * length / shorter) for length in (height, width))
    return _centre(_resize(image, height, width, p.interpolation), p.image_size, p.image_size)


def _centre(image: np.ndarray, height: int, width: int, floor: bool = False) -> np.ndarray:
    """Returns the view of an image's centre; `floor` rounds its place down, and not half to even."""
    top, left = ((image.shape[k] - length) / 2 for k, length in enumerate((height, width)))
    top, left = (math.floor(top), math.floor(left)) if floor else (round(top), round(left))
    return image[top : top + height, left : left + width]


def _resize(image: np.ndarray, height: int, width: int, interpolation: str) -> np.ndarray:
    rows = _resize_first_axis(np.ascontiguousarray(image.swapaxes(0, 1)), width, interpolation)
    return _resize_first_axis(np.ascontiguousarray(rows.swapaxes(0, 1)), height, interpolation)


def _resize_first_axis(image: np.ndarray, n_out: int, interpolation: str) -> np.ndarray:
    n_in = len(image)
    if n_in == n_out:
        return image
    if interpolation in ("nearest", "nearest-exact"):
        shift = np.float32(0.5 if interpolation == "nearest-exact" else 0)
        places = (np.arange(n_out, dtype=np.float32) + shift) * (np.float32(n_in) / np.float32(n_out))
        return image[np.minimum(places.astype(np.int64), n_in - 1)]
    first, weights, bits = _integer_weights(n_in, n_out, interpolation)
    # Integers below 2^24 are exact in fp32. No product of matrices: its threads would disturb those that decode.
    is_exact = 255 * np.abs(weights).sum(1).max() + 2 ** (bits - 1) < 2**24
    kind = np.float32 if is_exact else np.float64
    flat = image.reshape(n_in, -1).astype(kind)
    total = np.full((n_out, flat.shape[1]), 2 ** (bits - 1), kind)
    for k, weight in enumerate(weights.T.astype(kind)):
        total += weight[:, None] * flat[np.minimum(first + k, n_in - 1)]
    total *= kind(2.0**-bits)
    return np.floor(total, out=total).clip(0, 255, out=total).astype(np.uint8).reshape(n_out, *image.shape[1:])


@functools.lru_cache(64)  # photos of one camera share their sizes
def _integer_weights(n_in: int, n_out: int, interpolation: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Returns the first input of every output (n_out,), the weights from there on (n_out, taps), and their bits."""
    if interpolation not in KERNELS:
        raise UserError(f"interpolation {interpolation!r} cannot be exported; train with bilinear or bicubic")
    half, kernel = KERNELS[interpolation]
    scale = n_in / n_out
    stretch = max(scale, 1.0)
    centre, support = scale * (np.arange(n_out) + 0.5), half * stretch
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    n_taps = np.minimum((centre + support + 0.5).astype(np.int64), n_in) - first
    taps = np.arange(n_taps.max())
    weights = kernel((taps + first[:, None] - centre[:, None] + 0.5) * (1 / stretch))
    weights = np.where(taps < n_taps[:, None], weights, 0)
    total = np.zeros(n_out)
    for k in taps:  # in the order of torch, as the last bit depends on it
        total += weights[:, k]
    weights /= total[:, None]
    largest = weights.max()
    bits = next((n for n in range(MOST_BITS) if int(0.5 + largest * 2 ** (n + 1)) >= MOST_WEIGHT), MOST_BITS)
    return first, np.trunc(weights * 2**bits + np.copysign(0.5, weights)), bits
