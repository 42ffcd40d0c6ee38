"""The file of a prediction's rows: it grows as `<name>.partial` and gets its name when it is whole."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import IO

from photo_classifier.data.samples import Sample
from photo_classifier.prediction.formats import BOM, FORMATS, Row, csv_lines, texts
from photo_classifier.prediction.results import Counts, Totals
from photo_classifier.runtime.console import warn
from photo_classifier.runtime.errors import UserError, choose
from photo_classifier.runtime.files import read_json, write_text
from photo_classifier.runtime.plain_values import first_mismatch
from photo_classifier.runtime.signals import Stopped, resource_hint
from photo_classifier.runtime.text import escape_surrogates, pluralize

SYNC_SECONDS = 30.0  # what a power cut takes away at most
STATE_SECONDS = 1.0  # what a kill takes away at most, where the state is more than counts
COUNTS = dict.fromkeys((item.name for item in fields(Counts)), int)
ABOUT = {"checkpoint": {"sha256": str}, "settings": {str: object}, "counts": COUNTS}  # of `result.json`


class ResultFile:
    """Rows that come in order: `result.csv.partial` while they do, `result.csv` when all are there.

    Beside it `result.json` tells what made it; as `result.json.partial` it holds what a resumed run needs.

    Args:
        about: the checkpoint and the settings, of which a run that is resumed must have the same, and `launch`,
            the agents of the launcher that started it.
    """

    def __init__(self, path: str, columns: Sequence[str], about: Mapping[str, object]) -> None:
        self.path, self.columns, self.about = path, list(columns), about
        self.format = FORMATS[choose("the ending of --result", os.path.splitext(path)[1].lower(), FORMATS)]
        self.partial = f"{path}.partial"
        self.about_path = str(Path(path).with_suffix(".json"))
        self.state_path = f"{self.about_path}.partial"
        self.n_rows = 0
        self.file: IO[bytes] | None = None
        self._synced = self._saved = 0.0
        self._check_targets()

    def _check_targets(self) -> None:
        for path, is_ours in ((self.path, self._is_result), (self.about_path, _read_about)):
            if os.path.exists(path) and not is_ours(path):
                raise UserError(f"{path} is there and not of this tool; give another --result, such as result.csv")

    def _is_result(self, path: str) -> bool:
        """Whether it is empty or begins as a result does, so that no file of the user's is overwritten."""
        with open(path, "rb") as file:
            start = file.read(40)
        return not start or start.removeprefix(BOM).startswith((b"file_dir,", b'{"file_dir": ', b"PAR1"))

    def begin(self, resume: bool, samples: Iterator[Sample], tally: Totals) -> bool:
        """Opens the file, behind the rows of a run that was stopped or as a new one.

        Args:
            samples: those whose rows are there already are taken from it.
            tally: takes over what was counted.

        Returns:
            False where there is nothing to do: the file is whole already.

        Raises:
            UserError: the rows that are there are of other inputs, columns or another checkpoint.
        """
        if resume and not self.format.resumes:
            raise UserError(f"--resume needs a result that ends in .csv or .jsonl; {self.path} cannot be continued")
        try:
            if resume and os.path.exists(self.partial):
                self._continue(samples, tally)
                return True
            if resume and tally.is_small and self._is_whole(samples, tally):  # the sums of parts are not kept
                return False
            if resume and os.path.exists(self.path):
                earlier = f"{self.path}.prev"
                os.replace(self.path, earlier)
                warn(f"there is no {self.partial} to go on with: {self.path} is made anew, the earlier is {earlier}")
            if os.path.exists(self.partial):
                os.replace(self.partial, f"{self.partial}.prev")
            self.file = open(self.partial, "wb")  # noqa: SIM115
            self.rows = self.format(self.file, self.columns)
            self._save(tally)  # what is there of an earlier run does not speak of this file
        except OSError as error:
            raise UserError(f"cannot write {self.partial}: {error.strerror}; give another --result") from error
        return True

    def is_of_launch(self) -> bool:
        """Whether what is there was written by processes that the same launcher had started before."""
        content = _read_about(self.state_path if os.path.exists(self.partial) else self.about_path)
        agents = content.get("launch", [])
        is_known = not first_mismatch(agents, [str]) and bool(set(self.about.get("launch", ())) & set(agents))
        return self.format.resumes and is_known

    def _is_whole(self, samples: Iterator[Sample], tally: Totals) -> bool:
        for path in (self.state_path, self.about_path):
            content = _read_about(path)
            if content and os.path.exists(self.path) and not self._difference(content):
                self._compare(samples, content["counts"]["n_rows"])
                tally.restore(content)
                os.replace(path, self.about_path)
                return True
        return False

    def _compare(self, samples: Iterator[Sample], n_rows: int) -> None:
        """Whether the result has a row for every sample of now, and no other."""
        with open(self.path, "rb") as file:
            for row, _ in self.format.whole_rows(file):
                self._check_row(self.path, row, next(samples, None))
                self.n_rows += 1
        more = next(samples, None)
        if more or self.n_rows != n_rows:
            what = f"no row for {more.path}" if more else f"{pluralize(self.n_rows, 'whole row')} instead of {n_rows}"
            raise UserError(f"{self.path} has {what}; leave --resume out to begin anew")

    def _difference(self, content: Mapping) -> str:
        """What was otherwise in an earlier run, or nothing."""
        settings = {"checkpoint": self.about["checkpoint"]["sha256"], **self.about["settings"]}
        theirs = {"checkpoint": content["checkpoint"]["sha256"], **content["settings"]}
        return next((name for name, value in settings.items() if theirs.get(name) != value), "")

    def _continue(self, samples: Iterator[Sample], tally: Totals) -> None:
        state = _read_about(self.state_path)
        if state and (name := self._difference(state)):
            raise UserError(f"{self.partial} was made with another {name}; use the same, or leave --resume out")
        end, n_saved = 0, state.get("n_rows")
        with open(self.partial, "rb") as file:
            for row, end in self.format.whole_rows(file):  # noqa: B007
                self._check_row(self.partial, row, next(samples, None))
                self.n_rows += 1
                tally.add_row(row)
                if self.n_rows == n_saved:
                    tally.restore(state)
                    break
        self.file = open(self.partial, "r+b" if end else "wb")  # noqa: SIM115
        self.file.truncate(end)
        self.file.seek(end)
        self.rows = self.format(self.file, self.columns, is_new=not end)

    def _check_row(self, path: str, row: Row, sample: Sample | None) -> None:
        if list(row) != self.columns:
            columns = ", ".join(row)
            raise UserError(f"{path} has other columns ({columns}); give the flags that made it, or leave --resume out")
        if sample is None or escape_surrogates(sample.path) != row["file_dir"]:
            now = f"is now {sample.path}" if sample else "is not there now"
            raise UserError(
                f"input {self.n_rows + 1} was {row['file_dir']} in {path} and {now}; give the same inputs in the same "
                "order, or leave --resume out"
            )

    def write(self, rows: Sequence[Row], tally: Totals) -> None:
        """Adds rows; when it returns they are in the file, for other programs to see.

        Args:
            tally: with those rows counted; it is kept for a run that is resumed.
        """
        now = time.monotonic()
        try:
            self.rows.write(rows)
            self.file.flush()
            if now - self._synced > SYNC_SECONDS:
                os.fsync(self.file.fileno())
                self._synced = now
            self.n_rows += len(rows)
            if tally.is_small or now - self._saved > STATE_SECONDS:
                self._save(tally)
                self._saved = now
        except OSError as error:
            raise UserError(f"cannot write {self.partial}: {error.strerror or error}") from error

    def _save(self, tally: Totals) -> None:
        # no fsync: what was lost, or is behind the rows, is found out
        temporary = f"{self.state_path}.tmp"
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump({**self.about, "n_rows": self.n_rows, **tally.state()}, file)
        os.replace(temporary, self.state_path)

    def how_to_go_on(self, is_closed: bool = True) -> str:
        """What to tell a user whose run ends before its rows have their name."""
        there = f"{self.partial} holds {pluralize(self.n_rows, 'row')}"
        if self.format.resumes:
            return f"{there}; the same command with --resume goes on"
        again = "its rows are lost: type the command again, with a --result in .csv if it may stop again"
        return there if is_closed else again

    def finish(self, content: Mapping[str, object]) -> None:
        """Gives the file its name, and writes `result.json` with that content.

        Raises:
            UserError: the disk is full, or the file of that name cannot be replaced; the rows stay where they are.
        """
        is_closed = False
        try:
            self.close()
            is_closed = True
            write_text(self.state_path, json.dumps({**self.about, **content}, indent=1, ensure_ascii=False) + "\n")
        except UserError as error:
            raise UserError(f"{error}; {self.how_to_go_on(is_closed)}") from error
        try:
            os.replace(self.partial, self.path)
        except OSError as error:
            raise UserError(
                f"cannot replace {self.path} ({error.strerror}): is it open in another program? {self.partial} holds "
                f"{pluralize(self.n_rows, 'row')}, all of them: close the program and rename that file, or type the "
                "command with --resume"
            ) from error
        os.replace(self.state_path, self.about_path)

    def __enter__(self) -> ResultFile:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, _trace: object) -> None:
        if error is None or self.file is None or self.file.closed:
            return
        is_closed = False
        with contextlib.suppress(UserError):  # the disk may be full; what is on it stays
            self.close()
            is_closed = True
        if not self.n_rows:
            for path in (self.partial, self.state_path):
                with contextlib.suppress(OSError):
                    os.unlink(path)
        elif isinstance(error, Stopped):
            error.hint = f"; {self.how_to_go_on(is_closed)}"
        elif isinstance(error, UserError) or (isinstance(error, Exception) and resource_hint(error)):
            text = error if isinstance(error, UserError) else resource_hint(error)
            raise UserError(f"{text}; {self.how_to_go_on(is_closed)}") from error

    def close(self) -> None:
        """Closes the file, with all rows that were written; Parquet is readable then.

        Raises:
            UserError: they cannot be written to their end; the file is closed all the same.
        """
        if not self.file or self.file.closed:
            return
        try:
            with self.file:
                self.rows.close()
                self.file.flush()
                os.fsync(self.file.fileno())
        except OSError as error:
            raise UserError(f"cannot write {self.partial}: {error.strerror or error}") from error


