"""Reads the cells of table files: CSV, lists of `path label` lines, Excel and JSON."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from photo_classifier.data.encodings import encoding_of
from photo_classifier.data.image_files import ending_of, is_image_name
from photo_classifier.data.json_tables import read_json
from photo_classifier.data.table_columns import Lines, without_titles
from photo_classifier.data.workbooks import read_workbook
from photo_classifier.runtime.errors import UserError
from photo_classifier.runtime.packages import require

if TYPE_CHECKING:
    import pandas as pd

MAX_BYTES = 500_000_000  # of a table: some five million lines

LANGUAGES = {
    "cp949": "Korean",
    "cp1252": "Western European",
    "cp1250": "Central European",
    "cp1251": "Cyrillic",
    "cp932": "Japanese",
    "gb18030": "Chinese",
    "cp950": "traditional Chinese",
    "cp1253": "Greek",
    "cp1254": "Turkish",
    "cp1255": "Hebrew",
    "cp1256": "Arabic",
    "cp1257": "Baltic",
    "cp874": "Thai",
    "euc_jp": "Japanese",
    "koi8_r": "Cyrillic",
    "mac_roman": "Macintosh",
}


@dataclass(frozen=True)
class Cells:
    """The cells of a table: the names of its columns, and the lines below them with their numbers.

    A file without a header has the columns `path` and `label`, or `column 3`; `first` is then its first line.
    """

    header: Sequence[str]
    lines: Lines
    encoding: str = "utf-8"
    first: Sequence[str] = ()

    def of(self, name: str) -> list[str]:
        """Returns the cells of a column."""
        column = self.header.index(name)
        return [cells[column] for _, cells in self.lines]

    def first_line(self) -> str:
        """Returns what the columns are called and the first line of a file without a header."""
        return ", ".join(f"{name} ({cell})" for name, cell in zip(self.header, self.first, strict=True))

    def notes(self) -> list[str]:
        """Returns what was guessed: that there is no header, and the encoding."""
        found = [f"has no header line; its first line was read as {self.first_line()}"] if self.first else []
        if not self.encoding.startswith("utf"):
            language = f" ({LANGUAGES[self.encoding]})" if self.encoding in LANGUAGES else ""
            found.append(f"was read as {self.encoding}{language}; if names look wrong, save it as UTF-8")
        return found


def is_table_name(name: str | Path) -> bool:
    """Returns whether a file name has the ending of a table."""
    return ending_of(str(name)) in (*TEXTS, *OTHERS)


def read_cells(file: str) -> Cells:
    """Reads a table by its ending; a file with any other one is read as CSV.

    Raises:
        UserError: it cannot be read, is empty, or is larger than a table can be.
    """
    try:
        with open(file, "rb") as opened:
            raw = opened.read(MAX_BYTES + 1)
    except OSError as error:
        reason = f"cannot be read: {error.strerror}"
        raise UserError(f"{file} {reason}; expected a table such as labels.csv or labels.xlsx") from error
    if len(raw) > MAX_BYTES:
        raise UserError(f"{file} is larger than {MAX_BYTES // 10**6} MB, so it is not read as a table; split it")
    read = OTHERS.get(ending_of(file))
    return _cells(read(file, raw)) if read else _read_text(file, raw)


def decode_text(file: str, raw: bytes) -> tuple[str, str]:
    """Returns the text of a table and its encoding; raises a UserError if it is not a text."""
    encoding = encoding_of(raw)
    try:
        return raw.decode(encoding), encoding
    except (TypeError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not a text file; save the table as CSV") from error


# --- CSV and lists ----------------------------------------------------------------------------


def _n_lines_above(text: str) -> int:
    """Returns how many lines stand above the header: blank ones, Excel's `sep=;`, and a title or comments."""
    lines = text.split("\n", 12)[:12]
    first = next((n for n, line in enumerate(lines) if line.strip() and not re.fullmatch(r"sep=.\r?", line)), 0)
    is_row = (re.search(r"[,;\t|]", line) and not line.startswith("#") for line in lines[first:])
    header = next((n for n, holds in enumerate(is_row, first) if holds), first)
    cells = re.split(r"[,;\t|\s]", "\n".join(lines[first : header + 1]))
    return first if any(is_image_name(clean(cell)) for cell in cells) else header


