"""Prediction by many processes: rank 0 publishes the inputs as tasks and collects the predictions in order.

Tasks of one batch each go through the store of PyTorch's launcher. A free process takes the next one, so a slow
machine takes fewer. Only rank 0 lists inputs, counts and writes rows.
"""

from __future__ import annotations

import itertools
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from photo_classifier.data.samples import Sample
from photo_classifier.prediction.results import Prediction
from photo_classifier.runtime import distributed, launcher
from photo_classifier.runtime.launcher import is_main

if TYPE_CHECKING:
    from photo_classifier.prediction.predictor import Predictor

POLL_SECONDS = 0.01
AHEAD = 4  # tasks per process that are published before anyone requests them
WINDOW = 128  # the most unfinished tasks per process: the rows that wait for a stuck one must not fill the memory


def predict_distributed(predictor: Predictor, samples: Iterable[Sample]) -> Iterator[list[Prediction]]:
    """Runs `predictor.stream` in all processes of the run; yields the predictions on rank 0, nothing on the others.

    Args:
        samples: read on rank 0 only, as they are needed.
    """
    if launcher.world_size() == 1:
        return predictor.stream(samples)
    queue = TaskQueue(distributed.make_store("predict"))
    if is_main():
        return _predict_on_main(queue, predictor, samples)
    while not queue.is_over():
        for number, predictions in queue.work(predictor.stream):
            queue.submit(number, predictions)
        time.sleep(POLL_SECONDS)
    return iter(())


def _predict_on_main(queue: TaskQueue, predictor: Predictor, samples: Iterable[Sample]) -> Iterator[list[Prediction]]:
    # a loader holds 4 batches per worker, which alone must not fill the window
    window = launcher.world_size() * max(WINDOW, 8 * (predictor.n_workers or 0))
    queue.open(samples, predictor.engine.batch_size, window)
    while not queue.is_done:
        for number, predictions in queue.work(predictor.stream):
            queue.submit(number, predictions)
            yield from queue.completed()
        queue.publish()
        yield from queue.completed()
        time.sleep(POLL_SECONDS)


class TaskQueue:
    """Tasks and their predictions, in a store that all processes share.

    Rank 0 calls `open` first and `publish` and `completed` repeatedly; every rank calls `work` and `submit`.

    Args:
        store: of torch.distributed; nothing else may use its keys.
    """

    def __init__(self, store) -> None:
        self.store = store
        self.taken: deque[int] = deque()
        self._requested: int | None = None  # the number of this process's next task
        self._batches: Iterator[list[Sample]] | None = None
        self._n_published = self._n_completed = self._window = 0
        self._is_full = False
        self._total: int | None = None
        self._own: dict[int, list[Prediction]] = {}

    def open(self, samples: Iterable[Sample], batch_size: int, window: int) -> None:
        """Starts with these inputs; at most `window` tasks are unfinished at a time."""
        source = iter(samples)
        self._batches = iter(lambda: list(itertools.islice(source, batch_size)), [])
        self._window = window
        self.publish()

    def publish(self) -> None:
        """Publishes as many tasks as may be requested before the next call, within the window."""
        if self._total is None:
            requested = self.store.add("asked", 0) + AHEAD * launcher.world_size()
            wanted = min(requested, self._n_completed + self._window)
            for batch in itertools.islice(self._batches, max(0, wanted - self._n_published)):
                self.store.set(f"task{self._n_published}", json.dumps([asdict(sample) for sample in batch]))
                self._n_published += 1
            if self._n_published < wanted:
                self._total = self._n_published
                self.store.set("total", str(self._total))
        is_full = self._total is None and self._n_published - self._n_completed >= self._window
        if is_full != self._is_full:
            self._is_full = is_full
            self.store.set("full", "") if is_full else self.store.delete_key("full")

    def completed(self) -> Iterator[list[Prediction]]:
        """Yields the predictions that have arrived, in the order of the inputs, up to the first that is missing."""
        while (predictions := self._next()) is not None:
            self._n_completed += 1
            yield predictions

    def _next(self) -> list[Prediction] | None:
        number, key = self._n_completed, f"back{self._n_completed}"
        if number in self._own:
            return self._own.pop(number)
        if number >= self._n_published or not self.store.check([key]):
            return None
        rows = json.loads(self.store.get(key))
        self.store.delete_key(key)
        return [_with_tuples(row) for row in rows]

    @property
    def is_done(self) -> bool:
        """Whether all predictions were yielded."""
        return self._n_completed == self._total

    def is_over(self) -> bool:
        """Returns whether there are no more tasks for this process."""
        return (
            self._requested is not None
            and self.store.check(["total"])
            and self._requested >= int(self.store.get("total"))
        )

    def work(self, stream: Callable) -> Iterator[tuple[int, list[Prediction]]]:
        """Takes tasks while there are any, or until the window is full; yields their numbers and predictions."""
        tasks = self._tasks()
        if (first := next(tasks, None)) is None:
            return
        for predictions in stream(sample for batch in itertools.chain([first], tasks) for sample in batch):
            yield self.taken.popleft(), predictions

    def _tasks(self) -> Iterator[list[Sample]]:
        while True:
            if self._requested is None:
                self._requested = self.store.add("asked", 1) - 1
            key = f"task{self._requested}"
            while not self.store.check([key]):
                if self._batches is not None:
                    self.publish()
                # finishes the tasks it has taken: with a full window, the next one may be waiting for them
                if self.is_over() or (self.store.check(["full"]) and not self.store.check([key])):
                    return
                time.sleep(POLL_SECONDS)
            self.taken.append(self._requested)
            self._requested = None
            samples = json.loads(self.store.get(key))
            self.store.delete_key(key)
            yield [Sample(**sample) for sample in samples]

    def submit(self, number: int, predictions: list[Prediction]) -> None:
        """Returns the predictions of a task to rank 0."""
        if self._batches is not None:
            self._own[number] = predictions
            self.publish()
        else:
            self.store.set(f"back{number}", json.dumps([asdict(replace(p, picture=None)) for p in predictions]))


def _with_tuples(row: dict) -> Prediction:
    """Returns a prediction that was sent as JSON, which has lists in place of tuples."""
    inside = None if row["set"] is None else tuple(row["set"])
    return Prediction(**{**row, "top": tuple(map(tuple, row["top"])), "set": inside})