class StdoutRows:
    """CSV on stdout for a pipe: no BOM, plain line ends, nothing to resume."""

    def __init__(self, file: IO[bytes], columns: Sequence[str]) -> None:
        self.file, self.columns, self.n_rows = file, columns, 0

    def is_of_launch(self) -> bool:
        """Its reader may have had rows already."""
        return True

    def begin(self, resume: bool, samples: Iterator[Sample], tally: Totals) -> bool:
        """Writes the header; there is always something to do."""
        if resume:
            raise UserError("--resume needs a file; --result - cannot be continued")
        self._send([self.columns])
        return True

    def write(self, rows: Sequence[Row], tally: Totals) -> None:
        """Adds rows and sends them off."""
        self._send(texts(row, self.columns) for row in rows)
        self.n_rows += len(rows)

    def _send(self, lines: Iterable[Sequence[str]]) -> None:
        try:
            self.file.write(csv_lines(lines, "\n"))
            self.file.flush()
        except BrokenPipeError:  # the reader has seen enough
            raise
        except OSError as error:
            with contextlib.suppress(OSError):  # it would try again to write what is left
                self.file.close()
            raise UserError(
                f"cannot write to stdout: {error.strerror}, after {pluralize(self.n_rows, 'row')}; make room, or give "
                "--result a file, which --resume can continue"
            ) from error

    def finish(self, content: Mapping[str, object]) -> None:
        """Nothing is beside it."""

    def __enter__(self) -> StdoutRows:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def _read_about(path: str) -> dict:
    """What `result.json` tells of a result of this tool, or {}."""
    content = read_json(path)
    return {} if first_mismatch(content, ABOUT) else content
