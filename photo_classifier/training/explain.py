"""Mistakes of a run explained: where the answer was seen, and the most similar training photos."""

from __future__ import annotations

from collections.abc import Mapping

from photo_classifier.data.samples import Splits
from photo_classifier.evaluation.page import MOST_SIMILAR
from photo_classifier.features.explanations import add_heat_maps, add_similar
from photo_classifier.features.loader import SplitFeatures
from photo_classifier.models.heat_maps import HeatMaps
from photo_classifier.models.inference import Engine


def explain_mistakes(
    reports: Mapping[str, Mapping],
    splits: Splits,
    engine: Engine,
    features: Mapping[str, SplitFeatures],
    max_pixels: int,
    seconds: float,
) -> None:
    """Adds `heat` and `similar` to the mistakes among the examples of the reports.

    Args:
        features: of a frozen backbone, by split; without any, no photos are compared.
        seconds: how long heat maps may take.
    """
    wrong = {
        name: [row for row in report["examples"] if row["label"] != row["predict"]] for name, report in reports.items()
    }
    if not any(wrong.values()):
        return
    engine.refresh()  # the weights are others since the last epoch was measured
    maps = HeatMaps(engine)
    for name, rows in wrong.items():
        add_heat_maps(rows, maps, splits.class_names, max_pixels, seconds / len(wrong))
        if features:
            samples = splits.by_name()[name]
            add_similar(rows[:MOST_SIMILAR], features[name], samples, features["train"], splits.train)
