"""Tells the one label that the cells of a line give, or why they give none."""

from __future__ import annotations

import functools
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from photo_classifier.data.encodings import encoding_of
from photo_classifier.data.image_files import nfc
from photo_classifier.runtime.text import pluralize

ReadLabel = Callable[[str], tuple[str, str]]  # cell -> label, and why it is empty
ONES, ZEROS = frozenset("1 1.0 true yes x".split()), frozenset(["", *"0 0.0 -1 -1.0 false no".split()])


def one_hot_columns(header: Sequence[str], lines: Sequence[tuple[int, Sequence[str]]], used: set) -> list[int]:
    """Returns the columns of zeros and ones, if there are two or more and a one among them."""
    values = [{cells[n].lower() for _, cells in lines} for n in range(len(header))]
    found = [n for n, name in enumerate(header) if name not in used and values[n] <= ONES | ZEROS and values[n] != {""}]
    return found if len(found) > 1 and any(values[n] & ONES for n in found) else []


def one_hot_label(names: Sequence[str], cells: Sequence[str]) -> tuple[str, str]:
    """Returns the class whose cell is a one, and why it is empty if not exactly one is."""
    ones = [name for name, cell in zip(names, cells, strict=True) if cell.lower() in ONES]
    return (ones[0], "") if len(ones) == 1 else ("", _several(ones) if ones else "has no label")


def label_reader(cells: Iterable[str], names: dict[str, str], has_lists: bool = True) -> ReadLabel:
    """Returns a function from a cell of the label column to its label.

    Several labels are a JSON list, or labels of other lines with a separator between them.

    Args:
        cells: all cells of the column.
        names: those of numbered classes.
        has_lists: whether a cell may hold several labels; otherwise each is the name of a class as it stands.
    """
    known = {cell for cell in cells if cell}
    are_decimal = all(re.fullmatch(r"-?\d+(\.0+)?", cell) for cell in known)

    @functools.cache  # cells repeat
    def read(cell: str) -> tuple[str, str]:
        """Returns the label of a cell, and why it has none that can be used."""
        labels = (_listed(cell) or _separated(cell, known)) if has_lists else []
        if len(labels) > 1:
            return cell, _several(labels)
        label = labels[0] if labels else cell
        label = label.partition(".")[0] if are_decimal else label
        return nfc(names.get(label, label)), "" if label else "has no label"

    return read


def _several(labels: Sequence[str]) -> str:
    return f"has {pluralize(len(labels), 'label')} ({', '.join(labels[:3])})"


def has_several(fault: str) -> bool:
    """Returns whether a fault is that of several labels, of one line or of two about the same image."""
    return "labels (" in fault


def _listed(cell: str) -> list[str]:
    """Returns the texts in a JSON list or object, such as `["cat", "dog"]`."""
    if not cell.startswith(("[", "{")):
        return []
    try:
        pending, found = [json.loads(cell.replace("'", '"') if '"' not in cell else cell)], []
    except (ValueError, RecursionError):
        return []
    while pending:
        value = pending.pop(0)
        pending += value if isinstance(value, list) else list(value.values()) if isinstance(value, dict) else []
        found += [str(value)] if isinstance(value, (str, int, float)) else []
    return list(dict.fromkeys(found))


def _separated(cell: str, known: set[str]) -> list[str]:
    for separator in "|;,":
        parts = [part.strip() for part in cell.split(separator)]
        is_known = known.intersection if separator == "|" else known.issuperset
        if len(parts) > 1 and all(parts) and is_known(parts):
            return parts
    return []


def joined_names_note(class_names: Sequence[str]) -> list[str]:
    """Returns a note on class names that look like several labels, as `apple;red` and `apple;green` do.

    A single one does if its parts are classes too. Names have `,`, `+`, `&` and `/` for other reasons as well, so
    that those must share a part.
    """
    for separator in ";|,+&/":
        parts = {name: {part.strip() for part in name.split(separator)} - {""} for name in class_names}
        times = Counter(part for each in parts.values() for part in each)
        several = [name for name in class_names if len(parts[name]) > 1]
        joined = [name for name in several if separator in ";|" or any(times[part] > 1 for part in parts[name])]
        if len(joined) > 1 or any(parts[name].issubset(class_names) for name in joined):
            look = "looks" if len(joined) == 1 else "look"
            return [
                f"{pluralize(len(joined), 'class name')} {look} like several labels ({', '.join(joined[:2])}): this "
                "tool takes one label for each image, so each combination is a class of its own"
            ]
    return []


# --- numbered classes -------------------------------------------------------------------------

NAME_FILES = ("labels", "classes", "class_names", "names", "synsets", "label_map", "categories", "label_names")


def names_of_numbers(folder: str, labels: set[str]) -> tuple[str, dict[str, str]]:
    """Returns a file that names numbered classes, such as `classes.txt`, and number -> name; empty if there is none.

    Its lines are `number name`, or the names of the classes from 0 on.
    """
    if not labels or not all(re.fullmatch(r"\d+", label) for label in labels):
        return "", {}
    for name in sorted(os.listdir(folder or ".")):
        stem, ending = os.path.splitext(name.lower())
        is_list = stem in NAME_FILES and ending in (".txt", ".names")
        if is_list and (names := _names_in(os.path.join(folder, name), labels)):
            return name, names
    return "", {}


def _names_in(file: str, labels: set[str]) -> dict[str, str]:
    with open(file, "rb") as opened:
        raw = opened.read(1 << 20)
    lines = [line.strip() for line in raw.decode(encoding_of(raw) or "utf-8", "replace").splitlines() if line.strip()]
    pairs = [re.fullmatch(r"(\d+)[\s,:;]+(.+)", line) for line in lines]
    numbered = {pair[1]: pair[2].strip() for pair in pairs if pair} if all(pairs) else {}
    found = numbered or {str(number): line for number, line in enumerate(lines)}
    # a list without numbers may count from 0 or from 1: it does the former if it has a name for 0 and no name too many
    is_sure = bool(numbered) or (len(lines) == max(map(int, labels)) + 1 and "0" in labels)
    return found if is_sure and labels <= found.keys() else {}
