"""numpy prepares images to the bit as torch does."""

import numpy as np
import pytest
import torch

from photo_classifier.data.preprocess import FITS, Preprocess, eval_transform
from photo_classifier.export.resizing import prepare

MEAN, STD = (0.485, 0.456, 0.406), (0.2, 0.2, 0.2)
SIZES = [(1, 1), (1, 900), (900, 1), (7, 5), (32, 36), (36, 50), (37, 36), (64, 64), (300, 200), (411, 1000)]


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest", "nearest-exact"])
@pytest.mark.parametrize("fit", FITS)
def test_every_pixel_is_that_of_torch(fit, interpolation):
    rng = np.random.default_rng(0)
    drawn = [tuple(size) for size in rng.integers(1, 700, (12, 2)).tolist()]
    for n, size in enumerate(SIZES + drawn):
        p = Preprocess(32 + n % 2, 36 + n % 7, interpolation, MEAN, STD, fit=fit)
        levels = 255 * rng.integers(0, 2, (*size, 3)) if n % 2 else rng.integers(0, 256, (*size, 3))
        image = levels.astype(np.uint8)
        expected = eval_transform(p)(torch.from_numpy(image).permute(2, 0, 1)).permute(1, 2, 0).numpy()
        assert (prepare(image, p) == expected).all(), (size, p)


def test_a_photo_without_need_of_resizing_is_only_cropped():
    image = np.random.default_rng(0).integers(0, 256, (36, 40, 3)).astype(np.uint8)
    assert (prepare(image, Preprocess(32, 36, "bilinear", MEAN, STD)) == image[2:34, 4:36]).all()
