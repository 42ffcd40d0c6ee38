"""Prediction by many processes: rank 0 hands out the inputs and takes the predictions back in their order.

Tasks of one batch each go through the store that PyTorch's launcher keeps. Whoever is free takes the next
one, so a slow machine takes fewer. Only rank 0 lists, counts and writes.
"""

from __future__ import annotations

import itertools
import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

from photo_classifier.data.samples import Sample
from photo_classifier.prediction.results import Prediction
from photo_classifier.runtime import distributed, launcher
from photo_classifier.runtime.launcher import is_main

if TYPE_CHECKING:
    from photo_classifier.prediction.predictor import Predictor

POLL_SECONDS = 0.01
AHEAD = 4  # tasks a process that are put out before they are asked for
WINDOW = 128  # tasks a process that are out at most: one that is stuck must not let all others' rows pile up


def predict_distributed(predictor: Predictor, samples: Iterable[Sample]) -> Iterator[list[Prediction]]:
    """`predictor.stream` by all processes of the run: the predictions on rank 0, nothing on the others.

    Args:
        samples: taken on rank 0 alone, only as they are needed.
    """
    if launcher.world_size() == 1:
        return predictor.stream(samples)
    queue = TaskQueue(distributed.make_store("predict"))
    if is_main():
        return _lead(queue, predictor, samples)
    while not queue.is_over():
        for number, predictions in queue.work(predictor.stream):
            queue.submit(number, predictions)
        time.sleep(POLL_SECONDS)
    return iter(())


def _lead(queue: TaskQueue, predictor: Predictor, samples: Iterable[Sample]) -> Iterator[list[Prediction]]:
    # a loader holds 4 batches a worker, and must not be what fills the window
    queue.open(
        samples, predictor.engine.batch_size, launcher.world_size() * max(WINDOW, 8 * (predictor.n_workers or 0))
    )
    while not queue.is_done:
        for number, predictions in queue.work(predictor.stream):
            queue.submit(number, predictions)
            yield from queue.completed()
        queue.publish()
        yield from queue.completed()
        time.sleep(POLL_SECONDS)


class TaskQueue:
    """The place where tasks are put out and their predictions come back.

    Args:
        store: of torch.distributed; its keys are this queue's alone.
    """

    def __init__(self, store) -> None:
        self.store = store
        self.taken: deque[int] = deque()
        self._asked: int | None = None  # the task that is this process's next
        self._batches: Iterator[list[Sample]] | None = None
        self._n_out = self._n_back = self._window = 0
        self._is_full = False
        self._total: int | None = None
        self._own: dict[int, list[Prediction]] = {}

    # --- rank 0 -------------------------------------------------------------------------------

    def open(self, samples: Iterable[Sample], batch_size: int, window: int) -> None:
        """Takes over the inputs, of which at most `window` tasks are out and not yet handed on."""
        source = iter(samples)
        self._batches = iter(lambda: list(itertools.islice(source, batch_size)), [])
        self._window = window
        self.publish()

    def publish(self) -> None:
        """Puts out as many tasks as may be asked for before the next time, within the window."""
        if self._total is None:
            asked = self.store.add("asked", 0) + AHEAD * launcher.world_size()
            wanted = min(asked, self._n_back + self._window)
            for batch in itertools.islice(self._batches, max(0, wanted - self._n_out)):
                self.store.set(f"task{self._n_out}", json.dumps([asdict(sample) for sample in batch]))
                self._n_out += 1
            if self._n_out < wanted:
                self._total = self._n_out
                self.store.set("total", str(self._total))
        is_full = self._total is None and self._n_out - self._n_back >= self._window
        if is_full != self._is_full:
            self._is_full = is_full
            self.store.set("full", "") if is_full else self.store.delete_key("full")

    def completed(self) -> Iterator[list[Prediction]]:
        """What is back and next in the order of the inputs."""
        while (predictions := self._next()) is not None:
            self._n_back += 1
            yield predictions

    def _next(self) -> list[Prediction] | None:
        number, key = self._n_back, f"back{self._n_back}"
        if number in self._own:
            return self._own.pop(number)
        if number >= self._n_out or not self.store.check([key]):
            return None
        rows = json.loads(self.store.get(key))
        self.store.delete_key(key)
        return [Prediction(**{**row, "top": tuple(map(tuple, row["top"]))}) for row in rows]

    @property
    def is_done(self) -> bool:
        """Whether all predictions were handed on."""
        return self._n_back == self._total

    # --- every rank ---------------------------------------------------------------------------

    def is_over(self) -> bool:
        """Whether there is no task for this process any more."""
        return self._asked is not None and self.store.check(["total"]) and self._asked >= int(self.store.get("total"))

    def work(self, stream: Callable) -> Iterator[tuple[int, list[Prediction]]]:
        """Takes tasks as long as there are any, or until the window is full: their numbers and predictions."""
        tasks = self._tasks()
        if (first := next(tasks, None)) is None:
            return
        for predictions in stream(sample for batch in itertools.chain([first], tasks) for sample in batch):
            yield self.taken.popleft(), predictions

    def _tasks(self) -> Iterator[list[Sample]]:
        while True:
            if self._asked is None:
                self._asked = self.store.add("asked", 1) - 1
            key = f"task{self._asked}"
            while not self.store.check([key]):
                if self._batches is not None:
                    self.publish()
                # what is in hand is handed in, and not kept waiting for a task that waits for it
                if self.is_over() or (self.store.check(["full"]) and not self.store.check([key])):
                    return
                time.sleep(POLL_SECONDS)
            self.taken.append(self._asked)
            self._asked = None
            samples = json.loads(self.store.get(key))
            self.store.delete_key(key)
            yield [Sample(**sample) for sample in samples]

    def submit(self, number: int, predictions: list[Prediction]) -> None:
        """Gives predictions back."""
        if self._batches is not None:
            self._own[number] = predictions
            self.publish()
        else:
            self.store.set(f"back{number}", json.dumps([asdict(prediction) for prediction in predictions]))
