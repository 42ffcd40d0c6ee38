"""The comparison of runs as rows, as text and as CSV."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from photo_classifier.comparison.pairs import LEVEL, Pair, pair, same_photos
from photo_classifier.comparison.runs import FinishedRun
from photo_classifier.config import result_flags
from photo_classifier.runtime.text import aligned, duration, escape_surrogates


@dataclass(frozen=True)
class Comparison:
    """Runs beside the best of them, which comes first; `pairs` are of the others, None where answers are missing."""

    runs: Sequence[FinishedRun]
    pairs: Sequence[Pair | None]
    settings: Sequence[str]  # those that differ

    @property
    def level(self) -> float:
        """The p below which a difference counts: of many runs one looks better by chance (Bonferroni's correction)."""
        return LEVEL / len(self.pairs)

    @property
    def notes(self) -> list[str]:
        """What to know before the verdicts are believed."""
        best, others = self.runs[0], self.runs[1:]
        notes = []
        if old := [run.folder for run in self.runs if not run.answers]:
            notes.append(f"not compared photo by photo, as an earlier version made it: {', '.join(old)}")
        if different := [run.folder for run in others if run.answers and not same_photos(run, best)]:
            notes.append(
                f"measured on other held-out photos than {best.folder}: {', '.join(different)}; their accuracies "
                "cannot be set side by side, only the counts on shared photos"
            )
        return notes


def compare(runs: Sequence[FinishedRun]) -> Comparison:
    """Compares each run with the most accurate one; of equals that is the one with the lower loss."""

    def rank(run: FinishedRun) -> tuple[float, float]:
        loss = run.measures["negative_log_likelihood"]
        return -run.measures["accuracy"], math.inf if loss is None else loss

    best, *others = runs = sorted(runs, key=rank)
    pairs = [pair(run, best) if run.answers and best.answers else None for run in others]
    texts = {name: {setting(run, name) for run in runs} for name in result_flags()}
    return Comparison(runs, pairs, [name for name, values in texts.items() if len(values) > 1])


def setting(run: FinishedRun, name: str) -> str:
    """Returns the value of a flag as the table shows it; an older run has the default of a flag that is new."""
    value = run.settings.get(name, result_flags()[name])
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else escape_surrogates(str(value))


def cells(comparison: Comparison) -> list[list[str]]:
    """Returns the table for reading: a header and a row for each run."""
    header = ["run", *comparison.settings, "data", "train", "accuracy", "95 % interval", "of photos", "loss", "took"]
    rows = []
    for run in comparison.runs:
        m, (low, high) = run.measures, run.measures["accuracy_interval_95"]
        loss = m["negative_log_likelihood"]
        measured = [f"{m['accuracy']:.4f}", f"{low:.4f} to {high:.4f}", f"{m['n_images']} {run.title}"]
        measured += ["-" if loss is None else f"{loss:.4f}", "-" if run.seconds is None else duration(run.seconds)]
        texts = [setting(run, name) for name in comparison.settings]
        rows.append([escape_surrogates(run.folder), *texts, run.data, str(run.n_train), *measured])
    return [header, *rows]


def verdicts(comparison: Comparison) -> list[str]:
    """Returns a line for each run but the best: whether it is better, worse, or cannot be told apart."""
    unknown = "cannot be told; there are no answers to count"
    return [
        f"{escape_surrogates(run.folder)}: {two.text(comparison.level) if two else unknown}"
        for run, two in zip(comparison.runs[1:], comparison.pairs, strict=True)
    ]


def heading(comparison: Comparison) -> str:
    """Returns what the verdicts are about."""
    best, n = comparison.runs[0], len(comparison.pairs)
    many = f" ({LEVEL:g} shared by {n} comparisons)" * (n > 1)
    return (
        f"The best is {escape_surrogates(best.folder)}, {best.title} accuracy {best.measures['accuracy']:.4f}. "
        f"{'The other' if n == 1 else 'Each other run'} against it, photo by photo; better or worse is said "
        f"where the p of the exact McNemar test is below {comparison.level:.2g}{many}:"
    )


def text_lines(comparison: Comparison) -> list[str]:
    """Returns the table and the verdicts as lines."""
    lines = aligned(cells(comparison), left=range(len(comparison.settings) + 2))
    return [*lines, "", heading(comparison), *verdicts(comparison)]


def csv_rows(comparison: Comparison) -> list[dict[str, object]]:
    """Returns the table with plain numbers, for other programs."""
    rows = []
    for run, two in zip(comparison.runs, [None, *comparison.pairs], strict=True):
        low, high = run.measures["accuracy_interval_95"]
        row = {"run": run.folder, **{name: setting(run, name) for name in comparison.settings}, "data": run.data}
        row |= {"n_train": run.n_train, "split": run.title, "n_images": run.measures["n_images"]}
        row |= {"accuracy": run.measures["accuracy"], "interval_low": low, "interval_high": high}
        row |= {"loss": run.measures["negative_log_likelihood"], "seconds": run.seconds}
        if two:
            row |= {"n_shared": two.n_shared, "run_right_best_wrong": two.n_gained, "best_right_run_wrong": two.n_lost}
            row |= {"p_value": two.p_value, "verdict": two.verdict(comparison.level)}
        rows.append({name: "" if value is None else value for name, value in row.items()})
    return rows
