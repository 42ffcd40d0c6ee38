"""Heat maps over photos as files, one for each photo that is predicted."""

from __future__ import annotations

import contextlib
import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import Image

from photo_classifier.data.decoding import BadImage
from photo_classifier.data.preprocess import Preprocess
from photo_classifier.evaluation.answers import PredictionLike
from photo_classifier.evaluation.contact_sheet import Tile, contact_sheet
from photo_classifier.evaluation.heat_pictures import with_heat
from photo_classifier.evaluation.photo_sheets import answer_caption
from photo_classifier.evaluation.report_files import SOFTWARE, is_own_picture
from photo_classifier.evaluation.thumbnails import Thumbnails
from photo_classifier.features.explanations import seen_area
from photo_classifier.runtime.errors import WriteError
from photo_classifier.runtime.limits import write_reason

LEAST = 240  # pixels; smaller photos are enlarged, or there is no room for the caption
QUALITY = 85  # of JPEG: a PNG takes fifteen times as long to write, longer than all else together


class Overlays:
    """Writes `<name of the photo>.jpg` into a folder, with a number where several photos have that name.

    A thread writes those of a batch while the next one is computed.

    Args:
        preprocess: of the network whose heat maps they are.
    """

    def __init__(self, folder: str | Path, preprocess: Preprocess, max_pixels: int) -> None:
        self.folder, self.preprocess, self.max_pixels = Path(folder), preprocess, max_pixels
        self._names: Counter[str] = Counter()
        # asking for each file would take a tenth of the time; some systems do not tell A from a
        self._before = {name.casefold() for name in os.listdir(folder)} if os.path.isdir(folder) else set()
        self._pool, self._job = ThreadPoolExecutor(1), None

    def add_predictions(self, predictions: Sequence[PredictionLike]) -> None:
        """Begins to write the overlays of those that have a map."""
        explained = [(self._path_for(p.file_dir), p) for p in predictions if p.top]
        self.finish()
        self._job = self._pool.submit(self._write, explained)

    def finish(self) -> None:
        """Waits until all overlays are written; raises WriteError if one was not."""
        if self._job:
            self._job.result()

    def _write(self, explained: Sequence[tuple[Path, PredictionLike]]) -> None:
        open_photo = Thumbnails(self.max_pixels, self.preprocess.bit_depth)
        for path, p in explained:
            with contextlib.suppress(BadImage):  # of another machine's prediction, and deleted in the meantime
                photo = open_photo(p.file_dir) if p.picture is None else Image.fromarray(p.picture)
                picture = with_heat(photo, {"values": p.heat, "area": seen_area(self.preprocess, *photo.size)})
                _save(path, contact_sheet([Tile(picture, _caption(p))], 1, max(LEAST, *picture.size)))

    def _path_for(self, photo: str) -> Path:
        stem = Path(photo).stem
        while True:  # past pictures of the user's own
            self._names[stem.casefold()] += 1
            n = self._names[stem.casefold()]
            name = f"{stem}.jpg" if n == 1 else f"{stem}-{n}.jpg"
            path = self.folder / name
            if name.casefold() not in self._before or not path.exists() or is_own_picture(os.fspath(path)):
                return path

    def state(self) -> dict:
        """Returns which names are taken, once these pictures are written."""
        self.finish()
        return {"names": dict(self._names)}

    def restore(self, state: Mapping) -> None:
        """Continues from what `state` returned."""
        self._names = Counter(state["names"])


def _caption(prediction: PredictionLike) -> str:
    """Returns the answer; the picture's own name is that of the photo."""
    guess, probability = prediction.top[0]
    label = prediction.label if prediction.label != guess and not prediction.reason else ""
    return answer_caption(prediction.file_dir, guess, probability, label, prediction.refusal).partition("\n")[2]


def _save(path: Path, picture: Image.Image) -> None:
    """Writes a JPEG, marked as written by this tool, at once: a temporary file would take as long as all else.

    Raises:
        WriteError: it cannot be written.
    """
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=QUALITY, comment=f"Software\0{SOFTWARE}".encode())
    try:
        with open(path, "wb", buffering=0) as file:
            file.write(content.getbuffer())
    except OSError as error:
        raise WriteError(f"cannot write {path}: {write_reason(error)}") from error
