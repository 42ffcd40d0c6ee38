"""What was corrected in the table of labels that an earlier run has checked."""

from __future__ import annotations

import os

from photo_classifier.data.table_files import is_table_name
from photo_classifier.data.tables import Table
from photo_classifier.runtime.text import pluralize

SUSPECTS = "suspects.csv"


def is_label_check(file: str) -> bool:
    """Returns whether a file is the table of an earlier check, whatever it is called now."""
    is_table = is_table_name(file) and os.path.isfile(file)
    return os.path.basename(file) == SUSPECTS or (is_table and Table(file).is_label_check())


def corrections(table: Table) -> list[str]:
    """Returns a note on how the labels differ from those of the run that checked them.

    The table itself does not tell what was in it before. The run's `splits.csv` does, as long as it lies beside it.
    """
    beside = os.path.join(os.path.dirname(table.file), "splits.csv")
    if not table.is_label_check() or not os.path.isfile(beside):
        return []
    before, now = ({row.path: row.label for row in some.rows()} for some in (Table(beside), table))
    n_changed = sum(before.get(path, label) != label for path, label in now.items())
    n_gone = len(before.keys() - now.keys())
    if not n_changed and not n_gone:
        return [f"no label in {table.file} was changed yet: look at the lines with a reason, which come first"]
    gone = f", {pluralize(n_gone, 'line')} deleted" * bool(n_gone)
    return [f"{table.file}: {pluralize(n_changed, 'label')} changed{gone} since the run that checked them"]
