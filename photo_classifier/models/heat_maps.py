"""Where in a photo a network sees a class."""

from __future__ import annotations

import contextlib
import math

import torch
from torch import nn

from photo_classifier.models.classifier import REFUSALS
from photo_classifier.models.inference import Engine

MOST_PREFIX = 8  # tokens of a transformer that stand for no place: the class token and registers
COARSEST = 4  # a map that is finer than image_size / 4 is not that of the last layers


class HeatMaps:
    """Computes what each place of a photo adds to the score of a class, at the last layer that has places.

    Where a linear head takes the mean over the places, the map is exact (CAM, Zhou et al. 2016), and no backward pass
    is needed. Elsewhere it is gradient x activation: place by place in a feature map (HiResCAM, Draelos and Carin 2020,
    which is CAM where that is defined), by the mean gradient of all places among the tokens of a transformer (Grad-CAM,
    Selvaraju et al. 2017). Scores are compared to the mean over all classes, as probabilities do not change with what
    all scores have in common. `layer` is the name of the layer, empty for a network that keeps no places.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine, self.layer, self.weight = engine, "", None
        engine.refresh()
        generator = torch.Generator().manual_seed(0)
        example = torch.randint(256, engine.model.example_image().shape, generator=generator, dtype=torch.uint8)
        example = example.to(engine.device)
        with contextlib.suppress(*REFUSALS):  # not every network can be looked into, and no run may end for that
            self.layer = _last_layer_with_places(engine, example)
            self.weight = self._weight_of_places(example) if self.layer else None
            if self.layer:
                self(example, torch.zeros(1, dtype=torch.int64))
            return
        self.layer = ""

    def _weight_of_places(self, example: torch.Tensor) -> torch.Tensor | None:
        """Returns the weights that make the map exact, (classes, channels); None if the head is of another kind."""
        head = self.engine.evaluated.head
        if not isinstance(head, nn.Linear):
            return None
        self.weight, bias = ((part - part.mean(0)).float() for part in (head.weight, head.bias))
        with contextlib.suppress(RuntimeError, IndexError):  # the head takes something else
            with torch.no_grad(), _precision(self.engine):
                logits = self.engine.evaluated(example)
            total = self._pooled(example, torch.zeros(1, dtype=torch.int64, device=example.device)).mean()
            if torch.isclose(total + bias[0], logits[0, 0] - logits.mean(), rtol=0.02, atol=1e-3):
                return self.weight
        return None

    def __call__(self, images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """Computes maps, fp32 (n, places down, places across) from 0 to 1, on the CPU.

        Args:
            images: uint8 (n, 3, size, size).
            classes: int64 (n,), the class that each map is of.
        """
        images, classes = images.to(self.engine.device), classes.to(self.engine.device)
        added = self._pooled(images, classes) if self.weight is not None else self._by_gradient(images, classes)
        added = added.clamp(min=0).float().cpu()
        return added / added.amax((1, 2), keepdim=True).clamp(min=1e-12)

    def _pooled(self, images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        with torch.no_grad(), _precision(self.engine):
            grid = _grid(self.engine.evaluated.features(images, self.layer), images.shape[-1])
        return torch.einsum("nhwc,nc->nhw", grid.float(), self.weight[classes])

    def _by_gradient(self, images: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        outputs: list[torch.Tensor] = []

        def begin(_module: nn.Module, _inputs: tuple, output: torch.Tensor) -> torch.Tensor:
            outputs.append(output.detach().requires_grad_())
            return outputs[0].clone()  # a later layer may change it in place

        module = self.engine.evaluated.net.get_submodule(self.layer)
        with module.register_forward_hook(begin), torch.enable_grad(), _precision(self.engine):
            logits = self.engine.evaluated(images)
            score = (logits.gather(1, classes[:, None])[:, 0] - logits.mean(1)).sum()
        (gradient,) = torch.autograd.grad(score, outputs)
        gradient, output = (_grid(part.detach(), images.shape[-1]).float() for part in (gradient, outputs[0]))
        if outputs[0].dim() == 3:  # without the mean, an answer falls 10 % less where the marked fifth is deleted
            gradient = gradient.mean((1, 2), keepdim=True)
        return (gradient * output).sum(3)


def _last_layer_with_places(engine: Engine, example: torch.Tensor) -> str:
    """Returns the name of the last layer on whose places the scores depend, or an empty text."""
    outputs: dict[str, torch.Tensor] = {}
    net = engine.evaluated.net

    def keep(name: str) -> object:
        """Returns a hook that notes the output of that layer, if it has places."""

        def hook(_module: nn.Module, _inputs: tuple, output: object) -> None:
            if isinstance(output, torch.Tensor) and _grid(output, example.shape[-1]) is not None:
                outputs.pop(name, None)
                outputs[name] = output

        return hook

    handles = [module.register_forward_hook(keep(name)) for name, module in net.named_modules() if name]
    try:
        with torch.enable_grad(), _precision(engine):
            logits = net(engine.evaluated.normalize(example).requires_grad_())
    finally:
        for handle in handles:
            handle.remove()
    gradients = torch.autograd.grad(logits.flatten(1)[0, 0], [*outputs.values()], allow_unused=True)
    names = [
        name
        for name, gradient in zip(outputs, gradients, strict=True)
        if gradient is not None and _grid(gradient, example.shape[-1]).abs().sum(3).count_nonzero() > 1
    ]
    return names[-1] if names else ""


def _grid(output: torch.Tensor, size: int) -> torch.Tensor | None:
    """Returns the output of a layer by place, (n, down, across, channels); None if it has none, or too few or many."""
    shape, grid = output.shape, None
    if output.dim() == 4:
        grid = output.permute(0, 2, 3, 1) if shape[2] == shape[3] else output if shape[1] == shape[2] else None
    elif output.dim() == 3:
        side = math.isqrt(shape[1])
        if shape[1] - side * side <= MOST_PREFIX:
            grid = output[:, shape[1] - side * side :].unflatten(1, (side, side))
    return grid if grid is not None and 1 < grid.shape[1] <= max(2, size // COARSEST) else None


def _precision(engine: Engine) -> torch.autocast:
    return torch.autocast(engine.device.type, engine.dtype, enabled=engine.dtype != torch.float32)
