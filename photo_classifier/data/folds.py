"""Divides samples into folds: each is predicted by a head that learned from the others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from photo_classifier.data.samples import Sample
from photo_classifier.runtime.errors import UserError
from photo_classifier.runtime.seeding import derive_seed
from photo_classifier.runtime.text import pluralize

Unit = list[int]  # the positions of samples that stay together


def assign_folds(samples: Sequence[Sample], n_folds: int, seed: int) -> list[int]:
    """Returns the fold of each sample, from 0; every class is spread evenly, and a group stays together.

    An image (or a group) draws its position by the seed and its key alone, as for the splits, so that one image more
    moves few others. A group counts as its most common class.

    Raises:
        UserError: there are fewer images or groups than folds.
    """
    units: dict[tuple[str, str], Unit] = {}
    for index, sample in enumerate(samples):
        units.setdefault(("group", sample.group) if sample.group else ("", sample.key), []).append(index)
    if len(units) < n_folds:
        n_units = pluralize(len(units), "group" if samples and samples[0].group else "image")
        raise UserError(f"{n_folds} folds need at least {n_folds} groups or images, and there are {n_units} (--folds)")
    strata: dict[str, list[Unit]] = {}
    for address in sorted(units, key=lambda address: (derive_seed(seed, "fold", *address), address)):
        strata.setdefault(_most_common_label(samples, units[address]), []).append(units[address])
    folds = [0] * len(samples)
    for label, stratum in strata.items():
        for unit, fold in zip(stratum, _folds_of(stratum, n_folds, derive_seed(seed, "folds of", label)), strict=True):
            for index in unit:
                folds[index] = fold
    return folds


def _most_common_label(samples: Sequence[Sample], unit: Unit) -> str:
    counts = Counter(samples[index].label for index in unit)
    return min(counts, key=lambda label: (-counts[label], label))


def _folds_of(stratum: Sequence[Unit], n_folds: int, first: int) -> list[int]:
    """Cuts units, in their drawn order, into folds of about one size.

    Args:
        first: begins with another fold in each class, or small classes would all be in the same folds.
    """
    n, before, folds = sum(map(len, stratum)), 0, []
    for unit in stratum:
        folds.append((first + n_folds * (2 * before + len(unit)) // (2 * n)) % n_folds)
        before += len(unit)
    return folds
