"""Tables of images: one line per image, with its path and what is known about it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from photo_classifier.data.image_files import is_image_name, nfc
from photo_classifier.runtime.errors import UserError, choose

if TYPE_CHECKING:
    import pandas as pd

ENDINGS = (".csv", ".tsv")
PATH_COLUMNS = (
    "path file_path filepath image_path img_path file filename file_name file_dir image image_name image_id img photo "
    "id_code id name 경로 파일 파일명 이미지"
).split()
LABEL_COLUMNS = (
    "label labels class class_name category target species breed diagnosis disease dx y 라벨 레이블 분류 클래스".split()
)


def is_table_name(name: str | Path) -> bool:
    """Returns whether a file name has the ending of a table."""
    return str(name).lower().endswith(ENDINGS)


@dataclass(frozen=True)
class Columns:
    """The column names that the user gave; None means: look for one of the usual names."""

    path: str | None = None
    label: str | None = None
    group: str | None = None

    def first_flag(self) -> str | None:
        """Returns the first flag that names a column."""
        return next((f"--{kind}_column" for kind in ("path", "label", "group") if getattr(self, kind)), None)


USUAL = Columns()


@dataclass(frozen=True)
class Row:
    """One line of a table; cells that it lacks are empty."""

    line: int
    path: str
    label: str
    group: str
    split: str


class Table:
    """A table with a header line, separated by commas, semicolons, tabs or bars, in UTF-8, UTF-16 or cp949.

    Args:
        file: the table.
        columns: the names of columns that do not have one of the usual names.

    Raises:
        UserError: the table cannot be read, or it lacks a column that was named.
    """

    def __init__(self, file: str | Path, columns: Columns = USUAL) -> None:
        self.file = str(file)
        self.encoding = _encoding(file)
        self.delimiter = max(",;\t|", key=_first_line(file, self.encoding).count)
        self.header = self._read_header()
        self.path = self._column("path", columns.path, PATH_COLUMNS)
        self.label = self._column("label", columns.label, LABEL_COLUMNS)
        self.group = self._column("group", columns.group, ("group",))
        self.split = self._column("split", None, ("split",))

    def _column(self, kind: str, given: str | None, usual: Sequence[str]) -> str | None:
        if given:
            return choose(f"{self.file}: --{kind}_column", given, self.header)
        by_name = {name.lower(): name for name in reversed(self.header)}
        return next((by_name[name] for name in usual if name in by_name), None)

    def require(self, *kinds: str) -> None:
        """Checks that the table has columns of these kinds, such as `path` and `label`.

        Raises:
            UserError: one is missing; the message says which flag names it.
        """
        if missing := [kind for kind in kinds if getattr(self, kind) is None]:
            has_no_header = any(map(is_image_name, self.header))
            hint = "; its first line must name the columns, for example path,label" if has_no_header else ""
            flags = " and ".join(f"the {kind} column with --{kind}_column" for kind in missing)
            raise UserError(f"{self.file} has the columns {', '.join(self.header)}; name {flags}{hint}")

    def description(self) -> str:
        """Returns the file name and the columns that are read, for the console."""
        names = (self.path, self.label, self.group and f"groups by {self.group}", self.split)
        return f"{os.path.basename(self.file)}: {', '.join(name for name in names if name)}"

    def rows(self) -> Iterator[Row]:
        """Yields the lines in order, without the blank ones.

        Raises:
            UserError: a line has more cells than the header, or the table cannot be read.
        """
        columns = [
            self.header.index(name) if name else None for name in (self.path, self.label, self.group, self.split)
        ]
        lines = self._read(names=range(len(self.header))).itertuples(index=False, name=None)
        next(lines, None)
        for number, cells in enumerate(lines, start=2):
            if any(cell.strip() for cell in cells):
                path, *others = ("" if column is None else cells[column] for column in columns)
                yield Row(number, path, *(nfc(cell.strip()) for cell in others))

    def _read_header(self) -> list[str]:
        first = self._read(nrows=1)
        header = [cell.strip() for cells in first.itertuples(index=False, name=None) for cell in cells]
        if not any(header):
            raise UserError(f"{self.file} is empty; expected a header line that names its columns, such as path,label")
        return header

    def _read(self, **options: object) -> pd.DataFrame:
        """Reads the cells as strings, header line included, so that the row number is the line number."""
        import pandas as pd

        try:
            return pd.read_csv(
                self.file,
                sep=self.delimiter,
                encoding=self.encoding,
                header=None,
                dtype=object,
                na_filter=False,
                skipinitialspace=True,
                skip_blank_lines=False,
                low_memory=False,  # reading in chunks, pandas 2 misses a too long line at the start of a chunk
                **options,
            )
        except pd.errors.EmptyDataError:
            return pd.DataFrame()
        except UnicodeError as error:
            raise UserError(f"{self.file} is not a text file; save the table as CSV") from error
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else _parser_reason(str(error))
            raise UserError(f"{self.file} cannot be read as a table: {reason}") from error


def _parser_reason(message: str) -> str:
    """Rewrites a message of pandas so that it says how to fix the table."""
    if match := re.search(r"Expected (\d+) fields in line (\d+), saw (\d+)", message):
        return (
            f"line {match[2]} has {match[3]} cells but its header has {match[1]}; "
            'put a cell that contains the separator in quotes: "a, b.jpg"'
        )
    if match := re.search(r"EOF inside string starting at row (\d+)", message):
        return f'line {int(match[1]) + 1} opens a quote that is never closed; close it, or write " as """"'
    return " ".join(message.split())


def _first_line(file: str | Path, encoding: str) -> str:
    with open(file, encoding=encoding, newline="", errors="replace") as text:
        return text.readline(1 << 16)


def _encoding(file: str | Path) -> str:
    """Returns UTF-8 with or without BOM, UTF-16 with one (Excel writes both), else cp949 (older Korean programs)."""
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
        raise UserError(f"{file} cannot be read: {error.strerror}; expected a CSV file with a header line") from error
