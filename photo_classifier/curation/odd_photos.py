"""Odd photos: black, of one colour, blurred, drawn, or far from all others of their class."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath

import torch
from PIL import Image
from torch.nn import functional

from photo_classifier.data.samples import Sample
from photo_classifier.data.thumbnails import Traits
from photo_classifier.evaluation.contact_sheet import Tile, contact_sheet, map_until
from photo_classifier.evaluation.photo_sheets import photo_tile

# Of 3,036 photos of ants, bees, banana leaves and hand signs, none is darker or has less colour than this, none is
# drawn, and 0.3 % are blurred.
BLACK, ONE_COLOUR = 32, 25  # of 255 levels
BLURRED = 0.3  # of the usual sharpness of the set
FLAT, EDGY = 0.5, 0.02
COMMON = 0.1  # what more photos of a set have than this share is not odd there
FAR = 2.0  # times as far as 95 % of the photos; on the same sets and 2,624 solar cells this names 0.2 to 1.2 %
NEIGHBOURS, FEWEST = 5, 20
N_SHOWN, SHARE_SHOWN = 20, 0.05  # of a small set only a share is shown: most of twenty photos are not odd
MOST = 10.0


@dataclass(frozen=True)
class OddPhoto:
    """A photo with the reason why it is odd; `score` says by how much. Below 1 it does not stand out."""

    sample: Sample
    reason: str
    score: float

    def row(self) -> dict[str, object]:
        """Returns the row of `odd.csv`."""
        return {
            "path": self.sample.path,
            "label": self.sample.label,
            "reason": self.reason,
            "score": round(self.score, 3),
        }


def odd_photos(
    samples: Sequence[Sample], traits: torch.Tensor, features: torch.Tensor, parts: torch.Tensor, at_least: int = 0
) -> list[OddPhoto]:
    """Returns the odd photos, the oddest first.

    Args:
        at_least: as many are returned, with the next in distance from their class, whose score is below 1.
        traits: fp32 (n, traits), as `unpack_rows` gives them.
        features: (n, d).
        parts: int64 (n,), the split of each; features of different splits may be means of different views.
    """
    reasons: dict[int, list[tuple[float, str]]] = {}
    distances = _distances(samples, features, parts)
    for scores, reason in (*_flaws(Traits(*traits.T)), (distances, "")):
        for index in (scores >= 1).nonzero()[:, 0].tolist():
            text = reason or f"unlike the other photos of {samples[index].label}"
            reasons.setdefault(index, []).append((min(scores[index].item(), MOST), text))
    rest = [n for n in distances.argsort(descending=True).tolist() if n not in reasons and distances[n] > 0]
    for index in rest[: max(0, at_least - len(reasons))]:
        reasons[index] = [(distances[index].item(), f"not conspicuous, next farthest from {samples[index].label}")]
    found = [
        OddPhoto(samples[index], ", ".join(text for _, text in said), max(score for score, _ in said))
        for index, said in reasons.items()
    ]
    return sorted(found, key=lambda photo: (-photo.score, photo.sample.path))


def n_shown(n: int) -> int:
    """Returns how many of n photos are shown as the oddest, whether they stand out or not."""
    return min(N_SHOWN, int(SHARE_SHOWN * n))


def draw_odd(
    found: Sequence[OddPhoto], open_photo: Callable[[str], Image.Image], seconds: float | None = None
) -> Image.Image | None:
    """Draws the oddest photos, fewer if `seconds` run out; returns None if there are none."""

    def tile(photo: OddPhoto) -> Tile:
        """Returns a photo with its class and what is odd about it."""
        path = photo.sample.path
        reasons = photo.reason.replace(", ", "\n")
        return photo_tile(path, f"{PurePath(path).name}\n{photo.sample.label}\n{reasons}", None, open_photo)

    tiles = [tile for _, tile in map_until(tile, found[:N_SHOWN], seconds)]
    return contact_sheet(tiles, 5, 200) if tiles else None


def _flaws(traits: Traits) -> Iterator[tuple[torch.Tensor, str]]:
    """Yields what is wrong with a photo in itself: scores, (n,), which are 1 or more where it is, and the reason."""
    is_black, is_flat = traits.light < BLACK, traits.spread < ONE_COLOUR
    yield _scores(is_black, 3 + BLACK / (traits.light + 1)), "black"
    yield _scores(is_flat & ~is_black, 3 + ONE_COLOUR / (traits.spread + 1)), "nearly one colour"
    usual = traits.sharpness.median() * BLURRED
    is_blurred = (traits.sharpness < usual) & ~is_black & ~is_flat
    yield _scores(is_blurred, 1 + usual - traits.sharpness), "blurred"
    is_drawn = (traits.flatness > FLAT) & (traits.edges > EDGY)
    if is_drawn.double().mean() <= COMMON:
        yield _scores(is_drawn, 1 + traits.flatness), "a screenshot or a drawing"


def _scores(holds: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
    return torch.where(holds, scores, torch.zeros(()))


def _distances(samples: Sequence[Sample], features: torch.Tensor, parts: torch.Tensor) -> torch.Tensor:
    """Returns how far each photo is from the nearest others of its class, (n,); 1 is far.

    A distance is one less the mean cosine, beside what is usual in the class and in the split.
    """
    if len(samples) < FEWEST:
        return torch.zeros(len(samples))
    directions = functional.normalize(features.float(), dim=1)
    excess = torch.zeros(len(samples))
    by_class: dict[str, list[int]] = {}
    for index, sample in enumerate(samples):
        by_class.setdefault(sample.label, []).append(index)
    for indices in by_class.values():
        if len(indices) > NEIGHBOURS:
            far = _mean_distance(directions[indices])
            excess[indices] = far - far.median()
    for part in parts.unique():
        excess[parts == part] -= excess[parts == part].median()
    return excess / (FAR * excess.quantile(0.95) + 1e-6)


def _mean_distance(directions: torch.Tensor) -> torch.Tensor:
    """Returns one less the mean cosine to the nearest others, (n,), block by block."""
    found = []
    for start in range(0, len(directions), 1024):
        cosines = directions[start : start + 1024] @ directions.T
        rows = torch.arange(len(cosines))
        cosines[rows, rows + start] = -1.0
        found.append(1 - cosines.topk(NEIGHBOURS, 1).values.mean(1))
    return torch.cat(found)
