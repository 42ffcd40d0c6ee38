"""Tables of images: one line per image, with its path and what is known about it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from photo_classifier.data.image_files import is_image_name, nfc
from photo_classifier.data.label_cells import ReadLabel, label_reader, names_of_numbers, one_hot_columns, one_hot_label
from photo_classifier.data.samples import split_of
from photo_classifier.data.table_columns import (
    LABEL_COLUMNS,
    PATH_COLUMNS,
    SPLIT_COLUMNS,
    USUAL,
    Columns,
    boolean_splits,
    find_column,
)
from photo_classifier.data.table_files import LISTS, read_cells
from photo_classifier.runtime.errors import UserError

CHECKED = {"suggested", "probability", "reason"}  # columns of suspects.csv
ONE_LABEL = "this tool takes one label for each image"


@dataclass(frozen=True)
class Row:
    """One line of a table; cells that it lacks are empty. `fault` says why it has no label."""

    line: int
    path: str
    label: str
    group: str
    split: str
    fault: str = ""


class Table:
    """A table whose columns are known: CSV, Excel, JSON, or lines of a path and a label.

    Without a label column, two or more columns of zeros and ones are the classes.

    Args:
        file: the table.
        columns: the names of columns that do not have one of the usual names.

    Raises:
        UserError: the table cannot be read, or it lacks a column that was named.
    """

    def __init__(self, file: str | Path, columns: Columns = USUAL) -> None:
        self.file = str(file)
        self.cells = read_cells(self.file)
        self.header = self.cells.header
        usual = {"path": PATH_COLUMNS, "label": LABEL_COLUMNS, "group": ("group",), "split": SPLIT_COLUMNS}
        self.path, self.label, self.group, self.split = (
            find_column(f"{file}: --{kind}_column", self.header, getattr(columns, kind), names)
            for kind, names in usual.items()
        )
        self.label = self.label or self._only_other_column()
        self._is_split_given = bool(columns.split)
        used = {self.path, self.group, self.split}
        self.one_hot = [] if self.label else one_hot_columns(self.header, self.cells.lines, used)

    def _only_other_column(self) -> str | None:
        """Returns the column beside that of the paths in a table of two, if its cells repeat as labels do."""
        others = [name for name in self.header if name not in (self.path, self.group, self.split)]
        is_pair = self.path and len(self.header) == 2 and len(others) == 1
        return others[0] if is_pair and len(set(self.cells.of(others[0]))) <= len(self.cells.lines) / 2 else None

    def is_result(self) -> bool:
        """Returns whether predict.py wrote it."""
        return list(self.header[:3]) == ["file_dir", "predict", "probability"]

    def is_label_check(self) -> bool:
        """Returns whether train.py wrote it, as the suspects.csv of a run."""
        return CHECKED.issubset(self.header)

    def is_of_a_run(self) -> bool:
        """Returns whether train.py wrote it: each of its labels is the name of a class as it stands."""
        is_splits = os.path.basename(self.file) == "splits.csv" and list(self.header[:3]) == ["path", "label", "split"]
        return is_splits or self.is_label_check()

    def lists_images(self) -> bool:
        """Returns whether the first lines name images, as a text or JSON file of something else does not."""
        return any(is_image_name(cell) for _, cells in self.cells.lines[:20] for cell in cells)

    def require(self, *kinds: str) -> None:
        """Checks that the table has columns of these kinds, such as `path` and `label`.

        Raises:
            UserError: one is missing; the message says which flag names it.
        """
        missing = [kind for kind in kinds if not getattr(self, kind) and not (kind == "label" and self.one_hot)]
        if missing:
            raise UserError(f"{self.file} {self._lacks(missing, is_all=len(missing) == len(kinds))}")

    def _lacks(self, missing: Sequence[str], is_all: bool) -> str:
        if is_all and self.file.lower().endswith(LISTS):
            return (
                "is not a list of images and labels; expected lines such as `a.jpg cat`, or a first line that names "
                "the columns, such as path,label"
            )
        flags = " and ".join(f"the {kind} column with --{kind}_column" for kind in missing)
        if self.cells.first:
            return f"has no header line; its columns are called {self.cells.first_line()}; name {flags}"
        hint = "; if these are not column names, add a line above them that gives the names, such as path,label"
        is_doubtful = is_all and any(map(str.isdigit, "".join(self.header)))
        return f"has the columns {', '.join(self.header)}; name {flags}{hint if is_doubtful else ''}"

    def description(self) -> str:
        """Returns the file name and the columns that are read, for the console."""
        label = f"a column of zeros and ones for each of {len(self.one_hot)} classes" if self.one_hot else self.label
        split = self.split and (self.split if self.split.lower() == "split" else f"splits by {self.split}")
        names = (self.path, label, self.group and f"groups by {self.group}", self.has_splits and split)
        return f"{os.path.basename(self.file)}: {', '.join(name for name in names if name)}"

    def notes(self) -> list[str]:
        """Returns what was guessed of the file: its columns, its encoding, the names of numbered classes."""
        found = [f"{self.file} {note}" for note in self.cells.notes()]
        if self.split and not self.has_splits:
            found.append(
                f"{self.file}: {self.split} is not used for the splits, as not all of its cells are train, val or test"
            )
        names = self._names_of_numbers[0]
        return found + ([f"{self.file}: the names of its numbered classes come from {names}"] if names else [])

    def rows(self) -> Iterator[Row]:
        """Yields the lines in order, without the blank ones."""
        booleans = boolean_splits(self.split, self.cells.of(self.split)) if self.split else {}
        columns = [self.header.index(name) if name else None for name in (self.path, self.group, self.split)]
        for number, cells in self.cells.lines:
            if any(cells):
                path, group, split = ("" if column is None else cells[column] for column in columns)
                label, fault = self._label_of(cells)
                yield Row(number, path, label, nfc(group), booleans.get(split.lower(), nfc(split)), fault)

    def _label_of(self, cells: Sequence[str]) -> tuple[str, str]:
        if self.one_hot:
            return one_hot_label([self.header[n] for n in self.one_hot], [cells[n] for n in self.one_hot])
        return self._read_label(cells[self.header.index(self.label)]) if self.label else ("", "has no label")

    @cached_property
    def _read_label(self) -> ReadLabel:
        return label_reader(self.cells.of(self.label), self._names_of_numbers[1], not self.is_of_a_run())

    @cached_property
    def _names_of_numbers(self) -> tuple[str, dict[str, str]]:
        is_numbered = self.label and (self.cells.first or self.label.lower().endswith("_id"))
        return names_of_numbers(os.path.dirname(self.file), set(self.cells.of(self.label))) if is_numbered else ("", {})

    @cached_property
    def has_splits(self) -> bool:
        """Whether the split column divides the images: it does if it was named, or names nothing but splits.

        One that is called `split` may also have wrong cells, which are faults.
        """
        if not self.split or self._is_split_given:
            return bool(self.split)
        found = {split_of(row.split) for row in self.rows()}
        return "train" in found if None not in found else self.split.lower() == "split" and len(found) > 1
