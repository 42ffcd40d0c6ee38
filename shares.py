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

import ranks
from results import Prediction
from splits import Sample
from utils import is_main

if TYPE_CHECKING:
    from predictor import Predictor

POLL_SECONDS = 0.01
AHEAD = 4  # tasks a process that are put out before they are asked for


def predict_together(predictor: Predictor, samples: Iterable[Sample]) -> Iterator[list[Prediction]]:
    """`predictor.stream` by all processes of the run: the predictions on rank 0, nothing on the others.

    Args:
        samples: taken on rank 0 alone, only as they are needed.
    """
    if ranks.world_size() == 1:
        return predictor.stream(samples)
    desk = Desk(ranks.store("predict"))
    if is_main():
        return _lead(desk, predictor, samples)
    for number, predictions in desk.work(predictor.stream):
        desk.deliver(number, predictions)
    return iter(())


def _lead(desk: Desk, predictor: Predictor, samples: Iterable[Sample]) -> Iterator[list[Prediction]]:
    desk.open(samples, predictor.engine.batch_size)
    for number, predictions in desk.work(predictor.stream):
        desk.deliver(number, predictions)
        yield from desk.ready()
    while not desk.is_done:
        desk.put_out()
        yield from desk.ready()
        time.sleep(POLL_SECONDS)


class Desk:
    """The place where tasks are put out and their predictions come back.

    Args:
        store: of torch.distributed; its keys are this desk's alone.
    """

    def __init__(self, store) -> None:
        self.store = store
        self.taken: deque[int] = deque()
        self._batches: Iterator[list[Sample]] | None = None
        self._n_out = self._n_back = 0
        self._total: int | None = None
        self._own: dict[int, list[Prediction]] = {}

    # --- rank 0 -------------------------------------------------------------------------------

    def open(self, samples: Iterable[Sample], batch_size: int) -> None:
        """Takes over the inputs."""
        source = iter(samples)
        self._batches = iter(lambda: list(itertools.islice(source, batch_size)), [])
        self.put_out()

    def put_out(self) -> None:
        """Puts out as many tasks as may be asked for before the next time."""
        if self._total is not None:
            return
        wanted = self.store.add("asked", 0) + AHEAD * ranks.world_size()
        for batch in itertools.islice(self._batches, max(0, wanted - self._n_out)):
            self.store.set(f"task{self._n_out}", json.dumps([asdict(sample) for sample in batch]))
            self._n_out += 1
        if self._n_out < wanted:
            self._total = self._n_out
            self.store.set("total", str(self._total))

    def ready(self) -> Iterator[list[Prediction]]:
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

    def work(self, stream: Callable) -> Iterator[tuple[int, list[Prediction]]]:
        """Takes tasks as long as there are any: their numbers and predictions."""
        for predictions in stream(sample for batch in self._tasks() for sample in batch):
            yield self.taken.popleft(), predictions

    def _tasks(self) -> Iterator[list[Sample]]:
        while True:
            number = self.store.add("asked", 1) - 1
            while not self.store.check([f"task{number}"]):
                if self._batches is not None:
                    self.put_out()
                if self.store.check(["total"]) and number >= int(self.store.get("total")):
                    return
                time.sleep(POLL_SECONDS)
            self.taken.append(number)
            samples = json.loads(self.store.get(f"task{number}"))
            self.store.delete_key(f"task{number}")
            yield [Sample(**sample) for sample in samples]

    def deliver(self, number: int, predictions: list[Prediction]) -> None:
        """Gives predictions back."""
        if self._batches is not None:
            self._own[number] = predictions
            self.put_out()
        else:
            self.store.set(f"back{number}", json.dumps([asdict(prediction) for prediction in predictions]))
