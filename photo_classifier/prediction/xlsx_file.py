"""The rows of a prediction as an Excel workbook."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from typing import IO

from photo_classifier.runtime.console import say
from photo_classifier.runtime.text import escape_surrogates

CREATOR = "photo_classifier"
MAX_ROWS = 1_048_576  # of a sheet of Excel, with its header
NOT_IN_XML = re.compile("[\x00-\x08\x0b-\x1f\ufffe\uffff]")  # a carriage return would become a line feed
READ_AS_ANOTHER_TYPE = ("=", "+", "-", "@", "#")  # formulas, and error values such as #N/A


class XlsxFile:
    """A workbook with as many sheets as the rows need; readable only once it is closed."""

    resumes = False
    max_columns = 16_384

    def __init__(self, file: IO[bytes], columns: Sequence[str], is_new: bool = True) -> None:
        from openpyxl import Workbook

        self.file, self.columns, self.n_free = file, list(columns), 0
        self.workbook = Workbook(write_only=True)  # keeps its rows on the disk
        self.workbook.properties.creator = CREATOR
        self._add_sheet()

    def write(self, rows: Iterable[Mapping[str, str | float | None]]) -> None:
        """Appends rows."""
        for row in rows:
            if not self.n_free:
                self._add_sheet()
            self.sheet.append([self._cell(row.get(name)) for name in self.columns])
            self.n_free -= 1

    def close(self) -> None:
        """Writes the workbook."""
        self.workbook.save(self.file)
        if more := self.workbook.sheetnames[1:]:
            say(f"a sheet of Excel holds {MAX_ROWS:,} rows: the rest are in the sheets {', '.join(more)}")

    def _add_sheet(self) -> None:
        self.sheet = self.workbook.create_sheet(f"rows {len(self.workbook.sheetnames) + 1}")
        self.sheet.freeze_panes = "A2"
        self.sheet.append([self._cell(name) for name in self.columns])
        self.n_free = MAX_ROWS - 1

    def _cell(self, value: str | float | None) -> object:
        """Returns a number rounded as in a CSV, or text that stays text."""
        from openpyxl.cell import WriteOnlyCell

        if not isinstance(value, str):
            return round(value, 6) if isinstance(value, float) else value
        text = NOT_IN_XML.sub(lambda match: f"\\x{ord(match[0]):02x}", escape_surrogates(value))
        if not text.startswith(READ_AS_ANOTHER_TYPE):
            return text
        cell = WriteOnlyCell(self.sheet, text)
        cell.data_type, cell.quotePrefix = "s", True  # the prefix keeps it text when it is edited in Excel
        return cell


def is_own_workbook(path: str) -> bool:
    """Returns whether a file is a workbook that this tool wrote."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open("docProps/core.xml") as file:
            return f">{CREATOR}<".encode() in file.read(10_000)
    except Exception:  # zipfile has no common error class: BadZipFile, zlib.error, NotImplementedError, EOFError, ...
        return False
