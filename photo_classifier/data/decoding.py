"""Decodes image files into pixels, the same way everywhere."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO

import numpy as np
import torch
from PIL import ExifTags, Image, PngImagePlugin, TiffImagePlugin, TiffTags

from photo_classifier.data.file_kinds import RAW, ending_of, image_formats, passed_over_reason
from photo_classifier.data.image_files import MAX_PIXELS
from photo_classifier.data.pixels import (
    BadImage,
    drops_low_byte,
    has_further_band,
    is_16_bit,
    join_bytes,
    largest_value,
    low_byte_mode,
    read_whole_planes,
    set_raw_modes,
    spread_of,
    to_rgb,
)
from photo_classifier.data.unended_jpeg import read_unended
from photo_classifier.runtime.limits import resource_hint

Image.MAX_IMAGE_PIXELS = None  # `decode` has its own limit, which says how to raise it
# Pillow refuses a sound PNG for more than 1 MB of compressed text or profile. These bounds still hold off bombs.
PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = 64 << 20, 256 << 20

ORIENTATION = ExifTags.Base.Orientation
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# TIFF tags: the version of a DNG, and whether a page is a smaller copy
DNG_VERSION, SUBFILE_TYPE, SMALLER_COPY = 50706, 254, 1


Source = str | os.PathLike | bytes | Image.Image


def decode(
    source: Source, shorter_side: int | None = None, max_pixels: int = MAX_PIXELS, bit_depth: int = 16
) -> torch.Tensor:
    """Decodes an image as `decode_pixels` does; returns a uint8 tensor (3, height, width), channels-last in memory."""
    return torch.from_numpy(decode_pixels(source, shorter_side, max_pixels, bit_depth)).permute(2, 0, 1)


def decode_pixels(
    source: Source, shorter_side: int | None = None, max_pixels: int = MAX_PIXELS, bit_depth: int = 16
) -> np.ndarray:
    """Decodes an image as a person sees it, the same way in training, validation, prediction and after an export.

    Applies the orientation of EXIF or XMP, converts an embedded colour profile to sRGB, puts transparency on white,
    scales 16-bit values to 8 bits and takes the first frame of an animation. Refuses a truncated photo instead of
    padding it.

    Args:
        source: a file, its content, or an open image, which is not changed.
        shorter_side: large JPEG files may be decoded at 1/2, 1/4 or 1/8 of their size, as long as the
            shorter side keeps this many pixels, which is several times faster.
        max_pixels: width x height above which a file is refused, before it fills the memory.
        bit_depth: how many bits are used in PNG and TIFF files of 16 bits a channel, 8 to 16.

    Returns:
        uint8 (height, width, 3).

    Raises:
        BadImage: with the reason.
    """
    with _opened(source, max_pixels) as image:
        return _upright(image if image is source else _loaded(image, source, shorter_side, bit_depth), bit_depth)


@dataclass(frozen=True)
class Look:
    """What the picture in a file is like.

    `spread` is by how many of 255 levels its pixels differ, `largest` the largest value of a file of 16 bits a channel
    that does not tell how many of the bits are used, else None.
    """

    width: int
    height: int
    spread: int
    largest: int | None
    has_further_band: bool


def look_at(path: str | os.PathLike, shorter_side: int, max_pixels: int = MAX_PIXELS, bit_depth: int = 16) -> Look:
    """Decodes a file as `decode` does, and returns what its picture is like.

    Raises:
        BadImage: with the reason.
    """
    with _opened(path, max_pixels) as image:
        is_deep = bit_depth == 16 and is_16_bit(image)
        image = _loaded(image, path, shorter_side, bit_depth)
        largest = largest_value(image) if is_deep else None
        return Look(*image.size, spread_of(_upright(image, bit_depth)), largest, has_further_band(image))


def check_header(path: str | os.PathLike, max_pixels: int = MAX_PIXELS) -> None:
    """Checks without decoding that a file exists, is an image and is not too large.

    Raises:
        BadImage: with the reason.
    """
    with _opened(path, max_pixels):
        pass


@contextlib.contextmanager
def _opened(source: Source, max_pixels: int) -> Iterator[Image.Image]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about every doubtful tag
        try:
            with _image_of(source) as image:
                _check_picture(image, max_pixels)
                yield read_whole_planes(image)
        except BadImage:
            raise
        # Pillow's plugins raise many kinds of errors for damaged files (SyntaxError, struct.error,
        # zlib.error, IndexError, ...); to the user all mean the same: this file cannot be read.
        except Exception as error:
            if isinstance(error, OSError) and resource_hint(error):  # not the file's fault, as a lack of memory may be
                raise
            raise BadImage(_reason(error, source)) from error


def _image_of(source: Source, formats: Sequence[str] | None = None) -> contextlib.AbstractContextManager[Image.Image]:
    """Returns what opens a source; an open image stays open."""
    if isinstance(source, Image.Image):
        return contextlib.nullcontext(source)
    if isinstance(source, bytes):
        if not source:
            raise BadImage("is empty")
        source = io.BytesIO(source)
    else:
        _check_file(source)
    return Image.open(source, formats=formats or image_formats())


def _file(source: str | os.PathLike | bytes) -> IO[bytes]:
    return io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")


def _check_file(path: str | os.PathLike) -> None:
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would block forever
        raise BadImage("is not a regular file")
    if not status.st_size:
        raise BadImage("is empty")
    if ending_of(os.fspath(path)) in RAW:
        raise BadImage(passed_over_reason(os.fspath(path)))


def _check_picture(image: Image.Image, max_pixels: int) -> None:
    """Checks what the header says before anything is decoded."""
    sizes = [image.size]
    if image.format == "ICO":  # a header says at most 256 x 256, whatever its picture has
        sizes += [image.ico.frame(n).size for n in range(len(image.ico.entry))]
    width, height = max(sizes, key=lambda size: size[0] * size[1])
    if width * height > max_pixels:
        raise BadImage(f"has {width} x {height} pixels, more than --max_pixels {max_pixels}; raise it")
    if image.format == "TIFF" and _is_preview(image.tag_v2):
        raise BadImage("begins with a small preview, as camera raw files do; export it as JPEG, PNG or TIFF")


def _is_preview(tags: TiffImagePlugin.ImageFileDirectory_v2) -> bool:
    return DNG_VERSION in tags or bool(tags.get(SUBFILE_TYPE, 0) & SMALLER_COPY)


def _loaded(
    image: Image.Image, source: str | os.PathLike | bytes, shorter_side: int | None, bit_depth: int
) -> Image.Image:
    """Decodes an opened file; the arguments are those of `decode_pixels`."""
    if shorter_side:
        image.draft(None, (shorter_side, shorter_side))
    if image.format == "TIFF":
        _forget_unused_tags(image)
    is_halved = bit_depth < 16 and drops_low_byte(image)
    try:
        image.load()
    except OSError:
        if image.format not in ("JPEG", "MPO"):
            raise
        with _file(source) as file:
            if whole := read_unended(file.read()):
                return whole
        raise
    if not is_halved:
        return image
    with _image_of(source, [image.format]) as again:
        return join_bytes(image, set_raw_modes(read_whole_planes(again), low_byte_mode), bit_depth)


def _forget_unused_tags(image: TiffImagePlugin.TiffImageFile) -> None:
    """Leaves out the tags that Pillow would read while decoding, and for which it would refuse the photo."""
    if not isinstance(image.info.get("xmp"), bytes):
        image.info.pop("xmp", None)
    for tag in TiffTags.TAGS_V2_GROUPS:
        image.getexif().pop(tag, None)


def _upright(image: Image.Image, bit_depth: int) -> np.ndarray:
    """Returns a loaded image as a person sees it, uint8 (height, width, 3)."""
    turn = _turn(image)
    image = to_rgb(image, bit_depth)
    return np.array(image if turn is None else image.transpose(turn))


def _turn(image: Image.Image) -> Image.Transpose | None:
    """Returns how to turn a photo upright, from the one tag that says it; no other tag matters."""
    try:
        return TURNS.get(image.getexif().get(ORIENTATION))
    except Exception:  # damaged metadata raise many kinds of errors, and a photo with them is still a photo
        return None


def _reason(error: Exception, source: Source) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        name = "" if isinstance(source, bytes) else passed_over_reason(os.fspath(source))
        return _unread_tiff(source) or name or "is not an image in a known format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, MemoryError):
        return "needs more memory than there is"
    if "truncated" in str(error).lower():
        return "is truncated"
    return " ".join(str(error).split()) or type(error).__name__


def _unread_tiff(source: str | os.PathLike | bytes) -> str:
    """Returns what a TIFF file holds that Pillow does not read, or an empty string for other files."""
    with contextlib.suppress(Exception), _file(source) as file:
        head = file.read(8)
        tags = TiffImagePlugin.ImageFileDirectory_v2(head + (file.read(8) if head[2] == 43 else b""))
        file.seek(tags.next)
        tags.load(file)
        n_channels, bits = tags.get(TiffImagePlugin.SAMPLESPERPIXEL, 1), tags[TiffImagePlugin.BITSPERSAMPLE][0]
        what = f"is a TIFF of {n_channels} channels of {bits} bits, which is not read"
        return f"{what}; save the three that make the picture as RGB of 8 or 16 bits"
    return ""
