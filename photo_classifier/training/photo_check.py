"""The photos of a run, checked at its end: duplicates.csv, odd.csv and odd.png."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from pathlib import Path

import torch
from PIL import Image

from photo_classifier.curation.clusters import (
    NearDuplicate,
    by_cluster,
    contradictions,
    find_near_duplicates,
    is_mixed,
)
from photo_classifier.curation.held_out import mean_features
from photo_classifier.curation.odd_photos import draw_odd, n_shown, odd_photos
from photo_classifier.data.samples import Sample, Splits, straddles
from photo_classifier.data.thumbnails import unpack_rows
from photo_classifier.features.loader import SplitFeatures
from photo_classifier.runtime.text import pluralize
from photo_classifier.training.run import Run
from photo_classifier.training.run_folder import read_table, write_table
from photo_classifier.training.summary import INDENT

Crossing = tuple[list[NearDuplicate], list[tuple[str, str]]]


def check_photos(
    run: Run,
    features: Mapping[str, SplitFeatures],
    folds: Sequence[int],
    near_duplicates: str,
    open_photo: Callable[[str], Image.Image],
) -> list[str]:
    """Finds near-duplicates and odd photos among all photos, by what is stored of them; lists them in the run folder.

    Args:
        features: of a frozen backbone, by split.
        folds: of each training photo in a run by folds.
        near_duplicates: what was done about them before training: `warn` is nothing, and lists them all. After
            `group` and `drop` they are listed already, and only those that straddle the splits are named.

    Returns:
        A line on each kind that was found.
    """
    samples, rows, vectors, parts = _stored(run.splits, features)
    thumbnails, traits = unpack_rows(rows)
    found = find_near_duplicates(samples, thumbnails)
    crossing = _crossing(found, _sides(run.splits, folds))
    if near_duplicates != "warn" and not crossing:
        found = []
    if found and (near_duplicates == "warn" or not (run.folder / "duplicates.csv").exists()):
        write_duplicates(run.folder, run.splits, found)
    odd = odd_photos(samples, traits, vectors, parts, n_shown(len(samples)))
    write_table(run.folder / "odd.csv", [photo.row() for photo in odd])
    if picture := draw_odd(odd, open_photo, run.spare_seconds):
        run.epochs.add_picture("odd", "Photos/odd", picture)
    lines = [_text(run, found, crossing, near_duplicates)] if found else []
    if n_odd := sum(photo.score >= 1 for photo in odd):
        look = f"{pluralize(n_odd, 'photo')} {'look' if n_odd > 1 else 'looks'} odd: see {run.folder / 'odd.png'}"
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


def _crossing(found: Sequence[NearDuplicate], sides: Mapping[str, str]) -> list[Crossing]:
    """Returns the clusters with a photo that is trained on while another is held out, and those pairs of sides."""
    pairs = ((group, combinations([sides[photo.sample.path] for photo in group], 2)) for group in by_cluster(found))
    crossing = [(group, [pair for pair in sides if straddles(*pair)]) for group, sides in pairs]
    return [(group, sides) for group, sides in crossing if sides]


def _text(run: Run, found: Sequence[NearDuplicate], crossing: Sequence[Crossing], done: str) -> str:
    text = f"{len(found):,} photos are near-duplicates, in {pluralize(len(by_cluster(found)), 'cluster')}"
    if contradiction := contradictions(found):
        text += f"; {contradiction}"
    text += f": see {run.folder / 'duplicates.csv'}"
    if crossing:
        held_out = "one photo is trained on while another is held out, so the accuracy looks too good"
        text += f"\n{INDENT}in {pluralize(len(crossing), 'cluster')} {held_out}"
        text += f"\n{INDENT}{_advice(crossing, run.splits, done)}"
    return text


def _advice(crossing: Sequence[Crossing], splits: Splits, done: str) -> str:
    """Returns what helps: splits that came with the data are not divided again, and `drop` keeps contradictions."""
    given = {"valid", "test"} - set(splits.made)
    if done == "warn" and not any(given & {*pair} for _, sides in crossing for pair in sides):
        return "start a new run with --near_duplicates group (they stay together) or drop (one of each is left)"
    if done == "drop":
        return "correct the labels of clusters of several classes, or add other photos, and start a new run"
    first = "correct the labels of clusters of several classes, and " if any(is_mixed(c) for c, _ in crossing) else ""
    return f"{first}start a new run with --near_duplicates drop: one photo of each cluster is left, and all test photos"
