"""Contact sheets of an evaluation: the most confident mistakes, and a sample of all predictions."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath

from PIL import Image, ImageOps

from photo_classifier.data.decoding import BadImage
from photo_classifier.evaluation.answers import PredictionLike
from photo_classifier.evaluation.contact_sheet import SIDE, Tile, contact_sheet, map_until
from photo_classifier.runtime.seeding import derive_seed
from photo_classifier.runtime.text import certainty, pluralize

N_SHEET = 48  # photos in a sample


def mistakes_sheet(
    report: Mapping, title: str, open_photo: Callable[[str], Image.Image], seconds: float | None = None
) -> Image.Image | None:
    """Draws the most confident mistakes, fewer if `seconds` run out; returns None if there are none."""

    def tile(mistake: Mapping) -> Tile:
        """Returns a photo with what it was taken for."""
        path = mistake["file_dir"]
        caption = answer_caption(path, mistake["predict"], mistake["probability"], mistake["label"])
        return photo_tile(path, caption, None, open_photo)

    tiles = [tile for _, tile in map_until(tile, report["mistakes"], seconds)]
    n_wrong = report["n_images"] - report["n_correct"]
    which = (
        f"all {pluralize(n_wrong, 'mistake')}"
        if len(tiles) == n_wrong
        else f"{len(tiles)} of {n_wrong:,} mistakes, the most confident"
    )
    return contact_sheet(tiles, 6, title=f"{title}: {which}") if tiles else None


class PredictionSheet:
    """A uniform sample of at most `N_SHEET` photos from a stream of predictions."""

    def __init__(self) -> None:
        self.n_seen = 0
        # a heap of (-random draw, position, path, predict, probability, label if the prediction is wrong)
        self._sample: list[tuple] = []

    def add_predictions(self, predictions: Sequence[PredictionLike]) -> None:
        """Samples from those that could be read."""
        for p in predictions:
            if p.status == "ok":
                draw = -derive_seed("sheet", self.n_seen)
                is_wrong = not p.reason and p.predict != p.label  # a refused photo is not wrong
                entry = (draw, self.n_seen, p.file_dir, p.predict, p.probability, p.label if is_wrong else "")
                (heapq.heappush if len(self._sample) < N_SHEET else heapq.heappushpop)(self._sample, entry)
                self.n_seen += 1

    def state(self) -> dict:
        """Returns the sample as plain values."""
        return {"n_seen": self.n_seen, "chosen": self._sample}

    def restore(self, state: Mapping) -> None:
        """Continues from what `state` returned."""
        self.n_seen, self._sample = state["n_seen"], [tuple(entry) for entry in state["chosen"]]

    def text(self, path: str) -> str:
        """Returns `result.png: 48 of 2000 photos`."""
        n = len(self._sample)
        return f"{path}: {n} of {self.n_seen} photos" if n else "none: no photo could be read"

    def draw(self, open_photo: Callable[[str], Image.Image]) -> Image.Image | None:
        """Draws the sheet in the order of the predictions; known mistakes get a red frame."""

        def tile(entry: tuple) -> Tile:
            """Returns a photo with its prediction."""
            _, _, path, predict, probability, label = entry
            return photo_tile(
                path, answer_caption(path, predict, probability, label), "red" if label else None, open_photo
            )

        tiles = [tile for _, tile in map_until(tile, sorted(self._sample, key=lambda entry: entry[1]))]
        return contact_sheet(tiles, 8, title=f"{len(tiles)} of {pluralize(self.n_seen, 'photo')}") if tiles else None


def answer_caption(path: str, predict: str, probability: float, label: str = "") -> str:
    """Returns the name of the file, and below it `says sunflowers 83 %, labelled dandelion`."""
    says = f"says {predict} {certainty(probability)}".replace(" %", "\N{NO-BREAK SPACE}%")
    lines = [PurePath(path).name, *([f"{says},", f"labelled {label}"] if label else [says])]
    return "\n".join(line.replace("\n", " ") for line in lines)


def photo_tile(path: str, caption: str, frame: str | None, open_photo: Callable[[str], Image.Image]) -> Tile:
    """Returns the tile of a photo; a grey one if it can no longer be read."""
    try:
        picture = open_photo(path)
        if max(picture.size) > SIDE:  # shrunk right away, or many large photos would fill the memory
            picture = ImageOps.contain(picture, (SIDE, SIDE), Image.Resampling.BOX)
    except BadImage:  # deleted since it was predicted
        picture = Image.new("RGB", (SIDE, SIDE), "lightgrey")
    return Tile(picture, caption, frame)
