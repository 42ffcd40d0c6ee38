"""Reads the labelled images that tables list, and lists all faults of a table at once."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping

from photo_classifier.data.file_finder import FileFinder
from photo_classifier.data.image_files import ending_of, nfc, walk_images
from photo_classifier.data.label_cells import has_several
from photo_classifier.data.layout_readers import ClassFolder, sample_key
from photo_classifier.data.samples import Sample, split_of
from photo_classifier.data.table_files import SURE
from photo_classifier.data.tables import ONE_LABEL, Row, Table
from photo_classifier.runtime.errors import UserError
from photo_classifier.runtime.text import pluralize

SHOWN = 10  # faults in a message


class TableReader:
    """A `LayoutReader` for images that a table lists with their labels.

    Args:
        tables: one per split; for `""` a column may name the splits.
        root: the folder of the data.
        is_whole: also reports the images below `root` that no line lists.
        is_beside: paths are relative to the folder of their table rather than to `root`.
    """

    def __init__(self, tables: Mapping[str, Table], root: str, is_whole: bool = False, is_beside: bool = False) -> None:
        self.tables, self.root, self.is_whole = tables, root, is_whole
        self.name = root if is_whole else next(iter(tables.values())).file
        self.others: Counter[str] = Counter()
        self.left_out: list[str] = []
        self.missing: list[str] = []
        self.empty: list[ClassFolder] = []
        self.unread: dict[str, str] = {}
        self.n_repeated = 0
        folders = {split: os.path.dirname(table.file) if is_beside else root for split, table in tables.items()}
        by_folder = {folder: FileFinder(folder) for folder in folders.values()}
        self.finders = {split: by_folder[folder] for split, folder in folders.items()}
        self._labels: dict[str, str] | None = None

    def samples(self) -> Iterator[tuple[str, Sample]]:
        """Yields the images in the order of the table; lines that repeat each other count once.

        Raises:
            UserError: lines are wrong; the message lists them.
        """
        seen: dict[str, tuple[str, Row]] = {}
        faults = Faults()
        for split, table in self.tables.items():
            for row in table.rows():
                here = f"line {row.line}" if len(self.tables) == 1 else f"line {row.line} of {table.file}"
                path, fault = self._find(split, row)
                fault = fault or _fault_of(row, table) or (_clash(*seen[path], row) if path in seen else "")
                if fault:
                    faults.add(here, fault)
                elif path in seen:
                    self.n_repeated += 1
                else:
                    seen[path] = here, row
                    yield (split_of(row.split) if table.has_splits and not split else split), self._sample(path, row)
        faults.check(next(iter(self.tables.values())).file, self.missing)
        if self.is_whole:
            self._count_the_rest(set(seen))

    @property
    def advice(self) -> str:
        """What to do if all labels are the same."""
        table = next(iter(self.tables.values()))
        others = [name for name in table.header if name and name not in (table.path, table.label)]
        hint = f", or name another column with --label_column ({', '.join(others)})" if others else ""
        return f"add lines of other classes to {table.file}{hint}"

    @property
    def table_names(self) -> str:
        """The names of the tables, for messages."""
        return " or ".join(os.path.basename(table.file) for table in self.tables.values())

    def _find(self, split: str, row: Row) -> tuple[str, str]:
        """Returns the path of the image, also of one that is missing, and a fault if two files match."""
        fault = ""
        try:
            if found := row.path and self.finders[split](row.path):
                return found, ""
            self.missing += [row.path] if row.path else []
        except UserError as error:
            fault = str(error)
        return os.path.normpath(os.path.join(self.finders[split].root, row.path)), fault

    def _sample(self, path: str, row: Row) -> Sample:
        below = os.path.normpath(self.root) if self.root != "." else ""
        is_below = path.startswith(os.path.join(below, "")) if below else not (os.path.isabs(path) or path[:2] == "..")
        key = sample_key(path, below) if is_below else nfc(row.path).replace("\\", "/")
        return Sample(path, row.label, key, row.group)

    def _count_the_rest(self, seen: set[str]) -> None:
        others: Counter[str] = Counter()
        self.left_out += [path for path in walk_images(self.root, others) if os.path.normpath(path) not in seen]
        others.subtract(ending_of(table.file) for table in self.tables.values())
        self.others += Counter({ending: n for ending, n in others.items() if ending not in SURE})

    def labels(self) -> set[str]:
        """Returns the values of the label column."""
        return {row.label for table in self.tables.values() for row in table.rows() if row.label and not row.fault}

    def label_of(self, path: str) -> str | None:
        """Returns the label in the line that lists this file, or None."""
        if self._labels is None:
            pairs = [(split, row) for split, table in self.tables.items() for row in table.rows()]
            found = ((self.finders[split].find_unambiguous(row.path), row.label) for split, row in pairs)
            self._labels = {path: label for path, label in found if path and label}
        return self._labels.get(os.path.normpath(path))

    def notes(self) -> list[str]:
        """Returns what was guessed of the tables, repeated lines, and files that were found elsewhere."""
        guessed = [note for table in self.tables.values() for note in table.notes()]
        near = [note for finder in dict.fromkeys(self.finders.values()) for note in finder.notes()]
        repeated = f"{pluralize(self.n_repeated, 'line')} of the table that repeat others were counted once"
        return guessed + ([repeated] if self.n_repeated else []) + near


def _fault_of(row: Row, table: Table) -> str:
    """Returns what is wrong with a line by itself."""
    if not row.path:
        return f"has no {table.path}"
    if row.fault == "has no label":
        return f"has no {table.label or 'label'}"
    if not row.fault and table.has_splits and not split_of(row.split):
        if not row.split:
            return f"has no {table.split}"
        return f"has the {table.split} {row.split!r} instead of train, valid or test"
    return row.fault


def _clash(where: str, earlier: Row, row: Row) -> str:
    """Returns how a line differs from an earlier one about the same image, if it does."""
    if earlier.label != row.label:
        return f"has 2 labels ({row.path!r} is {earlier.label} in {where} and {row.label} here)"
    same = (earlier.split, earlier.group) == (row.split, row.group)
    return "" if same else f"lists {row.path!r} in another split or group than {where}"


class Faults:
    """The faults of a table, counted, with the first ones in words."""

    def __init__(self) -> None:
        self.n_faults, self.shown = 0, []
        self.n_several = 0

    def add(self, where: str, fault: str) -> None:
        """Adds the fault of a line."""
        self.n_faults += 1
        self.n_several += has_several(fault)
        if self.n_faults <= SHOWN:
            self.shown.append(f"{where} {fault}")

    def check(self, file: str, missing: list[str]) -> None:
        """Raises a UserError that lists the faults, if there are any, and the missing files with them."""
        if not self.n_faults:
            return
        more = f", and {self.n_faults - SHOWN:,} more" if self.n_faults > SHOWN else ""
        names = ", ".join(missing[:SHOWN]) + ", ..." * (len(missing) > SHOWN)
        gone = f"; {pluralize(len(missing), 'file')} not found ({names})" if missing else ""
        advice = "correct or remove these lines"
        if self.n_several:
            advice = f"{pluralize(self.n_several, 'line')} with several labels: {ONE_LABEL}; {advice}"
        faulty = f"{pluralize(self.n_faults, 'faulty line')}"
        raise UserError(f"{file} has {faulty}: {', '.join(self.shown)}{more}{gone}; {advice}")
