"""Near-duplicates among the photos of a run: duplicates.csv, and a line on those that training and test share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import torch

from photo_classifier.curation.clusters import NearDuplicate, by_cluster, contradictions, find_near_duplicates
from photo_classifier.data.samples import Sample, Splits
from photo_classifier.data.thumbnails import unpack_rows
from photo_classifier.features.loader import SplitFeatures
from photo_classifier.runtime.text import pluralize
from photo_classifier.training.run import Run
from photo_classifier.training.run_folder import write_table
from photo_classifier.training.summary import INDENT


def check_duplicates(run: Run, features: Mapping[str, SplitFeatures], folds: Sequence[int]) -> str:
    """Finds near-duplicates among all photos by their stored thumbnails, and lists them in `duplicates.csv`.

    Args:
        folds: of each training photo in a run by folds.

    Returns:
        A line on them; empty if there are none.
    """
    samples, thumbnails = stored_thumbnails(run.splits, features)
    found = find_near_duplicates(samples, unpack_rows(thumbnails)[0])
    if not found:
        return ""
    write_duplicates(run.folder, run.splits, found)
    return _text(run, found, _sides(run.splits, folds))


def write_duplicates(folder: Path, splits: Splits, found: Sequence[NearDuplicate]) -> None:
    """Writes the table of all near-duplicates with their splits; those that are in none were dropped."""
    split_of = {sample.path: name for name, part in named_parts(splits).items() for sample in part}
    write_table(folder / "duplicates.csv", [photo.row(split_of) for photo in found])


def named_parts(splits: Splits) -> dict[str, list[Sample]]:
    """Returns the splits in which each photo is once: in a run by folds, validation is training."""
    return {name: part for name, part in splits.by_name().items() if not (splits.is_pooled and name == "valid")}


def stored_thumbnails(splits: Splits, features: Mapping[str, SplitFeatures]) -> tuple[list[Sample], torch.Tensor]:
    """Returns all photos that have a stored thumbnail, and its row: uint8 (n, bytes)."""
    samples, rows = [], []
    for name, part in named_parts(splits).items():
        small = features[name].thumbnails
        indices = small.is_readable.nonzero()[:, 0]
        if len(indices):
            samples += [part[index] for index in indices.tolist()]
            rows.append(small.rows(indices))
    return samples, torch.cat(rows)


def _sides(splits: Splits, folds: Sequence[int]) -> dict[str, str]:
    """Returns which photos are trained on together, by path."""
    sides = {sample.path: name for name, part in named_parts(splits).items() for sample in part}
    return sides | {sample.path: f"fold {fold}" for sample, fold in zip(splits.train, folds, strict=False)}


def _text(run: Run, found: Sequence[NearDuplicate], sides: Mapping[str, str]) -> str:
    groups = by_cluster(found)
    text = f"{len(found):,} photos are near-duplicates, in {pluralize(len(groups), 'cluster')}"
    if contradiction := contradictions(found):
        text += f"; {contradiction}"
    text += f": see {run.folder / 'duplicates.csv'}"
    pairs = (pair for group in groups for pair in combinations([sides[photo.sample.path] for photo in group], 2))
    if n := sum(_straddles(*pair) for pair in pairs):
        where = "in different folds or in test" if run.splits.is_pooled else "in training and in validation or test"
        text += (
            f"\n{INDENT}{pluralize(n, 'pair')} {'are' if n > 1 else 'is'} {where}, so the accuracy looks too good"
            f"\n{INDENT}start a new run with --near_duplicates group (they stay together) or drop (one of each is left)"
        )
    return text


def _straddles(one: str, other: str) -> bool:
    """Whether one of two photos is trained on while the other is held out."""
    return one != other and not {one, other} <= {"valid", "test"}
