"""Near-duplicates: 2,000 photos made from those of each set, and how many copies are found.

At most 1,000 photos are taken; the others are copies of them: cropped to 90 %, turned by 5 degrees, saved as JPEG of
quality 30, of half the size, darker or brighter, or mirrored.

- found     recall and precision over all pairs of one source that are in one cluster, 0.9 and 0.99 at least
- scenes    originals that were found alike may show one scene indeed, as those of a burst do. They count neither way
            if 15 keypoints of one lie in the other, or in its mirror image, by one affine map (SIFT and RANSAC of
            opencv-python-headless; if that is not installed, all of them count as mistakes). Of pairs that were drawn
            at random none may pass as one scene
- seconds   of the search alone: 2 at most
- hashes    the same of imagededup (if it is installed), each with the threshold that finds most at precision 0.99
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from common import Findings
from PIL import Image, ImageEnhance, ImageOps

from photo_classifier.curation.near_duplicates import Pairs, clusters, find_pairs
from photo_classifier.data.decoding import BadImage, decode
from photo_classifier.data.file_kinds import is_image_name
from photo_classifier.data.thumbnails import DETAIL, thumbnail_row, unpack_rows
from photo_classifier.evaluation.contact_sheet import picture_of

N, N_ORIGINALS = 2_000, 1_000
AGREEING = 15  # keypoints
N_RANDOM = 200  # pairs


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


def scenes(paths: list[Path], sources: torch.Tensor, pairs: Pairs) -> tuple[torch.Tensor, int]:
    """Returns the scene of each photo, and how many pairs of originals that were found show one scene."""
    originals = {int(path.name[:4]): path for path in paths if "original" in path.name}
    found = {tuple(sorted(pair)) for pair in zip(*(sources[ends].tolist() for ends in pairs[:2]), strict=True)}
    same = [pair for pair in sorted(found) if pair[0] != pair[1] and is_one_scene(*(originals[n] for n in pair))]
    ends = torch.tensor(same, dtype=torch.int64).view(-1, 2)
    return torch.tensor(clusters(len(originals), Pairs(*ends.T, ends)))[sources], len(same)


def n_random_scenes(paths: list[Path]) -> int:
    """How many pairs of originals pass as one scene that were drawn at random."""
    originals, rng = [path for path in paths if "original" in path.name], random.Random(0)
    return sum(is_one_scene(*rng.sample(originals, 2)) for _ in range(N_RANDOM))


def is_one_scene(*paths: Path) -> bool:
    """Whether keypoints (SIFT; Lowe 2004) of a photo lie in another, or its mirror image, by one affine map."""
    try:
        import cv2
    except ImportError:
        return False

    first, second = (cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in paths)
    return any(n_agreeing(first, other) >= AGREEING for other in (second, cv2.flip(second, 1)))


def n_agreeing(*images: np.ndarray) -> int:
    """The keypoints of two grey images that agree on an affine map, by RANSAC."""
    import cv2

    (points, values), (other_points, other_values) = (
        cv2.SIFT_create().detectAndCompute(image, None) for image in images
    )
    if values is None or other_values is None:
        return 0
    near = [match for match in cv2.BFMatcher().knnMatch(values, other_values, k=2) if len(match) == 2]
    good = [best for best, second in near if best.distance < 0.75 * second.distance]
    if len(good) < AGREEING:
        return 0
    ends = [points[match.queryIdx].pt for match in good], [other_points[match.trainIdx].pt for match in good]
    agrees = cv2.estimateAffine2D(*map(np.array, ends))[1].ravel()
    # a map may put all on one spot, where many keypoints of one image lie
    return min(len({*np.array(side).round()[agrees > 0].view(complex).ravel().tolist()}) for side in ends)


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


def check(paths: list[Path], what: str, findings: Findings) -> None:
    """One set."""
    sources = torch.tensor([int(path.name[:4]) for path in paths])
    thumbnails, _ = unpack_rows(torch.stack([thumbnail_row(decode(str(path), DETAIL)) for path in paths]))
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        pairs = find_pairs(thumbnails)
        seconds.append(time.perf_counter() - start)
    scene, n_same = scenes(paths, sources, pairs)
    (recall, precision), (_, strict) = (quality(pairs, sources, kinds) for kinds in (scene, sources))
    print(f"{what}: {len(paths)} photos: {n_same} pairs of originals show one scene; precision {strict:.4f} otherwise")
    for first, second in zip(pairs.first.tolist(), pairs.second.tolist(), strict=True):
        if scene[first] != scene[second]:
            print(f"    look at {paths[first].name} and {paths[second].name}", flush=True)
    findings.reach(f"{what}: recall", ">= 0.9", f"{recall:.3f}", recall >= 0.9)
    findings.reach(f"{what}: precision", ">= 0.99", f"{precision:.4f}", precision >= 0.99)
    findings.reach(f"{what}: search", "< 2 s", f"{min(seconds):.1f} s", min(seconds) < 2)
    findings.expect(n_random_scenes(paths) == 0, f"{what}: originals drawn at random pass as one scene")
    try:
        print(f"{what}: imagededup: {', '.join(hash_qualities(paths, sources, scene))}", flush=True)
    except ImportError:
        print(f"{what}: imagededup is not installed", flush=True)


def work(options: argparse.Namespace, findings: Findings) -> None:
    """All sets."""
    for source in options.data_dir:
        paths = make_copies(source, Path(source.name), options.seed)
        check(paths, f"{source.name}: near-duplicates", findings)
