"""Which image sizes a network takes."""

from __future__ import annotations

from collections.abc import Callable

import torch

from photo_classifier.models.classifier import REFUSALS, Classifier
from photo_classifier.runtime.errors import UserError
from photo_classifier.runtime.limits import resource_hint

SIZES_TO_TRY = (32, 48, 64, 96, 128, 160, 192, 224, 256, 299, 320, 384, 448, 512)


def at_size(
    model: Classifier,
    make: Callable[[int], Classifier],
    size: int,
    n_classes: int,
    model_name: str,
    own_size: int,
) -> Classifier:
    """Returns the model, or one that is made for images of that size if it can take no other than its own.

    Raises:
        UserError: there is none; the message lists sizes that work.
    """
    if found := _fitting(model, make, size, n_classes):
        return found
    if size == own_size:
        error = why_not_size(model, size, n_classes)
        raise UserError(f"{model_name} cannot be used as a classifier: {error}; choose another model (--model_name)")
    works = [str(s) for s in sorted({own_size, *SIZES_TO_TRY}) if _fitting(model, make, s, n_classes)]
    raise UserError(
        f"{model_name} cannot take images of {size} pixels (--image_size); of the usual sizes it takes "
        f"{', '.join(works)}, and its own is {own_size}"
    )


def _fitting(model: Classifier, make: Callable[[int], Classifier], size: int, n_classes: int) -> Classifier | None:
    """Returns the model, or one that is made for that size, whichever takes images of it; None if neither does."""
    if why_not_size(model, size, n_classes) is None:
        return model
    try:
        made = make(size)
        return None if why_not_size(made, size, n_classes) else made
    except (UserError, *REFUSALS) as error:
        if resource_hint(error):
            raise
        return None


def why_not_size(model: Classifier, size: int, n_classes: int) -> str | None:
    """Returns why the model cannot take images of that size, or None if it can."""
    model.eval()
    try:
        with torch.no_grad():
            logits = model(model.example_image(size))
    except REFUSALS as error:
        if resource_hint(error):  # not the model's fault
            raise
        return str(error) or type(error).__name__
    return None if logits.shape == (1, n_classes) else f"its output has the shape {tuple(logits.shape)}"
