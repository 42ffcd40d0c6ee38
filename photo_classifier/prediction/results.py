"""What comes out of a prediction: one `Prediction` an input, its columns, and the counts of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

from photo_classifier.runtime.text import escape_surrogates

UNKNOWN = "unknown"  # the answer where the model is less sure than `--min_probability`


@dataclass(frozen=True)
class Prediction:
    """What is known of one input; `columns_of` says how it becomes a row.

    `top` are the most probable classes with their probabilities, `log_likelihood` is that of the label, in
    nats. Where `status` is `error`, `reason` says why and there is no prediction.
    """

    file_dir: str
    predict: str = ""
    probability: float | None = None
    top: tuple[tuple[str, float], ...] = ()
    probabilities: Mapping[str, float] | None = None
    log_likelihood: float | None = None
    label: str = ""
    status: str = "ok"
    reason: str = ""


def columns_of(top_k: int | None = None, class_names: Sequence[str] = ()) -> list[str]:
    """The columns of a result, in order; the first two are fixed.

    Args:
        top_k: adds that many classes with their probabilities.
        class_names: adds the probability of each.
    """
    ranks = [f"{what}_{rank}" for rank in range(1, (top_k or 0) + 1) for what in ("class", "probability")]
    every = (f"p_{name}" for name in class_names)
    return ["file_dir", "predict", "probability", *ranks, *every, "label", "status", "reason"]


def row_of(prediction: Prediction) -> dict[str, str | float | None]:
    """All that the columns can ask for, by their names."""
    row = {name: getattr(prediction, name) for name in ("predict", "probability", "label", "status", "reason")}
    for rank, (name, p) in enumerate(prediction.top, start=1):
        row |= {f"class_{rank}": name, f"probability_{rank}": p}
    row |= {f"p_{name}": p for name, p in (prediction.probabilities or {}).items()}
    return {"file_dir": escape_surrogates(prediction.file_dir), **row}


@dataclass
class Counts:
    """What a set of predictions came to.

    `n_labelled` are those read whose label is known, and `n_correct` those of them whose most probable
    class it is; `n_known` and `n_known_correct` leave out the answer `unknown`.
    """

    n_rows: int = 0
    n_errors: int = 0
    n_unknown: int = 0
    n_labelled: int = 0
    n_correct: int = 0
    n_known: int = 0
    n_known_correct: int = 0

    def add(self, prediction: Prediction) -> None:
        """Counts one row."""
        self.n_rows += 1
        self.n_errors += prediction.status == "error"
        if prediction.status == "ok":
            best = prediction.top[0][0]
            self._add_answer(best, prediction.predict == best, prediction.label)

    def _add_answer(self, best: str, is_known: bool, label: str) -> None:
        self.n_unknown += not is_known
        if label:
            self.n_labelled += 1
            self.n_correct += best == label
            self.n_known += is_known
            self.n_known_correct += is_known and best == label

    def add_row(self, row: Mapping[str, str]) -> None:
        """Counts a row that was read back from a result."""
        self.n_rows += 1
        self.n_errors += row["status"] == "error"
        if row["status"] == "ok":
            best = row.get("class_1", row["predict"])
            self._add_answer(best, row["predict"] == best, row["label"])

    @property
    def accuracy_text(self) -> str:
        """`0.9412 (144/153)`."""
        return share_text(self.n_correct, self.n_labelled)


def share_text(part: int, whole: int) -> str:
    """`0.9412 (144/153)`."""
    return f"{part / whole:.4f} ({part}/{whole})"


class Accumulator(Protocol):
    """What is added up beside the counts: the measures of a report, the photos of a sheet."""

    def add_predictions(self, predictions: Sequence[Prediction]) -> None:
        """Takes in a batch."""

    def state(self) -> dict:
        """As plain values."""

    def restore(self, state: Mapping) -> None:
        """Takes over what `state` gave."""


class Totals:
    """All that is added up while rows are written, and that a resumed run takes over.

    Args:
        parts: by name.
    """

    def __init__(self, parts: Mapping[str, Accumulator] | None = None) -> None:
        self.counts, self.parts = Counts(), parts or {}
        self.n_missing = 0  # rows that are in no part: an earlier run did not keep what it had added up

    @property
    def is_small(self) -> bool:
        """Whether the state costs nothing to write."""
        return not self.parts

    def add(self, predictions: Sequence[Prediction]) -> None:
        """Adds up predictions."""
        for prediction in predictions:
            self.counts.add(prediction)
        for part in self.parts.values():
            part.add_predictions(predictions)

    def add_row(self, row: Mapping[str, str]) -> None:
        """Adds what can be known of a row that was read back; `restore` sets it right."""
        self.counts.add_row(row)
        self.n_missing += bool(self.parts)

    def state(self) -> dict:
        """As plain values."""
        return {"counts": asdict(self.counts), "parts": {name: part.state() for name, part in self.parts.items()}}

    def restore(self, state: Mapping) -> None:
        """Takes over what `state` gave."""
        self.counts = Counts(**state["counts"])
        kept = state.get("parts", {})
        if self.parts.keys() <= kept.keys():
            for name, part in self.parts.items():
                part.restore(kept[name])
            self.n_missing = 0
