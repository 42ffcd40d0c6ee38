"""Batches: what a loader yields, and in which order."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from photo_classifier.data.decoding import BadImage, decode
from photo_classifier.data.preprocess import Preprocess, eval_transform
from photo_classifier.data.samples import Sample
from photo_classifier.data.thumbnails import ROW, small_picture, thumbnail_row
from photo_classifier.data.workers import START_METHOD, batch_bytes, worker_options
from photo_classifier.runtime.device import n_cores
from photo_classifier.runtime.launcher import shard
from photo_classifier.runtime.seeding import derive_seed
from photo_classifier.runtime.uncompiled import v2

T = TypeVar("T", bound=tuple)


class Batch(NamedTuple):
    """What a loader yields. Images that could not be read are only in `bad`.

    Where they were asked for, `pictures` are the pixels of the small pictures of all images in a row, as a tensor each
    would take a file descriptor, and `sizes` the height and width of each.
    """

    images: torch.Tensor  # uint8 (n, 3, image_size, image_size), channels-last
    labels: torch.Tensor  # int64 (n,); -1 if the label is unknown
    indices: torch.Tensor  # int64 (n,), positions in the list of samples
    bad: list[tuple[int, str]]  # (position, reason)
    pictures: torch.Tensor | None = None  # uint8 (bytes,)
    sizes: Sequence[tuple[int, int]] = ()

    def small_pictures(self) -> Iterator[torch.Tensor]:
        """Yields the small picture of each image, uint8 (height, width, 3)."""
        pixels = self.pictures.split([3 * height * width for height, width in self.sizes])
        return (part.view(*size, 3) for part, size in zip(pixels, self.sizes, strict=True))


class ViewBatch(NamedTuple):
    """Several views of several images; `views` lists (sample index, view) of each.

    `thumbnails` are rows, uint8 (n, bytes), of the samples in `pictured`.
    """

    images: torch.Tensor
    views: list[tuple[int, int]]
    bad: list[tuple[int, str]]
    thumbnails: torch.Tensor
    pictured: list[int]


def collate(items: list[tuple]) -> Batch:
    """Stacks the readable images and keeps the reasons for the others.

    Args:
        items: (index, label, image or reason), and for some the small picture.
    """
    good = [item for item in items if not isinstance(item[2], str)]
    labels = torch.tensor([label for _, label, *_ in good], dtype=torch.int64)
    indices = torch.tensor([index for index, *_ in good], dtype=torch.int64)
    bad = [(index, reason) for index, _, reason, *_ in items if isinstance(reason, str)]
    pictures = [picture for _, _, _, *more in good for picture in more]
    pixels = torch.cat([picture.view(-1) for picture in pictures]) if pictures else None
    sizes = [tuple(picture.shape[:2]) for picture in pictures]
    return shared(Batch(stack([image for _, _, image, *_ in good]), labels, indices, bad, pixels, sizes))


def collate_views(items: list[tuple[int, tuple[int, ...], tuple[list, torch.Tensor | None] | str]]) -> ViewBatch:
    """Stacks the views and the thumbnails of all readable images."""
    good = [(index, views, *images) for index, views, images in items if not isinstance(images, str)]
    view_keys = [(index, view) for index, views, *_ in good for view in views]
    bad = [(index, reason) for index, _, reason in items if isinstance(reason, str)]
    rows = {index: row for index, _, _, row in good if row is not None}
    thumbnails = torch.stack(list(rows.values())) if rows else torch.empty(0, ROW, dtype=torch.uint8)
    images = stack([image for _, _, images, _ in good for image in images])
    return shared(ViewBatch(images, view_keys, bad, thumbnails, list(rows)))


def stack(images: list[torch.Tensor]) -> torch.Tensor:
    """Stacks images of one size to (n, 3, size, size), channels-last, the fastest memory format for convolutions."""
    if not images:
        return torch.empty(0, 3, 0, 0, dtype=torch.uint8)
    return torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)


def shared(batch: T) -> T:
    """Returns the batch; in a worker process its tensors are now in shared memory.

    The queue to the main process would do that later, in a thread whose errors reach nobody: the other side waits for
    ever when the memory is full.
    """
    if get_worker_info():
        for part in batch:
            if isinstance(part, torch.Tensor):
                part.share_memory_()
    return batch


class ImageSource(Protocol):
    """A data set of prepared images, such as `data_loader.ImageDataset`."""

    samples: Sequence[Sample]
    preprocess: Preprocess
    transform: v2.Transform
    seed: int | None
    max_pixels: int

    def __len__(self) -> int:
        """Returns the number of samples."""

    def label_of(self, index: int) -> int:
        """Returns the class index of a sample, or -1 if its label is unknown."""

    def decoded(self, index: int) -> torch.Tensor:
        """Returns the image of a sample before it is prepared, uint8 (3, height, width)."""

    def views(self, index: int, epochs: Sequence[int], image: torch.Tensor | None = None) -> list[torch.Tensor]:
        """Returns the views of a sample in those epochs, uint8 (3, size, size) each."""


class SampleDataset(Dataset):
    """Decodes and prepares the samples that it gets instead of indices.

    Args:
        picture_side: also yields a picture of each photo, of at most that many pixels a side.
    """

    def __init__(
        self, class_names: Sequence[str], preprocess: Preprocess, max_pixels: int, picture_side: int | None = None
    ) -> None:
        self.picture_side = picture_side
        self.class_index = {name: index for index, name in enumerate(class_names)}
        self.preprocess, self.transform, self.max_pixels = preprocess, eval_transform(preprocess), max_pixels

    def __getitem__(self, item: tuple[int, Sample]) -> tuple:
        """Returns (position in the batch, class index or -1, image or the reason why it has none), and the picture."""
        n, sample = item
        label = self.class_index.get(sample.label, -1)
        if sample.reason:
            return n, label, sample.reason
        try:
            image = decode(sample.path, self.preprocess.decode_side, self.max_pixels, self.preprocess.bit_depth)
            picture = [small_picture(image, self.picture_side)] if self.picture_side else []
            return n, label, self.transform(image), *picture
        except BadImage as error:
            return n, label, str(error)


class ViewDataset(Dataset):
    """All wanted views of a sample at once, and its thumbnail.

    Args:
        wanted: lists (sample index, views).
        bare: the samples whose thumbnails are wanted.
    """

    def __init__(
        self, dataset: ImageSource, wanted: Sequence[tuple[int, tuple[int, ...]]], bare: Collection[int] = ()
    ) -> None:
        self.dataset, self.wanted, self.bare = dataset, wanted, bare

    def __len__(self) -> int:
        return len(self.wanted)

    def __getitem__(self, n: int) -> tuple[int, tuple[int, ...], tuple[list, torch.Tensor | None] | str]:
        index, views = self.wanted[n]
        try:
            image = self.dataset.decoded(index)
            thumbnail = thumbnail_row(image) if index in self.bare else None
            return index, views, (self.dataset.views(index, views, image), thumbnail)
        except BadImage as error:
            return index, views, str(error)


class AddressedSampler(Sampler):
    """Batches of `(epoch, index)`: the epoch travels with the index, so workers can stay alive.

    The order of an epoch is a pure function of `(seed, epoch)`; without a seed it is that of the list.
    `start` skips the first batches, which a resumed run has already seen. Each batch is reduced to the slice
    `part`, (number, count), which may be empty: all parts have the same number of batches.
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
            del bounds[-2]  # a single image has no batch statistics: it joins the previous batch
        return bounds

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        order = range(self.n_samples)
        if self.seed is not None:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", self.epoch))
            order = torch.randperm(self.n_samples, generator=generator).tolist()
        for start, end in itertools.pairwise(self._bounds()[self.start :]):
            yield [(self.epoch, index) for index in shard(order[start:end], self.part)]


