"""The weights of a network found in a file of any training script, by the names of the network's own tensors."""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from photo_classifier.runtime.errors import UserError, did_you_mean
from photo_classifier.runtime.text import first_few

AVERAGED = re.compile(r"(^|[._])(ema|swa|avg|shadow|polyak)([._]|$)|averag", re.IGNORECASE)
# losses, measures and optimizers that scripts register beside the network
BESIDE = re.compile(
    r"(^|[._])\w*(loss|criterion|metric|optimi[sz]er|accuracy|auroc|confmat|confusion|n_averaged)|(^|[._])(\w+_)?(acc|f1)[._]"
    r"|(^|\.)(pos|class)_weights?$",
    re.IGNORECASE,
)
OPTIMIZER = re.compile(r"(^|[._])optim(i[sz]er)?s?([._]|$)", re.IGNORECASE)
# what compilation, sharding, recomputation, DeepSpeed and Opacus put into names
WRAPPER = re.compile(
    r"(^|(?<=\.))(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module|_module)\."
)


@dataclass(frozen=True)
class Weights:
    """The tensors of one network in a file, by the network's names; `head` names the part that may differ.

    `name` is where they are in the file, `beside` holds the other tensors there, and `notes` are lines for the user.
    """

    name: str
    tensors: dict[str, torch.Tensor]
    beside: dict[str, torch.Tensor]
    head: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def is_averaged(self) -> bool:
        """Whether they are a mean over training, as its script evaluates them."""
        return bool(AVERAGED.search(self.name)) or "n_averaged" in self.beside


def find_weights(
    content: Mapping, own: Collection[str], heads: Sequence[str], path: str | Path, key: str | None = None
) -> Weights:
    """Returns the tensors that have all names of the network but those of its head, whatever prefix they share.

    Args:
        own: the names of the network's tensors.
        heads: the parts of the network that may differ; the first with which the rest fits is taken.
        key: which weights to take if there are several; None takes the averaged ones.

    Raises:
        UserError: there are no tensors, or several such networks and no `key`. If none fits, the nearest is returned.
    """
    found, nearest = [], Weights("", {}, {}, heads[0])
    for head in heads:
        needed = {name for name in own if not name.startswith(f"{head}.") and not name.endswith("num_batches_tracked")}
        parts = [part for where, state in _state_dicts(content) for part in _parts(where, state, needed)]
        fitting = [Weights(*part, head) for part in parts if needed <= part[1].keys()]
        # moments that are kept by name look like a network
        fitting = [part for part in fitting if not OPTIMIZER.search(part.name)] or fitting
        found = _different(fitting, needed)
        if found:
            return _chosen(found, path, key)
        candidates = [nearest, *(Weights(*part, heads[0]) for part in parts)]
        nearest = max(candidates, key=lambda part: (len(needed & part.tensors.keys()), len(part.tensors)))
    if not nearest.tensors:
        raise UserError(f"{path} holds no tensors; give a state_dict or a checkpoint of this tool")
    return nearest


def with_head_beside(weights: Weights) -> Weights:
    """Returns the weights with a head that a script keeps beside the network, and a note of what is passed over."""
    beside = {name: value for name, value in weights.beside.items() if not BESIDE.search(name) and value.dim() > 0}
    folders = {posixpath.dirname(name.replace(".", "/")) for name in beside} - {""}
    module = posixpath.commonpath(folders) if folders else ""
    if module and not any(name.startswith(f"{weights.head}.") for name in weights.tensors):
        inside = [name for name in beside if posixpath.dirname(name.replace(".", "/"))]
        head = {f"{weights.head}{name[len(module) :]}": beside.pop(name) for name in inside}
        weights = replace(weights, tensors=weights.tensors | head)
    if beside:
        weights.notes.append(f"passed over what is not in the network: {first_few(list(beside))}")
    return weights


