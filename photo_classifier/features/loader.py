"""Stored features of a split, and batches of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from photo_classifier.data.batches import AddressedSampler, Batch, ImageSource
from photo_classifier.features.shards import gather_rows
from photo_classifier.runtime import launcher


@dataclass
class SplitFeatures:
    """Stored features of a split.

    `locations`, (samples, views, 2), holds the shard and row of each view, -1 if the image could not be read;
    `bad` lists those samples with the reason. `thumbnails` has their rows in the same way, as a single view.
    `seconds_per_view` is what computing took, now or when the rows were stored, if that is known.
    """

    dataset: ImageSource
    shards: Sequence[torch.Tensor]
    locations: torch.Tensor
    bad: list[tuple[int, str]]
    thumbnails: SplitFeatures | None = None
    seconds_per_view: float | None = None

    def loader(self, batch_size: int, only: Sequence[int] | None = None) -> FeatureLoader:
        """Returns a loader of batches in the same addressed order as the images' own loader.

        Args:
            only: loads these samples, as if they were the whole split.
        """
        indices = torch.tensor(range(len(self.locations)) if only is None else only, dtype=torch.int64)
        sampler = AddressedSampler(len(indices), batch_size, self.dataset.seed, launcher.rank_and_world_size())
        return FeatureLoader(self, sampler, indices)

    @property
    def is_readable(self) -> torch.Tensor:
        """Which samples could be read, in all of their views: bool (samples,)."""
        return (self.locations[..., 0] >= 0).all(1)

    def rows(self, indices: Sequence[int], view: int = 0) -> torch.Tensor:
        """Returns the features of those samples, (n, ...); all of them must be readable."""
        return gather_rows(self.shards, self.locations[indices, view])


@dataclass
class FeatureLoader:
    """Batches of stored features of the samples of those indices; epoch `e` has view `e mod n_views`."""

    features: SplitFeatures
    batch_sampler: AddressedSampler
    indices: torch.Tensor

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator:
        dataset, locations = self.features.dataset, self.features.locations
        for batch in self.batch_sampler:
            addresses = torch.tensor(batch, dtype=torch.int64).view(-1, 2)  # epoch and index of each
            indices = self.indices[addresses[:, 1]]
            rows = locations[indices, addresses[:, 0] % locations.shape[1]]
            is_good = rows[:, 0] >= 0
            indices, rows = indices[is_good], rows[is_good]
            labels = torch.tensor([dataset.label_of(index) for index in indices.tolist()], dtype=torch.int64)
            # A batch without any readable image still counts: a resumed run continues by the number of batches.
            features = gather_rows(self.features.shards, rows) if len(rows) else torch.empty(0)
            yield Batch(features, labels, indices, [])
