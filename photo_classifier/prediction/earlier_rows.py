"""Reads back the rows of an earlier run and checks that they belong to this one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from photo_classifier.data.samples import Sample
from photo_classifier.prediction.formats import BOM, CsvFile, JsonlFile, Row
from photo_classifier.prediction.results import LATER_COLUMNS
from photo_classifier.prediction.xlsx_file import is_own_workbook
from photo_classifier.runtime.errors import UserError
from photo_classifier.runtime.text import escape_surrogates, pluralize


def is_result(path: str) -> bool:
    """Returns whether the file is empty or starts like a result of this tool."""
    with open(path, "rb") as file:
        start = file.read(40)
    texts = (b"file_dir,", b'{"file_dir": ', b"PAR1")
    return not start or start.removeprefix(BOM).startswith(texts) or is_own_workbook(path)


def columns_of_rows(path: str, file_format: type[CsvFile | JsonlFile], columns: Sequence[str]) -> list[str]:
    """Returns the columns to continue a file with: those asked for, without the later ones if its rows lack these."""
    with open(path, "rb") as file:
        first, _ = next(file_format.whole_rows(file), ({}, 0))
    earlier = [name for name in columns if name not in LATER_COLUMNS]
    return earlier if list(first) == earlier else list(columns)


def matching_rows(
    path: str, file_format: type[CsvFile | JsonlFile], columns: Sequence[str], samples: Iterator[Sample]
) -> Iterator[tuple[Row, int]]:
    """Yields the complete rows of a file, each with the offset of its end, and consumes their samples.

    Raises:
        UserError: a row has other columns, or belongs to another input.
    """
    with open(path, "rb") as file:
        for n, (row, end) in enumerate(file_format.whole_rows(file), start=1):
            _check_row(path, n, row, columns, next(samples, None))
            yield row, end


def check_complete(path: str, n_rows: int, n_expected: int, samples: Iterator[Sample]) -> None:
    """Checks that a result has a row for every input.

    Args:
        samples: those that are left after `n_rows` rows.

    Raises:
        UserError: a row is missing.
    """
    missing = next(samples, None)
    if missing or n_rows != n_expected:
        rows = pluralize(n_rows, "complete row")
        what = f"no row for {missing.path}" if missing else f"{rows} instead of {n_expected}"
        raise UserError(f"{path} has {what}; leave out --resume to start over")


def _check_row(path: str, n: int, row: Row, columns: Sequence[str], sample: Sample | None) -> None:
    if list(row) != columns:
        raise UserError(
            f"{path} has other columns ({', '.join(row)}); give the same flags as before, or leave out --resume"
        )
    if sample is None or escape_surrogates(sample.path) != row["file_dir"]:
        now = f"is {sample.path} now" if sample else "is missing now"
        raise UserError(
            f"input {n} was {row['file_dir']} in {path} and {now}; give the same inputs in the same order, or leave "
            "out --resume"
        )
