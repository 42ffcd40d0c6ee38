"""Decodes image files into pixels, the same way everywhere."""

from __future__ import annotations

import contextlib
import os
import stat
import warnings
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image, ImageOps

from photo_classifier.data.image_files import MAX_PIXELS
from photo_classifier.runtime.signals import resource_hint

Image.MAX_IMAGE_PIXELS = None  # `decode` has its own limit, which says how to raise it


class BadImage(Exception):
    """The file cannot be used as an image; the message is the reason."""


def decode(
    path: str | os.PathLike | Image.Image,
    shorter_side: int | None = None,
    max_pixels: int = MAX_PIXELS,
    bit_depth: int = 16,
) -> torch.Tensor:
    """Decodes an image as a person sees it, the same way in training, validation and prediction.

    Applies the EXIF orientation, puts transparency on white, scales 16-bit values to 8 bits and takes the
    first frame of an animation. Refuses a truncated photo instead of padding it.

    Args:
        path: a file, or an open image, which is not changed.
        shorter_side: large JPEG files may be decoded at 1/2, 1/4 or 1/8 of their size, as long as the
            shorter side keeps this many pixels, which is several times faster.
        max_pixels: width x height above which a file is refused, before it fills the memory.
        bit_depth: how many bits of a 16-bit greyscale file are used: 10, 12, 14 or 16.

    Returns:
        A uint8 tensor (3, height, width), channels-last in memory.

    Raises:
        BadImage: with the reason.
    """
    with _opened(path, max_pixels) as image:
        if shorter_side and image is not path:
            image.draft(None, (shorter_side, shorter_side))
        image.load()
        pixels = np.array(_to_rgb(_upright(image), bit_depth))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def check_header(path: str | os.PathLike, max_pixels: int = MAX_PIXELS) -> None:
    """Checks without decoding that a file exists, is an image and is not too large.

    Raises:
        BadImage: with the reason.
    """
    with _opened(path, max_pixels):
        pass


@contextlib.contextmanager
def _opened(path: str | os.PathLike | Image.Image, max_pixels: int) -> Iterator[Image.Image]:
    is_image = isinstance(path, Image.Image)
    try:
        if not is_image:
            _check_file(os.stat(path))
        with warnings.catch_warnings():
            # Pillow warns about every doubtful tag
            warnings.simplefilter("ignore")
            with contextlib.nullcontext(path) if is_image else Image.open(path) as image:
                if image.width * image.height > max_pixels:
                    raise BadImage(
                        f"has {image.width} x {image.height} pixels, more than --max_pixels {max_pixels}; raise it"
                    )
                yield image
    except BadImage:
        raise
    # Pillow's plugins raise many kinds of errors for damaged files (SyntaxError, struct.error,
    # zlib.error, IndexError, ...); to the user all mean the same: this file cannot be read.
    except Exception as error:
        if isinstance(error, OSError) and resource_hint(error):  # not the file's fault, as a lack of memory may be
            raise
        raise BadImage(_reason(error)) from error


def _check_file(status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would block forever
        raise BadImage("is not a regular file")
    if not status.st_size:
        raise BadImage("is empty")


def _reason(error: Exception) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "is not an image in a known format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if "truncated" in str(error).lower():
        return "is truncated"
    return " ".join(str(error).split()) or type(error).__name__


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except (SyntaxError, ValueError, TypeError, KeyError, IndexError, OverflowError, OSError, ZeroDivisionError):
        return image  # a photo with damaged EXIF data is still a photo


def _to_rgb(image: Image.Image, bit_depth: int) -> Image.Image:
    if image.mode.startswith("I"):
        grey, most = np.asarray(image), 2**bit_depth - 1
        if grey.min() < 0 or grey.max() > 65535:
            raise BadImage("has 32-bit integer pixels, whose range is unknown")
        if grey.max() > most:
            raise BadImage(f"has the value {grey.max()}, more than --bit_depth {bit_depth} allows ({most})")
        return Image.fromarray((grey.astype(np.float32) * (255 / most)).round().astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise BadImage("has floating-point pixels, whose range is unknown")
    if "transparency" in image.info or image.mode in ("RGBA", "LA", "PA", "RGBa", "La"):
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")
