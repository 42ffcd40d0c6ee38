"""Photos that show each kind of answer: a few of every cell of the confusion matrix."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np


class Examples:
    """At most `most` photos: the best one of each group, then the second of each, and so on.

    The same ones are kept whatever the order and the batches they come in: a photo that falls behind `most` others
    never comes to the front again.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._rows: list[tuple] = []  # (group, -score, position, path, refusal)

    def add(
        self,
        groups: np.ndarray,
        scores: np.ndarray,
        positions: np.ndarray,
        paths: Sequence[str],
        refusals: Sequence[str] | None = None,
    ) -> None:
        """Adds photos.

        Args:
            groups: int64 (n,).
            scores: float (n,), the best ones are the highest.
            positions: int64 (n,), which decide between equal scores.
            paths: the names of the n photos.
            refusals: why each was answered `unknown`; empty for the others.
        """
        refusals = [""] * len(paths) if refusals is None else refusals
        self._rows += zip(groups.tolist(), (-scores).tolist(), positions.tolist(), paths, refusals, strict=True)
        if len(self._rows) > 4 * self.most:
            self._rows = self.chosen()

    def chosen(self) -> list[tuple]:
        """Returns what is kept as (group, -score, position, path, refusal): the best of each group first."""
        by_group = itertools.groupby(sorted(self._rows), key=lambda row: row[0])
        ranked = ((rank, row) for _, rows in by_group for rank, row in enumerate(rows))
        in_order = sorted(ranked, key=lambda item: (item[0], item[1][1:3], item[1][0]))
        return [row for _, row in in_order[: self.most]]

    def restore(self, rows: Iterable[Sequence]) -> None:
        """Continues from what `chosen` returned."""
        self._rows = [(*row, "")[:5] for row in rows]  # an earlier version kept no refusals
