"""Samples -> batches: augmentation, the data set of images, and the loaders of each split."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset

from photo_classifier.config import TrainConfig, n_views
from photo_classifier.data.batches import make_loader
from photo_classifier.data.decoding import BadImage, decode
from photo_classifier.data.image_files import MAX_PIXELS
from photo_classifier.data.preprocess import Preprocess, eval_transform, fit_to, resize_and_crop
from photo_classifier.data.samples import Sample, Splits
from photo_classifier.features.extraction import FeatureRequest, extract
from photo_classifier.features.loader import FeatureLoader
from photo_classifier.models.inference import Engine
from photo_classifier.runtime.distributed import with_previous_sample
from photo_classifier.runtime.errors import choose
from photo_classifier.runtime.launcher import rank_and_world_size, world_size
from photo_classifier.runtime.seeding import seeded_rng
from photo_classifier.runtime.uncompiled import v2


def _random_crop(p: Preprocess) -> list[v2.Transform]:
    interpolation = v2.InterpolationMode(p.interpolation)
    square = [] if p.fit == "crop" else fit_to(p, p.decode_side)
    return [*square, v2.RandomResizedCrop(p.image_size, scale=(0.35, 1.0), interpolation=interpolation)]


def _shift(p: Preprocess) -> list[v2.Transform]:
    """Moves the picture by the margin that `resize` leaves around `image_size`, and shows nearly all of it."""
    return [*fit_to(p, p.resize), v2.RandomCrop(p.image_size)]


# All of them work on 8-bit tensors: in floats, contrast differed with the number of threads.
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
    """Returns the augmentation of that name, from a decoded image to a crop of `image_size`.

    Raises:
        UserError: there is no such augmentation.
    """
    return v2.Compose(AUGMENTS[choose("--augment", name, AUGMENTS)](preprocess))


class Mixer:
    """Mixes the images of a batch and their labels: mixup (Zhang et al. 2018), cutmix (Yun et al. 2019).

    The draws come from torch's global generator, which the caller seeds. If both are wanted, each batch draws one. The
    partner of an image is the one before it in the whole batch, which may belong to another process.

    Args:
        mixup, cutmix: the alpha of their Beta distributions; 0 leaves one out.
    """

    def __init__(self, mixup: float, cutmix: float, n_classes: int) -> None:
        kinds = [(v2.MixUp, mixup), (v2.CutMix, cutmix)]
        self.transforms = [kind(alpha=alpha, num_classes=n_classes) for kind, alpha in kinds if alpha]

    def __call__(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns images or features (n, ...) and labels, int64 (n,), mixed; the labels become fp32 (n, classes)."""
        transform = self.transforms[int(torch.randint(len(self.transforms), ()))]
        n_before, images, labels = with_previous_sample(images, labels)
        shape = images.shape
        if images.dim() != 4:  # stored features: a vector of each image, or one of each part of it
            images = images.flatten(1)[:, :, None, None]
        if not len(images):
            return images, labels
        mixed, targets = transform(images.float(), labels)
        return mixed.reshape(shape)[n_before:], targets[n_before:]


class ImageDataset(Dataset):
    """Decoded, prepared images; an item is a pure function of `(seed, epoch, sample)`.

    Args:
        class_names: in the order of training; a label is the index of its name, -1 if it is not among them.
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
        """Returns the class index of a sample, -1 where its label is unknown."""
        return self.class_index.get(self.samples[index].label, -1)

    def decoded(self, index: int) -> torch.Tensor:
        """Returns the image of a sample before it is prepared; raises BadImage if the file cannot be read."""
        path, preprocess = self.samples[index].path, self.preprocess
        return decode(path, preprocess.decode_side, self.max_pixels, preprocess.bit_depth)

    def views(self, index: int, epochs: Sequence[int], image: torch.Tensor | None = None) -> list[torch.Tensor]:
        """Returns the views of a sample in those epochs, from one decode, which may be given.

        Raises:
            BadImage: the file cannot be read.
        """
        image, views = self.decoded(index) if image is None else image, []
        for epoch in epochs:
            address = (self.seed, "augment", epoch, self.samples[index].key)
            with seeded_rng(*address) if self.seed is not None else contextlib.nullcontext():
                views.append(self.transform(image))
        return views

    def thumbnails(self, side: int) -> ImageDataset:
        """Returns the same samples as small images, uint8 (3, side, side), without augmentation."""
        small = self.preprocess.at(side, None)
        return ImageDataset(self.samples, (), small, eval_transform(small), max_pixels=self.max_pixels)

    def __getitem__(self, place: tuple[int, int]) -> tuple[int, int, torch.Tensor | str]:
        epoch, index = place
        try:
            return index, self.label_of(index), self.views(index, [epoch])[0]
        except BadImage as error:
            return index, self.label_of(index), str(error)


def make_datasets(config: TrainConfig, splits: Splits, preprocess: Preprocess) -> dict[str, ImageDataset]:
    """Returns the images of each split, augmented for training alone."""
    transforms = {name: (eval_transform(preprocess), None) for name in splits.by_name()}
    transforms["train"] = (train_transform(config.augment, preprocess), config.seed)
    return {
        name: ImageDataset(part, splits.class_names, preprocess, *transforms[name], config.max_pixels)
        for name, part in splits.by_name().items()
    }


def make_loaders(config: TrainConfig, datasets: Mapping[str, ImageDataset], engine: Engine) -> dict[str, DataLoader]:
    """Returns loaders of images, this process's share of each batch."""
    sizes, pin_memory = batch_sizes(config, datasets, engine), engine.device.type == "cuda"
    return {
        name: make_loader(dataset, sizes[name], config.n_workers, pin_memory, rank_and_world_size())
        for name, dataset in datasets.items()
    }


def make_feature_loaders(
    config: TrainConfig,
    datasets: Mapping[str, ImageDataset],
    engine: Engine,
    cache: Path,
    skip: Callable,
    n_epochs: int,
) -> dict[str, FeatureLoader]:
    """Returns loaders of stored features, after computing those that the cache lacks.

    Args:
        skip: records images that could not be read, as `trainer.Recorder.skip`.
        n_epochs: those of this part of the run.
    """
    requests = feature_requests(config, datasets, n_epochs)
    sizes, loaders = batch_sizes(config, datasets, engine), {}
    for name, features in extract(engine, requests, cache, config.n_workers):
        skip(features.bad, name)
        loaders[name] = features.loader(sizes[name])
    return {"train": loaders["valid"], **loaders}


def feature_requests(
    config: TrainConfig, datasets: Mapping[str, ImageDataset], n_epochs: int
) -> dict[str, FeatureRequest]:
    """Returns the views of each split whose features are stored.

    A head that is solved takes the view of evaluation as one of its views; if there is no other, none are for training.
    """
    is_solved = config.head == "logistic"
    n = n_views(config) - 1 if is_solved else min(n_views(config), n_epochs)
    if config.augment == "none":
        n = int(not is_solved)
    requests = {name: FeatureRequest(dataset, "evaluation") for name, dataset in datasets.items()}
    requests["train"] = FeatureRequest(datasets["train"], config.augment, n)
    if not n:
        del requests["train"]
    return requests


def batch_sizes(config: TrainConfig, datasets: Iterable[str], engine: Engine) -> dict[str, int]:
    """Returns the images of a batch over all processes, by split: in evaluation each computes whole passes."""
    return {name: engine.batch_size * world_size() for name in datasets} | {"train": config.batch_size}
