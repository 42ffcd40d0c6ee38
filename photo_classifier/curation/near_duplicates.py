"""Photos that show the same picture: copies that were resized, recompressed, cropped, turned a little or mirrored.

Thumbnails are compared, and not features: of photos of 100 x 100 pixels, features of EfficientNet-Lite0 put the copies
of half the size among the ten most similar photos in 16 % of the cases, thumbnails in all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch.nn import functional

N_CANDIDATES = 8  # the most similar photos of each, which are then compared in detail
COARSE = 8  # pixels of a side when all are compared with all
AT_LEAST = 0.75  # coarse similarity of candidates
SIMILAR = 0.75  # detailed similarity of duplicates, chosen on 1,000 hand signs, which are all alike
MANY = 20_000  # of more photos none are zoomed before they are compared, which takes a sixth of the time
BLOCK_BYTES = 4e6  # of the similarities of some photos with all, so that they stay in the processor's cache
PAIRS_AT_ONCE = 128
STEPS = ((16, 4, 0.83), (32, 2, 0.87))  # alignment: pixels of a side, iterations, similarity below which a pair is left
HALO, NOISE = 3, 5.0  # pixels around one that are compared with it, and levels that are taken for noise


def _warp(scale: float, x: float, y: float, is_mirrored: bool) -> list[list[float]]:
    return [[-scale if is_mirrored else scale, 0.0, x], [0.0, scale, y]]


ZOOMS = ((1.0, 0.0, 0.0), (0.9, 0.0, 0.0), *((0.92, x, y) for x in (-0.06, 0.06) for y in (-0.06, 0.06)))
WARPS = torch.tensor([_warp(*zoom, is_mirrored) for zoom in ZOOMS for is_mirrored in (False, True)])


class Pairs(NamedTuple):
    """Pairs of photos, as their indices (n,), and a value of each."""

    first: torch.Tensor
    second: torch.Tensor
    value: torch.Tensor


class Links:
    """Which photos, or groups, are connected (a union-find); the number of a cluster is that of its first photo."""

    def __init__(self, root: Sequence[int]) -> None:
        self.root = list(root)

    def find(self, index: int) -> int:
        """Returns the number of a photo's cluster."""
        root = self.root
        while root[index] != index:
            root[index] = index = root[root[index]]
        return index

    def join(self, one: int, other: int) -> bool:
        """Connects two photos; returns whether they were not connected."""
        low, high = sorted((self.find(one), self.find(other)))
        self.root[high] = low
        return low != high


def find_pairs(thumbnails: torch.Tensor, similar: float = SIMILAR) -> Pairs:
    """Returns pairs that connect all photos which show the same picture, with their similarity up to 1.

    All photos are compared with all, block by block, as they are, mirrored and zoomed, at 8 x 8 pixels. The most
    similar ones of each are aligned by an affine transform (Lucas and Kanade 1981) and compared in detail, the most
    similar first. Pairs that are connected by others are not compared: of n photos of a burst there are n - 1 pairs.

    Args:
        thumbnails: uint8 (n, side, side).
        similar: the least similarity.
    """
    candidates, found, links = _candidates(thumbnails), [], Links(range(len(thumbnails)))
    levels = [_shrunk(thumbnails, side).half() for side, _, _ in STEPS]
    while len(candidates.first):
        if_all_are_alike = Links(links.root)
        is_needed = torch.tensor([if_all_are_alike.join(*pair) for pair in _ends(candidates)])
        needed = _selected(candidates, is_needed)
        for part in zip(*(values.split(PAIRS_AT_ONCE) for values in needed), strict=True):
            found.append(_confirmed(thumbnails, levels, Pairs(*part), similar))
            for pair in _ends(found[-1]):
                links.join(*pair)
        candidates = _selected(candidates, ~is_needed)
        is_open = [links.find(first) != links.find(second) for first, second in _ends(candidates)]
        candidates = _selected(candidates, torch.tensor(is_open, dtype=torch.bool))
    return Pairs(*(torch.cat(values) for values in zip(*found, strict=True))) if found else candidates


def clusters(n: int, pairs: Pairs) -> list[int]:
    """Returns the number of each photo's cluster: that of its first photo."""
    links = Links(range(n))
    for pair in _ends(pairs):
        links.join(*pair)
    return [links.find(index) for index in range(n)]


def _ends(pairs: Pairs) -> Iterator[tuple[int, int]]:
    return zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)


def _selected(pairs: Pairs, which: torch.Tensor) -> Pairs:
    return Pairs(*(values[which] for values in pairs))


# --- candidates -------------------------------------------------------------------------------


def _candidates(thumbnails: torch.Tensor) -> Pairs:
    """Returns pairs that may be duplicates, each once, with the warp of the first that is most like the second.

    The most similar pairs come first.
    """
    n, found = len(thumbnails), {}
    if n < 2:
        return Pairs(*torch.empty(3, 0, dtype=torch.int64))
    plain = torch.cat([_coarse(part, WARPS[:1])[0] for part in thumbnails.split(4096)])
    warps = WARPS if n <= MANY else WARPS[:2]
    size = max(1, int(BLOCK_BYTES / (4 * n)))
    for start in range(0, n, size):
        warped = _coarse(thumbnails[start : start + size], warps)
        similarity = warped[0] @ plain.T
        for one in warped[1:]:
            torch.maximum(similarity, one @ plain.T, out=similarity)
        similarity.diagonal(start).fill_(-1.0)
        top = similarity.topk(min(N_CANDIDATES, n - 1), 1)
        row, column = (top.values > AT_LEAST).nonzero(as_tuple=True)
        other = top.indices[row, column]
        warp = (warped[:, row] * plain[other]).sum(2).argmax(0)
        values = (row + start, other, top.values[row, column], warp)
        for first, second, value, number in zip(*(part.tolist() for part in values), strict=True):
            key = (min(first, second), max(first, second))
            found[key] = max(found.get(key, (-1.0,)), (value, first, second, number))
    rows = [row[1:] for row in sorted(found.values(), reverse=True)]
    return Pairs(*torch.tensor(rows, dtype=torch.int64).view(-1, 3).T)


