"""What a run starts from and what comes out, as lines for the console."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from photo_classifier.config import TrainConfig
from photo_classifier.data.image_files import others_text
from photo_classifier.data.samples import Splits, split_title
from photo_classifier.evaluation.fonts import missing_glyphs
from photo_classifier.evaluation.report import report_lines
from photo_classifier.models.classifier import Classifier, count_parameters
from photo_classifier.runtime.console import coloured, say, warn
from photo_classifier.runtime.text import pluralize, shell_command

if TYPE_CHECKING:
    from photo_classifier.training.best_checkpoint import BestCheckpoint
    from photo_classifier.training.results import PhaseResult
    from photo_classifier.training.run import Run

INDENT = " " * 8
MOST_CLASSES = 20  # lines of the table; a hundred classes would push everything else off the screen


# --- before the first epoch -------------------------------------------------------------------


def describe(
    config: TrainConfig,
    splits: Splits,
    n_skipped: int,
    model: Classifier,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """What was found and what will be done."""
    counts = ", ".join(f"{len(part)} {name}" for name, part in splits.by_name().items())
    n_all, n_trained = count_parameters(model)
    size = model.preprocess.image_size
    made = f" ({' and '.join(splits.made)} cut from train)" if splits.made else ""
    say(f"data    {splits.root}: {splits.layout}; {counts} images{made}")
    for note in splits.notes:
        say(f"        {note}")
    if splits.passed_over:
        say(f"        {others_text(splits.passed_over)}")
    if n_skipped:
        say(f"        left out: {pluralize(n_skipped, 'image')} that cannot be read, listed in skipped.csv")
    say("\n".join(class_lines(splits)))
    if letters := missing_glyphs("".join(splits.class_names)):
        say(f"        no font here has {letters[:3]}: pictures show their numbers; install one, such as Noto Sans CJK")
    start = "pretrained" if config.use_pretrained else config.weights or "random"
    say(
        f"model   {config.model_name} ({start} weights), {n_trained:,} of {n_all:,} parameters train; "
        f"{size} x {size} pixels, {device}, {str(dtype).removeprefix('torch.')}"
    )
    if config.verbose:
        say("\n".join(model_lines(model)))
    say(model.net, level=2)
    rates = f"{config.lr:g}" + (f" (backbone {config.backbone_lr:g})" if config.backbone_lr else "")
    say(
        f"train   up to {pluralize(config.n_epochs, 'epoch')} in steps of "
        f"{pluralize(min(config.batch_size, len(splits.train)), 'image')}; "
        f"{config.optimizer} at {rates}, schedule {config.scheduler}, augmentation {config.augment}"
    )


def warn_of_random_layers(config: TrainConfig) -> None:
    """Freezing what has learned nothing is allowed, and rarely meant."""
    if (config.freeze or config.freeze_until) and not config.use_pretrained and not config.weights:
        warn("the frozen layers have random weights; --use_pretrained or --weights FILE gives them a meaning")


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
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str):
        def hook(_module: nn.Module, _inputs: tuple, output: object) -> None:
            if isinstance(output, torch.Tensor):
                shapes[name] = tuple(output.shape[1:])

        return hook

    handles = [child.register_forward_hook(note(name)) for name, child in model.net.named_children()]
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            model(model.example_image())
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


# --- after the last ---------------------------------------------------------------------------


def report(run: Run, saver: BestCheckpoint, best_epoch: int, results: dict, judged: dict) -> None:
    """What came out, and what to type next; the last line is the accuracy that predict repeats."""
    if run.skipped:
        path, reason = next(iter(run.skipped.items()))
        n_skipped = pluralize(len(run.skipped), "image")
        left_out = f"left out {n_skipped} that could not be read, listed in {run.folder / 'skipped.csv'},"
        if run.verbose:
            say(f"{left_out}\n        for example {path}: {reason}")
        else:
            warn(f"{left_out} for example {path}: {reason}")
    for name, about in judged.items():
        say("\n".join(report_lines(name, about)))
    say(f"saved   {saver.path} (epoch {best_epoch} of {run.n_logged})")
    say(f"        {run.folder}: {', '.join(files_shown(run.folder))}")
    if peers := run.peers_text(best_epoch - 1, results["valid"].n_images):
        say(f"        {peers}")
    if saver.previous:
        say(f"        the earlier {saver.path} is now {saver.previous}")
    say(f"next    {shell_command('python', 'predict.py', '--model_fn', saver.path)}")
    say(f"        {shell_command('tensorboard', '--logdir', run.folder.parent)}")
    say(coloured("\n".join(accuracies(results)), "bold"), level=0)


def files_shown(folder: Path) -> list[str]:
    """The files of a run folder that are for people, by name."""
    names = sorted(path.name for path in folder.iterdir())
    return [name for name in names if name.endswith((".csv", ".png")) or name == "report.json"]


def accuracies(results: Mapping[str, PhaseResult]) -> list[str]:
    """`test accuracy 0.9412 (144/153)` for each split."""
    return [f"{split_title(name)} accuracy {r.accuracy:.4f} ({r.correct}/{r.n_images})" for name, r in results.items()]


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
