"""Near-duplicates: 2,000 photos made from those of each set, and how many copies are found.

At most 1,000 photos are taken; the others are copies of them: cropped to 90 %, turned by 5 degrees, saved as JPEG of
quality 30, of half the size, darker or brighter, or mirrored.

- found     recall and precision over all pairs of one source that are in one cluster, 0.9 and 0.99 at least; pairs of
            originals that are alike themselves are told, and count neither way: look at them
- seconds   of the search alone: 2 at most
- hashes    the same of imagededup (if it is installed), each with the threshold that finds most at precision 0.99
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from common import Findings
from PIL import Image, ImageEnhance, ImageOps

from photo_classifier.curation.near_duplicates import SIMILAR, Pairs, clusters, find_pairs
from photo_classifier.data.decoding import BadImage, decode
from photo_classifier.data.file_kinds import is_image_name
from photo_classifier.data.thumbnails import DETAIL, thumbnail_row, unpack_rows
from photo_classifier.evaluation.contact_sheet import picture_of

N, N_ORIGINALS = 2_000, 1_000


def crop(image: Image.Image, rng: random.Random) -> Image.Image:
    """Cuts out 90 % of each side, anywhere."""
    width, height = (round(0.9 * length) for length in image.size)
    left, top = rng.randint(0, image.width - width), rng.randint(0, image.height - height)
    return image.crop((left, top, left + width, top + height))


CHANGES = {
    "crop": crop,
    "turn": lambda image, rng: image.rotate(rng.choice((-5, 5)), Image.Resampling.BICUBIC),
    "quality": lambda image, rng: image,
    "half": lambda image, rng: image.resize([max(1, length // 2) for length in image.size], Image.Resampling.LANCZOS),
    "brightness": lambda image, rng: ImageEnhance.Brightness(image).enhance(rng.choice((0.6, 1.4))),
    "mirror": lambda image, rng: ImageOps.mirror(image),
}


def make_copies(source: Path, folder: Path, seed: int) -> list[Path]:
    """Writes the photos; the first four digits of a name are the number of its source."""
    folder.mkdir()
    rng, n_originals = random.Random(seed), 0
    paths = sorted(path for path in source.rglob("*") if is_image_name(path.name))
    rng.shuffle(paths)
    for path in paths:
        if n_originals < N_ORIGINALS:
            try:
                picture_of(decode(str(path))).save(folder / f"{n_originals:04d}-original.jpg", quality=92)
            except BadImage:
                continue
            n_originals += 1
    left = [(number, change) for number in range(n_originals) for change in CHANGES]
    for number, change in rng.sample(left, min(len(left), N - n_originals)):
        with Image.open(folder / f"{number:04d}-original.jpg") as image:
            copy, rate = CHANGES[change](image, rng), 30 if change == "quality" else 90
            copy.save(folder / f"{number:04d}-{change}.jpg", quality=rate)
    return sorted(folder.iterdir())


def alike_originals(originals: torch.Tensor, sources: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Returns the cluster of each photo's original among the originals alone, and how many pairs share a cluster."""
    root = torch.tensor(clusters(len(originals), find_pairs(originals, SIMILAR - 0.1)))
    return root[sources], (root[:, None] == root).triu(1).sum().item()


def quality(pairs: Pairs, sources: torch.Tensor, kinds: torch.Tensor) -> tuple[float, float]:
    """Returns recall and precision over pairs of one source in one cluster; those of one kind count neither way."""
    root = torch.tensor(clusters(len(sources), pairs))
    of_one = (sources[:, None] == sources).triu(1)
    linked = (root[:, None] == root).triu(1)
    n_right, n_wrong = (linked & of_one).sum().item(), (linked & (kinds[:, None] != kinds)).sum().item()
    return n_right / of_one.sum().item(), n_right / max(1, n_right + n_wrong)


def hash_qualities(paths: list[Path], sources: torch.Tensor, kinds: torch.Tensor) -> Iterator[str]:
    """Yields what each hash of imagededup finds."""
    from imagededup import methods

    for name in ("PHash", "DHash", "AHash", "WHash"):
        hasher = getattr(methods, name)(verbose=False)
        codes = [int(hasher.encode_image(image_file=str(path)), 16) for path in paths]
        bits = torch.tensor([[code >> bit & 1 for bit in range(64)] for code in codes]).float()
        distances = bits @ (1 - bits).T + (1 - bits) @ bits.T
        best = (0.0, 1.0, 0)  # recall, precision, distance
        for most in range(21):
            first, second = (distances <= most).triu(1).nonzero(as_tuple=True)
            recall, precision = quality(Pairs(first, second, first), sources, kinds)
            if precision >= 0.99:
                best = max(best, (recall, precision, most))
        yield f"{name} recall {best[0]:.3f} (distance up to {best[2]})"


def work(options: argparse.Namespace, findings: Findings) -> None:
    """All sets."""
    for source in options.data_dir:
        paths = make_copies(source, Path(source.name), options.seed)
        sources = torch.tensor([int(path.name[:4]) for path in paths])
        is_original = torch.tensor(["original" in path.name for path in paths])
        rows = torch.stack([thumbnail_row(decode(str(path), DETAIL)) for path in paths])
        thumbnails, _ = unpack_rows(rows)
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            pairs = find_pairs(thumbnails)
            seconds.append(time.perf_counter() - start)
        kinds, n_alike = alike_originals(thumbnails[is_original], sources)
        recall, precision = quality(pairs, sources, kinds)
        strict = quality(pairs, sources, sources)[1]
        print(
            f"{source.name}: {len(paths)} photos: recall {recall:.3f}, precision {precision:.4f} ({strict:.4f} if the "
            f"{n_alike} pairs of originals that are alike are mistakes), {min(seconds):.1f} s",
            flush=True,
        )
        for first, second in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True):
            if kinds[first] != kinds[second]:  # a mistake, or photos that are alike only in part
                print(f"    look at {paths[first].name} and {paths[second].name}", flush=True)
        findings.expect(recall >= 0.9, f"{source.name}: recall {recall:.3f}")
        findings.expect(precision >= 0.99, f"{source.name}: precision {precision:.4f}")
        findings.expect(min(seconds) < 2, f"{source.name}: {min(seconds):.1f} s")
        try:
            print(f"{source.name}: imagededup: {', '.join(hash_qualities(paths, sources, kinds))}", flush=True)
        except ImportError:
            print("imagededup is not installed", flush=True)
