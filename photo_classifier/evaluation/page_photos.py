"""The photos of the page, as data inside it."""

from __future__ import annotations

import base64
import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from photo_classifier.data.decoding import BadImage
from photo_classifier.evaluation.contact_sheet import map_until
from photo_classifier.evaluation.thumbnails import encoded

MOST_BYTES = 60_000  # of a photo


@dataclass
class PagePhoto:
    """A photo, what is said of it, and its picture: `source` is a `data:` address, empty without a picture."""

    path: str
    values: Mapping[str, object]
    source: str = ""

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
    if not photos:
        return
    most = min(MOST_BYTES, max(0, n_bytes // len(photos) - 100) * 3 // 4)  # base64 writes three bytes as four letters

    def source(photo: PagePhoto) -> str:
        with contextlib.suppress(BadImage):
            if most and (content := encoded(open_photo(photo.path), most)):
                return f"data:{content[0]};base64,{base64.b64encode(content[1]).decode()}"
        return ""

    for photo, address in map_until(source, photos, seconds):
        photo.source = address
