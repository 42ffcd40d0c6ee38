"""Samples -> batches: augmentation, addressed order, and the processes that decode."""

from __future__ import annotations

import contextlib
import itertools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import v2

from decoding import BadImage, decode
from ranks import local_world_size, sliced, with_the_one_before
from splits import Sample
from stop import end_workers_at_exit, start_worker
from utils import MAX_PIXELS, UserError, addressed_rng, n_cores, pick, seed_for

# --- preparing --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Preprocess:
    """How a backbone wants its images; it comes with the weights and goes into the checkpoint.

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
        """The same for other sizes, in pixels.

        Args:
            image_size: None keeps the present one.
            resize: None keeps the share of the margin around the crop.

        Raises:
            UserError: the resize is smaller than the crop.
        """
        size = image_size or self.image_size
        resize = resize or (round(size * self.resize / self.image_size) if image_size else self.resize)
        if resize < size:
            raise UserError(f"--resize {resize} is smaller than --image_size {size}; give at least {size}")
        return replace(self, image_size=size, resize=resize, bit_depth=bit_depth)

    @property
    def decode_side(self) -> int:
        """Pixels of the shorter side to decode at least: twice the resize keeps crops sharp."""
        return 2 * self.resize


class LimitAspect(v2.Transform):
    """Cuts very long images to the middle 4:1: a strip of 1 x 5000 would be resized to 256 x 1,280,000."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """uint8 (3, height, width) -> the same, or its middle."""
        height, width = image.shape[-2:]
        return v2.functional.center_crop(image, [min(height, 4 * width), min(width, 4 * height)])


def _resize_crop(p: Preprocess) -> list[v2.Transform]:
    interpolation = v2.InterpolationMode(p.interpolation)
    return [LimitAspect(), v2.Resize(p.resize, interpolation), v2.CenterCrop(p.image_size)]


def _random_crop(p: Preprocess) -> list[v2.Transform]:
    interpolation = v2.InterpolationMode(p.interpolation)
    return [v2.RandomResizedCrop(p.image_size, scale=(0.35, 1.0), interpolation=interpolation)]


def _shift(p: Preprocess) -> list[v2.Transform]:
    """Moves the picture by what `resize` leaves around `image_size`, and shows nearly all of it."""
    return [LimitAspect(), v2.Resize(p.resize, v2.InterpolationMode(p.interpolation)), v2.RandomCrop(p.image_size)]


# All of them work on 8-bit tensors: float contrast was seen to differ with the number of threads.
AUGMENTS: dict[str, Callable[[Preprocess], list[v2.Transform]]] = {
    "none": _resize_crop,
    "basic": lambda p: [*_random_crop(p), v2.RandomHorizontalFlip()],
    "shifts": lambda p: [*_shift(p), v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()],
    "flips": lambda p: [*_random_crop(p), v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()],
    # Mueller and Hutter 2021; Cubuk et al. 2020
    "trivial": lambda p: [*_random_crop(p), v2.RandomHorizontalFlip(), v2.TrivialAugmentWide()],
    "rand": lambda p: [*_random_crop(p), v2.RandomHorizontalFlip(), v2.RandAugment()],
}


def eval_transform(preprocess: Preprocess) -> v2.Transform:
    """Resize and centre crop: uint8 (3, height, width) -> uint8 (3, image_size, image_size)."""
    return v2.Compose(_resize_crop(preprocess))


def train_transform(name: str, preprocess: Preprocess) -> v2.Transform:
    """The augmentation recipe of that name, from a decoded image to a crop of `image_size`.

    Raises:
        UserError: there is no such recipe.
    """
    return v2.Compose(AUGMENTS[pick("--augment", name, AUGMENTS)](preprocess))


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
        n_before, images, labels = with_the_one_before(images, labels)
        shape = images.shape
        if images.dim() == 2:  # stored features of one vector an image
            images = images[:, :, None, None]
        if not len(images):
            return images, labels
        mixed, targets = transform(images.float(), labels)
        return mixed.reshape(shape)[n_before:], targets[n_before:]


# --- batches ----------------------------------------------------------------------------------


class Batch(NamedTuple):
    """What a loader yields. Images that could not be read are in `bad` and nowhere else."""

    images: torch.Tensor  # uint8 (n, 3, image_size, image_size), channels-last
    labels: torch.Tensor  # int64 (n,); -1 where the label is unknown
    indices: torch.Tensor  # int64 (n,), places in the list of samples
    bad: list[tuple[int, str]]  # (place, reason)


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
            with addressed_rng(*address) if self.seed is not None else contextlib.nullcontext():
                views.append(self.transform(image))
        return views

    def __getitem__(self, place: tuple[int, int]) -> tuple[int, int, torch.Tensor | str]:
        epoch, index = place
        try:
            return index, self.label_of(index), self.views(index, [epoch])[0]
        except BadImage as error:
            return index, self.label_of(index), str(error)


def collate(items: list[tuple[int, int, torch.Tensor | str]]) -> Batch:
    """Stacks what could be read and keeps the reasons of the rest."""
    good = [item for item in items if not isinstance(item[2], str)]
    labels = torch.tensor([label for _, label, _ in good], dtype=torch.int64)
    indices = torch.tensor([index for index, _, _ in good], dtype=torch.int64)
    bad = [(index, reason) for index, _, reason in items if isinstance(reason, str)]
    return Batch(stack([image for _, _, image in good]), labels, indices, bad)


def stack(images: list[torch.Tensor]) -> torch.Tensor:
    """Images of one size -> (n, 3, size, size), channels-last: the memory order that convolutions like best."""
    if not images:
        return torch.empty(0, 3, 0, 0, dtype=torch.uint8)
    return torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)


class ViewBatch(NamedTuple):
    """Several views of several images; `places` names the sample and the view of each."""

    images: torch.Tensor
    places: list[tuple[int, int]]
    bad: list[tuple[int, str]]


class ViewDataset(Dataset):
    """All the wanted views of a sample at once: `wanted` lists (place of the sample, views)."""

    def __init__(self, dataset: ImageDataset, wanted: Sequence[tuple[int, tuple[int, ...]]]) -> None:
        self.dataset, self.wanted = dataset, wanted

    def __len__(self) -> int:
        return len(self.wanted)

    def __getitem__(self, n: int) -> tuple[int, tuple[int, ...], list[torch.Tensor] | str]:
        index, views = self.wanted[n]
        try:
            return index, views, self.dataset.views(index, views)
        except BadImage as error:
            return index, views, str(error)


def collate_views(items: list[tuple[int, tuple[int, ...], list[torch.Tensor] | str]]) -> ViewBatch:
    """Stacks the views of all images that could be read."""
    good = [(index, views, images) for index, views, images in items if not isinstance(images, str)]
    places = [(index, view) for index, views, _ in good for view in views]
    bad = [(index, reason) for index, _, reason in items if isinstance(reason, str)]
    return ViewBatch(stack([image for _, _, images in good for image in images]), places, bad)


class AddressedSampler(Sampler):
    """Batches of `(epoch, index)`: the epoch travels with the index, so workers can stay alive.

    The order of an epoch is a pure function of `(seed, epoch)`; without a seed it is that of the list.
    `start` leaves out the first batches, which a run that was stopped has behind it. Of every batch it yields
    the slice `part`, (number, parts), which may be empty: all parts see as many batches.
    """

    def __init__(
        self, n_samples: int, batch_size: int, seed: int | None = None, part: tuple[int, int] = (0, 1)
    ) -> None:
        self.n_samples, self.batch_size, self.seed, self.part = n_samples, batch_size, seed, part
        self.epoch, self.start = 0, 0

    def __len__(self) -> int:
        return len(self._bounds()) - 1

    def _bounds(self) -> list[int]:
        bounds = [*range(0, self.n_samples, self.batch_size), self.n_samples]
        if self.seed is not None and self.n_samples % self.batch_size == 1 and len(bounds) > 2:
            del bounds[-2]  # one image alone has no batch statistics: it joins the batch before
        return bounds

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = range(self.n_samples)
        if self.seed is not None:
            generator = torch.Generator().manual_seed(seed_for(self.seed, "order", self.epoch))
            order = torch.randperm(self.n_samples, generator=generator).tolist()
        for start, end in itertools.pairwise(self._bounds()[self.start :]):
            yield [(self.epoch, index) for index in sliced(order[start:end], self.part)]


def make_loader(
    dataset: ImageDataset,
    batch_size: int,
    n_workers: int | None = None,
    pin_memory: bool = False,
    part: tuple[int, int] = (0, 1),
) -> DataLoader:
    """A loader over a data set; `loader.batch_sampler.epoch` chooses the epoch.

    Args:
        part: the slice of every batch that is loaded, as `AddressedSampler` takes it.
        n_workers: processes that decode; None chooses by the number of cores and images.
    """
    sampler = AddressedSampler(len(dataset), batch_size, dataset.seed, part)
    options = worker_options(len(sampler), n_workers)
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=collate,
        pin_memory=pin_memory,
        persistent_workers=options["num_workers"] > 0,
        **options,
    )


def make_view_loader(dataset: ViewDataset, batch_size: int, n_workers: int | None = None) -> DataLoader:
    """All wanted views once, in batches of about `batch_size` images."""
    most_views = max((len(views) for _, views in dataset.wanted), default=1)
    n_samples = max(1, batch_size // most_views)
    options = worker_options(-(-len(dataset) // n_samples), n_workers)
    return DataLoader(dataset, batch_size=n_samples, collate_fn=collate_views, **options)


# fork starts in milliseconds where it exists and is safe, spawn takes seconds
START_METHOD = "fork" if sys.platform == "linux" else "spawn"


def worker_options(n_batches: int, n_workers: int | None) -> dict:
    """How many processes decode, and how they start; None chooses by the cores and the work."""
    if n_workers is None:
        is_worth_it = START_METHOD == "fork" or n_batches >= 32
        n_workers = min(max(1, n_cores() // local_world_size()), 16, n_batches) if is_worth_it else 0
    if not n_workers:
        return {"num_workers": 0}
    end_workers_at_exit()
    return {
        "num_workers": n_workers,
        "multiprocessing_context": START_METHOD,
        "prefetch_factor": 4,
        "worker_init_fn": start_worker,
    }
