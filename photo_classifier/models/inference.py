"""The evaluation engine: a model in eval mode, as fast as the device allows.

Validation, feature extraction and prediction all compute with it, so that they agree to the image.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn

from photo_classifier.models.classifier import REFUSALS, Classifier, HeadModule
from photo_classifier.models.folding import FOLD_TOLERANCE, _exact_fp32, _with_random_statistics, find_pairs, fold
from photo_classifier.runtime.device import to_device
from photo_classifier.runtime.signals import resource_hint


class Engine:
    """Logits of images in batches of one fixed shape, so that a sample's do not depend on its neighbours.

    Batch norm is folded into convolutions, memory is channels-last, convolutions compute in `dtype`,
    the head in fp32.

    Args:
        model: read again at every `refresh`; it is never changed.
        batch_size: the fixed number of images a pass computes.
    """

    def __init__(self, model: Classifier, device: torch.device, dtype: torch.dtype, batch_size: int) -> None:
        self.model, self.device, self.dtype, self.batch_size = model, device, dtype, batch_size
        self.pairs: list[tuple[str, str]] | None = None
        self.is_folded = False
        self.refresh()

    def refresh(self) -> None:
        """Takes over the model's present weights."""
        plain = copy.deepcopy(self.model).eval().requires_grad_(False)
        plain.to(self.device, memory_format=torch.channels_last)
        if self.pairs is None:
            self.pairs = find_pairs(plain)
            self.is_folded = bool(self.pairs) and self._agrees(plain)
        self.evaluated = fold(plain, self.pairs) if self.is_folded else plain
        if self.dtype != torch.float32:
            self._cast_weights()

    def _cast_weights(self) -> None:
        """Casts once what autocast would cast again in every batch."""
        head = set(self.evaluated.head.modules())
        for module in self.evaluated.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)) and module not in head:
                module.to(self.dtype)

    def _agrees(self, plain: Classifier) -> bool:
        # with statistics as after training: those of a new network are nearly the identity and hide wrong pairs
        plain = _with_random_statistics(copy.deepcopy(plain))
        folded = fold(copy.deepcopy(plain), self.pairs)
        size = plain.preprocess.image_size
        generator = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8, generator=generator).to(self.device)
        with torch.inference_mode(), _exact_fp32():
            expected = plain(images)
            try:
                found = folded(images)
            except REFUSALS as error:  # it asks its batch norm for what is gone
                if resource_hint(error):
                    raise
                return False
        return bool((expected - found).abs().max() <= FOLD_TOLERANCE * expected.abs().max().clamp(min=1.0))

    @property
    def is_refused(self) -> bool:
        """Whether there is batch norm and it could not be folded."""
        return not self.is_folded and any(isinstance(module, nn.BatchNorm2d) for module in self.model.modules())

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 images (n, 3, size, size) -> fp32 logits (n, classes) on the device."""
        return run_in_fixed_batches(self.evaluated, images, self.batch_size, self.device, self.dtype)

    def features(self, images: torch.Tensor, batch_size: int | None = None) -> torch.Tensor:
        """uint8 images (n, 3, size, size) -> what the head takes, (n, ...) on the device.

        Args:
            batch_size: another fixed number of images for a pass.
        """
        size = batch_size or self.batch_size
        return run_in_fixed_batches(self.evaluated.features, images, size, self.device, self.dtype)

    def feature_example(self) -> torch.Tensor:
        """The features of one image, (1, ...), in the shape and type that all have."""
        # a pass of one: only its shape is asked for, and a whole batch would take a tenth of a second
        return self.features(self.model.example_image(), 1)


class HeadEngine:
    """The same for stored features: logits of the head and what follows it.

    Args:
        top: read again at every `refresh`.
    """

    def __init__(self, top: HeadModule, device: torch.device, dtype: torch.dtype, batch_size: int) -> None:
        self.top, self.device, self.dtype, self.batch_size = top, device, dtype, batch_size
        self.refresh()

    def refresh(self) -> None:
        """Takes over the head's present weights."""
        self.evaluated = copy.deepcopy(self.top).eval().requires_grad_(False)

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """Features (n, ...) -> fp32 logits (n, classes) on the device."""
        return run_in_fixed_batches(self.evaluated, features, self.batch_size, self.device, self.dtype)


class FrozenModel(nn.Module):
    """Trains a head on a frozen backbone without storing anything: the backbone runs in the engine.

    Args:
        batch_size: images that a pass computes, those of a training step; more would be computed for nothing.
    """

    def __init__(self, engine: Engine, top: HeadModule, batch_size: int) -> None:
        super().__init__()
        self.top, self.batch_size = top, batch_size
        self._engine = (engine,)  # in a tuple: its copy of the model is no part of this one

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 images (n, 3, size, size) -> fp32 logits (n, classes)."""
        features = self._engine[0].features(images, self.batch_size)
        return self.top(features.clone())  # a clone may take part in a backward pass


@torch.inference_mode()
def run_in_fixed_batches(
    compute: Callable[[torch.Tensor], torch.Tensor],
    inputs: torch.Tensor,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
) -> torch.Tensor:
    """`compute` over inputs (n, ...) in passes of exactly `batch_size`, the last one padded with zeros."""
    outputs = []
    for part in inputs.split(batch_size):
        n = len(part)
        if n < batch_size:
            part = torch.cat([part, part.new_zeros(batch_size - n, *part.shape[1:])])
        order = torch.channels_last if part.dim() == 4 else torch.contiguous_format
        part = to_device(part, device, memory_format=order)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            outputs.append(compute(part)[:n])
    return torch.cat(outputs) if len(outputs) != 1 else outputs[0]


def eval_batch_size(batch_size: int) -> int:
    """Images in a pass of evaluation, in training and prediction alike; below 32 it wastes time, above 256 memory."""
    return min(max(32, batch_size), 256)


# --- folding ----------------------------------------------------------------------------------
