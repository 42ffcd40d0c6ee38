"""The file of a prediction's rows: written as `<name>.partial` and renamed when it is complete."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import IO

from photo_classifier.data.samples import Sample
from photo_classifier.prediction.earlier_rows import check_complete, columns_of_rows, is_result, matching_rows
from photo_classifier.prediction.formats import FORMATS, Row
from photo_classifier.prediction.results import Totals
from photo_classifier.prediction.state_file import StateFile, read_state
from photo_classifier.runtime.console import say, warn
from photo_classifier.runtime.errors import UserError, choose
from photo_classifier.runtime.files import keep_previous, sync
from photo_classifier.runtime.limits import resource_hint, write_reason
from photo_classifier.runtime.signals import Stopped
from photo_classifier.runtime.text import pluralize

SYNC_SECONDS = 30.0  # the most that a power cut can lose
STATE_SECONDS = 1.0  # the most that a kill can lose of totals that are more than counts


class ResultFile:
    """Rows that arrive in order: `result.csv.partial` until all are written, then `result.csv`.

    `result.json` beside it is a `StateFile`.

    Args:
        metadata: see `StateFile`.

    Raises:
        UserError: the format is unknown or cannot hold the columns, or the name is that of a file of the user.
    """

    def __init__(self, path: str, columns: Sequence[str], metadata: Mapping[str, object]) -> None:
        self.path, self.columns, self.partial = path, list(columns), f"{path}.partial"
        self.format = FORMATS[choose("the ending of --result", os.path.splitext(path)[1].lower(), FORMATS)]
        if len(self.columns) > self.format.max_columns:
            raise UserError(
                f"{path} cannot hold {len(self.columns):,} columns, only {self.format.max_columns:,}; give a name in "
                ".csv or .parquet (--result)"
            )
        self.state = StateFile(path, metadata)
        self.n_rows = 0
        self.file: IO[bytes] | None = None
        self._synced = self._saved = 0.0
        for name, is_ours in ((path, is_result), (self.state.path, read_state)):
            if os.path.exists(name) and not is_ours(name):
                raise UserError(
                    f"{name} exists and was not written by this tool; give another --result, such as result.csv"
                )

    def begin(self, resume: bool, samples: Iterator[Sample], totals: Totals, is_restart: bool = False) -> bool:
        """Opens the file, after the rows of a stopped run or as a new one.

        Args:
            samples: those that already have a row are consumed.
            totals: continued from the state of the stopped run.
            is_restart: whether the launcher repeats the command; rows of the same launch are resumed.

        Returns:
            False if there is nothing to do, because the file is complete.

        Raises:
            UserError: the rows in the file have other inputs, columns or another checkpoint.
        """
        is_partial = os.path.exists(self.partial)
        resume = resume or (is_restart and self.format.resumes and self.state.is_of_launch(is_partial))
        if resume and not self.format.resumes:
            raise UserError(f"--resume needs a result that ends in .csv or .jsonl; {self.path} cannot be continued")
        with self._write_errors("; give another --result"):
            if resume and is_partial:
                self._continue(samples, totals)
            elif resume and totals.is_small and self._is_complete(samples, totals):  # parts are not saved at the end
                return False
            else:
                self._start(resume, totals)
        return True

    def write(self, rows: Sequence[Row], totals: Totals) -> None:
        """Appends rows; other programs can read them when it returns.

        Args:
            totals: with those rows included; saved for a resumed run.
        """
        now = time.monotonic()
        with self._write_errors():
            self.rows.write(rows)
            self.file.flush()
            if now - self._synced > SYNC_SECONDS:
                sync(self.file)
                self._synced = now
            self.n_rows += len(rows)
            if totals.is_small or now - self._saved > STATE_SECONDS:
                self.state.save(self.n_rows, totals)
                self._saved = now

    def finish(self, content: Mapping[str, object]) -> None:
        """Renames the file, keeps an earlier one as `.prev`, and writes `result.json` with that content.

        Raises:
            UserError: the disk is full, or a file of that name cannot be replaced; the rows stay in `.partial`.
        """
        is_closed = False
        try:
            self.close()
            is_closed = True
            self.state.save_final(content)
        except UserError as error:
            raise UserError(f"{error}; {self._advice(is_closed)}") from error
        try:
            is_kept = keep_previous(self.path)
            os.replace(self.partial, self.path)
        except OSError as error:
            raise UserError(
                f"cannot replace {self.path} ({error.strerror}): is it open in another program? {self.partial} has "
                f"all {pluralize(self.n_rows, 'row')}: close the program and rename that file, or run the command "
                "again with --resume"
            ) from error
        self.state.publish()
        if is_kept:
            say(f"the earlier {self.path} is now {self.path}.prev")

    def close(self) -> None:
        """Closes the file after the rows written so far, which makes Parquet readable.

        Raises:
            UserError: not all rows could be written; the file is closed anyway.
        """
        if self.file and not self.file.closed:
            with self._write_errors(), self.file:
                self.rows.close()
                sync(self.file)

    def __enter__(self) -> ResultFile:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, _trace: object) -> None:
        if error is None or self.file is None or self.file.closed:
            return
        is_closed = False
        with contextlib.suppress(UserError):  # the disk may be full; the rows on it stay
            self.close()
            is_closed = True
        if not self.n_rows:
            for path in (self.partial, self.state.partial):
                with contextlib.suppress(OSError):
                    os.unlink(path)
        elif isinstance(error, Stopped):
            error.hint = f"; {self._advice(is_closed)}"
        elif isinstance(error, UserError) or (isinstance(error, Exception) and resource_hint(error)):
            text = error if isinstance(error, UserError) else resource_hint(error)
            raise UserError(f"{text}; {self._advice(is_closed)}") from error

    def _start(self, resume: bool, totals: Totals) -> None:
        """Opens a new file, and keeps the rows of a stopped run as `.partial.prev`."""
        if resume and os.path.exists(self.path):
            warn(f"there is no {self.partial} to resume: starting again; the earlier result will be {self.path}.prev")
        if os.path.exists(self.partial):
            os.replace(self.partial, f"{self.partial}.prev")
        self.file = open(self.partial, "wb")  # noqa: SIM115
        self.rows = self.format(self.file, self.columns)
        self.state.save(0, totals)  # replaces the state of an earlier run, which does not describe this file

    def _continue(self, samples: Iterator[Sample], totals: Totals) -> None:
        """Opens the file of a stopped run after its last saved row, and cuts off what follows."""
        state = read_state(self.state.partial)
        self.columns = columns_of_rows(self.partial, self.format, self.columns)
        if state and (name := self.state.difference(state)):
            raise UserError(f"{self.partial} was made with another {name}; use the same, or leave out --resume")
        end = 0
        for row, end in matching_rows(self.partial, self.format, self.columns, samples):  # noqa: B007
            self.n_rows += 1
            totals.add_row(row)
            if self.n_rows == state.get("n_rows"):
                totals.restore(state)
                break
        self.file = open(self.partial, "r+b" if end else "wb")  # noqa: SIM115
        self.file.truncate(end)
        self.file.seek(end)
        self.rows = self.format(self.file, self.columns, is_new=not end)

    def _is_complete(self, samples: Iterator[Sample], totals: Totals) -> bool:
        """Returns whether an earlier run with the same settings has written all rows; a kill may have left `.partial`.

        Raises:
            UserError: it wrote the rows of other inputs.
        """
        for path in (self.state.partial, self.state.path):
            content = read_state(path)
            if content and os.path.exists(self.path) and not self.state.difference(content):
                columns = columns_of_rows(self.path, self.format, self.columns)
                self.n_rows = sum(1 for _ in matching_rows(self.path, self.format, columns, samples))
                check_complete(self.path, self.n_rows, content["counts"]["n_rows"], samples)
                totals.restore(content)
                if path == self.state.partial:
                    self.state.publish()
                return True
        return False

    def _advice(self, is_closed: bool) -> str:
        """Returns advice for a run that ended early."""
        rows = f"{self.partial} has {pluralize(self.n_rows, 'row')}"
        if self.format.resumes:
            return f"{rows}; run the same command with --resume to continue"
        lost = "its rows are lost; run the command again, with a .csv as --result to be able to resume"
        return rows if is_closed else lost

    @contextlib.contextmanager
    def _write_errors(self, advice: str = "") -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise UserError(f"cannot write {self.partial}: {write_reason(error)}{advice}") from error
