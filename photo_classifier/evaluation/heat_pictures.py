"""Heat maps as pictures to lay over a photo."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from PIL import Image

SIDE = 64  # pixels of the longer side: a map has 7 x 7 places or so, and the browser enlarges it smoothly
COLD, HOT = (255, 214, 10), (214, 0, 40)  # RGB
STRONGEST = 0.72  # opacity of the hottest place
SHARES = np.linspace(0, 1, 256)[:, None]
COLOURS = ((1 - SHARES) * COLD + SHARES * HOT).round().astype(np.uint8).tobytes()  # of each heat
OPACITIES = (255 * STRONGEST * SHARES[:, 0]).round().astype(int).tolist()


def heat_picture(heat: Mapping, width: int, height: int) -> Image.Image:
    """Returns a picture of the shape of the photo, transparent where nothing adds to the answer.

    Args:
        heat: `values` and `area`, as `features.explanations.add_heat_maps` writes them.
        width: of the photo, as is `height`.
    """
    scale = SIDE / max(width, height)
    layer, opacity = _layer(heat, max(1, round(width * scale)), max(1, round(height * scale)))
    layer.putalpha(opacity)
    return layer


def with_heat(photo: Image.Image, heat: Mapping) -> Image.Image:
    """Returns an RGB photo under its heat map."""
    layer, opacity = _layer(heat, *photo.size)
    return Image.composite(layer, photo, opacity)


def _layer(heat: Mapping, width: int, height: int) -> tuple[Image.Image, Image.Image]:
    """Returns the colours of a map, RGB, and how opaque they are, L."""
    places = np.frombuffer(bytes.fromhex(heat["values"]), np.uint8)
    side = math.isqrt(len(places))
    size = width, height
    left, top, right, bottom = (round(share * length) for share, length in zip(heat["area"], size * 2, strict=True))
    area = max(1, right - left), max(1, bottom - top)
    whole = Image.new("L", size)
    whole.paste(Image.fromarray(places.reshape(side, side)).resize(area, Image.Resampling.BICUBIC), (left, top))
    opacity = whole.point(OPACITIES)
    whole.putpalette(COLOURS)
    return whole.convert("RGB"), opacity
