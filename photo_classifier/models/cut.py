"""A network cut behind its frozen layers, whose output there can be stored."""

from __future__ import annotations

import contextlib
import copy
import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from photo_classifier.models.classifier import REFUSALS, Classifier, moving_modules
from photo_classifier.runtime.device import exact_fp32
from photo_classifier.runtime.limits import resource_hint


@dataclass(frozen=True)
class Cut:
    """A place behind which a network needs nothing but the output of one module, which has a row for each image.

    Args:
        name: of that module.
        ran: the frozen modules that run until then, in order.
        known: what those of them return that need not run again, by name; tensors are of one image, without data.
        n_operations: multiplications and additions with weights until then, for one image.
    """

    name: str
    ran: Sequence[str]
    known: dict[str, Any]
    n_operations: int

    def has_before(self, name: str) -> bool:
        """Returns whether the module of that name, or a part of it, runs before the cut."""
        inside = f"{name}."
        return not name or any(inside.startswith(f"{one}.") or f"{one}.".startswith(inside) for one in self.ran)


class LayersBehind(Classifier):
    """What follows a cut, sharing its modules with the whole classifier: stored outputs in, fp32 logits out.

    The network runs as a whole, so how its layers are connected need not be known. The modules before the cut return
    NaN in the right shape without computing, and the one at the cut what was stored.
    """

    def __init__(self, model: Classifier, cut: Cut) -> None:
        stored: list[torch.Tensor] = []
        outputs = {name: functools.partial(_blank, example) for name, example in cut.known.items()}
        outputs[cut.name] = torch.clone  # what follows may write into its input
        known = {name: _Known(model.net.get_submodule(name), stored, output) for name, output in outputs.items()}
        super().__init__(_copy_with(model.net, known), model.head_name, model.preprocess)
        own = {id(module) for module in self.net.modules()}
        self.frozen = [module for module in model.frozen if id(module) in own]
        self.stored = stored
        self.to(next(iter(model.net.parameters())).device)

    def normalize(self, features: torch.Tensor) -> torch.Tensor:
        """Puts outputs, (n, ...), at the cut, and returns images in their number, which hold nothing."""
        self.stored[:] = [features]
        return _blank(self.example_image().to("meta", torch.float32), features)


class _Known(nn.Module):
    """Takes the place of a module that has run already: returns what `output` makes of what is stored."""

    def __init__(self, module: nn.Module, stored: list[torch.Tensor], output: Callable[[torch.Tensor], Any]) -> None:
        super().__init__()
        self.module = (module,)  # in a tuple: it must not become a submodule
        self.stored, self.output = stored, output

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "module":  # while it is copied
                raise
            return getattr(self.module[0], name)  # networks read sizes from their layers

    def forward(self, *_args: object, **_kwargs: object) -> Any:
        return self.output(self.stored[0])


def _blank(example: Any, features: torch.Tensor) -> Any:
    """Returns NaN in the shape of the example, which is of one image, for as many images as there are features."""

    def blank(tensor: torch.Tensor) -> torch.Tensor:
        nothing = torch.full((), math.nan, device=features.device).to(tensor.dtype)
        return nothing.expand(len(features) * len(tensor), *tensor.shape[1:])

    return tree_map_only(torch.Tensor, blank, example)


def _copy_with(net: nn.Module, known: dict[str, _Known]) -> nn.Module:
    """Returns a copy with other modules in some places, which shares all tensors, and every module without them."""
    memo: dict[int, object] = {id(tensor): tensor for tensor in (*net.parameters(), *net.buffers())}
    for name, module in net.named_modules():
        if name in known:
            memo[id(module)] = known[name]
        elif name and not any(other.startswith(f"{name}.") for other in known):
            memo[id(module)] = module
    return copy.deepcopy(net, memo)


