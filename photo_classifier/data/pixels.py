"""Turns pixels of any mode into RGB of 8 bits, as a person sees them."""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
from PIL import Image

from photo_classifier.data.colours import to_srgb


class BadImage(Exception):
    """The file cannot be used as an image; the message is the reason."""


# Formats whose 16-bit values say nothing about how many of the bits are used; the others are scaled by Pillow.
UNSCALED = ("PNG", "TIFF")
PLAIN = {"1": "L", "L": "L", "LA": "L", "CMYK": "CMYK", "LAB": "LAB"}
WITH_ALPHA = ("LA", "PA", "RGBA")
# TIFF tags and their values
BITS, PHOTOMETRIC, EXTRA_SAMPLES = 258, 262, 338
WHITE_IS_ZERO, DECLARED_ALPHA = 0, {1, 2, 999}


def to_rgb(image: Image.Image, bit_depth: int = 16) -> Image.Image:
    """Returns a loaded image as RGB of 8 bits in sRGB, on white where it is transparent.

    Raises:
        BadImage: its range of values is unknown, or every pixel is transparent.
    """
    profile = image.info.get("icc_profile")
    if image.mode in ("La", "RGBa"):  # premultiplied
        image = image.convert(image.mode.upper())
    if image.mode.startswith("I"):
        return to_srgb(_grey_to_8_bits(image, bit_depth), profile)
    if image.mode == "F":
        raise BadImage("has floating-point pixels, whose range is unknown")
    rgb = to_srgb(image.convert(PLAIN.get(image.mode, "RGB")), profile)
    alpha = alpha_of(image)
    if alpha is None:
        return rgb
    if not alpha.getextrema()[1]:
        raise BadImage("is transparent everywhere; save it without its alpha channel")
    rgb = rgb.convert("RGBA")
    rgb.putalpha(alpha)
    return Image.alpha_composite(Image.new("RGBA", rgb.size, "white"), rgb).convert("RGB")


def alpha_of(image: Image.Image) -> Image.Image | None:
    """Returns the transparency of an image as mode L, or None; a further channel that is none is left out."""
    if "transparency" not in image.info and image.mode not in WITH_ALPHA:
        return None
    return None if has_further_band(image) else image.convert("RGBA").getchannel("A")


def has_further_band(image: Image.Image) -> bool:
    """Returns whether the last channel of a TIFF is no transparency but, for example, near infrared.

    Many programs declare any fourth channel as transparency. Real transparency is mostly nothing or all.
    """
    if image.format != "TIFF":
        return False
    if image.mode not in WITH_ALPHA:
        return bool(image.tag_v2.get(EXTRA_SAMPLES))
    if not DECLARED_ALPHA & set(image.tag_v2.get(EXTRA_SAMPLES, ())):
        return True
    counts = image.getchannel("A").histogram()
    return 2 * (counts[0] + counts[-1]) < sum(counts)


def _grey_to_8_bits(image: Image.Image, bit_depth: int) -> Image.Image:
    tags = image.tag_v2 if image.format == "TIFF" else {}
    if image.format not in (*UNSCALED, None):
        bit_depth = 16
    elif tags.get(BITS) == (12,):
        bit_depth = 12
    grey = np.asarray(image)
    if grey.min() < 0 or grey.max() > 65535:
        raise BadImage("has values below 0 or above 65535, whose range is unknown; save it with 8 or 16 bits")
    grey = _scaled(grey, bit_depth)
    return Image.fromarray(255 - grey if tags.get(PHOTOMETRIC) == WHITE_IS_ZERO else grey)


def _scaled(values: np.ndarray, bit_depth: int) -> np.ndarray:
    largest, most = values.max(), 2**bit_depth - 1
    if largest > most:
        raise BadImage(f"has the value {largest}, more than --bit_depth {bit_depth} allows ({most})")
    return (values.astype(np.float32) * (255 / most)).round().astype(np.uint8)


def spread_of(pixels: np.ndarray) -> int:
    """Returns by how many levels the pixels of a channel differ, of the channel where they differ most.

    The outermost 2 % are left out, so that a date or a dead pixel does not count.
    """
    low, high = np.percentile(pixels.reshape(-1, pixels.shape[-1]), (1, 99), axis=0)
    return int((high - low).max())


# --- 16 bits a channel in colour --------------------------------------------------------------


def is_16_bit(image: Image.Image) -> bool:
    """Returns whether an image that is not yet loaded has 16 bits a channel and leaves open how many are used."""
    is_12_bit = image.format == "TIFF" and image.tag_v2.get(BITS) == (12,)
    is_deep = image.mode.startswith("I") or ";16" in _raw_mode(image)
    return image.format in UNSCALED and is_deep and not is_12_bit


def largest_value(image: Image.Image) -> int:
    """Returns the largest 16-bit value of grey or colour; in colour up to 255 above it, as the low byte is unknown."""
    if image.mode.startswith("I"):
        return int(np.asarray(image).max())
    return max(most for _, most in image.convert("RGB").getextrema()) << 8 | 255


def set_raw_modes(image: Image.Image, change: Callable[[str], str]) -> Image.Image:
    """Changes how the bytes of an image that is not yet loaded are read; returns it."""
    tiles = []
    for tile in image.tile:
        args = change(tile.args) if isinstance(tile.args, str) else (change(tile.args[0]), *tile.args[1:])
        tiles.append(tile._replace(args=args))
    image.tile = tiles
    return image


def read_whole_planes(image: Image.Image) -> Image.Image:
    """Lets Pillow read a TIFF with a plane of 16 bits for each colour, which it takes for 8 bits; returns it."""
    if image.format == "TIFF" and image.mode.startswith("RGB") and set(image.tag_v2.get(BITS, ())) == {16}:
        order = "B" if image.tag_v2.prefix == b"MM" else "L"
        set_raw_modes(image, lambda mode: f"{mode};16{order}" if len(mode) == 1 else mode)
    return image


def low_byte_mode(raw_mode: str) -> str:
    """Returns the raw mode that reads the low byte of 16-bit colours, or an empty string for other pixels.

    Pillow has no mode of 16 bits a channel in colour, and drops the low byte.
    """
    kind, _, order = raw_mode.partition(";16")
    order = order.replace("N", sys.byteorder[0].upper())
    return f"{kind};16{'B' if order == 'L' else 'L'}" if order and set(kind) <= set("RGBAX") else ""


def drops_low_byte(image: Image.Image) -> bool:
    """Returns whether Pillow reads only half of each 16-bit value, all of which may be needed."""
    return image.format in UNSCALED and bool(low_byte_mode(_raw_mode(image)))


def join_bytes(high: Image.Image, low: Image.Image, bit_depth: int) -> Image.Image:
    """Returns 16-bit colours, given as two images of their bytes, scaled to 8 bits; keeps the metadata of `high`.

    Raises:
        BadImage: a value has more bits than `bit_depth`.
    """
    values = np.asarray(high).astype(np.uint16) << 8 | np.asarray(low)
    high.im = Image.fromarray(_scaled(values, bit_depth), high.mode).im
    return high


def _raw_mode(image: Image.Image) -> str:
    args = image.tile[0].args if image.tile else ""
    return args if isinstance(args, str) else str(args[0]) if args else ""
