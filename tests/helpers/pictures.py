"""Pictures with shapes in them, which can be told apart when they are small, and copies of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageOps


def picture(seed: int, size: tuple[int, int] = (160, 128)) -> Image.Image:
    """Returns smooth coloured noise with detail on several scales, as photos have."""
    rng = np.random.default_rng(seed)
    total = np.zeros((size[1], size[0], 3))
    for n in (3, 6, 12, 24, 48):
        small = Image.fromarray(rng.integers(0, 256, (n, n, 3)).astype("uint8"))
        total += np.asarray(small.resize(size, Image.Resampling.BICUBIC)) / 5
    return Image.fromarray(np.clip(2.2 * (total - 128) + 128, 0, 255).astype("uint8"))


def crop(image: Image.Image) -> Image.Image:
    """Returns 90 % of each side."""
    width, height = image.size
    return image.crop((width // 20, 0, width // 20 + width * 9 // 10, height * 9 // 10))


COPIES = {
    "crop": crop,
    "turn": lambda image: image.rotate(5, Image.Resampling.BICUBIC),
    "half": lambda image: image.resize((image.width // 2, image.height // 2)),
    "bright": lambda image: ImageEnhance.Brightness(image).enhance(1.3),
    "mirror": ImageOps.mirror,
    "q30": lambda image: image,
}


def save_copy(image: Image.Image, path: Path, kind: str = "") -> Path:
    """Saves a picture, or a copy of one of the kinds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    (COPIES[kind](image) if kind else image).save(path, quality=30 if kind == "q30" else 92)
    return path
