"""The evaluation engine: a model in eval mode, as fast as the device allows.

Validation, feature extraction and prediction all compute with it, so that they agree on every image.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from photo_classifier.models.classifier import Classifier
from photo_classifier.models.compiled import CompiledFeatures, import_openvino, not_computable
from photo_classifier.models.cut import Cut, LayersBehind, noise_like
from photo_classifier.models.folding import find_pairs, fold, folds_correctly
from photo_classifier.models.heads import HeadModule
from photo_classifier.runtime.device import exact_fp32, to_device
from photo_classifier.runtime.limits import explain_memory_of_pass

# of the length of the features; bf16 has 8 bits, and each layer rounds: of photos EfficientNet-Lite0 differs by 0.05
COMPILED_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.2}


class Measure(NamedTuple):
    """What is measured on the way to the logits.

    `function` takes the output of `layer`, or the input of the head if that is empty, and the logits; it returns
    fp32 (n, k).
    """

    layer: str
    function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Engine:
    """Computes logits in batches of one fixed shape, so that an image's logits do not depend on its neighbours.

    Batch norm is folded into convolutions, memory is channels-last, convolutions compute in `dtype`,
    the head in fp32.

    Args:
        model: `refresh` copies its weights; it is never changed.
        batch_size: the fixed number of images in a pass.
    """

    def __init__(self, model: Classifier, device: torch.device, dtype: torch.dtype, batch_size: int) -> None:
        self.model, self.device, self.dtype, self.batch_size = model, device, dtype, batch_size
        self.pairs: list[tuple[str, str]] | None = None
        self.is_folded = False
        self.cut: Cut | None = None
        self.compiled: CompiledFeatures | None = None
        self.refresh()

    def compile(self) -> None:
        """Lets OpenVINO compute the features from here on; the weights of the backbone must stay as they are.

        Raises:
            UserError: OpenVINO is missing, does not know the device, cannot convert the network, or computes
                something else.
        """
        if self.device.type != "cpu" or self.dtype == torch.float16:
            raise not_computable("it computes on the CPU, in fp32 or bf16")
        head = self.model.head_module()
        if head is None:
            raise not_computable("nothing tells where the head of this network begins")
        import_openvino()
        plain = copy.deepcopy(self.model).eval().requires_grad_(False)
        compiled = CompiledFeatures(fold(plain, self.pairs) if self.is_folded else plain, self.batch_size, self.dtype)
        noise = noise_like(self.model.example_image())
        expected = run_in_fixed_batches(plain.features, noise, self.batch_size, self.device, torch.float32)
        actual = run_in_fixed_batches(compiled, noise, self.batch_size, self.device, self.dtype)
        if not (actual - expected).norm() <= COMPILED_TOLERANCE[self.dtype] * expected.norm():
            raise not_computable("it computes other features of this network than torch")
        self.compiled, self._head = compiled, HeadEngine(head, self.device, self.dtype, self.batch_size)

    @property
    def computed_by(self) -> str:
        """What computes the features, with its version where it is not torch."""
        return self.compiled.name if self.compiled else "torch"

    def cut_at(self, cut: Cut | None) -> None:
        """Makes `features` those at a cut, from where `from_features` goes on; None is the head's input."""
        self.cut = cut
        self.refresh()

    def refresh(self) -> None:
        """Copies the model's current weights."""
        plain = copy.deepcopy(self.model).eval().requires_grad_(False)
        plain.to(self.device, memory_format=torch.channels_last)
        if self.pairs is None:
            self.pairs = find_pairs(plain)
            self.is_folded = bool(self.pairs) and folds_correctly(plain, self.pairs)
        self.evaluated = fold(plain, self.pairs) if self.is_folded else plain
        if self.dtype != torch.float32:
            self._cast_weights()
        if self.cut:
            self._behind = LayersBehind(self.evaluated, self.cut)
        if self.compiled:
            self._head.refresh()

    def _cast_weights(self) -> None:
        """Casts the weights once, which autocast would do again in every batch."""
        head = set(self.evaluated.head.modules())
        for module in self.evaluated.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)) and module not in head:
                module.to(self.dtype)

    @property
    def is_refused(self) -> bool:
        """Whether the model has batch norm that could not be folded."""
        return not self.is_folded and any(isinstance(module, nn.BatchNorm2d) for module in self.model.modules())

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Computes logits, fp32 (n, classes) on the device, from images, uint8 (n, 3, size, size)."""
        if self.compiled:
            return self._head(self.features(images))
        return run_in_fixed_batches(self.evaluated, images, self.batch_size, self.device, self.dtype)

    def observe(self, images: torch.Tensor, *measures: Measure) -> tuple[torch.Tensor, ...]:
        """Computes the logits of images, and in the same pass what each measure says: fp32 (n, k) each.

        OpenVINO has no layers, only the input of the head.
        """
        if self.compiled:
            features = self.features(images)
            logits = self._head(features)
            return logits, *(self._fixed(lambda batch, m=m: m.function(batch, logits), features) for m in measures)
        widths: list[int] = []

        def compute(batch: torch.Tensor) -> torch.Tensor:
            kept: list[list[torch.Tensor]] = [[] for _ in measures]
            with contextlib.ExitStack() as hooks:
                for measure, outputs in zip(measures, kept, strict=True):
                    hooks.enter_context(self._keep(measure.layer, outputs))
                logits = self.evaluated(batch)
            found = [measure.function(outputs[0], logits) for measure, outputs in zip(measures, kept, strict=True)]
            widths[:] = [part.shape[1] for part in (logits, *found)]
            return torch.cat([logits, *found], 1)

        return self._fixed(compute, images).split(widths, 1)

    def _fixed(self, compute: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
        return run_in_fixed_batches(compute, inputs, self.batch_size, self.device, self.dtype)

    def _keep(self, layer: str, outputs: list[torch.Tensor]) -> RemovableHandle:
        """Lets the next passes append the output of that layer; without a name, the input of the head."""
        if not layer:
            return self.evaluated.head.register_forward_pre_hook(lambda _head, given: outputs.append(given[0]))
        module = self.evaluated.net.get_submodule(layer)
        return module.register_forward_hook(lambda _layer, _given, output: outputs.append(output))

    def features(self, images: torch.Tensor, batch_size: int | None = None) -> torch.Tensor:
        """Computes the input of the head, or the output at the cut, (n, ...), from images, uint8 (n, 3, size, size).

        Args:
            batch_size: a different number of images in a pass.
        """
        if self.compiled and batch_size in (None, self.batch_size):
            return run_in_fixed_batches(self.compiled, images, self.batch_size, self.device, self.dtype)
        compute = functools.partial(self.evaluated.features, behind=self.cut and self.cut.name)
        return run_in_fixed_batches(compute, images, batch_size or self.batch_size, self.device, self.dtype)

    def from_features(self, features: torch.Tensor) -> torch.Tensor:
        """Computes the logits that images have, fp32 (n, classes) on the device, from their features at the cut."""
        return run_in_fixed_batches(self._behind, features, self.batch_size, self.device, self.dtype)

    def head_inputs(self, features: torch.Tensor) -> torch.Tensor:
        """Computes the input of the head, (n, ...), from features: these themselves, unless there is a cut."""
        if not self.cut:
            return features
        return run_in_fixed_batches(self._behind.features, features, self.batch_size, self.device, self.dtype)

    def feature_example(self) -> torch.Tensor:
        """Returns the features of one image, (1, ...), as an example of the shape and dtype of all."""
        # one image: only the shape is needed, and a whole batch would take a tenth of a second
        return self.features(self.model.example_image(), 1)


class HeadEngine:
    """Computes logits from stored features as `Engine` does from images: the head and what follows it.

    Args:
        top: `refresh` copies its weights.
    """

    def __init__(self, top: HeadModule, device: torch.device, dtype: torch.dtype, batch_size: int) -> None:
        self.top, self.device, self.dtype, self.batch_size = top, device, dtype, batch_size
        self.refresh()

    def refresh(self) -> None:
        """Copies the head's current weights."""
        self.evaluated = copy.deepcopy(self.top).eval().requires_grad_(False)

    def __call__(self, features: torch.Tensor) -> torch.Tensor:
        """Computes logits, fp32 (n, classes) on the device, from features, (n, ...)."""
        return run_in_fixed_batches(self.evaluated, features, self.batch_size, self.device, self.dtype)


