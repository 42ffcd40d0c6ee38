"""The photos of a new run before it trains: which are left out, which are doubtful, and what augmentation makes."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import torch
from torch.utils.data import Dataset

from photo_classifier.data.checks import drop_samples, find_duplicates, find_unreadable
from photo_classifier.data.decoding import BadImage
from photo_classifier.data.samples import Splits
from photo_classifier.evaluation.contact_sheet import Tile, contact_sheet, map_until, picture_of
from photo_classifier.runtime.console import warn
from photo_classifier.runtime.errors import UserError
from photo_classifier.runtime.seeding import derive_seed
from photo_classifier.training.photo_check import write_duplicates
from photo_classifier.training.run import Run
from photo_classifier.training.run_folder import write_table

N_SHOWN = 18  # images of the grid of augmented ones, three rows


def drop_unusable(splits: Splits, run: Run, max_pixels: int, on_leak: str) -> Splits:
    """Returns the splits without unusable images, and lists what is doubtful in the run folder.

    Args:
        max_pixels: the size above which an image is refused.
        on_leak: what to do about images that are in two splits or classes, a row of `ON_LEAK`.

    Raises:
        UserError: too many images cannot be read, or some are in two splits or classes and that is an error.
    """
    samples = [sample for part in splits.by_name().values() for sample in part]
    reasons = {**splits.unread, **find_unreadable(samples, max_pixels)}
    run.skipped.add(reasons)
    dropped = _leaks_to_drop(splits, run, on_leak)
    used = drop_samples(splits, [*reasons, *dropped]) if reasons or dropped else splits
    if splits.near_duplicates:
        write_duplicates(run.folder, used, splits.near_duplicates)
    return replace(used, near_duplicates=())


def _leaks_to_drop(splits: Splits, run: Run, on_leak: str) -> list[str]:
    """Lists copies in two splits or classes; returns the paths of those to leave out."""
    duplicates = find_duplicates(splits)
    if duplicates.copies:
        path = run.folder / "duplicates.csv"
        write_table(path, duplicates.rows())
        text = f"{duplicates.text()}; all are listed in {path}"
        if on_leak == "error":
            raise UserError(f"{text}; remove one of each, or use --on_leak drop or warn")
        hint = "; --on_leak drop leaves out the training copies" if on_leak == "warn" else ", dropped"
        warn(f"{text}{hint}")
    return duplicates.to_drop() if on_leak == "drop" else []


def show_augmented(run: Run, dataset: Dataset) -> None:
    """Adds a labelled grid of training images as the first epoch sees them, to the run folder and TensorBoard."""

    def decoded(index: int) -> torch.Tensor | None:
        with contextlib.suppress(BadImage):
            return dataset.decoded(index)

    n = len(dataset)
    chosen = {k * n // N_SHOWN for k in range(N_SHOWN)}  # spread over the classes: samples are sorted by class
    # in random order, so that not the last classes are missing when time is up
    images = dict(map_until(decoded, sorted(chosen, key=lambda index: derive_seed("grid", index)), run.spare_seconds))
    tiles = [
        # views are drawn one after another: threads would share the generator
        Tile(picture_of(dataset.views(index, [0], images[index])[0]), dataset.samples[index].label)
        for index in sorted(images)
        if images[index] is not None
    ]
    if tiles:
        run.epochs.add_picture("augmented", "Train/images", contact_sheet(tiles, n_columns=6))
