"""What a run starts from, as lines for the console: the images of each class, and the layers of the model."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from model_loader import Classifier
    from splits import Splits

INDENT = " " * 8
MOST_CLASSES = 20  # lines of the table; a hundred classes would push everything else off the screen


def class_lines(splits: Splits, most: int = MOST_CLASSES) -> list[str]:
    """The images of each class in each split, as a table."""
    parts = splits.by_name()
    counts = {name: Counter(sample.label for sample in part) for name, part in parts.items()}
    rows = [[INDENT + name, *(counts[split][name] for split in parts)] for name in splits.class_names]
    lines = table([[f"classes {len(rows)}", *parts], *rows[:most]])
    if rest := [row[1] for row in rows[most:]]:
        lines.append(f"{INDENT}... ({len(rest)} more, with {min(rest)} to {max(rest)} training images)")
    return lines


def model_lines(model: Classifier) -> list[str]:
    """A line for each child of the network, in its own order: its output for one image, parameters, what trains."""
    shapes = output_shapes(model)
    rows = [
        [name, _shape_text(shapes.get(name)), f"{_count(child):,}", _state(child)]
        for name, child in model.net.named_children()
    ]
    own = list(model.net.parameters(recurse=False))
    if own:
        trains = any(p.requires_grad for p in own)
        rows.append(["(its own)", "", f"{sum(p.numel() for p in own):,}", "trains" if trains else "frozen"])
    tensors = [*model.net.parameters(), *model.net.buffers()]
    megabytes = sum(t.numel() * t.element_size() for t in tensors) / 1e6
    trained = sum(p.numel() for p in model.net.parameters() if p.requires_grad)
    rows.append(["total", f"{megabytes:.1f} MB", f"{_count(model.net):,}", f"{trained:,} train"])
    return [INDENT + line for line in table([["layer", "output", "parameters", ""], *rows], left=(0, 1, 3))]


def output_shapes(model: Classifier) -> dict[str, tuple[int, ...]]:
    """The shape that each child of the network gives for one image, without the batch; what does not run has none."""
    import torch

    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str):
        def hook(_module: nn.Module, _inputs: tuple, output: object) -> None:
            if isinstance(output, torch.Tensor):
                shapes[name] = tuple(output.shape[1:])

        return hook

    handles = [child.register_forward_hook(note(name)) for name, child in model.net.named_children()]
    size, was_training = model.preprocess.image_size, model.training
    device = next(model.parameters()).device
    model.eval()
    try:
        with torch.no_grad():
            model(torch.zeros(1, 3, size, size, dtype=torch.uint8, device=device))
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return shapes


def _shape_text(shape: tuple[int, ...] | None) -> str:
    return "-" if shape is None else " x ".join(map(str, shape))


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _state(module: nn.Module) -> str:
    states = {p.requires_grad for p in module.parameters()}
    return {frozenset(): "", frozenset({True}): "trains", frozenset({False}): "frozen"}.get(
        frozenset(states), "trains in part"
    )


# --- tables -----------------------------------------------------------------------------------


def table(rows: Sequence[Sequence[object]], left: Sequence[int] = (0,)) -> list[str]:
    """Rows of cells as lines of columns, those of `left` aligned to the left."""
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(width, column)) for column in zip(*texts, strict=True)]

    def padded(n: int, text: str) -> str:
        fill = " " * (widths[n] - width(text))
        return text + fill if n in left else fill + text

    return ["  ".join(padded(n, text) for n, text in enumerate(row)).rstrip() for row in texts]


def width(text: str) -> int:
    """Columns that a text takes on a console: Korean and Chinese letters take two."""
    marks = sum(unicodedata.combining(c) > 0 for c in text)
    return len(text) - marks + sum(unicodedata.east_asian_width(c) in "WF" for c in text)
