"""Clusters of near-duplicates: their table, and samples that are kept together or reduced to one of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch

from photo_classifier.curation.near_duplicates import Links, clusters, find_pairs
from photo_classifier.data.decoding import BadImage, decode
from photo_classifier.data.samples import SPLIT_FOLDERS, Parts, Sample, split_title
from photo_classifier.data.thumbnails import DETAIL, thumbnail_row, unpack_rows
from photo_classifier.runtime.console import progress
from photo_classifier.runtime.device import n_cores
from photo_classifier.runtime.text import pluralize


@dataclass(frozen=True)
class NearDuplicate:
    """A photo of a cluster (numbered from 1), the most similar one it was compared with, and how similar, up to 1.

    That is one before it in the cluster if there is any. The first photo of a cluster has none.
    """

    sample: Sample
    cluster: int
    similar_to: str = ""
    similarity: float | None = None

    def row(self, split_of: Mapping[str, str]) -> dict[str, object]:
        """Returns the row of `duplicates.csv`; a photo without a split was dropped."""
        similarity = "" if self.similarity is None else round(self.similarity, 3)
        found = {"similar_to": self.similar_to, "similarity": similarity, "cluster": self.cluster}
        split = split_of.get(self.sample.path, "dropped")
        return {"path": self.sample.path, **found, "label": self.sample.label, "split": split}


def find_near_duplicates(samples: Sequence[Sample], thumbnails: torch.Tensor) -> list[NearDuplicate]:
    """Returns the photos that show the same picture as another, by cluster; `thumbnails` are uint8 (n, side, side)."""
    pairs = find_pairs(thumbnails)
    nearest: dict[int, tuple[bool, float, int]] = {}  # those before a photo go first
    for first, second, similarity in zip(*(values.tolist() for values in pairs), strict=True):
        for one, other in ((first, second), (second, first)):
            nearest[one] = max(nearest.get(one, (False, 0.0, 0)), (other < one, similarity, other))
    root = clusters(len(samples), pairs)
    number = {first: n for n, first in enumerate(sorted({root[index] for index in nearest}), 1)}

    def photo(index: int) -> NearDuplicate:
        """Returns a photo with its cluster and the photo that it resembles most."""
        _, similarity, other = nearest[index]
        like = () if index == root[index] else (samples[other].path, similarity)
        return NearDuplicate(samples[index], number[root[index]], *like)

    return [photo(index) for index in sorted(nearest, key=lambda index: (root[index], index))]


def by_cluster(found: Sequence[NearDuplicate]) -> list[list[NearDuplicate]]:
    """Returns the photos of each cluster."""
    groups: dict[int, list[NearDuplicate]] = {}
    for photo in found:
        groups.setdefault(photo.cluster, []).append(photo)
    return list(groups.values())


def is_mixed(cluster: Sequence[NearDuplicate]) -> bool:
    """Returns whether the labels of a cluster contradict each other."""
    return len({photo.sample.label for photo in cluster}) > 1


def contradictions(found: Sequence[NearDuplicate]) -> str:
    """Returns `2 of them have photos of several classes (a.jpg is cat, b.jpg is dog)`, or an empty text."""
    mixed = [cluster for cluster in by_cluster(found) if is_mixed(cluster)]
    if not mixed:
        return ""
    first = mixed[0][0].sample
    other = next(photo.sample for photo in mixed[0] if photo.sample.label != first.label)
    return (
        f"{len(mixed)} of them {'have' if len(mixed) > 1 else 'has'} photos of several classes "
        f"({first.path} is {first.label}, {other.path} is {other.label})"
    )


def settle(what: str, max_pixels: int, found: list[NearDuplicate]) -> Callable[[Parts], tuple[Parts, list[str]]]:
    """Returns what `load_splits` does about near-duplicates before it makes splits; adds them to `found`.

    Args:
        what: `group` keeps those of a cluster in one split and fold, `drop` keeps one of each cluster: the first, test
            photos before validation photos and these before training photos. Test photos are never dropped.
    """

    def settled(parts: Parts) -> tuple[Parts, list[str]]:
        """Returns the samples by split with their groups, or without copies, and notes on what was done."""
        ordered = [sample for name in reversed(SPLIT_FOLDERS) for sample in parts.get(name, [])]
        readable, thumbnails = _with_thumbnails(ordered, max_pixels)
        found.extend(find_near_duplicates(readable, thumbnails))
        if not found:
            return parts, ["no near-duplicates were found"]
        if what == "drop":
            return _thinned(parts, readable, found)
        where = ", except in splits that came with the data" if len(parts) > 1 else ""
        return _grouped(parts, found), [_note(found, f"each cluster is kept together{where}")]

    return settled


def _thinned(parts: Parts, readable: Sequence[Sample], found: Sequence[NearDuplicate]) -> tuple[Parts, list[str]]:
    """Returns the samples with the first of each cluster, and notes.

    A cluster of several classes is kept whole and together, as nothing says which label is right. A class that would
    lose all its photos in a split keeps them there.
    """
    mixed = [photo for cluster in by_cluster(found) if is_mixed(cluster) for photo in cluster]
    extra = {photo.sample.path for cluster in by_cluster(found) if not is_mixed(cluster) for photo in cluster[1:]}
    gone = extra - {sample.path for sample in parts.get("test", [])}
    left, notes = {sample.path for sample in readable} - gone, []
    for name, part in parts.items():
        emptied = {sample.label for sample in part} - {sample.label for sample in part if sample.path in left}
        if kept := {sample.path for sample in part if sample.label in emptied} & gone:
            gone -= kept
            classes, split = ", ".join(sorted(emptied)), split_title(name)
            notes.append(
                f"{pluralize(len(kept), 'near-duplicate')} of {classes} kept in {split}, or the class would have none "
                "there: see duplicates.csv in the run folder, and add other photos"
            )
    kept = {name: [sample for sample in part if sample.path not in gone] for name, part in parts.items()}
    note = _note(found, f"{pluralize(len(gone), 'photo')} dropped, the first of each cluster kept")
    if mixed:
        note += f", so all {len(mixed):,} are kept: see duplicates.csv in the run folder, and correct the labels"
    return _grouped(kept, mixed), [note, *notes]


def _note(found: Sequence[NearDuplicate], what: str) -> str:
    n_clusters, contradiction = len(by_cluster(found)), contradictions(found)
    text = f"near-duplicates: {len(found):,} photos in {pluralize(n_clusters, 'cluster')}; {what}"
    return f"{text}; {contradiction}" if contradiction else text


def _grouped(parts: Parts, found: Sequence[NearDuplicate]) -> Parts:
    """Returns the samples with the photos of each cluster in one group."""
    groups = _groups([sample for part in parts.values() for sample in part], found)
    return {name: [_in_group(sample, groups) for sample in part] for name, part in parts.items()}


def _with_thumbnails(samples: Sequence[Sample], max_pixels: int) -> tuple[list[Sample], torch.Tensor]:
    """Returns the samples that can be read, and their thumbnails."""

    def row(sample: Sample) -> torch.Tensor | None:
        """Returns the thumbnail of a photo, or None if it cannot be read."""
        try:
            return None if sample.reason else thumbnail_row(decode(sample.path, DETAIL, max_pixels))
        except BadImage:  # is reported where it is read for training
            return None

    with ThreadPoolExecutor(n_cores()) as pool:
        rows = list(progress(pool.map(row, samples), total=len(samples), desc="near-duplicates", unit="file"))
    readable = [sample for sample, row in zip(samples, rows, strict=True) if row is not None]
    rows = [row for row in rows if row is not None]
    return readable, unpack_rows(torch.stack(rows))[0] if rows else torch.empty(0, 1, 1, dtype=torch.uint8)


def _groups(samples: Sequence[Sample], found: Sequence[NearDuplicate]) -> dict[str, str]:
    """Returns the new group by path, or by the group that a sample had: groups that share a cluster become one.

    A group is named after its smallest key, so that its place in the draws stays as the set grows.
    """
    names = {sample.path: sample.group or sample.path for sample in samples}
    index = {name: n for n, name in enumerate(dict.fromkeys(names.values()))}
    links = Links(range(len(index)))
    for cluster in by_cluster(found):
        first, *others = (index[names[photo.sample.path]] for photo in cluster)
        for other in others:
            links.join(first, other)
    members: dict[int, list[str]] = {}
    touched = {links.find(index[names[photo.sample.path]]) for photo in found}
    for sample in samples:
        if (top := links.find(index[names[sample.path]])) in touched:
            members.setdefault(top, []).append(sample.key)
    return {name: f"like {min(members[links.find(n)])}" for name, n in index.items() if links.find(n) in touched}


def _in_group(sample: Sample, groups: Mapping[str, str]) -> Sample:
    group = groups.get(sample.group or sample.path)
    return replace(sample, group=group) if group else sample
