"""Photos as phones, cameras and drones write them, made by code: metadata, profiles, bands, broken ends."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

SHORT, LONG = 3, 4
ORIENTATION_6 = (0x0112, SHORT, 1, struct.pack("<H", 6))
# a value of every type that a TIFF or EXIF tag can have: type -> (count, bytes)
ANY_VALUE = {
    1: (1, b"\x05"),
    2: (4, b"abc\0"),
    SHORT: (1, struct.pack("<H", 69)),
    LONG: (1, struct.pack("<I", 99_999)),
    5: (1, struct.pack("<2I", 1, 0)),
    7: (4, b"\1\2\3\4"),
    8: (1, struct.pack("<h", -3)),
    9: (1, struct.pack("<i", -3)),
    10: (3, struct.pack("<6i", -1, 0, 1, 2, 3, 0)),
    12: (1, struct.pack("<d", float("nan"))),
}

Tag = tuple[int, int, int, bytes]


def lying() -> Image.Image:
    """A photo of 40 x 20 stored lying: upright it is 20 wide and 40 high, red above and blue below."""
    image = Image.new("RGB", (40, 20), "red")
    image.paste("blue", (20, 0, 40, 20))
    return image


def saved(image: Image.Image, kind: str, **options) -> bytes:
    """The bytes of a file of that format."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def tiff(tags: list[Tag], folder_tag: int | None = None, folder: tuple[Tag, ...] = (), after: bytes = b"") -> bytes:
    """A little-endian TIFF of those tags, and of a folder of further tags that one of them points to."""
    head = b"II*\0" + struct.pack("<I", 8)
    n_tags = len(tags) + (folder_tag is not None)
    at = 8 + _length(n_tags, tags)
    pointer = [(folder_tag, LONG, 1, struct.pack("<I", at))] if folder_tag is not None else []
    return head + _directory([*tags, *pointer], 8) + (_directory(list(folder), at) if folder else b"") + after


def _length(n_tags: int, tags: list[Tag]) -> int:
    return 2 + 12 * n_tags + 4 + sum(len(value) for *_, value in tags if len(value) > 4)


def _directory(tags: list[Tag], at: int) -> bytes:
    place, entries, values = at + 2 + 12 * len(tags) + 4, b"", b""
    for tag, kind, count, value in sorted(tags):
        inline = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack("<I", place + len(values))
        values += value if len(value) > 4 else b""
        entries += struct.pack("<HHI", tag, kind, count) + inline
    return struct.pack("<H", len(tags)) + entries + bytes(4) + values


def raw_tiff(
    pixels: np.ndarray, extra: tuple[int, ...] = (), more: tuple[Tag, ...] = (), in_planes: bool = False, **folder
) -> bytes:
    """An uncompressed TIFF of pixels, (height, width, channels), with the kinds of its extra channels."""
    height, width, channels = pixels.shape
    bits, n_strips = pixels.dtype.itemsize * 8, channels if in_planes else 1
    values = {256: width, 257: height, 259: 1, 262: 2 if channels >= 3 else 1, 277: channels, 278: height}
    tags = [(tag, LONG, 1, struct.pack("<I", value)) for tag, value in (values | {284: 1 + in_planes}).items()]
    tags += [(258, SHORT, channels, struct.pack(f"<{channels}H", *[bits] * channels)), *more]
    tags += [(338, SHORT, len(extra), struct.pack(f"<{len(extra)}H", *extra))] if extra else []
    length = pixels.nbytes // n_strips
    tags += [(279, LONG, n_strips, struct.pack("<I", length) * n_strips), (273, LONG, n_strips, bytes(4 * n_strips))]
    size = len(tiff(tags, **folder))
    tags[-1] = (273, LONG, n_strips, b"".join(struct.pack("<I", size + n * length) for n in range(n_strips)))
    return tiff(tags, **folder, after=(pixels.transpose(2, 0, 1) if in_planes else pixels).tobytes())


def with_exif(jpeg: bytes, exif: bytes) -> bytes:
    """A JPEG with an EXIF segment, as bytes of a TIFF."""
    segment = b"Exif\0\0" + exif
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:]


def png_chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def with_chunk(png: bytes, kind: bytes, content: bytes) -> bytes:
    """A PNG with a further chunk behind its header."""
    return png[:33] + png_chunk(kind, content) + png[33:]


def display_p3() -> bytes:
    """An ICC profile of the primaries of Display P3 with a gamma of 2.2."""

    def numbers(*values: float) -> bytes:
        return b"".join(struct.pack(">i", round(value * 65536)) for value in values)

    white = (0.9642, 1, 0.8249)
    columns = {b"r": (0.5151, 0.2412, -0.0011), b"g": (0.2920, 0.6922, 0.0419), b"b": (0.1571, 0.0666, 0.7841)}
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(2.2 * 256)) + bytes(2)
    tags = {b"desc": b"desc\0\0\0\0" + struct.pack(">I", 3) + b"P3\0" + bytes(79)}
    tags |= {b"cprt": b"text\0\0\0\0none\0", b"wtpt": b"XYZ \0\0\0\0" + numbers(*white)}
    for name, column in columns.items():
        tags |= {name + b"XYZ": b"XYZ \0\0\0\0" + numbers(*column), name + b"TRC": curve}
    place, index, data = 128 + 4 + 12 * len(tags), b"", b""
    for name, value in tags.items():
        index += name + struct.pack(">II", place + len(data), len(value))
        data += value + bytes(-len(value) % 4)
    head = struct.pack(">I", place + len(data)) + bytes(4) + struct.pack(">I", 0x02400000) + b"mntrRGB XYZ " + bytes(12)
    head = (head + b"acsp" + bytes(28) + numbers(*white)).ljust(128, b"\0")
    return head + struct.pack(">I", len(tags)) + index + data
