"""One `Prediction` per input, its row, and what is accumulated over all of them."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from photo_classifier.runtime.text import escape_surrogates

if TYPE_CHECKING:
    import numpy as np

UNKNOWN = "unknown"  # the answer below `--min_probability`, and with `--unknown` that to other photos
UNLIKE = "unlike the training photos"  # the reason of the latter


@dataclass(frozen=True)
class Prediction:
    """The outcome for one input; `columns_of` and `row_of` turn it into a row.

    `top` has the most probable classes with their probabilities, `log_likelihood` is that of the label, in nats.
    `distance` says how unlike the training photos it is, in standard deviations from the usual, and `set` are the
    classes of a set with a promise, each where it is known. `reason` says why there is no answer: with the status
    `error` there is no prediction, with `ok` the photo is refused, and `predict` is `unknown`. `most_distant` is the
    largest distance that is answered, of a photo that is refused for its own. `heat` says where the best guess was
    seen, as `models.heat_maps.heat_values`, and `picture` is a small one of the photo, uint8 (height, width, 3);
    both only where they were asked for.
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
    distance: float | None = None
    set: tuple[str, ...] | None = None
    most_distant: float | None = None
    heat: str = ""
    picture: np.ndarray | None = field(default=None, repr=False, compare=False)

    @property
    def best_guess(self) -> str:
        """The most probable class, also where the answer is `unknown`; empty without a prediction."""
        return self.top[0][0] if self.top else ""

    @property
    def refusal(self) -> str:
        """Why the photo is refused, with its distance if that is the reason; empty if it is answered."""
        limit = self.most_distant
        return self.reason if limit is None else f"{self.reason}: distance {self.distance:.2f}, at most {limit:.2f}"

    @property
    def correct(self) -> int | None:
        """1 if the answer is the label, 0 if it is another class; None without a label or an answer, and for `unknown`.

        So the mean of a column of these is the accuracy of the answers.
        """
        is_answer = bool(self.top) and not self.reason  # a class may be called `unknown` as well
        return int(self.predict == self.label) if is_answer and self.label else None


def answer(
    file_dir: str,
    label: str | None,
    class_names: Sequence[str],
    ranks: Sequence[int],
    top: Sequence[float],
    every: Sequence[float] | None,
    min_probability: float,
    log_likelihood: float | None = None,
) -> Prediction:
    """Returns the prediction for a readable image.

    Args:
        ranks, top: the most probable classes and their probabilities, in descending order.
        every: the probabilities of all classes, if they are wanted.
        min_probability: below it the answer is `unknown`.
    """
    is_sure = top[0] >= min_probability
    return Prediction(
        file_dir,
        predict=class_names[ranks[0]] if is_sure else UNKNOWN,
        probability=top[0],
        top=tuple((class_names[k], p) for k, p in zip(ranks, top, strict=True)),
        probabilities=None if every is None else dict(zip(class_names, every, strict=True)),
        log_likelihood=log_likelihood,
        label=label or "",
        reason="" if is_sure else f"probability below {min_probability:g}",
    )


def refused(prediction: Prediction, most_distant: float) -> Prediction:
    """Returns the prediction with the answer `unknown`, because the photo is unlike the training photos."""
    return replace(prediction, predict=UNKNOWN, reason=UNLIKE, most_distant=most_distant)


def failure(file_dir: str, label: str | None, reason: str) -> Prediction:
    """Returns the row for an image without a prediction."""
    return Prediction(file_dir, label=label or "", status="error", reason=reason)


MOST_NAMED = 3  # unreadable photos
LATER_COLUMNS = ("best_guess", "correct")  # those that the first version did not write


def columns_of(
    top_k: int | None = None,
    class_names: Sequence[str] = (),
    hides_guess: bool = False,
    distance: bool = False,
    sets: bool = False,
) -> list[str]:
    """Returns the columns of a result, in order; the first two are fixed.

    Args:
        top_k: adds that many classes with their probabilities.
        class_names: adds the probability of each.
        hides_guess: adds the best guess, which the answer `unknown` may hide.
        distance, sets: add the column of that, where the checkpoint knows it.
    """
    guess = ["best_guess"] if hides_guess else []
    ranks = [f"{what}_{rank}" for rank in range(1, (top_k or 0) + 1) for what in ("class", "probability")]
    every = (f"p_{name}" for name in class_names)
    more = [*(["distance"] if distance else []), *(["set"] if sets else [])]
    return ["file_dir", "predict", "probability", *guess, *ranks, *every, *more, "label", "correct", "status", "reason"]


ATTRIBUTES = ("predict", "probability", "best_guess", "distance", "label", "correct", "status", "reason")


def row_of(prediction: Prediction) -> dict[str, str | float | None]:
    """Returns the values of all possible columns, by name."""
    row = {name: getattr(prediction, name) for name in ATTRIBUTES}
    for rank, (name, p) in enumerate(prediction.top, start=1):
        row |= {f"class_{rank}": name, f"probability_{rank}": p}
    row |= {f"p_{name}": p for name, p in (prediction.probabilities or {}).items()}
    row["set"] = None if prediction.set is None else "|".join(prediction.set)
    return {"file_dir": escape_surrogates(prediction.file_dir), **row}


