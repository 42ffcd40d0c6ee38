"""What a predictor takes, as samples: paths, contents of files, open images and arrays."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

import numpy as np
from PIL import Image

from photo_classifier.data.samples import Sample
from photo_classifier.runtime.errors import UserError

TAKEN = "a predictor takes paths of files, bytes of a file, PIL images and numpy arrays (height, width, 3) of uint8"
Photo = str | os.PathLike | bytes | bytearray | memoryview | Image.Image | np.ndarray


def samples_from(photos: Photo | Iterable[Photo]) -> Iterator[Sample]:
    """Yields a sample for each photo; a single one may stand alone.

    Raises:
        UserError: something else was given, or a folder.
    """
    is_batch = isinstance(photos, np.ndarray) and photos.ndim == 4
    if isinstance(photos, Photo) and not is_batch:
        photos = [photos]
    elif not isinstance(photos, Iterable) or isinstance(photos, dict):
        raise UserError(f"{_what(photos)} was given; {TAKEN}, one or several")
    return (Sample(_source(photo)) for photo in photos)


def _source(photo: Photo) -> str | bytes | Image.Image:
    if isinstance(photo, Image.Image | bytes):
        return photo
    if isinstance(photo, bytearray | memoryview):
        return bytes(photo)
    if isinstance(photo, np.ndarray) and photo.dtype == np.uint8 and photo.shape[2:] == (3,) and photo.size:
        return Image.fromarray(photo)
    if not isinstance(photo, str | os.PathLike):
        raise UserError(f"{_what(photo)} was given; {TAKEN}")
    path = os.fsdecode(photo)
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder; {TAKEN}: give the paths of the photos in it")
    return path


def _what(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"a numpy array {value.shape} of {value.dtype}"
    return f"a value of type {type(value).__name__}"


def path_of(sample: Sample) -> str:
    """Returns the path of a sample, also of an image that was opened from a file; otherwise an empty string."""
    return sample.path if isinstance(sample.path, str) else str(getattr(sample.path, "filename", ""))
