"""Colour profiles: the colours of an image in sRGB, as a person sees them on a screen."""

from __future__ import annotations

import functools
import io
import itertools

from PIL import Image, ImageChops, ImageCms

INVISIBLE = 2  # levels of 255: a profile that moves no colour further is sRGB under another name


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Returns an image of mode L, RGB, CMYK or LAB as RGB in sRGB.

    Args:
        profile: an embedded ICC profile; one that is broken or meant for another mode is ignored.
    """
    if profile or image.mode == "LAB":
        transform = _transform(profile, image.mode)
        if transform:
            return ImageCms.applyTransform(image, transform)
    return image if image.mode == "RGB" else image.convert("RGB")


@functools.lru_cache(16)  # photos of one camera share a profile
def _transform(profile: bytes | None, mode: str) -> ImageCms.ImageCmsTransform | None:
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile)) if profile else ImageCms.createProfile("LAB")
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None if not profile or mode != "LAB" else _transform(None, mode)
    return transform if mode in ("CMYK", "LAB") or _is_visible(transform, mode) else None


def _is_visible(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Returns whether the transform changes any colour of a grid by more than `INVISIBLE`."""
    levels = range(0, 256, 15)
    grid = Image.new("RGB", (len(levels) ** 3, 1))
    grid.putdata(list(itertools.product(levels, repeat=3)))
    grid = grid.convert(mode)
    change = ImageChops.difference(ImageCms.applyTransform(grid, transform), grid.convert("RGB"))
    return max(most for _, most in change.getextrema()) > INVISIBLE