@dataclass
class Counts:
    """Counts rows by their outcome; rows that are read back from a result count as well, without their logits.

    `n_labelled` images could be read and have a label, and for `n_correct` of them it is the most probable class.
    `n_unknown` photos are refused, `n_unlike` of these as unlike the training photos. `n_known` and `n_known_correct`
    leave them out. `n_seen` photos were in training, `n_seen_labelled` of these have a label, and of `n_seen_correct`
    it is the most probable class.
    """

    n_rows: int = 0
    n_errors: int = 0
    n_unknown: int = 0
    n_unlike: int = 0
    n_labelled: int = 0
    n_correct: int = 0
    n_known: int = 0
    n_known_correct: int = 0
    n_seen: int = 0
    n_seen_labelled: int = 0
    n_seen_correct: int = 0

    def add(self, status: str, best: str, predict: str, label: str, reason: str = "", is_seen: bool = False) -> None:
        """Counts a row whose most probable class is `best` and whose answer is `predict`.

        Args:
            is_seen: whether the photo was in training.
        """
        self.n_rows += 1
        self.n_errors += status == "error"
        if status != "ok":
            return
        is_known = not reason and predict == best  # rows of earlier versions have no reason below --min_probability
        self.n_unknown += not is_known
        self.n_unlike += reason == UNLIKE
        self.n_seen += is_seen
        if label:
            self.n_seen_labelled += is_seen
            self.n_seen_correct += is_seen and best == label
            self.n_labelled += 1
            self.n_correct += best == label
            self.n_known += is_known
            self.n_known_correct += is_known and best == label

    @property
    def n_ok(self) -> int:
        """The number of images that could be read."""
        return self.n_rows - self.n_errors

    @property
    def accuracy_text(self) -> str:
        """The accuracy as `0.9412 (144/153)`."""
        return share_text(self.n_correct, self.n_labelled)


def share_text(part: int, whole: int) -> str:
    """Returns `0.9412 (144/153)`."""
    return f"{part / whole:.4f} ({part}/{whole})"


class Accumulator(Protocol):
    """What is accumulated besides the counts: the measures of a report, the photos of a sheet."""

    def add_predictions(self, predictions: Sequence[Prediction]) -> None:
        """Adds a batch."""

    def state(self) -> dict:
        """Returns everything that was accumulated as plain values."""

    def restore(self, state: Mapping) -> None:
        """Continues from what `state` returned."""


class Totals:
    """Everything that is accumulated while rows are written, and that a resumed run continues.

    Args:
        parts: accumulators by name.
        seen_files: those that the model was trained on.
        of_new: the names of parts that get the other photos only.
    """

    def __init__(
        self,
        parts: Mapping[str, Accumulator] | None = None,
        seen_files: Container[str] = (),
        of_new: Container[str] = (),
    ) -> None:
        self.counts, self.parts, self.seen_files, self.of_new = Counts(), parts or {}, seen_files, of_new
        self.unreadable: list[tuple[str, str]] = []  # the first ones, with the reasons
        self.n_missing = 0  # rows that the parts lack, because an earlier run did not save them

    @property
    def is_small(self) -> bool:
        """Whether the state is cheap enough to write after every batch."""
        return not self.parts

    def add(self, predictions: Sequence[Prediction]) -> None:
        """Adds a batch."""
        new = [
            p for p in predictions if not self._count(p.file_dir, p.status, p.best_guess, p.predict, p.label, p.reason)
        ]
        for name, part in self.parts.items():
            part.add_predictions(new if name in self.of_new else predictions)

    def add_row(self, row: Mapping[str, str]) -> None:
        """Counts a row that was read back; only `restore` recovers the parts."""
        best = row.get("best_guess") or row.get("class_1", row["predict"])
        self._count(row["file_dir"], row["status"], best, row["predict"], row["label"], row["reason"])
        self.n_missing += bool(self.parts)

    def _count(self, path: str, status: str, best: str, predict: str, label: str, reason: str) -> bool:
        """Counts a row; returns whether the photo was in training, which is asked once, as it reads the file."""
        is_seen = status == "ok" and path in self.seen_files
        self.counts.add(status, best, predict, label, reason, is_seen)
        if status == "error" and len(self.unreadable) < MOST_NAMED:
            self.unreadable.append((path, reason))
        return is_seen

    def state(self) -> dict:
        """Returns everything that was accumulated as plain values."""
        return {"counts": asdict(self.counts), "parts": {name: part.state() for name, part in self.parts.items()}}

    def restore(self, state: Mapping) -> None:
        """Continues from what `state` returned."""
        # what an earlier version did not count is known from the rows that were just read back
        self.counts = Counts(**{**asdict(self.counts), **state["counts"]})
        saved = state.get("parts", {})
        if self.parts.keys() <= saved.keys():
            for name, part in self.parts.items():
                part.restore(saved[name])
            self.n_missing = 0
