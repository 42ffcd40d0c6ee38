"""The TensorBoard file of a run: one file, written in order, that can be cut back and continued."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import FileWriter, SummaryWriter

from photo_classifier.runtime.errors import WriteError


class Board(SummaryWriter):
    """torch's writer of curves and pictures over a file that this process appends to itself.

    The library's own file starts anew in every process and is written by a thread, whose errors nobody
    can catch; TensorBoard would show what was written after the last save beside what follows it.

    Args:
        position: the file's name and bytes, as `position` gave them, to continue from there.

    Raises:
        Obstacle: here and in every method: the file cannot be written.
    """

    def __init__(self, folder: str | Path, position: tuple[str, int] | None = None) -> None:
        name, size = position or (f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}", 0)
        self._path = Path(folder) / name
        self._size = size
        super().__init__(str(folder))

    def _get_file_writer(self) -> FileWriter:
        if self.file_writer is None:
            self.file_writer = _FileWriter(_EventFile(self._path, self._size))
            self.all_writers = {self.log_dir: self.file_writer}
        return self.file_writer

    def position(self) -> tuple[str, int]:
        """The file's name, and the bytes that are in it by now."""
        self.flush()
        try:
            return self._path.name, self._path.stat().st_size
        except OSError as error:
            raise WriteError(f"{self._path} is gone, with the curves so far: {error.strerror}") from error


class _FileWriter(FileWriter):
    def __init__(self, event_writer: _EventFile) -> None:
        self.event_writer = event_writer


class _EventFile:
    """What TensorBoard's `EventFileWriter` does, in this thread and from a given length on."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        try:
            self.file = open(path, "ab")  # noqa: SIM115
            self.file.truncate(min(size, os.path.getsize(path)))
        except OSError as error:
            raise self._error(error) from error
        self.records = RecordWriter(self.file)
        if not os.path.getsize(path):
            self.add_event(Event(wall_time=time.time(), file_version="brain.Event:2"))
            self.flush()

    def get_logdir(self) -> str:
        return str(self.path.parent)

    def add_event(self, event: Event) -> None:
        try:
            self.records.write(event.SerializeToString())
        except OSError as error:
            raise self._error(error) from error

    def flush(self) -> None:
        try:
            self.file.flush()
        except OSError as error:
            raise self._error(error) from error

    def close(self) -> None:
        try:
            self.file.close()
        except OSError as error:
            raise self._error(error) from error

    def _error(self, error: OSError) -> WriteError:
        return WriteError(f"cannot write {self.path}: {error.strerror}")