def _coarse(thumbnails: torch.Tensor, warps: torch.Tensor) -> torch.Tensor:
    """Returns the thumbnails under each warp as vectors of length 1, (warps, n, COARSE ** 2)."""
    images = _shrunk(thumbnails, 2 * COARSE)
    window = _window(COARSE)
    warped = torch.stack([_sampled(images, warp.expand(len(images), 2, 3), 2 * COARSE) for warp in warps])
    small = functional.avg_pool2d(warped, 2)
    centred = ((small - (small * window).sum((2, 3), keepdim=True)) * window).flatten(2)
    return functional.normalize(centred - centred.mean(2, keepdim=True), dim=2, eps=1e-6)


# --- confirmation -----------------------------------------------------------------------------


def _confirmed(thumbnails: torch.Tensor, levels: Sequence[torch.Tensor], pairs: Pairs, similar: float) -> Pairs:
    """Returns the pairs that are alike in detail once they are aligned, with their similarity.

    Args:
        levels: the thumbnails at the size of each of the STEPS.
    """
    first, second, warps = pairs.first, pairs.second, WARPS[pairs.value]
    for level, (side, n_steps, at_least) in zip(levels, STEPS, strict=True):
        small, other = level[first].float(), _standardized(level[second].float())
        warps = _aligned(small, other, warps, n_steps)
        is_alike = (_standardized(_sampled(small, warps, side)) * other * _window(side)).sum((1, 2)) > at_least
        first, second, warps = first[is_alike], second[is_alike], warps[is_alike]
        if not len(first):
            return Pairs(first, second, torch.empty(0))
    side = thumbnails.shape[1]
    details = _details(_sampled(thumbnails[first].float(), warps, side)), _details(thumbnails[second].float())
    similarity = (details[0] * details[1] * _window(side)).sum((1, 2))
    is_similar = similarity > similar
    return Pairs(first[is_similar], second[is_similar], similarity[is_similar].clamp(max=1.0))


def _aligned(images: torch.Tensor, targets: torch.Tensor, warps: torch.Tensor, n_steps: int) -> torch.Tensor:
    """Returns the affine maps, (n, 2, 3), after Gauss-Newton steps that bring the images closer to the targets."""
    side = images.shape[1]
    window = _window(side).flatten()
    places = _places(side)
    for _ in range(n_steps):
        seen = _standardized(_sampled(images, warps, side))
        down, right = torch.gradient(seen, spacing=2 / side, dim=(1, 2))
        slopes = (torch.stack([right, down], 1)[:, :, None] * places).flatten(1, 2).flatten(2)  # by 6 numbers of a map
        weighted = slopes * window
        normal = weighted @ slopes.transpose(1, 2)
        damping = 0.01 * normal.diagonal(dim1=1, dim2=2).mean(1) + 1e-6
        factor = torch.linalg.cholesky(normal + damping[:, None, None] * torch.eye(6))
        step = torch.cholesky_solve(weighted @ (targets - seen).flatten(1)[..., None], factor)
        warps = warps + warps[:, :, :2] @ step.view(-1, 2, 3).clamp(-0.1, 0.1)
    return warps


def _details(images: torch.Tensor) -> torch.Tensor:
    """Returns images without what is coarse, and all parts equally strong: bare outlines alone make no duplicates."""
    fine = images - _local_mean(images)
    return _standardized(fine / (_local_mean(fine**2) + NOISE**2).sqrt())


def _local_mean(images: torch.Tensor) -> torch.Tensor:
    size, side = 2 * HALO + 1, images.shape[1]
    padded = functional.pad(torch.eye(side)[None], (HALO, HALO), mode="reflect")[0]
    means = functional.avg_pool1d(padded, size, 1)  # as a product with a matrix: quicker than pooling the images
    return means.T @ images @ means


def _standardized(images: torch.Tensor) -> torch.Tensor:
    """Returns images of mean 0 and variance 1 under the window."""
    window = _window(images.shape[1])
    images = images - (images * window).sum((1, 2), keepdim=True)
    return images / (images**2 * window).sum((1, 2), keepdim=True).sqrt().clamp_min(1e-3)


def _sampled(images: torch.Tensor, warps: torch.Tensor, side: int) -> torch.Tensor:
    """Returns images (n, height, width) as affine maps from -1 to 1 show them: (n, side, side)."""
    grid = (warps @ _places(side).flatten(1)).transpose(1, 2).reshape(-1, side, side, 2)
    return functional.grid_sample(images[:, None], grid, padding_mode="border", align_corners=False)[:, 0]


def _shrunk(thumbnails: torch.Tensor, side: int) -> torch.Tensor:
    size = thumbnails.shape[1] // side
    return thumbnails.float().view(-1, side, size, side, size).mean((2, 4))


@cache
def _places(side: int) -> torch.Tensor:
    """Returns x, y and 1 of each pixel, (3, side, side)."""
    x = _axis(side).expand(side, side)
    return torch.stack([x, x.T, torch.ones(side, side)])


def _axis(side: int) -> torch.Tensor:
    return (torch.arange(side) + 0.5) / side * 2 - 1


@cache
def _window(side: int) -> torch.Tensor:
    """Returns weights that fall towards the edges, which a crop or a turn has changed; they sum to 1."""
    bell = torch.exp(-(_axis(side) ** 2) / (2 * 0.7**2))
    window = bell[:, None] * bell
    return window / window.sum()
