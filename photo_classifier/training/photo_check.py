"""The photos of a run, checked at its end: duplicates.csv, odd.csv and odd.png."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path

import torch
from PIL import Image

from photo_classifier.curation.clusters import NearDuplicate, by_cluster, contradictions, find_near_duplicates
from photo_classifier.curation.held_out import mean_features
from photo_classifier.curation.odd_photos import draw_odd, odd_photos
from photo_classifier.data.samples import Sample, Splits
from photo_classifier.data.thumbnails import unpack_rows
from photo_classifier.features.loader import SplitFeatures
from photo_classifier.runtime.text import pluralize
from photo_classifier.training.run import Run
from photo_classifier.training.run_folder import read_table, write_table
from photo_classifier.training.summary import INDENT


def check_photos(
    run: Run,
    features: Mapping[str, SplitFeatures],
    folds: Sequence[int],
    seeks_duplicates: bool,
    open_photo: Callable[[str], Image.Image],
) -> list[str]:
    """Finds near-duplicates and odd photos among all photos, by what is stored of them; lists them in the run folder.

    Args:
        features: of a frozen backbone, by split.
        folds: of each training photo in a run by folds.
        seeks_duplicates: whether nothing was done about near-duplicates before training.

    Returns:
        A line on each kind that was found.
    """
    samples, rows, vectors, parts = _stored(run.splits, features)
    thumbnails, traits = unpack_rows(rows)
    found = find_near_duplicates(samples, thumbnails) if seeks_duplicates else []
    if found:
        write_duplicates(run.folder, run.splits, found)
    odd = odd_photos(samples, traits, vectors, parts)
    write_table(run.folder / "odd.csv", [photo.row() for photo in odd])
    if picture := draw_odd(odd, open_photo, run.spare_seconds):
        run.epochs.add_picture("odd", "Photos/odd", picture)
    lines = [_text(run, found, _sides(run.splits, folds))] if found else []
    if odd:
        look = f"{pluralize(len(odd), 'photo')} {'look' if len(odd) > 1 else 'looks'} odd: see {run.folder / 'odd.png'}"
        lines.append(f"{look}\n{INDENT}first {odd[0].sample.path}: {odd[0].reason}")
    return lines


def write_duplicates(folder: Path, splits: Splits, found: Sequence[NearDuplicate]) -> None:
    """Writes the table of all near-duplicates with their splits; those that are in none were dropped.

    What the table says of copies that were dropped before stays, behind the others.
    """
    path = folder / "duplicates.csv"
    split_of = {sample.path: name for name, part in named_parts(splits).items() for sample in part}
    rows = [photo.row(split_of) for photo in found]
    known, n = {row["path"] for row in rows}, found[-1].cluster
    for row in read_table(path):
        if row["path"] not in known and row["path"] not in split_of:
            rows.append({**row, "cluster": n + int(row["cluster"]), "split": "dropped"})
    write_table(path, rows)


def named_parts(splits: Splits) -> dict[str, list[Sample]]:
    """Returns the splits in which each photo is once: in a run by folds, validation is training."""
    return {name: part for name, part in splits.by_name().items() if not (splits.is_pooled and name == "valid")}


def _stored(
    splits: Splits, features: Mapping[str, SplitFeatures]
) -> tuple[list[Sample], torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns the photos that could be read, their stored rows of thumbnails, their features, and numbers of splits."""
    samples, rows, vectors, parts = [], [], [], []
    for number, (name, part) in enumerate(named_parts(splits).items()):
        means, indices = mean_features(features[name])
        if len(indices):
            samples += [part[index] for index in indices.tolist()]
            rows.append(features[name].thumbnails.rows(indices))
            vectors.append(means)
            parts.append(torch.full((len(indices),), number))
    return samples, torch.cat(rows), torch.cat(vectors), torch.cat(parts)


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
