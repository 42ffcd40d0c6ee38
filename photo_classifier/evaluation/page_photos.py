"""The photos of the page, as data inside it."""

from __future__ import annotations

import base64
import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from photo_classifier.data.decoding import BadImage
from photo_classifier.evaluation.contact_sheet import map_until
from photo_classifier.evaluation.heat_pictures import heat_picture
from photo_classifier.evaluation.thumbnails import encoded, encoded_exactly

MOST_BYTES = 60_000  # of a photo
SMALL_BYTES, HEAT_BYTES = 3_500, 6_000  # of a similar photo, and about those of a heat map


@dataclass
class PagePhoto:
    """A photo, what is said of it, and its picture: `source` is a `data:` address, empty without a picture.

    `heat` is that of the map over it; `similar` are training photos, shown small.
    """

    path: str
    values: Mapping[str, object]
    source: str = ""
    heat: str = ""
    similar: list[PagePhoto] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The name of the file."""
        return os.path.basename(self.path)

    @property
    def address(self) -> str:
        """Where the photo itself is on this computer."""
        with contextlib.suppress(ValueError, OSError):
            return Path(self.path).absolute().as_uri()
        return ""


def embed(
    photos: Sequence[PagePhoto],
    n_bytes: int,
    open_photo: Callable[[str], Image.Image],
    seconds: float | None = None,
) -> None:
    """Gives the photos their pictures, all together at most `n_bytes`.

    The first ones get theirs if `seconds` run out. One that cannot be read gets none.
    """
    small = [other for photo in photos for other in photo.similar]
    n_heat = sum("heat" in photo.values for photo in photos)
    left = n_bytes - _as_base64(SMALL_BYTES) * len(small) - _as_base64(HEAT_BYTES) * n_heat
    most = {id(other): SMALL_BYTES for other in small}
    for photo in photos:
        most[id(photo)] = min(MOST_BYTES, max(0, left // len(photos) - 100) * 3 // 4)

    def draw(photo: PagePhoto) -> None:
        """Puts the picture and the heat map into the photo, as small as they have to be."""
        with contextlib.suppress(BadImage):
            picture = open_photo(photo.path)
            photo.source = _data(encoded(picture, most[id(photo)]))
            if photo.source and "heat" in photo.values:
                photo.heat = _data(encoded_exactly(heat_picture(photo.values["heat"], *picture.size), HEAT_BYTES))

    map_until(draw, [*photos, *small], seconds)


def _data(content: tuple[str, bytes] | None) -> str:
    return f"data:{content[0]};base64,{base64.b64encode(content[1]).decode()}" if content else ""


def _as_base64(n_bytes: int) -> int:
    return n_bytes * 4 // 3 + 100  # three bytes are four letters, and the address has a beginning
