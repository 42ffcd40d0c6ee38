"""The photos that the splits of an earlier run do not list: new ones, and listed ones under another name."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, TypedDict, TypeVar

from photo_classifier.data.image_files import nfc
from photo_classifier.data.samples import Sample, Splits
from photo_classifier.runtime.files import file_state, read_json
from photo_classifier.runtime.plain_values import first_mismatch
from photo_classifier.runtime.text import escape_surrogates

T = TypeVar("T")

SAMPLES = "samples.json"  # a run writes it beside its splits.csv


class SavedSamples(TypedDict):
    """What `samples.json` holds of the images of each split.

    `splits` are the fields of a `Splits`, with each sample as a row of `columns`; `files` are the size and the
    modification time of each image when the run began.
    """

    columns: list[str]
    splits: dict[str, Any]
    files: dict[str, list[tuple[int, int] | None]]


def find_moved(file: str, gone: Sequence[str], unlisted: Sequence[Sample]) -> dict[str, Sample]:
    """Returns the images that are listed under another path, by that path.

    They have the size that the run noted, and its modification time or the same file name, and no other has.

    Args:
        file: the `splits.csv` in the folder of its run; without the run's other files, none is recognised.
        gone: the listed paths where no file is now.
        unlisted: the images that no line lists.
    """
    states = _states_of_run(os.path.dirname(file)) if gone and unlisted else {}
    if not states:
        return {}
    now = {sample: state for sample in unlisted if (state := file_state(sample.path))}
    moved = _pairs({path: states.get(path) for path in gone}, now)
    names = {path: (nfc(os.path.basename(path)), states[path][0]) for path in gone if path in states}
    left = {sample: (nfc(os.path.basename(sample.path)), state[0]) for sample, state in now.items()}
    taken = set(moved.values())
    return moved | _pairs(
        {path: key for path, key in names.items() if path not in moved},
        {sample: key for sample, key in left.items() if sample not in taken},
    )


def _states_of_run(folder: str) -> dict[str, tuple[int, ...]]:
    """Returns size and modification time of each image when the run began, by its path."""
    content = read_json(os.path.join(folder, SAMPLES))
    if first_mismatch(content, SavedSamples) or "path" not in content["columns"]:
        return {}
    column, states = content["columns"].index("path"), {}
    for split, files in content["files"].items():
        rows = content["splits"].get(split)
        if not first_mismatch(rows, list[list]):
            known = zip(rows, files, strict=False)
            known = [(row[column], state) for row, state in known if state and len(row) > column]
            states |= {escape_surrogates(str(path)): tuple(state) for path, state in known}
    return states


def _pairs(keys: Mapping[str, Hashable], others: Mapping[T, Hashable]) -> dict[str, T]:
    """Returns what has the same key in both, where no second one has it."""
    n_keys, n_others = Counter(keys.values()), Counter(others.values())
    by_key = {key: other for other, key in others.items() if n_others[key] == 1}
    return {name: by_key[key] for name, key in keys.items() if key in by_key and n_keys[key] == 1}


def trainable(new: Sequence[Sample], held_out: Sequence[Sample]) -> tuple[list[Sample], dict[str, list[str]]]:
    """Returns the new images that can train without leaking what is held out, and the paths of the others by reason."""
    groups = {sample.group for sample in held_out if sample.group}
    of_group = [sample.path for sample in new if sample.group in groups]
    copies = _copies([sample for sample in new if sample.group not in groups], held_out)
    left_out = {*of_group, *copies}
    return [sample for sample in new if sample.path not in left_out], {
        "left out because their group is in validation or test": of_group,
        "left out because the same photo is in validation or test": copies,
    }


def _copies(new: Sequence[Sample], held_out: Sequence[Sample]) -> list[str]:
    """Returns the paths of the new images that have the bytes of one that is held out."""
    from photo_classifier.data.checks import find_duplicates

    groups = find_duplicates(Splits("", "", [], list(new), list(held_out), [])).groups()
    leaks = (group for group in groups if len({copy.split for copy in group}) > 1)
    return [copy.path for group in leaks for copy in group if copy.split == "train"]