def _read_text(file: str, raw: bytes) -> Cells:
    """Reads cells between commas, semicolons, tabs or bars, or lines of a path and a label."""
    text, encoding = decode_text(file, raw)
    n_before = _n_lines_above(text)
    text = text.split("\n", n_before)[n_before]
    first = re.split("[\r\n]", text, maxsplit=1)[0].strip()
    if not first.strip(",;\t| "):
        raise UserError(f"{file} is empty; expected a header line that names its columns, such as path,label")
    delimiter = max(",;\t|", key=first.count)
    if re.fullmatch('"[^"]*"', first) and delimiter in first:  # each line was pasted into one cell
        text = re.sub(r'(?m)^"(.*)"(\r?)$', lambda line: line[1].replace('""', '"') + line[2], text)
    is_list = delimiter not in first and (ending_of(file) in LISTS or _path_and_rest(first))
    lines = _list_lines(text) if is_list else _Csv(file, text, delimiter).lines()
    if not lines:
        raise UserError(f"{file} has nothing but comments; expected lines such as `a.jpg cat`")
    lines = [(number + n_before, [clean(cell) for cell in cells]) for number, cells in lines]
    return _cells(lines if is_list else without_titles(lines), encoding, is_list)


def _cells(lines: Lines, encoding: str = "utf-8", is_list: bool = False) -> Cells:
    """Takes the first line as the header, unless a cell of it names an image or no line of a list does."""
    first = lines[0][1]
    is_image = [is_image_name(cell) for cell in first]
    if not any(is_image) and not (is_list and not any(is_image_name(cells[0]) for _, cells in lines)):
        return Cells(first, lines[1:], encoding)
    names = ["label" if len(first) == 2 else f"column {n}" for n in range(1, len(first) + 1)]
    names[is_image.index(True) if any(is_image) else 0] = "path"
    return Cells(names, lines, encoding, first)


def clean(cell: str) -> str:
    """Returns a cell without the spaces and quotes around it."""
    cell = cell.strip()
    if cell[:1] not in ("'", '"', "“"):
        return cell
    match = re.fullmatch(r"""'(.*)'|"(.*)"|“(.*)”""", cell, re.DOTALL)
    return next(part for part in match.groups() if part is not None).strip() if match else cell


class _Csv:
    """The cells of a text, read by pandas as strings, so that `007` and `NA` stay as they are."""

    def __init__(self, file: str, text: str, delimiter: str) -> None:
        self.file, self.text, self.delimiter = file, text, delimiter

    def lines(self) -> Lines:
        """Returns every line with its number; lines with fewer cells than the header get empty ones."""
        names = range(self._read(self.text, nrows=1).shape[1])
        try:
            frame = self._read(self.text, names=names)
        except UserError as error:
            try:  # separators at the ends of lines make empty cells
                frame = self._read(re.sub(rf"(?m)[{self.delimiter}]+(\r?)$", r"\1", self.text), names=names)
            except UserError:
                raise error from None
        return list(enumerate(frame.itertuples(index=False, name=None), start=1))

    def _read(self, text: str, **options: object) -> pd.DataFrame:
        pandas = require("pandas", self.file, "pandas")
        try:
            return pandas.read_csv(
                io.StringIO(text),
                sep=self.delimiter,
                header=None,
                dtype=object,
                na_filter=False,
                skipinitialspace=True,
                skip_blank_lines=False,
                low_memory=False,  # reading in chunks, pandas 2 misses a too long line at the start of a chunk
                **options,
            )
        except ValueError as error:
            raise UserError(f"{self.file} cannot be read as a table: {_parser_reason(str(error))}") from error


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


def _list_lines(text: str) -> Lines:
    """Returns the path of each line, which may hold spaces, and what follows it; two spaces part further columns."""
    found: Lines = []
    for number, line in enumerate(re.split("\r\n|\r|\n", text), start=1):
        if line.strip() and not line.startswith("#"):
            path, rest = _path_and_rest(line.strip()) or (*line.split(maxsplit=1), "")[:2]
            found.append((number, [path, *re.split(r"\s{2,}|\t", rest)]))
    is_of_paths = not any(cells[1] for _, cells in found)
    width = 1 if is_of_paths else max(len(cells) for _, cells in found)
    return [(number, [*cells, *[""] * width][:width]) for number, cells in found]


def _path_and_rest(line: str) -> tuple[str, str] | None:
    """Returns the longest beginning that is the name of an image, and the rest."""
    ends = [len(line), *(match.start() for match in reversed(list(re.finditer(r"\s+", line))))]
    end = next((end for end in ends if is_image_name(clean(line[:end]))), 0)
    return (line[:end], line[end:].strip()) if end else None


LISTS = (".txt", ".lst", ".list")
TEXTS = (".csv", ".tsv", ".tab", *LISTS)
SURE = (".csv", ".tsv", ".tab", ".xlsx", ".xlsm")  # the endings of nothing but tables
NOT_READ = (".xls", ".ods", ".numbers", ".parquet", ".feather")  # tables that other programs must convert
OTHERS: dict[str, Callable[[str, bytes], Lines]] = {
    ".xlsx": read_workbook,
    ".xlsm": read_workbook,
    ".jsonl": read_json,
    ".ndjson": read_json,
    ".json": read_json,
    ".manifest": read_json,
}
