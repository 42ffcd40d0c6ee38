"""Compares finished runs: their folders -> a table, and which of them is better on the photos that they share."""

from __future__ import annotations

from photo_classifier.comparison.runs import FinishedRun, find_folders, load_run
from photo_classifier.config import CompareConfig
from photo_classifier.runtime.console import say, warn
from photo_classifier.runtime.errors import UserError
from photo_classifier.runtime.files import write_text
from photo_classifier.runtime.flags import parse_flags
from photo_classifier.runtime.text import pluralize
from photo_classifier.training.run_folder import write_table
from utils import check_output_path, run_main

EXAMPLES = """examples:
  python compare.py                            all runs below runs
  python compare.py runs/a runs/b              these two
  python compare.py runs --csv runs.csv --html runs.html
"""


def parse_args(argv: list[str] | None = None) -> dict:
    """Returns the flags that were given, and no defaults."""
    text = "Compares finished runs: settings, accuracy, and whether the difference is more than chance."
    return parse_flags(CompareConfig, argv, prog="compare.py", description=text, epilog=EXAMPLES)


def main(argv: list[str] | None = None) -> int:
    """Parses, reads the runs and compares them; returns the exit status."""
    from photo_classifier.comparison.table import compare, csv_rows, text_lines

    config = CompareConfig(**parse_args(argv))
    for name, path in (("--csv", config.csv), ("--html", config.html)):
        if path:
            check_output_path(path, name)
            if not path.lower().endswith(ending := name.replace("--", ".")):
                raise UserError(f"{name} {path} does not end in {ending}; give a name like runs{ending}")
    comparisons = compare(load_runs(config.runs))
    say("\n".join(text_lines(comparisons)))
    for note in (note for comparison in comparisons for note in comparison.notes):
        warn(note)
    if config.csv:
        write_table(config.csv, csv_rows(comparisons))
    if config.html:
        from photo_classifier.comparison.page import render

        write_text(config.html, render(comparisons))
    if written := [path for path in (config.csv, config.html) if path]:
        say(f"wrote {' and '.join(written)}")
    return 0


def load_runs(paths: tuple[str, ...]) -> list[FinishedRun]:
    """Reads the runs; warns of those that cannot be compared, and raises UserError if fewer than two are left."""
    runs, reasons = [], []
    for folder in find_folders(paths):
        try:
            runs.append(load_run(folder))
        except UserError as error:
            reasons.append(str(error))
    if len(runs) < 2:
        found = f"{pluralize(len(runs), 'finished run')} in {' '.join(paths)}"
        why = "".join(f"; {reason}" for reason in reasons[:3])
        raise UserError(f"nothing to compare: {found}{why}; train at least two runs, or name their folders")
    for reason in reasons:
        warn(f"left out: {reason}")
    return runs


if __name__ == "__main__":
    run_main(main)
