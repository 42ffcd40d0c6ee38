"""What the page shows of labels that look wrong, near-duplicates and odd photos."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from photo_classifier.data.samples import split_title, straddles
from photo_classifier.evaluation.page_photos import PagePhoto

MOST_SUSPECTS, MOST_PAIRS, MOST_ODD = 24, 12, 12  # with photos


def label_content(folder: Path) -> dict:
    """Returns the suspicious labels, near-duplicates and odd photos that tables in the folder list."""
    suspects = [row for row in table_rows(folder / "suspects.csv") if row.get("reason")]
    duplicates = table_rows(folder / "duplicates.csv")
    folds = {row["path"]: f"fold {row['fold']}" for row in table_rows(folder / "folds.csv")} if duplicates else {}
    sides = {row["path"]: folds.get(row["path"]) or split_title(row.get("split", "")) for row in duplicates}
    pairs = near_pairs(duplicates, sides)
    odd = [row for row in table_rows(folder / "odd.csv") if not row.get("reason", "").startswith("not conspicuous")]
    shown = [PagePhoto(row["path"], row) for row in suspects[:MOST_SUSPECTS]]
    strange = [PagePhoto(row["path"], row) for row in odd[:MOST_ODD]]
    twins = [photo for pair in pairs[:MOST_PAIRS] for photo in pair["photos"]]
    return {
        "suspects": suspects,
        "pairs": pairs,
        "n_leaks": sum(map(_leaks, _sides_by_cluster(duplicates, sides))),
        "odd": odd,
        "suspect_photos": shown,
        "pairs_shown": pairs[:MOST_PAIRS],
        "odd_photos": strange,
        "photos": [*shown, *twins, *strange],
    }


def near_pairs(rows: Sequence[Mapping[str, str]], sides: Mapping[str, str]) -> list[dict]:
    """Returns the pairs of `duplicates.csv`: first those that are trained on and held out, then contradicting labels.

    Args:
        sides: the split or the fold of each photo, by path.
    """
    label_of, pairs = {row["path"]: row.get("label", "") for row in rows}, []
    for row in rows:
        if row.get("similar_to"):
            paths = row["path"], row["similar_to"]
            values = [{"label": label_of.get(path, ""), "side": sides.get(path, "")} for path in paths]
            labels = {value["label"] for value in values} - {""}
            pairs.append({
                "photos": [PagePhoto(path, value) for path, value in zip(paths, values, strict=True)],
                "leaks": _leaks({value["side"] for value in values}),
                "contradicts": len(labels) > 1,
                "similarity": row.get("similarity", ""),
            })  # fmt: skip
    return sorted(pairs, key=lambda pair: (not pair["leaks"], not pair["contradicts"]))


def _sides_by_cluster(rows: Sequence[Mapping[str, str]], sides: Mapping[str, str]) -> list[set[str]]:
    found: dict[str, set[str]] = {}
    for row in rows:
        found.setdefault(row.get("cluster", ""), set()).add(sides[row["path"]])
    return list(found.values())


def _leaks(sides: Collection[str]) -> bool:
    """Whether one photo is trained on while another is held out."""
    return any(straddles(*pair) for pair in itertools.combinations(sides, 2))


def table_rows(path: Path) -> list[dict[str, str]]:
    """Returns the rows of a table that this tool wrote; none without it."""
    if not path.is_file():
        return []
    with open(path, encoding="utf-8-sig", errors="backslashreplace", newline="") as file:
        return list(csv.DictReader(file))
