"""Tables of images: a line an image, with its path and what is known of it."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from photo_classifier.data.image_files import is_image_name, nfc
from photo_classifier.runtime.errors import UserError, choose

ENDINGS = (".csv", ".tsv")
PATH_COLUMNS = (
    "path file_path filepath image_path img_path file filename file_name file_dir image image_name image_id img photo "
    "id_code id name 경로 파일 파일명 이미지"
).split()
LABEL_COLUMNS = (
    "label labels class class_name category target species breed diagnosis disease dx y 라벨 레이블 분류 클래스".split()
)


def is_table_name(name: str | Path) -> bool:
    """Whether the ending of a file name is that of a table."""
    return str(name).lower().endswith(ENDINGS)


@dataclass(frozen=True)
class Columns:
    """The names of columns that the user gave; None is guessed by the usual names."""

    path: str | None = None
    label: str | None = None
    group: str | None = None

    def given(self) -> str | None:
        """The first flag that names a column."""
        return next((f"--{what}_column" for what in ("path", "label", "group") if getattr(self, what)), None)


USUAL = Columns()


@dataclass(frozen=True)
class Row:
    """A line of a table; cells that it has not are empty."""

    line: int
    path: str
    label: str
    group: str
    split: str


class Table:
    """A table with a header line: comma, semicolon, tab or bar between its cells; UTF-8, UTF-16 or cp949.

    Args:
        file: the table.
        columns: names for those whose names are not the usual ones.

    Raises:
        UserError: it cannot be read, or has no such column.
    """

    def __init__(self, file: str | Path, columns: Columns = USUAL) -> None:
        self.file = str(file)
        self.encoding = _encoding(file)
        self.delimiter = max(",;\t|", key=_first_line(file, self.encoding).count)
        self.header = [cell.strip() for cell in next(self._cells(), [])]
        if not any(self.header):
            raise UserError(f"{file} is empty; expected a header line that names its columns, like path,label")
        self.path = self._column("path", columns.path, PATH_COLUMNS)
        self.label = self._column("label", columns.label, LABEL_COLUMNS)
        self.group = self._column("group", columns.group, ("group",))
        self.split = self._column("split", None, ("split",))

    def _column(self, what: str, given: str | None, usual: Sequence[str]) -> str | None:
        if given:
            return choose(f"{self.file}: --{what}_column", given, self.header)
        by_name = {name.lower(): name for name in reversed(self.header)}
        return next((by_name[name] for name in usual if name in by_name), None)

    def need(self, *what: str) -> None:
        """Checks that the table has these columns.

        Raises:
            UserError: one is not there; it is to be named by its flag.
        """
        if missing := [name for name in what if getattr(self, name) is None]:
            hint = (
                "; its first line must name the columns, like path,label"
                if any(map(is_image_name, self.header))
                else ""
            )
            flags = " and ".join(f"the one with the {name}s by --{name}_column" for name in missing)
            raise UserError(f"{self.file} has the columns {', '.join(self.header)}; name {flags}{hint}")

    def about(self) -> str:
        """The table and the columns that are read, for the console."""
        names = (self.path, self.label, self.group and f"groups by {self.group}", self.split)
        return f"{os.path.basename(self.file)}: {', '.join(name for name in names if name)}"

    def rows(self) -> Iterator[Row]:
        """The lines, one by one.

        Raises:
            UserError: a line has more cells than the header, or cannot be read.
        """
        places = [self.header.index(name) if name else -1 for name in (self.path, self.label, self.group, self.split)]
        cells = self._cells()
        next(cells, None)
        for line, row in enumerate(cells, start=2):
            if not any(cell.strip() for cell in row):
                continue
            if len(row) > len(self.header):
                raise UserError(
                    f"{self.file}: line {line} has {len(row)} cells, its header {len(self.header)}; "
                    'put a cell that holds the separator into quotes: "a, b.jpg"'
                )
            padded = [*row, *[""] * (len(self.header) - len(row)), ""]
            path, *others = (padded[place] for place in places)
            yield Row(line, path, *(nfc(cell.strip()) for cell in others))

    def _cells(self) -> Iterator[list[str]]:
        try:
            with open(self.file, encoding=self.encoding, newline="") as text:
                yield from csv.reader(text, delimiter=self.delimiter, skipinitialspace=True)
        except UnicodeError as error:
            raise UserError(f"{self.file} is no table, for it is no text; save it as CSV") from error
        except (OSError, ValueError, csv.Error) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UserError(f"{self.file} cannot be read as a table: {reason}") from error


def _first_line(file: str | Path, encoding: str) -> str:
    with open(file, encoding=encoding, newline="", errors="replace") as text:
        return text.readline(1 << 16)


def _encoding(file: str | Path) -> str:
    """UTF-8 with or without BOM, UTF-16 with one (both from Excel), else Korean as older programs write it."""
    try:
        with open(file, "rb") as raw:
            if raw.read(2) in (b"\xff\xfe", b"\xfe\xff"):
                return "utf-16"
        with open(file, encoding="utf-8", newline="") as text:
            while text.read(1 << 20):
                pass
        return "utf-8-sig"
    except UnicodeDecodeError:
        return "cp949"
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}; expected a CSV with a header line") from error


# --- where the files are ----------------------------------------------------------------------
