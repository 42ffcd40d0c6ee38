"""The comparison of runs as rows, as text and as CSV."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from photo_classifier.comparison.pairs import LEVEL, Pair, group_by_photos, pair, same_photos
from photo_classifier.comparison.runs import FinishedRun
from photo_classifier.config import result_flags
from photo_classifier.runtime.text import aligned, duration, escape_surrogates
from photo_classifier.training.run_files import PREDICTIONS
from photo_classifier.unused_flags import EPOCHS_ALONE

SEPARATE = (
    "Only runs that share held-out photos are compared; the {n} groups below cannot be ranked against each other."
)


@dataclass(frozen=True)
class Comparison:
    """Runs that share held-out photos, beside the best of them, which comes first.

    `pairs` are of the others, None where answers are missing; a run that shares no photo with any is alone.
    """

    runs: Sequence[FinishedRun]
    pairs: Sequence[Pair | None]
    settings: Sequence[str]  # those that differ

    @property
    def level(self) -> float:
        """The p below which a difference counts: of many runs one looks better by chance (Bonferroni's correction)."""
        return LEVEL / max(1, len(self.pairs))

    @property
    def notes(self) -> list[str]:
        """What to know before the verdicts are believed."""
        best, others = self.runs[0], self.runs[1:]
        notes = [fault for run in self.runs for fault in run.faults]
        if old := [run.folder for run in self.runs if run.is_old]:
            notes.append(
                f"not compared photo by photo, as there is no {PREDICTIONS} (earlier versions wrote none): "
                f"{', '.join(old)}"
            )
        if different := [run.folder for run in others if run.answers and not same_photos(run, best)]:
            notes.append(
                f"measured on other held-out photos than {best.folder}: {', '.join(different)}; their accuracies "
                "cannot be set side by side, only the counts on shared photos"
            )
        return notes


def compare(runs: Sequence[FinishedRun]) -> list[Comparison]:
    """Compares the runs of each group that shares photos: accuracies on other photos say nothing of a run."""
    return [compare_group(group) for group in group_by_photos(runs)]


def compare_group(runs: Sequence[FinishedRun]) -> Comparison:
    """Compares each run with the most accurate one; of equals that is the one with the lower loss.

    The lower end of the interval decides: on as many photos its order is that of the accuracies, and a few photos that
    are all right are not put before many that nearly all are.
    Runs without answers come last: nothing could be counted against them.
    """

    def rank(run: FinishedRun) -> tuple[bool, float, float]:
        loss = run.measures["negative_log_likelihood"]
        return not run.answers, -run.measures["accuracy_interval_95"][0], math.inf if loss is None else loss

    best, *others = runs = sorted(runs, key=rank)
    pairs = [pair(run, best) if run.answers and best.answers else None for run in others]
    return Comparison(runs, pairs, differing(runs))


def differing(runs: Sequence[FinishedRun]) -> list[str]:
    """Returns the settings in which the runs differ."""
    texts = {
        name: {setting(run, name) if acts(run, name) else _text(default) for run in runs}
        for name, default in result_flags().items()
    }
    return [name for name, values in texts.items() if len(values) > 1]


def setting(run: FinishedRun, name: str) -> str:
    """Returns the value of a flag as the table shows it; an older run has the default of a flag that is new.

    A solved head has none for the flags of epochs.
    """
    return _text(run.settings.get(name, result_flags()[name])) if acts(run, name) else "-"


def acts(run: FinishedRun, name: str) -> bool:
    """Returns whether a flag has an effect in the run."""
    return run.settings.get("head") != "logistic" or name not in EPOCHS_ALONE


def _text(value: object) -> str:
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
        rows.append(
            [
                escape_surrogates(run.folder),
                *texts,
                run.data,
                "-" if run.n_train is None else str(run.n_train),
                *measured,
            ]
        )
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
    if not n:
        why = "shares no held-out photo with another run" if best.answers else "has no answers to count"
        return f"{escape_surrogates(best.folder)} {why}, so it is compared with none."
    many = f" ({LEVEL:g} shared by {n} comparisons)" * (n > 1)
    return (
        f"The best is {escape_surrogates(best.folder)}, {best.title} accuracy {best.measures['accuracy']:.4f}. "
        f"{'The other' if n == 1 else 'Each other run'} against it, photo by photo; better or worse is said "
        f"where the p of the exact McNemar test is below {comparison.level:.2g}{many}:"
    )


def text_lines(comparisons: Sequence[Comparison]) -> list[str]:
    """Returns the tables and the verdicts as lines."""
    lines = [SEPARATE.format(n=len(comparisons))] if len(comparisons) > 1 else []
    for comparison in comparisons:
        lines += [""] * bool(lines) + aligned(cells(comparison), left=range(len(comparison.settings) + 2))
        lines += ["", heading(comparison), *verdicts(comparison)]
    return lines


def csv_rows(comparisons: Sequence[Comparison]) -> list[dict[str, object]]:
    """Returns the tables with plain numbers, for other programs; `group` numbers those that share photos."""
    settings = differing([run for comparison in comparisons for run in comparison.runs])
    return [
        {"group": number, **row}
        for number, comparison in enumerate(comparisons, 1)
        for row in _csv_rows(comparison, settings)
    ]


def _csv_rows(comparison: Comparison, settings: Sequence[str]) -> list[dict[str, object]]:
    rows = []
    for run, two in zip(comparison.runs, [None, *comparison.pairs], strict=True):
        low, high = run.measures["accuracy_interval_95"]
        row = {"run": run.folder, **{name: setting(run, name) for name in settings}, "data": run.data}
        row |= {"n_train": run.n_train, "split": run.title, "n_images": run.measures["n_images"]}
        row |= {"accuracy": run.measures["accuracy"], "interval_low": low, "interval_high": high}
        row |= {"loss": run.measures["negative_log_likelihood"], "seconds": run.seconds}
        if two:
            row |= {"n_shared": two.n_shared, "run_right_best_wrong": two.n_gained, "best_right_run_wrong": two.n_lost}
            row |= {"p_value": two.p_value, "verdict": two.verdict(comparison.level)}
        rows.append({name: "" if value is None else value for name, value in row.items()})
    return rows
