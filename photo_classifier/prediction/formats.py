"""The formats of a prediction's rows: CSV, JSON lines, Parquet and Excel, written batch by batch and read back."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO, TYPE_CHECKING

from photo_classifier.prediction.xlsx_file import XlsxFile
from photo_classifier.runtime.text import escape_surrogates

if TYPE_CHECKING:
    import pyarrow

ROW_GROUP = 16_384  # rows of a Parquet file that are buffered in memory
BOM = b"\xef\xbb\xbf"

Row = Mapping[str, "str | float | None"]


class CsvFile:
    """Comma-separated values in UTF-8, with a BOM so that Excel shows Korean names.

    Args:
        is_new: whether the file is empty and needs its header.
    """

    resumes = True
    max_columns = math.inf

    def __init__(self, file: IO[bytes], columns: Sequence[str], is_new: bool = True) -> None:
        self.file, self.columns = file, columns
        if is_new:
            file.write(BOM + csv_lines([columns]))

    def write(self, rows: Iterable[Row]) -> None:
        """Appends rows."""
        self.file.write(csv_lines(texts(row, self.columns) for row in rows))

    def close(self) -> None:
        """Does nothing: the format has no footer."""

    @staticmethod
    def whole_rows(file: IO[bytes]) -> Iterator[tuple[dict[str, str], int]]:
        """Yields the complete rows, each with the offset of its end; names may contain line breaks."""
        end, last = 0, b""

        def lines() -> Iterator[str]:
            """Yields the lines of the file, and keeps the offset behind the last one."""
            nonlocal end, last
            for last in file:
                text = last if end else last.removeprefix(BOM)  # a name may start with these bytes too
                end += len(last)
                yield text.decode()

        reader = csv.reader(lines(), strict=True)
        with contextlib.suppress(csv.Error, UnicodeDecodeError, StopIteration):  # the last row is incomplete
            columns = next(reader)
            for values in reader:
                if len(values) != len(columns) or not last.endswith(b"\r\n"):
                    return
                yield dict(zip(columns, values, strict=True)), end


def csv_lines(rows: Iterable[Sequence[str]], line_end: str = "\r\n") -> bytes:
    """Returns rows of strings as lines of CSV in UTF-8."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator=line_end).writerows(rows)
    return text.getvalue().encode()


def texts(row: Row, columns: Sequence[str]) -> list[str]:
    """Returns the cells of a row: numbers with six decimals, missing values empty."""
    return [_text(row.get(name)) for name in columns]


def _text(value: str | float | None) -> str:
    if isinstance(value, float):
        return f"{value:.6f}"
    return "" if value is None else escape_surrogates(str(value))


class JsonlFile:
    """One JSON object per line."""

    resumes = True
    max_columns = math.inf

    def __init__(self, file: IO[bytes], columns: Sequence[str], is_new: bool = True) -> None:
        self.file, self.columns = file, columns

    def write(self, rows: Iterable[Row]) -> None:
        """Appends rows."""
        objects = ({name: row.get(name) for name in self.columns} for row in rows)
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in objects)
        self.file.write(escape_surrogates(lines).encode())

    def close(self) -> None:
        """Does nothing: the format has no footer."""

    @staticmethod
    def whole_rows(file: IO[bytes]) -> Iterator[tuple[dict, int]]:
        """Yields the complete rows, each with the offset of its end."""
        end = 0
        for line in file:
            end += len(line)
            try:
                row = json.loads(line)
            except ValueError:  # the last row is incomplete
                return
            if not line.endswith(b"\n") or not isinstance(row, dict):
                return
            yield row, end


class ParquetFile:
    """Apache Parquet; readable only once it is closed."""

    resumes = False
    max_columns = math.inf

    def __init__(self, file: IO[bytes], columns: Sequence[str], is_new: bool = True) -> None:
        import pyarrow
        from pyarrow import parquet

        self.schema = pyarrow.schema([(name, self._type_of(name)) for name in columns])
        self.parquet = parquet.ParquetWriter(file, self.schema)
        self._buffer: list[dict] = []

    def write(self, rows: Iterable[Row]) -> None:
        """Appends rows."""
        for row in rows:
            values = ((name, row.get(name)) for name in self.schema.names)
            self._buffer.append(
                {name: escape_surrogates(value) if isinstance(value, str) else value for name, value in values}
            )
        if len(self._buffer) >= ROW_GROUP:
            self._flush()

    def close(self) -> None:
        """Writes the buffered rows, and the footer without which the file cannot be read."""
        self._flush()
        self.parquet.close()

    @staticmethod
    def _type_of(column: str) -> pyarrow.DataType:
        import pyarrow

        if column == "correct":
            return pyarrow.int8()
        return pyarrow.float64() if column.startswith(("probability", "p_", "distance")) else pyarrow.string()

    def _flush(self) -> None:
        import pyarrow

        if self._buffer:
            self.parquet.write_table(pyarrow.Table.from_pylist(self._buffer, self.schema))
            self._buffer.clear()


FORMATS = {".csv": CsvFile, ".jsonl": JsonlFile, ".parquet": ParquetFile, ".xlsx": XlsxFile}
