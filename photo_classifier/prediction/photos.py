"""What a predictor takes, as samples: paths, contents of files, open images, arrays, and what training held out."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping

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
    elif not isinstance(photos, Iterable) or isinstance(photos, dict) or hasattr(photos, "read"):
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


def held_out_samples(splits: Mapping | None, model_fn: str) -> list[Sample]:
    """Returns the images that training held out, from the `splits` of a checkpoint.

    Raises:
        UserError: it held out none.
    """
    if not splits:
        raise UserError(f"{model_fn} is a plain state_dict and lists no images; give some with --input")
    if not splits[splits["held_out"]]:
        raise UserError(
            f"{model_fn} was fitted on all photos of its training, by folds, so none is left to predict; "
            "give new ones with --input"
        )

    def locate(path: str) -> str:
        """Returns where the photo is, seen from the present folder."""
        # training's own folder first: this one may have other photos of the same names
        original = os.path.join(splits["cwd"], path)
        return original if os.path.exists(original) and os.getcwd() != splits["cwd"] else path

    return [Sample(locate(path), label) for path, label in splits[splits["held_out"]]]