def find_cut(model: Classifier, pairs: Iterable[tuple[str, str]] = ()) -> Cut | None:
    """Returns the last place where the output of a frozen module is all that the rest needs, or None.

    The model runs once, on noise. Then the outputs of its frozen modules are tried, the last one first: what follows
    has to come to the same logits from that output, everything else before being NaN.

    Args:
        pairs: modules that are folded into one another and so must not be parted, by their names in `model`.
    """
    was_training = model.training
    noise = noise_like(model.example_image())
    trace = _Trace(model)
    model.eval()
    try:
        with torch.no_grad(), exact_fp32():
            logits = trace.run(noise)
            for cut, output in trace.candidates():
                parts = any(cut.has_before(a[4:]) != cut.has_before(b[4:]) for a, b in pairs)  # behind `net.`
                if not parts and _gives(LayersBehind(model, cut), output, logits):
                    return cut
    finally:
        model.train(was_training)
    return None


def noise_like(image: torch.Tensor) -> torch.Tensor:
    """Returns noise in the shape of an image, uint8 (1, 3, size, size), and on its device."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, image.shape, dtype=torch.uint8, generator=generator).to(image.device)


def _gives(rest: LayersBehind, output: torch.Tensor, logits: torch.Tensor) -> bool:
    """Returns whether the layers come to those logits from an output; both are of one image."""
    try:
        actual = rest.eval()(torch.cat([output, output]))
    except REFUSALS as error:
        if resource_hint(error):
            raise
        return False
    expected = logits.expand(2, -1)
    return actual.shape == expected.shape and torch.allclose(actual, expected, rtol=1e-3, atol=1e-4)


class _Trace:
    """Records what frozen modules return until the first module runs that trains or changes."""

    def __init__(self, model: Classifier) -> None:
        self.model, self.moving = model, moving_modules(model)
        self.n_operations = 0  # so far
        self.depth, self.has_moved = 0, False  # the depth counts frozen modules inside one another
        self.runs: Counter[str] = Counter()
        self.ran: list[str] = []  # the outermost frozen modules, in order
        self.outputs: dict[str, tuple[Any, int]] = {}  # of those that get tensors, with the operations so far

    def run(self, image: torch.Tensor) -> torch.Tensor:
        """Computes the logits of an image, uint8 (1, 3, size, size)."""
        moving = set(self.moving)
        with contextlib.ExitStack() as hooks:
            for name, module in self.model.net.named_modules():
                if name in moving:
                    hooks.enter_context(module.register_forward_pre_hook(self._moves))
                elif not any(other.startswith(f"{name}.") or not name for other in moving):
                    hooks.enter_context(module.register_forward_pre_hook(functools.partial(self._enter, name)))
                    hooks.enter_context(module.register_forward_hook(functools.partial(self._leave, name)))
            return self.model(image)

    def _moves(self, _module: nn.Module, _inputs: tuple) -> None:
        self.has_moved = True

    def _enter(self, name: str, _module: nn.Module, _inputs: tuple) -> None:
        self.runs[name] += 1
        self.depth += 1

    def _leave(self, name: str, module: nn.Module, inputs: tuple, output: Any) -> None:
        self.depth -= 1
        weight = getattr(module, "weight", None)
        if isinstance(weight, torch.Tensor) and weight.dim() > 1 and isinstance(output, torch.Tensor):
            self.n_operations += 2 * weight.numel() * (output.numel() // len(weight))  # at each place of the output
        if self.depth or self.has_moved:
            return
        self.ran.append(name)
        if any(isinstance(value, torch.Tensor) for value in inputs):
            output = tree_map_only(torch.Tensor, torch.clone, output)  # the next layer may work in place
            self.outputs[name] = (output, self.n_operations)

    def candidates(self) -> Iterator[tuple[Cut, torch.Tensor]]:
        """Yields places to cut at, the last one first, with the output there."""
        # one that runs again behind the cut has to compute there
        names = [name for name in self.outputs if self.runs[name] == 1]
        known = {name: tree_map_only(torch.Tensor, _without_data, self.outputs[name][0]) for name in names}
        for n, name in reversed(list(enumerate(names))):
            output, n_operations = self.outputs[name]
            if isinstance(output, torch.Tensor) and len(output) == 1:
                ran = self.ran[: self.ran.index(name) + 1]
                yield Cut(name, ran, {one: known[one] for one in names[: n + 1]}, n_operations), output


def _without_data(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to("meta")
