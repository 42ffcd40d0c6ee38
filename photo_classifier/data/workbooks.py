"""Reads the table in an Excel workbook, which may come from a stranger."""

from __future__ import annotations

import datetime
import io
import zipfile
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING
from xml.parsers import expat

from photo_classifier.data.file_kinds import is_image_name
from photo_classifier.data.table_columns import Lines, without_titles
from photo_classifier.runtime.errors import UserError
from photo_classifier.runtime.limits import resource_hint
from photo_classifier.runtime.packages import require

if TYPE_CHECKING:
    from openpyxl.worksheet._read_only import ReadOnlyWorksheet

MAX_UNPACKED = 250_000_000  # bytes: a million lines have 120 MB
MAX_ROWS, MAX_COLUMNS = 1 << 20, 1 << 14  # Excel's own limits
MAX_ELEMENTS = 12_000_000  # of a sheet, a million lines of five cells; the other parts have a third of that
MAX_DEPTH = 100
TOO_LARGE = "it has more cells than a table of images needs; save the table as CSV"


def read_workbook(file: str, raw: bytes) -> Lines:
    """Returns the lines of a sheet that are not empty; the first of them is the header.

    It is the first visible sheet that names images, or else that has two columns.

    Raises:
        UserError: it is no workbook, has no table, or is larger than Excel could make it.
    """
    openpyxl = require("openpyxl", file, "openpyxl")
    _check_size(file, raw)
    try:
        book = openpyxl.load_workbook(io.BytesIO(raw), read_only=True, data_only=True)
        sheets = [_lines_of(file, sheet) for sheet in book.worksheets if sheet.sheet_state == "visible"]
        found = (lines for is_it in (_names_images, _has_columns, bool) for lines in sheets if is_it(lines))
        return _with_even_width(file, next(found, []))
    except UserError:
        raise
    # openpyxl has no error class of its own for damaged files: KeyError, ValueError, BadZipFile, ParseError, ...
    except Exception as error:
        if resource_hint(error):  # not the file's fault
            raise
        reason = str(error) or type(error).__name__
        raise UserError(f"{file} cannot be read as a workbook ({reason}); save it again, or as CSV") from error


def _lines_of(file: str, sheet: ReadOnlyWorksheet) -> Lines:
    sheet.reset_dimensions()  # what a file says of itself may be wrong
    return list(_filled_lines(file, sheet.iter_rows(values_only=True)))


def _names_images(lines: Lines) -> bool:
    return any(is_image_name(cell) for _, cells in lines[:20] for cell in cells)


def _has_columns(lines: Lines) -> bool:
    return any(sum(map(bool, cells)) > 1 for _, cells in lines[:20])


def _filled_lines(file: str, rows: Iterator[Sequence[object]]) -> Iterator[tuple[int, Sequence[str]]]:
    """Yields the lines that are not empty; a cell far out makes openpyxl fill in all before it."""
    n_cells = 0
    for number, values in enumerate(rows, start=1):
        n_cells += len(values)
        if number > MAX_ROWS or n_cells > MAX_ELEMENTS:
            raise UserError(f"{file} was refused: {TOO_LARGE}")
        if any(value is not None for value in values):
            yield number, [_cell_text(value) for value in values]


def _with_even_width(file: str, lines: Lines) -> Lines:
    if not lines:
        raise UserError(f"{file} has only empty sheets; expected a line that names its columns, such as path, label")
    lines = without_titles(lines)
    width = max(n for n, cell in enumerate(lines[0][1], start=1) if cell)
    return [(number, [*cells, *[""] * width][:width]) for number, cells in lines if any(cells[:width])]


def _cell_text(value: object) -> str:
    """Returns a cell as Excel shows it: whole numbers without a point."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        value = value.date()
    return "" if value is None else str(value).strip()


def _check_size(file: str, raw: bytes) -> None:
    """Counts what is packed inside before openpyxl builds objects of it."""
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as packed:
            entries = packed.infolist()
            if sum(entry.file_size for entry in entries) > MAX_UNPACKED:
                raise UserError(f"{file} unpacks to more than {MAX_UNPACKED // 10**6} MB; save the table as CSV")
            for entry in entries:
                if entry.filename.endswith((".xml", ".rels")):
                    _Counter(file, "worksheets/" in entry.filename).read(packed.read(entry))
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, OSError, expat.ExpatError) as error:
        if resource_hint(error):
            raise
        raise UserError(
            f"{file} is not a readable .xlsx workbook ({error}); save it again without a password, or as CSV"
        ) from error


class _Counter:
    """Counts the elements of one part of a workbook."""

    def __init__(self, file: str, is_sheet: bool) -> None:
        self.file = file
        self.most = MAX_ELEMENTS if is_sheet else MAX_ELEMENTS // 3
        self.n_elements = self.n_rows = self.n_cells = self.depth = 0

    def read(self, xml: bytes) -> None:
        """Reads one part.

        Raises:
            UserError: it has more elements than Excel would write, or defines entities.
        """
        parser = expat.ParserCreate()
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.StartDoctypeDeclHandler = self._refuse
        parser.Parse(xml, True)

    def _start(self, name: str, _: dict[str, str]) -> None:
        name = name.rpartition(":")[2]
        self.n_elements, self.depth = self.n_elements + 1, self.depth + 1
        if name == "row":
            self.n_rows, self.n_cells = self.n_rows + 1, 0
        self.n_cells += name == "c"
        is_wide = self.n_cells > MAX_COLUMNS or self.depth > MAX_DEPTH
        if self.n_elements > self.most or self.n_rows > MAX_ROWS or is_wide:
            raise UserError(f"{self.file} was refused: {TOO_LARGE}")

    def _end(self, _: str) -> None:
        self.depth -= 1

    def _refuse(self, *_: object) -> None:
        raise UserError(f"{self.file} was refused: it defines entities, as no workbook does; save the table as CSV")
