"""The comparison of runs as rows, as text and as CSV."""

from __future__ import annotations

import itertools
import math
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from photo_classifier.comparison.pairs import LEVEL, Pair, group_by_photos, pair, same_photos
from photo_classifier.comparison.runs import FinishedRun
from photo_classifier.config import result_flags
from photo_classifier.runtime.text import aligned, duration, escape_surrogates, width
from photo_classifier.training.run_files import PREDICTIONS
from photo_classifier.unused_flags import EPOCHS_ALONE

WIDTH = 100  # of a text that is not printed on a terminal
MOST_LETTERS = 24  # of a cell; the ends of paths tell them apart
N_MEASURED = 5  # columns of what was measured; those behind them say of what

NO_ANSWERS = "photo by photo there is nothing to count, as the answers of one are missing."
SEPARATE = (
    "Only runs that share held-out photos are compared; the {n} groups below cannot be ranked against each other."
)


@dataclass(frozen=True)
class Comparison:
    """Runs that share held-out photos, beside the best of them, which comes first.

    `pairs` are of the others, None where answers are missing; a run that shares no photo with any is alone.
    """

    runs: Sequence[FinishedRun]
    letters: Sequence[str]  # what tables and verdicts call them
    pairs: Sequence[Pair | None]
    settings: Sequence[str]  # those that differ

    @property
    def level(self) -> float:
        """The p below which a difference counts: of many runs one looks better by chance (Bonferroni's correction)."""
        return LEVEL / max(1, len(self.pairs))

    @property
    def notes(self) -> list[str]:
        """What to know before the verdicts are believed."""
        named = dict(zip(self.letters, self.runs, strict=True))
        best, *others = named
        notes = [fault for run in self.runs for fault in run.faults]
        if old := [name for name, run in named.items() if run.is_old]:
            notes.append(
                f"not compared photo by photo, as there is no {PREDICTIONS} (earlier versions wrote none): "
                f"{', '.join(old)}"
            )
        if apart := [name for name in others if named[name].answers and not same_photos(named[name], named[best])]:
            notes.append(
                f"measured on other held-out photos than {best}: {', '.join(apart)}; their accuracies cannot be "
                "compared directly, only the counts on shared photos"
            )
        return notes


def compare(runs: Sequence[FinishedRun]) -> list[Comparison]:
    """Compares the runs of each group that shares photos: accuracies on other photos say nothing of a run."""
    groups, letters = group_by_photos(runs), map(letter, itertools.count())
    return [compare_group(group, letters) for group in groups]


def compare_group(runs: Sequence[FinishedRun], letters: Iterator[str]) -> Comparison:
    """Compares each run with the most accurate one; in a tie, with the one of lower loss.

    The lower end of the interval decides: on as many photos its order is that of the accuracies, and a few photos that
    are all right are not put before many that nearly all are.
    Runs without answers come last: nothing could be counted against them.
    """

    def rank(run: FinishedRun) -> tuple[bool, float, float]:
        loss = run.measures["negative_log_likelihood"]
        return not run.answers, -run.measures["accuracy_interval_95"][0], math.inf if loss is None else loss

    best, *others = runs = sorted(runs, key=rank)
    pairs = [pair(run, best) if run.answers and best.answers else None for run in others]
    return Comparison(runs, list(itertools.islice(letters, len(runs))), pairs, differing(runs))


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


def letter(n: int) -> str:
    """Returns the letter of a run, counted from 0: A, B, ..., Z, AA, AB, ..."""
    return (letter(n // 26 - 1) if n >= 26 else "") + chr(ord("A") + n % 26)


def cells(comparison: Comparison) -> list[list[str]]:
    """Returns the table for reading: a header and a row for each run, which begins with its letter."""
    header = ["", "accuracy", "95 % interval", "of photos", "loss", "took", "data", "train", *comparison.settings]
    rows = []
    for name, run in zip(comparison.letters, comparison.runs, strict=True):
        m, (low, high) = run.measures, run.measures["accuracy_interval_95"]
        loss = m["negative_log_likelihood"]
        row = [name, f"{m['accuracy']:.4f}", f"{low:.4f} to {high:.4f}", f"{m['n_images']} {run.title}"]
        row += ["-" if loss is None else f"{loss:.4f}", "-" if run.seconds is None else duration(run.seconds)]
        row += [run.data, "-" if run.n_train is None else str(run.n_train)]
        rows.append(row + [setting(run, name) for name in comparison.settings])
    return [header, *rows]


def folders(comparison: Comparison) -> list[str]:
    """Returns the folders of the runs, to be printed."""
    return [escape_surrogates(run.folder) for run in comparison.runs]


def verdicts(comparison: Comparison) -> list[str]:
    """Returns a sentence for each run but the best: whether it is better, worse, or cannot be told apart."""
    best, *others = comparison.letters
    return [
        two.text(comparison.level, name, best) if two else f"{best} and {name} cannot be told apart: {NO_ANSWERS}"
        for name, two in zip(others, comparison.pairs, strict=True)
    ]


def heading(comparison: Comparison) -> str:
    """Returns what the verdicts are about."""
    best, name, n = comparison.runs[0], comparison.letters[0], len(comparison.pairs)
    if not n:
        why = "shares no held-out photo with another run" if best.answers else "has no answers to count"
        return f"{name} {why}, so it is compared with none."
    many = f" ({LEVEL:g} divided by {n} comparisons)" * (n > 1)
    return (
        f"{name} is first, as its interval begins highest. {'The' if n == 1 else 'Each'} other run is compared with it "
        "photo by photo. p is how likely such a difference is by chance alone (McNemar's exact test). The difference "
        f"counts if p is below {comparison.level:.2g}{many}:"
    )


def text_lines(comparisons: Sequence[Comparison]) -> list[str]:
    """Returns the tables and the verdicts as lines that fit the terminal; only names of folders may be longer."""
    n_columns = shutil.get_terminal_size((WIDTH, 0)).columns
    lines = _wrapped(SEPARATE.format(n=len(comparisons)), n_columns) if len(comparisons) > 1 else []
    for comparison in comparisons:
        lines += [""] * bool(lines)
        lines += aligned(list(zip(comparison.letters, folders(comparison), strict=True)), left=(0, 1))
        names, *columns = zip(*cells(comparison), strict=True)
        for part in (columns[:N_MEASURED], columns[N_MEASURED:]):
            for block in _blocks(names, part, n_columns):
                lines += ["", *block]
        lines += ["", *_wrapped(heading(comparison), n_columns)]
        lines += [line for text in verdicts(comparison) for line in _wrapped(text, n_columns)]
    return lines


def _blocks(names: Sequence[str], columns: Sequence[Sequence[str]], n_columns: int) -> list[list[str]]:
    """Returns a table as blocks of lines, each with as many columns as fit; the letters begin every block."""
    blocks, left = [], 0
    for column in ([_shortened(cell) for cell in column] for column in columns):
        size = 2 + max(map(width, column))
        if size > left:
            blocks.append([names])
            left = n_columns - max(map(len, names))
        blocks[-1].append(column)
        left -= size
    return [aligned(list(zip(*block, strict=True)), left=range(len(block))) for block in blocks]


def _shortened(cell: str) -> str:
    return cell if len(cell) <= MOST_LETTERS else f"...{cell[3 - MOST_LETTERS :]}"


def _wrapped(text: str, n_columns: int) -> list[str]:
    return textwrap.wrap(text, n_columns, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


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
