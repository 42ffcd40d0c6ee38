"""Heat maps over photos as files, one for each photo that is predicted."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from photo_classifier.data.decoding import BadImage
from photo_classifier.evaluation.answers import PredictionLike
from photo_classifier.evaluation.contact_sheet import Tile, contact_sheet
from photo_classifier.evaluation.heat_pictures import with_heat
from photo_classifier.evaluation.photo_sheets import answer_caption
from photo_classifier.evaluation.report_files import SOFTWARE, is_own_picture
from photo_classifier.evaluation.thumbnails import Thumbnails
from photo_classifier.features.explanations import add_heat_maps
from photo_classifier.models.heat_maps import HeatMaps
from photo_classifier.models.inference import Engine
from photo_classifier.runtime.errors import UserError
from photo_classifier.runtime.files import atomic_write

LEAST = 240  # pixels; smaller photos are enlarged, or there is no room for the caption
QUALITY = 85  # of JPEG: a PNG takes fifteen times as long to write, longer than all else together


class Overlays:
    """Writes `<name of the photo>.jpg` into a folder, with a number where several photos have that name.

    Raises:
        UserError: the network does not keep places.
    """

    def __init__(self, folder: str | Path, engine: Engine, class_names: Sequence[str], max_pixels: int) -> None:
        self.folder, self.class_names, self.max_pixels = Path(folder), class_names, max_pixels
        self.bit_depth = engine.model.preprocess.bit_depth
        self._names: Counter[str] = Counter()
        self._maps = HeatMaps(engine)
        if not self._maps.layer:
            raise UserError("this network does not tell where it sees a class; leave --explain out, or use another")

    def add_predictions(self, predictions: Sequence[PredictionLike]) -> None:
        """Writes the overlays of those that could be read."""
        answered = [p for p in predictions if p.status == "ok"]
        rows = [{"file_dir": p.file_dir, "predict": p.top[0][0]} for p in answered]
        add_heat_maps(rows, self._maps, self.class_names, self.max_pixels)
        open_photo = Thumbnails(self.max_pixels, self.bit_depth)
        for prediction, row in zip(answered, rows, strict=True):
            path = self._path_for(prediction.file_dir)
            try:
                picture = with_heat(open_photo(prediction.file_dir), row["heat"])
            except (BadImage, KeyError):  # it was deleted in the meantime
                continue
            _save(path, contact_sheet([Tile(picture, _caption(prediction))], 1, max(LEAST, *picture.size)))

    def _path_for(self, photo: str) -> Path:
        stem = Path(photo).stem
        while True:  # past pictures of the user's own
            self._names[stem] += 1
            n = self._names[stem]
            path = self.folder / (f"{stem}.jpg" if n == 1 else f"{stem}-{n}.jpg")
            if not path.exists() or is_own_picture(os.fspath(path)):
                return path

    def state(self) -> dict:
        """Returns which names are taken."""
        return {"names": dict(self._names)}

    def restore(self, state: Mapping) -> None:
        """Continues from what `state` returned."""
        self._names = Counter(state["names"])


def _caption(prediction: PredictionLike) -> str:
    guess, probability = prediction.top[0]
    if prediction.reason:  # it is refused
        return answer_caption(prediction.file_dir, f"{prediction.predict} (best guess {guess})", probability)
    return answer_caption(
        prediction.file_dir, guess, probability, prediction.label if prediction.label != guess else ""
    )


def _save(path: Path, picture: Image.Image) -> None:
    """Writes a JPEG atomically, marked as written by this tool."""
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=QUALITY, comment=f"Software\0{SOFTWARE}".encode())
    with atomic_write(path) as file:
        file.write(content.getvalue())
