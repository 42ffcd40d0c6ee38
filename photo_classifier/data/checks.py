"""Finds what is wrong with a data set before training: unreadable files, duplicates, leaks."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

from photo_classifier.data.decoding import BadImage, check_header
from photo_classifier.data.samples import SPLIT_FOLDERS, Sample, Splits
from photo_classifier.runtime.console import progress
from photo_classifier.runtime.device import n_cores
from photo_classifier.runtime.errors import UserError
from photo_classifier.runtime.text import pluralize

K = TypeVar("K")

ON_LEAK = ("warn", "drop", "error")
END_BYTES = 4096


def find_unreadable(samples: Sequence[Sample], max_pixels: int) -> dict[str, str]:
    """Returns path -> reason for every file that is known to be unreadable, or whose header shows it."""

    def reason_of(sample: Sample) -> str | None:
        """Returns why a file cannot be read, as far as its header shows."""
        if sample.reason:
            return sample.reason
        try:
            check_header(sample.path, max_pixels)
        except BadImage as error:
            return str(error)
        return None

    with ThreadPoolExecutor(n_cores()) as pool:  # mostly waits for the disk
        reasons = pool.map(reason_of, samples)
        checked = progress(zip(samples, reasons, strict=True), total=len(samples), desc="checking", unit="file")
        return {sample.path: reason for sample, reason in checked if reason}


def drop_samples(splits: Splits, paths: Iterable[str]) -> Splits:
    """Returns the splits without some files.

    Raises:
        UserError: a class has no training image left, or there is no validation image left.
    """
    gone = set(paths)
    left = {name: [s for s in getattr(splits, name) if s.path not in gone] for name in SPLIT_FOLDERS}
    missing = set(splits.class_names) - {sample.label for sample in left["train"]}
    if missing:
        raise UserError(
            f"no image of {', '.join(sorted(missing))} is left to train on; see skipped.csv and duplicates.csv in the "
            "run folder, and add other images of it, or remove the class"
        )
    if not left["valid"]:
        raise UserError("no image is left to validate on; see --max_bad and --on_leak")
    return replace(splits, **left)


@dataclass(frozen=True)
class Duplicate:
    """One of several files with the same content; `group` is the beginning of its hash."""

    group: str
    path: str
    label: str
    split: str


@dataclass(frozen=True)
class Duplicates:
    """The files that are in two splits or two classes, ordered by group."""

    copies: list[Duplicate]

    def groups(self) -> Iterator[list[Duplicate]]:
        """Yields the copies of each content."""
        by_group: dict[str, list[Duplicate]] = {}
        for copy in self.copies:
            by_group.setdefault(copy.group, []).append(copy)
        yield from by_group.values()

    def rows(self) -> Iterator[dict[str, object]]:
        """Yields the rows of `duplicates.csv`, which has the same columns for near-duplicates."""
        for cluster, group in enumerate(self.groups(), 1):
            for n, copy in enumerate(group):
                like = {"similar_to": group[0].path, "similarity": 1.0} if n else {"similar_to": "", "similarity": ""}
                yield {"path": copy.path, **like, "cluster": cluster, "label": copy.label, "split": copy.split}

    def text(self) -> str:
        """Returns `3 images in two splits (a = b), 1 image in two classes (c = d)`."""
        parts = []
        for what in ("split", "label"):
            groups = [group for group in self.groups() if _differ(group, what)]
            if groups:
                first = groups[0][0]
                other = next(copy for copy in groups[0] if getattr(copy, what) != getattr(first, what))
                name = {"split": "splits", "label": "classes"}[what]
                parts.append(f"{pluralize(len(groups), 'image')} in two {name} ({first.path} = {other.path})")
        return ", ".join(parts)

    def to_drop(self) -> list[str]:
        """Returns the training copies of images that are also in another split or class.

        Between validation and test it is the validation copy; the test split is never changed.
        """
        paths = []
        for group in self.groups():
            splits = {copy.split for copy in group}
            last = "test" if "test" in splits else "valid" if "valid" in splits else ""
            paths += [copy.path for copy in group if copy.split not in (last, "test")]
        return paths


def find_duplicates(splits: Splits) -> Duplicates:
    """Returns the files with identical content in two splits or two classes."""
    pairs = [(split, sample) for split, samples in splits.by_name().items() for sample in samples]
    copies = [
        [Duplicate(digest[:12], sample.path, sample.label, split) for split, sample in group]
        for (_, digest), group in _by_content(pairs).items()
    ]
    wrong = [group for group in copies if _differ(group, "split") or _differ(group, "label")]
    return Duplicates([copy for group in wrong for copy in group])


def group_copies(samples: Sequence[Sample]) -> list[Sample]:
    """Returns the samples with a group for each content that several files have, where they have no group."""
    pairs = [("", sample) for sample in samples]
    groups = {sample.path: digest for (_, digest), group in _by_content(pairs).items() for _, sample in group}
    return [replace(sample, group=sample.group or groups.get(sample.path, "")) for sample in samples]


Pair = tuple[str, Sample]  # with its split


def _by_content(pairs: list[Pair]) -> dict[tuple[int, str], list[Pair]]:
    """Returns files with identical content by its hash; reads only those of equal length, and their ends first."""
    alike = _alike([pairs], _length)
    alike = _alike(alike.values(), _end_hash, "comparing")
    return _alike(alike.values(), _content_hash)


def _alike(groups: Iterable[list[Pair]], key_of: Callable[[str], K], what: str = "") -> dict[tuple[int, K], list[Pair]]:
    """Divides groups by a key of the file; drops files without a key or a match."""
    members = [(number, pair) for number, group in enumerate(groups) for pair in group]
    found: dict[tuple[int, K], list[Pair]] = {}
    with ThreadPoolExecutor(n_cores()) as pool:  # reading and hashing release the GIL
        keys = pool.map(key_of, [pair[1].path for _, pair in members])
        keys = progress(keys, total=len(members), desc=what, unit="file") if what else keys
        for (number, pair), key in zip(members, keys, strict=True):
            if key:
                found.setdefault((number, key), []).append(pair)
    return {key: group for key, group in found.items() if len(group) > 1}


def _differ(group: Sequence[Duplicate], what: str) -> bool:
    return len(Counter(getattr(copy, what) for copy in group)) > 1


def _length(path: str) -> int:
    try:
        status = os.stat(path)
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def _end_hash(path: str) -> str | None:
    """Hashes the last bytes: photos of equal length often start alike but rarely end alike."""
    return _hash(path, from_end=END_BYTES)


def _content_hash(path: str) -> str | None:
    return _hash(path)


def _hash(path: str, from_end: int | None = None) -> str | None:
    digest = hashlib.blake2b(digest_size=16)
    try:
        with open(path, "rb") as file:
            if from_end:
                file.seek(max(0, file.seek(0, os.SEEK_END) - from_end))
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError:  # reported as unreadable elsewhere
        return None
    return digest.hexdigest()