class FrozenModel(nn.Module):
    """A head that trains on a frozen backbone, which runs in the engine; nothing is stored.

    Args:
        batch_size: images in a pass, as many as in a training step; computing more would be wasted.
    """

    def __init__(self, engine: Engine, top: HeadModule, batch_size: int) -> None:
        super().__init__()
        self.top, self.batch_size = top, batch_size  # `top` begins names in the saved state of a run
        self._engine = (engine,)  # in a tuple: its copy of the model must not become a submodule

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Computes logits, fp32 (n, classes), from images, uint8 (n, 3, size, size)."""
        features = self._engine[0].features(images, self.batch_size)
        return self.top(features.clone())  # unlike an inference tensor, a clone may take part in a backward pass


def eval_batch_size(batch_size: int) -> int:
    """Returns the images in a pass of evaluation, also in training; below 32 wastes time, above 256 memory."""
    return min(max(32, batch_size), 256)


@torch.inference_mode()
def run_in_fixed_batches(
    compute: Callable[[torch.Tensor], torch.Tensor],
    inputs: torch.Tensor,
    batch_size: int,
    device: torch.device,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Applies `compute` to inputs (n, ...) in passes of exactly `batch_size`, the last one padded with zeros.

    Raises:
        PassTooLarge: memory ran out.
    """
    outputs = []
    with explain_memory_of_pass(batch_size):
        for batch in inputs.split(batch_size):
            n = len(batch)
            if n < batch_size:
                batch = torch.cat([batch, batch.new_zeros(batch_size - n, *batch.shape[1:])])
            order = torch.channels_last if batch.dim() == 4 else torch.contiguous_format
            batch = to_device(batch, device, memory_format=order)
            with exact_fp32(), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                outputs.append(compute(batch)[:n])
    return torch.cat(outputs) if len(outputs) != 1 else outputs[0]
