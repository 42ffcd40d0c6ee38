"""Rows of a prediction as CSV on stdout."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import IO

from photo_classifier.data.samples import Sample
from photo_classifier.prediction.formats import Row, csv_lines, texts
from photo_classifier.prediction.results import Totals
from photo_classifier.runtime.errors import UserError
from photo_classifier.runtime.text import pluralize


class StdoutRows:
    """CSV for a pipe: no BOM, plain line ends, and no way to resume. It has the methods of `ResultFile`."""

    def __init__(self, file: IO[bytes], columns: Sequence[str]) -> None:
        self.file, self.columns, self.n_rows = file, columns, 0

    def begin(self, resume: bool, samples: Iterator[Sample], totals: Totals, is_restart: bool = False) -> bool:
        """Writes the header.

        Raises:
            UserError: the run is to be resumed, or restarted when its reader may have received rows already.
        """
        if resume or is_restart:
            raise UserError("--resume needs a file; --result - cannot be continued")
        self._send([self.columns])
        return True

    def write(self, rows: Sequence[Row], totals: Totals) -> None:
        """Writes rows and flushes them."""
        self._send(texts(row, self.columns) for row in rows)
        self.n_rows += len(rows)

    def finish(self, content: Mapping[str, object]) -> None:
        """Does nothing: no file has to be completed."""

    def __enter__(self) -> StdoutRows:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def _send(self, lines: Iterable[Sequence[str]]) -> None:
        try:
            self.file.write(csv_lines(lines, "\n"))
            self.file.flush()
        except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
            raise
        except OSError as error:
            with contextlib.suppress(OSError):  # closing would try to write the rest again
                self.file.close()
            raise UserError(
                f"cannot write to stdout: {error.strerror}, after {pluralize(self.n_rows, 'row')}; make room, or give "
                "--result a file, which --resume can continue"
            ) from error
