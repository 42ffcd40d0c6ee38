"""Samples -> batches: augmentation, addressed order, and the processes that decode."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import torch
from torch.utils.data import Dataset
from torchvision.transforms import v2

from photo_classifier.data.decoding import BadImage, decode
from photo_classifier.data.image_files import MAX_PIXELS
from photo_classifier.data.preprocess import LimitAspect, Preprocess, resize_and_crop
from photo_classifier.data.samples import Sample
from photo_classifier.runtime.distributed import with_previous_sample
from photo_classifier.runtime.errors import choose
from photo_classifier.runtime.seeding import seeded_rng

# --- preparing --------------------------------------------------------------------------------


def _random_crop(p: Preprocess) -> list[v2.Transform]:
    interpolation = v2.InterpolationMode(p.interpolation)
    return [v2.RandomResizedCrop(p.image_size, scale=(0.35, 1.0), interpolation=interpolation)]


def _shift(p: Preprocess) -> list[v2.Transform]:
    """Moves the picture by what `resize` leaves around `image_size`, and shows nearly all of it."""
    return [LimitAspect(), v2.Resize(p.resize, v2.InterpolationMode(p.interpolation)), v2.RandomCrop(p.image_size)]


# All of them work on 8-bit tensors: float contrast was seen to differ with the number of threads.
AUGMENTS: dict[str, Callable[[Preprocess], list[v2.Transform]]] = {
    "none": resize_and_crop,
    "basic": lambda p: [*_random_crop(p), v2.RandomHorizontalFlip()],
    "shifts": lambda p: [*_shift(p), v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()],
    "flips": lambda p: [*_random_crop(p), v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()],
    # Mueller and Hutter 2021; Cubuk et al. 2020
    "trivial": lambda p: [*_random_crop(p), v2.RandomHorizontalFlip(), v2.TrivialAugmentWide()],
    "rand": lambda p: [*_random_crop(p), v2.RandomHorizontalFlip(), v2.RandAugment()],
}


def train_transform(name: str, preprocess: Preprocess) -> v2.Transform:
    """The augmentation recipe of that name, from a decoded image to a crop of `image_size`.

    Raises:
        UserError: there is no such recipe.
    """
    return v2.Compose(AUGMENTS[choose("--augment", name, AUGMENTS)](preprocess))


class Mixer:
    """Mixes the images of a batch and their labels: mixup (Zhang et al. 2018), cutmix (Yun et al. 2019).

    It draws from torch's generator, so whoever seeds that addresses the draws. Where both are wanted,
    each batch draws one of them. An image's partner is the one before it in the whole batch, which may be
    another rank's.

    Args:
        mixup, cutmix: the alpha of their Beta distributions; 0 leaves one out.
    """

    def __init__(self, mixup: float, cutmix: float, n_classes: int) -> None:
        kinds = [(v2.MixUp, mixup), (v2.CutMix, cutmix)]
        self.transforms = [kind(alpha=alpha, num_classes=n_classes) for kind, alpha in kinds if alpha]

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images or features (n, ...) and labels, int64 (n,) -> both mixed; the labels are (n, classes) then."""
        transform = self.transforms[int(torch.randint(len(self.transforms), ()))]
        n_before, images, labels = with_previous_sample(images, labels)
        shape = images.shape
        if images.dim() == 2:  # stored features of one vector an image
            images = images[:, :, None, None]
        if not len(images):
            return images, labels
        mixed, targets = transform(images.float(), labels)
        return mixed.reshape(shape)[n_before:], targets[n_before:]


# --- batches ----------------------------------------------------------------------------------


class ImageDataset(Dataset):
    """Decoded, prepared images; an item is a pure function of `(seed, epoch, sample)`.

    Args:
        class_names: the training order; a sample's label is its place here, -1 where it has none.
        seed: None for evaluation, where nothing is random.
        max_pixels: the limit of `decode`.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        class_names: Sequence[str],
        preprocess: Preprocess,
        transform: v2.Transform,
        seed: int | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self.samples = samples
        self.class_index = {name: index for index, name in enumerate(class_names)}
        self.preprocess = preprocess
        self.transform = transform
        self.seed = seed
        self.max_pixels = max_pixels

    def __len__(self) -> int:
        return len(self.samples)

    def label_of(self, index: int) -> int:
        """The class index of a sample, -1 where it has no known label."""
        return self.class_index.get(self.samples[index].label, -1)

    def decoded(self, index: int) -> torch.Tensor:
        """The image of a sample before it is prepared; raises BadImage where the file cannot be read."""
        path, preprocess = self.samples[index].path, self.preprocess
        return decode(path, preprocess.decode_side, self.max_pixels, preprocess.bit_depth)

    def views(self, index: int, epochs: Sequence[int], image: torch.Tensor | None = None) -> list[torch.Tensor]:
        """The views of a sample in those epochs, from one decode, which may be given.

        Raises:
            BadImage: the file cannot be read.
        """
        image, views = self.decoded(index) if image is None else image, []
        for epoch in epochs:
            address = (self.seed, "augment", epoch, self.samples[index].key)
            with seeded_rng(*address) if self.seed is not None else contextlib.nullcontext():
                views.append(self.transform(image))
        return views

    def __getitem__(self, place: tuple[int, int]) -> tuple[int, int, torch.Tensor | str]:
        epoch, index = place
        try:
            return index, self.label_of(index), self.views(index, [epoch])[0]
        except BadImage as error:
            return index, self.label_of(index), str(error)
