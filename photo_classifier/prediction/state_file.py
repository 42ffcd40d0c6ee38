"""The JSON file beside a result: what made the rows, and what a resumed run needs to continue them."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypedDict

from photo_classifier.prediction.results import Counts, Totals
from photo_classifier.runtime.files import keep_previous, read_json, write_text
from photo_classifier.runtime.plain_values import first_mismatch

LATER = ("n_unlike", "n_seen", "n_seen_labelled", "n_seen_correct")  # which earlier versions did not count
COUNTS = TypedDict("COUNTS", dict.fromkeys((item.name for item in fields(Counts) if item.name not in LATER), int))


class UsedCheckpoint(TypedDict):
    """Which checkpoint made the rows."""

    sha256: str


class ResultState(TypedDict):
    """What a `result.json` of this tool holds at least."""

    checkpoint: UsedCheckpoint
    settings: dict[str, Any]
    counts: COUNTS


class StateFile:
    """`result.json.partial` while rows are being written, `result.json` once they are complete.

    Args:
        result: the path of the result.
        metadata: `checkpoint` and `settings`, which a resumed run must share, and `launch`, the agents of the
            launcher that started this run.
    """

    def __init__(self, result: str, metadata: Mapping[str, object]) -> None:
        self.path, self.metadata = str(Path(result).with_suffix(".json")), metadata
        self.partial = f"{self.path}.partial"

    def save(self, n_rows: int, totals: Totals) -> None:
        """Saves the totals of the first `n_rows` rows; without fsync, as a resumed run notices what was lost."""
        temporary = f"{self.partial}.tmp"
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump({**self.metadata, "n_rows": n_rows, **totals.state()}, file)
        os.replace(temporary, self.partial)

    def save_final(self, content: Mapping[str, object]) -> None:
        """Writes the final content, still as `.partial`: `publish` follows once the result is renamed."""
        write_text(self.partial, json.dumps({**self.metadata, **content}, indent=1, ensure_ascii=False) + "\n")

    def publish(self) -> None:
        """Renames the final content to `result.json`, and keeps an earlier one as `.prev`."""
        keep_previous(self.path)
        os.replace(self.partial, self.path)

    def difference(self, content: Mapping) -> str:
        """Returns the name of a setting in which the run that wrote `content` differs from this one, or ""."""
        settings, theirs = (
            {"checkpoint": source["checkpoint"]["sha256"], **source["settings"]} for source in (self.metadata, content)
        )
        return next((name for name, value in settings.items() if theirs.get(name) != value), "")

    def is_of_launch(self, is_partial: bool) -> bool:
        """Returns whether the rows so far were written by processes of the same launch as this one.

        Args:
            is_partial: whether the result is still incomplete.
        """
        agents = read_state(self.partial if is_partial else self.path).get("launch", [])
        return not first_mismatch(agents, list[str]) and bool(set(self.metadata.get("launch", ())) & set(agents))


def read_state(path: str) -> dict:
    """Returns the content of a `result.json` that this tool wrote, {} for any other file."""
    content = read_json(path)
    return {} if first_mismatch(content, ResultState) else content
