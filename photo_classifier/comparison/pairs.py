"""Two runs compared photo by photo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from photo_classifier.comparison.runs import Answer, FinishedRun
from photo_classifier.runtime.text import pluralize

LEVEL = 0.05  # how often chance alone may make a difference among runs that are equally good

SMALLEST = 0.0001  # p that is printed


@dataclass(frozen=True)
class Pair:
    """A run beside the best one, on the held-out photos that both have with the same label.

    `n_gained` photos are right in the run alone, `n_lost` in the best alone. `n_relabelled` photos have another label
    in the best run, and are not counted.
    """

    n_shared: int
    n_gained: int
    n_lost: int
    n_relabelled: int = 0

    @property
    def p_value(self) -> float:
        """The exact two-sided p of McNemar's test: how likely so uneven a split is if both are equally good.

        McNemar 1947; the binomial in place of chi-squared, as in Fay 2010, because few photos are split.
        """
        n, fewer = self.n_gained + self.n_lost, min(self.n_gained, self.n_lost)
        ways = total = 1
        for k in range(fewer):
            ways = ways * (n - k) // (k + 1)
            total += ways
        return min(1.0, 2 * total / 2**n)

    def verdict(self, level: float) -> str:
        """Returns what can be said of the run against the best: better, worse, or that it cannot be told."""
        if not self.n_shared or self.p_value >= level:
            return "cannot be told"
        return "better" if self.n_gained > self.n_lost else "worse"

    def text(self, level: float, run: str, best: str) -> str:
        """Returns the verdict on the run of that name as a sentence, with its counts."""
        n = self.n_relabelled
        others = f" Not counted: {pluralize(n, 'photo')} with another label in {best}." if n else ""
        if not self.n_shared:
            return f"{best} and {run} cannot be told apart: they share no held-out photo.{others}"
        found = {
            "better": f"{run} is better than {best}",
            "worse": f"{best} is better than {run}",
            "cannot be told": f"{best} and {run} cannot be told apart",
        }[self.verdict(level)]
        chance = "can" if self.p_value >= level else "can hardly"
        p = f"{self.p_value:.2g}" if self.p_value >= SMALLEST else f"below {SMALLEST:f}".rstrip("0")
        return (
            f"{found}: of {pluralize(self.n_shared, 'shared photo')} only {best} is right on {self.n_lost}, only "
            f"{run} on {self.n_gained}; this {chance} be chance (p {p}).{others}"
        )


def shared(run: FinishedRun, best: FinishedRun) -> list[tuple[Answer, Answer]]:
    """Returns the answers of both for the photos that they share: by path, or by name and size if the data moved."""
    ours, theirs = run.answers, best.answers
    if not ours.keys() & theirs.keys():
        ours, theirs = ({a.photo: a for a in answers.values() if a.photo} for answers in (ours, theirs))
    return [(answer, theirs[photo]) for photo, answer in ours.items() if photo in theirs]


def group_by_photos(runs: Sequence[FinishedRun]) -> list[list[FinishedRun]]:
    """Returns the runs in groups that share held-out photos, the lone runs last.

    A run without answers joins the first group with data of that name.
    """
    found: list[tuple[list[FinishedRun], set[str]]] = []
    for run in sorted(runs, key=lambda run: not run.answers):
        photos = {name for path, answer in run.answers.items() for name in (path, answer.photo) if name}
        linked = [pair for pair in found if not pair[1].isdisjoint(photos)]
        if not run.answers:
            linked = [pair for pair in found if pair[0][0].data == run.data][:1]
        found = [pair for pair in found if pair not in linked]
        members = [member for group, _ in linked for member in group]
        found.append(([*members, run], photos.union(*(names for _, names in linked))))
    groups = sorted((group for group, _ in found), key=lambda group: min(map(runs.index, group)))
    return sorted(groups, key=lambda group: len(group) == 1)


def same_photos(run: FinishedRun, best: FinishedRun) -> bool:
    """Returns whether both were measured on the same photos."""
    return len(shared(run, best)) == len(run.answers) == len(best.answers)


def pair(run: FinishedRun, best: FinishedRun) -> Pair:
    """Counts on which photos one of the two is right and the other wrong."""
    both = shared(run, best)
    same = [(ours.predict, theirs.predict, ours.label) for ours, theirs in both if ours.label == theirs.label]
    gained = sum(ours == label != theirs for ours, theirs, label in same)
    lost = sum(theirs == label != ours for ours, theirs, label in same)
    return Pair(len(same), gained, lost, len(both) - len(same))
