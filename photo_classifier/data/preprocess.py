"""Prepares images for a backbone, the same way in training and in prediction."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torchvision.transforms import v2

from photo_classifier.runtime.errors import UserError


@dataclass(frozen=True)
class Preprocess:
    """How a backbone expects its images; part of the weights and of the checkpoint.

    `resize` is the length of the shorter side and `image_size` the side of the centre crop, in
    pixels; `mean` and `std` are for RGB values from 0 to 1; `bit_depth` is that of 16-bit files.
    """

    image_size: int
    resize: int
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    bit_depth: int = 16

    def at(self, image_size: int | None, resize: int | None, bit_depth: int = 16) -> Preprocess:
        """Returns a copy for other sizes, in pixels.

        Args:
            image_size: None keeps the current one.
            resize: None keeps the ratio of resize to crop.

        Raises:
            UserError: resize is smaller than the crop.
        """
        size = image_size or self.image_size
        resize = resize or (round(size * self.resize / self.image_size) if image_size else self.resize)
        if resize < size:
            raise UserError(f"--resize {resize} is smaller than --image_size {size}; give at least {size}")
        return replace(self, image_size=size, resize=resize, bit_depth=bit_depth)

    def text(self) -> str:
        """Returns it as the flags that choose it."""
        mean, std = (" ".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
        sizes = f"--image_size {self.image_size} --resize {self.resize} --interpolation {self.interpolation}"
        return f"{sizes} --mean {mean} --std {std}"

    @property
    def decode_side(self) -> int:
        """Returns the least number of pixels to decode on the shorter side: twice the resize keeps crops sharp."""
        return 2 * self.resize


class LimitAspect(v2.Transform):
    """Crops very long images to the central 4:1: a strip of 1 x 5000 would be resized to 256 x 1,280,000."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Returns the image, uint8 (3, height, width), or its centre."""
        height, width = image.shape[-2:]
        return v2.functional.center_crop(image, [min(height, 4 * width), min(width, 4 * height)])


def resize_and_crop(p: Preprocess) -> list[v2.Transform]:
    """Returns the transforms from a decoded image to the centre crop."""
    interpolation = v2.InterpolationMode(p.interpolation)
    return [LimitAspect(), v2.Resize(p.resize, interpolation), v2.CenterCrop(p.image_size)]


def eval_transform(preprocess: Preprocess) -> v2.Transform:
    """Returns resize and centre crop: uint8 (3, height, width) -> uint8 (3, image_size, image_size)."""
    return v2.Compose(resize_and_crop(preprocess))
