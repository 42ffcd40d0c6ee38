"""Small pictures of photos, each decoded once for all sheets and for the page."""

from __future__ import annotations

import io
import math

from PIL import Image, ImageOps

from photo_classifier.data.decoding import decode_pixels

MANY = 80  # photos; more than these are kept smaller, or they would fill the memory
LARGE, SMALL = 480, 288  # pixels of the longer side
TINY = 96  # pixels; up to this side a picture keeps every pixel
LEAST = 16  # pixels; a smaller picture shows nothing
QUALITY = 78  # of JPEG


class Thumbnails:
    """Opens photos as small pictures and keeps them; `n_photos` is about how many there will be."""

    def __init__(self, max_pixels: int, bit_depth: int, n_photos: int = 0) -> None:
        self.max_pixels, self.bit_depth = max_pixels, bit_depth
        self.side = LARGE if n_photos <= MANY else SMALL
        self._pictures: dict[str, Image.Image] = {}

    def __call__(self, path: str) -> Image.Image:
        """Returns a photo, its longer side at most `side` pixels; raises BadImage if it cannot be read."""
        if path not in self._pictures:
            # an aspect ratio of up to 4:3 needs no more of the shorter side
            picture = Image.fromarray(decode_pixels(path, self.side * 3 // 4, self.max_pixels, self.bit_depth))
            if max(picture.size) > self.side:
                picture = ImageOps.contain(picture, (self.side, self.side), Image.Resampling.BOX)
            self._pictures[path] = picture
        return self._pictures[path]


def encoded(picture: Image.Image, most_bytes: int) -> tuple[str, bytes] | None:
    """Returns the media type and content of a file of at most `most_bytes`; None if even a small one is larger."""
    if most_bytes <= 0:
        return None
    if max(picture.size) <= TINY and (exact := encoded_exactly(picture, most_bytes)):
        return exact
    side = max(picture.size)
    while side >= LEAST:
        content = _saved(ImageOps.contain(picture, (side, side)), "JPEG", quality=QUALITY)
        if len(content) <= most_bytes:
            return "image/jpeg", content
        side = int(side * min(0.9, 0.95 * math.sqrt(most_bytes / len(content))))  # bytes grow with the area
    return None


def encoded_exactly(picture: Image.Image, most_bytes: int) -> tuple[str, bytes] | None:
    """Returns the media type and content of a file without loss; None if that has more than `most_bytes`."""
    content = _saved(picture, "PNG", optimize=True)
    return ("image/png", content) if len(content) <= most_bytes else None


def _saved(picture: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()
