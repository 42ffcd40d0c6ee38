"""Hard images and bad files, made by code; each with what a person would see or why it is refused."""

from __future__ import annotations

import base64
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image, features

RED, BLUE = (255, 0, 0), (0, 0, 255)


def flag(size: tuple[int, int] = (24, 16)) -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (size[0] // 2, 0, size[0], size[1]))
    return image


# the flag as an arithmetic-coded JPEG, which Pillow reads but does not write
ARITHMETIC = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAMCAgMCAgMDAwMEAwMEBQgFBQQEBQoHBwYIDAoMDAsKCwsNDhIQDQ4RDgsLEBYQERMUFRUVDA8XGB"
    "YUGBIUFRT/2wBDAQMEBAUEBQkFBQkUDQsNFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBT/yQARCAAQ"
    "ABgDASIAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIRAxEAPwD/ANlI2A3jfXzk5g2ViehSVvUr1UtWVDr4A8EF5o6ys+eaZQ3Z5mrx0HiIRp"
    "Zb07UZUR7/2Q=="
)

# the flag as a JPEG with one colour sample for four pixels in a row
JPEG_411 = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAMCAgMCAgMDAwMEAwMEBQgFBQQEBQoHBwYIDAoMDAsKCwsNDhIQDQ4RDgsLEBYQERMUFRUVDA8XGB"
    "YUGBIUFRT/2wBDAQMEBAUEBQkFBQkUDQsNFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBT/wAARCAAI"
    "ACADAUEAAhEBAxEB/8QAFgABAQEAAAAAAAAAAAAAAAAAAAcI/8QAFBABAAAAAAAAAAAAAAAAAAAAAP/EABUBAQEAAAAAAAAAAAAAAAAAAAcI/8"
    "QAGBEAAgMAAAAAAAAAAAAAAAAAAAhFg8P/2gAMAwEAAhEDEQA/AM6CBBwWWYo2KNYaKuyP/9k="
)


def png_16bit_rgb() -> bytes:
    """The flag as a PNG of 16 bits a channel, which Pillow reads but does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    rows = np.asarray(flag()).astype(">u2") * 257
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", 24, 16, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")


def readable(folder: Path) -> dict[str, Path]:
    """Files that all show the red and blue flag, by what is hard about them."""
    folder.mkdir(parents=True, exist_ok=True)
    image, made = flag(), {}

    def save(title: str, name: str, picture: Image.Image = image, **options) -> None:
        made[title] = folder / name
        with open(made[title], "wb") as file:
            kind = options.pop("format", None) or Image.registered_extensions()[Path(name).suffix]
            picture.save(file, kind, **options)

    save("palette", "palette.png", image.convert("P", palette=Image.Palette.ADAPTIVE))
    save("rgba", "rgba.png", image.convert("RGBA"))
    save("bmp", "a.bmp")
    save("tiff", "a.tiff")
    save("progressive jpeg", "progressive.jpg", progressive=True, quality=95)
    save("cmyk tiff", "cmyk.tif", image.convert("CMYK"))
    save("cmyk jpeg", "cmyk.jpg", image.convert("CMYK"), quality=95)
    save("gif of two frames", "a.gif", save_all=True, append_images=[Image.new("RGB", image.size, "green")])
    save("animated png", "a.png", save_all=True, append_images=[Image.new("RGB", image.size, "green")])
    save("wrong ending", "really_a_png.jpg", format="PNG")
    save("upper-case ending", "A.PNG", format="PNG")
    save("spaces", "two words.png")
    save("korean", "사진.png")
    save("emoji", "🌱.png")
    if features.check("webp"):
        save("webp", "a.webp", lossless=True)
    if features.check("avif"):
        save("avif", "a.avif", quality=95)
    if os.name != "nt":
        save("newline", "two\nlines.png")
    contents = {"arithmetic jpeg": ARITHMETIC, "411 jpeg": JPEG_411, "16-bit rgb png": png_16bit_rgb()}
    for title, content in contents.items():
        made[title] = folder / f"{title}.{title.rpartition(' ')[2]}"
        made[title].write_bytes(content)
    return made


def unreadable(folder: Path) -> dict[str, Path]:
    """Files that are no photos, by what is wrong with them."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 255, (60, 80, 3)).astype("uint8"))
    made = {}

    def write(title: str, content: bytes, ending: str = "jpg") -> None:
        made[title] = folder / f"{title}.{ending}"
        made[title].write_bytes(content)

    write("empty", b"")
    write("text", "this is not a photo, 사진이 아닙니다".encode())
    write("html", b"<!DOCTYPE html><html><body>404</body></html>")
    for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"):
        path = folder / "whole"
        noise.save(path, format=kind)
        content = path.read_bytes()
        path.unlink()
        for tenth in range(1, 10):
            write(f"{kind.lower()} cut at {tenth} tenths", content[: len(content) * tenth // 10], kind.lower())
    write("float tiff", _saved(Image.fromarray(np.ones((4, 4), np.float32))), "tif")
    made["missing"] = folder / "missing.jpg"
    made["folder"] = folder / "folder.jpg"
    made["folder"].mkdir(exist_ok=True)
    if hasattr(os, "symlink") and os.name != "nt":
        for title, target in (("dangling link", "nowhere.jpg"), ("link loop", "link loop.jpg")):
            made[title] = folder / f"{title}.jpg"
            os.symlink(target, made[title])
        made["pipe"] = folder / "pipe.jpg"
        os.mkfifo(made["pipe"])
    return made


def _saved(image: Image.Image) -> bytes:
    import io

    file = io.BytesIO()
    image.save(file, format="TIFF")
    return file.getvalue()