class StreamBatchSampler:
    """Divides a stream of samples into batches and remembers those already handed out, in order.

    As the batch sampler of a loader it sends the samples themselves to the workers instead of indices: the
    stream is read only as far ahead as the loader prefetches, and the inputs are never listed as a whole.
    """

    def __init__(self, samples: Iterable[Sample], batch_size: int) -> None:
        self._source, self.batch_size = iter(samples), batch_size
        self._peeked: deque[list[Sample]] = deque()
        self.handed_out: deque[list[Sample]] = deque()

    def peek(self, n_batches: int) -> int:
        """Returns the number of batches left, up to `n_batches`."""
        self._peeked.extend(itertools.islice(iter(self._next, []), n_batches - len(self._peeked)))
        return len(self._peeked)

    def _next(self) -> list[Sample]:
        return list(itertools.islice(self._source, self.batch_size))

    def __iter__(self) -> Iterator[list[tuple[int, Sample]]]:
        while batch := self._peeked.popleft() if self._peeked else self._next():
            self.handed_out.append(batch)
            yield list(enumerate(batch))


def make_loader(
    dataset: ImageSource,
    batch_size: int,
    n_workers: int | None = None,
    pin_memory: bool = False,
    part: tuple[int, int] = (0, 1),
) -> DataLoader:
    """Returns a loader over a data set; `loader.batch_sampler.epoch` selects the epoch.

    Args:
        part: the slice of every batch to load, as for `AddressedSampler`.
        n_workers: number of processes that decode; None chooses by the number of cores and images.
    """
    sampler = AddressedSampler(len(dataset), batch_size, dataset.seed, part)
    options = worker_options(len(sampler), n_workers, batch_bytes(dataset.preprocess, batch_size))
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        collate_fn=collate,
        pin_memory=pin_memory,
        persistent_workers=options["num_workers"] > 0,
        **options,
    )


def make_view_loader(
    dataset: ViewDataset, batch_size: int, n_workers: int | None = None, pin_memory: bool = False
) -> DataLoader:
    """Returns a loader over all wanted views, in batches of about `batch_size` images."""
    most_views = max(1, *(len(views) for _, views in dataset.wanted))
    n_samples = max(1, batch_size // most_views)
    n_bytes = batch_bytes(dataset.dataset.preprocess, n_samples * most_views)
    options = worker_options(-(-len(dataset) // n_samples), n_workers, n_bytes)
    return DataLoader(dataset, batch_size=n_samples, collate_fn=collate_views, pin_memory=pin_memory, **options)


def make_stream_loader(
    dataset: SampleDataset, batches: StreamBatchSampler, n_workers: int | None = None, pin_memory: bool = False
) -> DataLoader:
    """Returns a loader of a stream of samples, which is read no further ahead than the workers need."""
    # no more than `worker_options` needs to know: names may arrive slowly on stdin
    n_batches = batches.peek(32 if START_METHOD == "spawn" else min(n_cores(), 16))
    if n_batches < 2 and n_workers is None:  # with a single batch there is nothing to decode meanwhile
        n_workers = 0
    n_bytes = batch_bytes(dataset.preprocess, batches.batch_size)
    n_bytes += 3 * (dataset.picture_side or 0) ** 2 * batches.batch_size
    options = worker_options(n_batches, n_workers, n_bytes)
    return DataLoader(dataset, batch_sampler=batches, collate_fn=collate, pin_memory=pin_memory, **options)
