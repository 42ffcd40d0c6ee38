"""Heat maps as pictures to lay over a photo."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from PIL import Image

SIDE = 64  # pixels of the longer side: a map has 7 x 7 places or so, and the browser enlarges it smoothly
COLD, HOT = (255, 214, 10), (214, 0, 40)  # RGB
STRONGEST = 0.72  # opacity of the hottest place


def heat_picture(heat: Mapping, width: int, height: int) -> Image.Image:
    """Returns a picture of the shape of the photo, transparent where nothing adds to the answer.

    Args:
        heat: `values` and `area`, as `features.explanations.add_heat_maps` writes them.
        width: of the photo, as is `height`.
    """
    scale = SIDE / max(width, height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    places = np.frombuffer(bytes.fromhex(heat["values"]), np.uint8)
    side = math.isqrt(len(places))
    left, top, right, bottom = (round(share * length) for share, length in zip(heat["area"], size * 2, strict=True))
    area = max(1, right - left), max(1, bottom - top)
    seen = Image.fromarray(places.reshape(side, side)).resize(area, Image.Resampling.BICUBIC)
    whole = Image.new("L", size)
    whole.paste(seen, (left, top))
    share = np.asarray(whole, float)[..., None] / 255
    colours = (1 - share) * COLD + share * HOT
    return Image.fromarray(np.concatenate([colours, 255 * STRONGEST * share], 2).round().astype(np.uint8))


def with_heat(photo: Image.Image, heat: Mapping) -> Image.Image:
    """Returns the photo under its heat map."""
    layer = heat_picture(heat, *photo.size).resize(photo.size, Image.Resampling.BICUBIC)
    return Image.alpha_composite(photo.convert("RGBA"), layer).convert("RGB")
