"""What the stored features of a frozen run tell at its end, of its photos and of photos to come."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from photo_classifier.curation.held_out import MOST_CLASSES, JudgedPhotos, judge_photos
from photo_classifier.data.samples import Splits
from photo_classifier.evaluation.learning_curve import rare_class
from photo_classifier.features.loader import SplitFeatures
from photo_classifier.runtime.errors import UserError
from photo_classifier.training.known_photos import FEWEST, MOST_NAMED, NO_FEATURES, known_photos, refusal_text
from photo_classifier.training.more_photos import curve_of, learning_text


@dataclass(frozen=True)
class Findings:
    """`by_folds` are the photos that are not test, `report` parts of `report.json`, `lines` of the console."""

    by_folds: JudgedPhotos | None = None
    report: dict = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)


def findings_of(
    splits: Splits, features: Mapping[str, SplitFeatures], seed: int, no_distances: str, main_report: Mapping
) -> Findings:
    """Returns what the features of a frozen backbone tell, by split; without any, why nothing is known.

    Args:
        no_distances: why the checkpoint keeps no distances, if it keeps none.
        main_report: that of `evaluation.report.main_report`.
    """
    if not features:
        return Findings(report={"refusal": [], "refusal_skipped": NO_FEATURES})
    skipped = {"refusal": [], "refusal_skipped": no_distances}
    by_folds, report = None, skipped if no_distances else _refusal(splits, features, seed)
    if len(splits.class_names) <= MOST_CLASSES:
        with contextlib.suppress(UserError):  # there are fewer photos or groups than folds
            by_folds = judge_photos(splits, features, seed)
            rare = rare_class(main_report, splits.counts_by_class())
            report |= curve_of(by_folds, splits.class_names, seed, rare["name"] if rare else "")
    texts = {
        "refusal": f"photos of none of the classes cannot be refused: {no_distances}"
        if no_distances
        else refusal_text(report["refusal"]),
        "photos": learning_text(report),
    }
    return Findings(by_folds, report, [f"{title:7} {text}" for title, text in texts.items() if text])


def _refusal(splits: Splits, features: Mapping[str, SplitFeatures], seed: int) -> dict:
    """Returns how well each class would be refused had it been left out, or why that is not known."""
    if len(splits.class_names) == 2:
        return {"refusal": [], "refusal_skipped": "of two classes only one would be left"}
    known = known_photos(splits, features, seed)
    few = known.few(splits.class_names)
    names = f"{', '.join(few[:MOST_NAMED])}{', ...' if len(few) > MOST_NAMED else ''}"
    skipped = {"refusal_skipped": f"fewer than {FEWEST} photos were held out of {names}"} if few else {}
    return {"refusal": known.refusal(splits.class_names), **skipped}
