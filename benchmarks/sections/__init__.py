"""What the sections of trust.py share: photos and their stored features."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from photo_classifier.curation.held_out import mean_features
from photo_classifier.data.samples import Sample


@dataclass
class Photos:
    """A data set: its samples, their classes, and their features: (n, d), of the centre and as the mean of 4 views."""

    name: str
    samples: list[Sample]
    class_names: list[str]
    labels: torch.Tensor
    centre: torch.Tensor
    features: torch.Tensor


def photos_of(options: argparse.Namespace) -> Iterator[Photos]:
    """Yields the sets, one by one, with features as training computes them; what is stored is not computed again."""
    for folder in options.data_dir:
        yield stored_photos(folder, options.features)


def stored_photos(folder: Path, cache: Path) -> Photos:
    """Returns the photos below a folder that can be read."""
    from data_loader import ImageDataset, train_transform
    from model_loader import freeze, get_model
    from photo_classifier.data.discovery import load_splits
    from photo_classifier.data.preprocess import eval_transform
    from photo_classifier.features.extraction import FeatureRequest, extract
    from photo_classifier.models.inference import Engine
    from photo_classifier.runtime.device import choose_precision

    splits = load_splits(str(folder), {"train": 0.8, "valid": 0.2, "test": 0.0}, 0)
    samples = [*splits.train, *splits.valid, *splits.test]
    model = get_model("efficientnet_lite0", len(splits.class_names), pretrained=True)
    freeze(model)
    device, p = torch.device("cpu"), model.preprocess
    engine = Engine(model, device, choose_precision("auto", device), 32)
    requests = {
        "centre": FeatureRequest(ImageDataset(samples, splits.class_names, p, eval_transform(p)), "evaluation"),
        "views": FeatureRequest(
            ImageDataset(samples, splits.class_names, p, train_transform("basic", p), 0), "basic", 4
        ),
    }
    found = dict(extract(engine, requests, cache, 2))
    features, indices = mean_features(found["views"])
    samples = [samples[index] for index in indices.tolist()]
    labels = torch.tensor([splits.class_names.index(sample.label) for sample in samples])
    centre = found["centre"].rows(indices).flatten(1).float()
    return Photos(folder.name, samples, splits.class_names, labels, centre, features)
