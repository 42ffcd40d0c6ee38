"""The images of a run that could not be read: listed once each, and limited in number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from photo_classifier.data.file_kinds import ending_of
from photo_classifier.runtime.errors import UserError
from photo_classifier.training.run_folder import check_folder, write_table


class SkippedImages:
    """Lists the images that could not be read in `skipped.csv`: a share of `max_bad` of the `n_found` is allowed.

    `reasons` are those of an earlier part of the run, by path.
    """

    def __init__(self, folder: Path, reasons: Mapping[str, str], n_found: int, max_bad: float) -> None:
        self.path, self.reasons = folder / "skipped.csv", dict(reasons)
        self.n_found, self.max_bad = n_found, max_bad

    def add(self, reasons: Mapping[str, str]) -> None:
        """Adds images, by path, with the reasons; raises UserError if there are more than `max_bad` allows."""
        new = {path: reason for path, reason in reasons.items() if path not in self.reasons}
        if not new:
            return
        self.reasons |= new
        check_folder(self.path.parent)
        self.write()
        if len(self.reasons) > self.max_bad * self.n_found:
            path, reason = next(iter(new.items()))
            counts = f"{len(self.reasons)} of {self.n_found} images cannot be read ({self._kinds()})"
            raise UserError(
                f"{counts}, more than a share of {self.max_bad:g}; for example {path}: {reason}; all are listed in "
                f"{self.path}: repair or remove them, or allow more (--max_bad)"
            )

    def _kinds(self) -> str:
        """Returns how many there are of each ending."""
        kinds = Counter(ending_of(path) or "no ending" for path in self.reasons).most_common()
        return ", ".join(f"{ending} {n}" for ending, n in kinds[:5]) + (", ..." if len(kinds) > 5 else "")

    def write(self) -> None:
        """Writes the list as it is now."""
        write_table(self.path, [{"path": path, "reason": reason} for path, reason in sorted(self.reasons.items())])
