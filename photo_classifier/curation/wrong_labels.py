"""Labels that look wrong: those that a head which has not seen the photo finds unlikely."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from photo_classifier.data.samples import Sample
from photo_classifier.evaluation.contact_sheet import Tile, contact_sheet, map_until
from photo_classifier.evaluation.photo_sheets import answer_caption, photo_tile

# On three clean sets (ants and bees, banana leaves, solar cells) these odds mark 0.3 to 0.7 % of the photos. Of 5 % of
# labels that were changed at random they mark 30 to 70 % (of solar cells, where the head is right in 85 %, 5 %).
ODDS = 30
FEWEST = 5  # photos of a class; the head of a fold learns too little from fewer
RECOGNISED = 0.5  # share of a class; a head that misses most of it cannot say that one of its labels is wrong
N_SHOWN = 48


@dataclass(frozen=True)
class LabelCheck:
    """A photo, and the class that a head suggests which was not trained on it, with the probability of that class.

    `reason` says why the label looks wrong, if it does. Without such a head nothing is suggested.
    """

    sample: Sample
    split: str
    suggested: str = ""
    probability: float | None = None
    reason: str = ""

    def row(self) -> dict[str, object]:
        """Returns the row of `suspects.csv`, which `--labels` reads as well."""
        sample, probability = self.sample, "" if self.probability is None else round(self.probability, 4)
        said = {"suggested": self.suggested, "probability": probability, "reason": self.reason}
        return {"path": sample.path, "label": sample.label, **said, "split": self.split, "group": sample.group}


@dataclass(frozen=True)
class Judged:
    """Photos of a split, and log-probabilities, (n, classes), from a head that was not trained on them."""

    split: str
    samples: Sequence[Sample]
    log_probabilities: torch.Tensor


def rank_labels(parts: Sequence[Judged], class_names: Sequence[str]) -> list[LabelCheck]:
    """Returns the photos, those with the least likely labels first.

    The order is by the log-odds of the most likely other class against the label. Its average precision in finding
    changed labels is at least that of the label's probability, the self-confidence of Northcutt et al. 2021.
    """
    photos = [(sample, part.split) for part in parts for sample in part.samples]
    log_p = torch.cat([part.log_probabilities.double() for part in parts])
    index_of = {name: index for index, name in enumerate(class_names)}
    labels = torch.tensor([index_of[sample.label] for sample, _ in photos])
    counts = labels.bincount(minlength=len(class_names))[labels]
    own = log_p.gather(1, labels[:, None])[:, 0]
    log_odds = log_p.scatter(1, labels[:, None], -torch.inf).max(1).values - own
    best, suggested = log_p.max(1)
    n_right = labels[suggested == labels].bincount(minlength=len(class_names))[labels]

    def check(row: int) -> LabelCheck:
        """Returns what is said of the label in that row."""
        name, odds = class_names[suggested[row]], math.exp(min(log_odds[row].item(), 100))
        is_known = counts[row] >= FEWEST and n_right[row] >= RECOGNISED * counts[row]
        is_doubtful = odds >= ODDS and is_known
        reason = f"{name} is {'over 1,000' if odds > 1000 else round(odds)} times as likely" if is_doubtful else ""
        return LabelCheck(*photos[row], name, best[row].exp().item(), reason)

    return [check(row) for row in log_odds.argsort(descending=True, stable=True).tolist()]


def draw_suspects(
    checks: Sequence[LabelCheck], open_photo: Callable[[str], Image.Image], seconds: float | None = None
) -> Image.Image | None:
    """Draws the photos whose labels look wrong, fewer if `seconds` run out; returns None if there are none."""

    def tile(check: LabelCheck) -> Tile:
        """Returns a photo with its label and the suggested one."""
        path = check.sample.path
        caption = answer_caption(path, check.suggested, check.probability, check.sample.label)
        return photo_tile(path, caption, None, open_photo)

    found = suspects(checks)
    tiles = [tile for _, tile in map_until(tile, found[:N_SHOWN], seconds)]
    title = f"labels that look wrong: {len(tiles)} of {len(found):,}"
    return contact_sheet(tiles, 6, title=title) if tiles else None


def suspects(checks: Sequence[LabelCheck]) -> list[LabelCheck]:
    """Returns those whose label looks wrong."""
    return [check for check in checks if check.reason]
