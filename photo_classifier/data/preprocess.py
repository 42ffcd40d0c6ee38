"""Prepares images for a backbone, the same way in training and in prediction."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from photo_classifier.runtime.errors import UserError
from photo_classifier.runtime.uncompiled import v2

FITS = ("crop", "squash", "pad")


@dataclass(frozen=True)
class Preprocess:
    """How a backbone expects its images; part of the weights and of the checkpoint.

    `resize` is the length of the shorter side and `image_size` the side of the centre crop, in
    pixels; `mean` and `std` are for RGB values from 0 to 1; `bit_depth` is that of 16-bit files. `fit` tells how
    a photo becomes a square: `crop` takes its middle, `squash` distorts all of it, `pad` adds margins in the mean
    colour, which is zero for the network.
    """

    image_size: int
    resize: int
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    bit_depth: int = 16
    fit: str = "crop"

    def at(self, image_size: int | None, resize: int | None) -> Preprocess:
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
        return replace(self, image_size=size, resize=resize)

    def text(self) -> str:
        """Returns it as the flags that choose it."""
        mean, std = (" ".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
        sizes = f"--image_size {self.image_size} --resize {self.resize} --fit {self.fit}"
        return f"{sizes} --interpolation {self.interpolation} --mean {mean} --std {std}"

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


class PadToSquare(v2.Transform):
    """Resizes an image until its longer side has `side` pixels, and centres it on a square of one colour."""

    def __init__(self, side: int, interpolation: v2.InterpolationMode, colour: list[int]) -> None:
        super().__init__()
        self.side, self.interpolation, self.colour = side, interpolation, colour

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Returns the image, uint8 (3, height, width), as (3, side, side)."""
        longer = max(image.shape[-2:])
        height, width = (max(1, round(length * self.side / longer)) for length in image.shape[-2:])
        image = v2.functional.resize(image, [height, width], self.interpolation)
        left, top = (self.side - width) // 2, (self.side - height) // 2
        margins = [left, top, self.side - width - left, self.side - height - top]
        return v2.functional.pad(image, margins, fill=self.colour)

    def extra_repr(self) -> str:
        """Returns the settings, as the key of the feature cache needs them."""
        return f"{self.side}, {self.interpolation}, {self.colour}"


def fit_to(p: Preprocess, side: int) -> list[v2.Transform]:
    """Returns the transforms to `side` x `side`, or for a later crop to a shorter side of that length."""
    interpolation = v2.InterpolationMode(p.interpolation)
    if p.fit == "squash":
        return [v2.Resize((side, side), interpolation)]
    if p.fit == "pad":
        return [PadToSquare(side, interpolation, [round(255 * mean) for mean in p.mean])]
    return [LimitAspect(), v2.Resize(side, interpolation)]


def resize_and_crop(p: Preprocess) -> list[v2.Transform]:
    """Returns the transforms from a decoded image to a square of `image_size`."""
    return [*fit_to(p, p.resize), v2.CenterCrop(p.image_size)] if p.fit == "crop" else fit_to(p, p.image_size)


def eval_transform(preprocess: Preprocess) -> v2.Transform:
    """Returns the transform of evaluation: uint8 (3, height, width) -> uint8 (3, image_size, image_size)."""
    return v2.Compose(resize_and_crop(preprocess))
