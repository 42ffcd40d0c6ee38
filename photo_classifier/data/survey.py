"""Looks at a sample of the training photos for what would train badly without an error."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import median

from photo_classifier.data.decoding import BadImage, Look, look_at
from photo_classifier.data.preprocess import Preprocess
from photo_classifier.data.samples import Sample
from photo_classifier.runtime.device import n_cores

MOST_LOOKED_AT = 48
FAR_FROM_SQUARE = 1.4  # between the 4:3 and the 3:2 of cameras
NEARLY_ONE_COLOUR = 16  # of 255 levels


def survey(samples: Sequence[Sample], preprocess: Preprocess, max_pixels: int) -> list[str]:
    """Returns a warning for each thing that would train badly, from photos evenly spread over the samples."""

    def look(sample: Sample) -> Look | None:
        """Returns what is measured in a photo, or None if it cannot be read."""
        try:
            return look_at(sample.path, preprocess.decode_side, max_pixels, preprocess.bit_depth)
        except BadImage:  # is reported where it is read for training
            return None

    chosen = samples[:: max(1, -(-len(samples) // MOST_LOOKED_AT))]
    with ThreadPoolExecutor(n_cores()) as pool:
        looks = {sample.path: found for sample, found in zip(chosen, pool.map(look, chosen), strict=True) if found}
    kinds = (_unused_bits, _one_colour, _further_bands, *([_hidden_by_crop] if preprocess.fit == "crop" else []))
    return [line for kind in kinds if looks for line in kind(looks)]


def _hidden_by_crop(looks: dict[str, Look]) -> Iterator[str]:
    aspect = median(max(look.width, look.height) / min(look.width, look.height) for look in looks.values())
    if aspect >= FAR_FROM_SQUARE:
        yield (
            f"the photos are about {aspect:.2g} times as long as wide, and the crop of their middle hides "
            f"{1 - 1 / aspect:.0%} of the longer side; --fit squash or --fit pad shows all of it"
        )


def _unused_bits(looks: dict[str, Look]) -> Iterator[str]:
    deep = {path: look.largest for path, look in looks.items() if look.largest is not None}
    most = max(deep.values(), default=65535)
    bits = next(bits for bits in (8, 10, 12, 14, 16) if most < 2**bits)
    if bits < 16:
        what = f"all values of the {len(deep)} photos of 16 bits looked at are below {2**bits}"
        yield f"{what} (for example {min(deep)}), so they are nearly black; --bit_depth {bits} brightens them"


def _one_colour(looks: dict[str, Look]) -> Iterator[str]:
    if text := _counted(looks, lambda look: look.spread < NEARLY_ONE_COLOUR, at_least=0.5):
        yield f"{text} nearly one colour after decoding, so there is little to learn from; look at the files"


def _further_bands(looks: dict[str, Look]) -> Iterator[str]:
    if text := _counted(looks, lambda look: look.has_further_band):
        yield f"{text} TIFF files with more channels than red, green and blue; the extra channels are ignored"


def _counted(looks: dict[str, Look], holds: Callable[[Look], bool], at_least: float = 0.0) -> str:
    """Returns `3 of the 24 photos looked at (for example a.tif) are`, or nothing if it holds for too few."""
    found = [path for path, look in looks.items() if holds(look)]
    if not found or len(found) < at_least * len(looks):
        return ""
    return f"{len(found)} of the {len(looks)} photos looked at (for example {found[0]}) are"
