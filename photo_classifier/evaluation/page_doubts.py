"""What the page shows of labels that look wrong, near-duplicates and odd photos."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from photo_classifier.data.samples import split_title, straddles
from photo_classifier.evaluation.page_photos import PagePhoto

MOST_SUSPECTS, MOST_PAIRS, MOST_ODD = 24, 12, 12  # with photos


def label_content(folder: Path) -> dict:
    """Returns the suspicious labels, near-duplicates and odd photos that tables in the folder list."""
    suspects = [row for row in table_rows(folder / "suspects.csv") if row.get("reason")]
    duplicates = table_rows(folder / "duplicates.csv")
    folds = {row["path"]: f"fold {row['fold']}" for row in table_rows(folder / "folds.csv")} if duplicates else {}
    pairs = near_pairs(duplicates, folds)
    odd = [row for row in table_rows(folder / "odd.csv") if not row.get("reason", "").startswith("not conspicuous")]
    shown = [PagePhoto(row["path"], row) for row in suspects[:MOST_SUSPECTS]]
    strange = [PagePhoto(row["path"], row) for row in odd[:MOST_ODD]]
    twins = [photo for pair in pairs[:MOST_PAIRS] for photo in pair["photos"]]
    return {
        "suspects": suspects,
        "pairs": pairs,
        "n_leaks": sum(pair["leaks"] for pair in pairs),
        "odd": odd,
        "suspect_photos": shown,
        "pairs_shown": pairs[:MOST_PAIRS],
        "odd_photos": strange,
        "photos": [*shown, *twins, *strange],
    }


def near_pairs(rows: Sequence[Mapping[str, str]], folds: Mapping[str, str]) -> list[dict]:
    """Returns the pairs of `duplicates.csv`: first those that are trained on and held out, then contradicting labels.

    Args:
        folds: of the photos of a run by folds, by path.
    """
    known, pairs = {row["path"]: row for row in rows}, []
    for row in rows:
        if row.get("similar_to"):
            paths = row["path"], row["similar_to"]
            labels = [known.get(path, {}).get("label", "") for path in paths]
            sides = [folds.get(path) or split_title(known.get(path, {}).get("split", "")) for path in paths]
            values = [{"label": label, "side": side} for label, side in zip(labels, sides, strict=True)]
            pairs.append({
                "photos": [PagePhoto(path, value) for path, value in zip(paths, values, strict=True)],
                "leaks": straddles(*sides),
                "contradicts": all(labels) and labels[0] != labels[1],
                "similarity": row["similarity"],
            })  # fmt: skip
    return sorted(pairs, key=lambda pair: (not pair["leaks"], not pair["contradicts"], -float(pair["similarity"] or 0)))


def table_rows(path: Path) -> list[dict[str, str]]:
    """Returns the rows of a table that this tool wrote; none without it."""
    if not path.is_file():
        return []
    with open(path, encoding="utf-8-sig", errors="backslashreplace", newline="") as file:
        return list(csv.DictReader(file))