def drop_beside(tensors: Mapping[str, torch.Tensor], own: Collection[str], head: str) -> dict[str, torch.Tensor]:
    """Returns the tensors without what belongs to losses and measures, counters, and heads that only help training."""
    return {
        name: value
        for name, value in tensors.items()
        if name in own
        or (
            not (BESIDE.search(name) or re.match(r"(AuxLogits|aux\d)\.", name))
            and (value.dim() > 0 or name.startswith(f"{head}."))
        )
    }


def _state_dicts(content: object) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Yields every dict with tensors, however deep, and the keys that lead to it."""
    pending, seen = [("", content)], set()
    while pending:
        where, item = pending.pop(0)
        if id(item) in seen:
            continue
        seen.add(id(item))
        entries = item.items() if isinstance(item, dict) else enumerate(item)
        tensors = {}
        for key, value in entries:
            if isinstance(key, str) and torch.is_tensor(value):
                tensors[key] = value
            elif isinstance(value, (dict, list, tuple)):
                pending.append((f"{where}.{key}" if where else str(key), value))
        if tensors:
            yield where, tensors


def _parts(
    where: str, state: Mapping[str, torch.Tensor], needed: Collection[str]
) -> Iterator[tuple[str, dict[str, torch.Tensor], dict[str, torch.Tensor]]]:
    """Yields the tensors under each prefix that leads to all needed names, or to most of them if none does."""
    plain = {name: _plain_name(name) for name in state}
    times = Counter(plain.values())  # wrapped and not, they are two networks
    state = {plain[name] if times[plain[name]] == 1 else name: value for name, value in state.items()}
    n_found = Counter(
        name[: len(name) - len(suffix)] for name in state for suffix in _suffixes(name) if suffix in needed
    )
    most = max(n_found.values(), default=0)
    for prefix in [prefix for prefix, n in n_found.items() if n == most] or [""]:
        inside = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        beside = {name: value for name, value in state.items() if not name.startswith(prefix)}
        yield ".".join(filter(None, (where, prefix.rstrip(".")))) or "top", inside, beside


def _plain_name(name: str) -> str:
    """Returns the name as the libraries have it today, without what wrappers such as `_orig_mod` put inside."""
    # DenseNet's published files call "norm.1" what the library calls "norm1"
    name = re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)", r"\1\2", name)
    return WRAPPER.sub("", name)


def _suffixes(name: str) -> Iterator[str]:
    words = name.split(".")
    return (".".join(words[n:]) for n in range(len(words)))


def _different(parts: Sequence[Weights], needed: Collection[str]) -> list[Weights]:
    """Returns the parts without those that repeat an earlier one."""
    kept: list[Weights] = []
    for part in parts:
        if not any(all(_is_same(part.tensors[name], other.tensors[name]) for name in needed) for other in kept):
            kept.append(part)
    return kept


def _is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one is other or (one.shape == other.shape and one.dtype == other.dtype and torch.equal(one, other))


def _chosen(found: Sequence[Weights], path: str | Path, key: str | None) -> Weights:
    """Returns the part of that name, or the one that is averaged; raises UserError if that is not clear."""
    names = [part.name for part in found]
    listed = f"{path} holds the weights of {len(found)} networks: {', '.join(names)}"
    if key and key not in names:
        what = listed if len(found) > 1 else f"{path} holds its weights in {names[0]}"
        raise UserError(f"{what}; there are none in {key!r} (--weights_key){did_you_mean(key, names)}")
    chosen = [part for part in found if (part.name == key if key else part.is_averaged)]
    if len(found) == 1:
        return found[0]
    if len(chosen) != 1:
        raise UserError(f"{listed}; choose one (--weights_key {names[0]})")
    kind = "the averaged ones, " * chosen[0].is_averaged
    chosen[0].notes.append(f"{listed}; taken: {kind}{chosen[0].name} (--weights_key NAME takes others)")
    return chosen[0]
