"""What a run starts from and what comes out of it, as lines for the console and as hyperparameters."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

import torch
import torchinfo

from photo_classifier.config import TrainConfig, checkpoint_name, n_views, parts, result_flags
from photo_classifier.data.image_files import others_text
from photo_classifier.data.preprocess import Preprocess
from photo_classifier.data.samples import Splits
from photo_classifier.evaluation.fonts import missing_glyphs
from photo_classifier.evaluation.metrics import wilson_interval
from photo_classifier.evaluation.report import report_lines
from photo_classifier.evaluation.report_files import PAGE
from photo_classifier.models.classifier import Classifier, count_parameters, has_batch_norm
from photo_classifier.runtime.console import coloured, say, warn
from photo_classifier.runtime.text import aligned, duration, own_name, pluralize, shell_command
from photo_classifier.training.best_checkpoint import BestCheckpoint
from photo_classifier.training.results import EpochResult, Results
from photo_classifier.training.run import Run
from photo_classifier.training.run_folder import predict_command
from photo_classifier.training.run_page import FinishedTraining

INDENT = " " * 8
MOST_CLASSES = 20  # lines of the table; a hundred classes would push everything else off the screen


# --- before the first epoch -------------------------------------------------------------------


def describe(
    config: TrainConfig, splits: Splits, n_skipped: int, model: Classifier, device: torch.device, dtype: torch.dtype
) -> None:
    """Says what was found and what will be done."""
    _describe_data(splits, n_skipped)
    n_all, n_trained = count_parameters(model)
    start, size = "pretrained" if config.use_pretrained else config.weights or "random", model.preprocess.image_size
    say(
        f"model   {config.model_name} ({start} weights), {n_trained:,} of {n_all:,} parameters are trained; "
        f"{size} x {size} pixels, {device}"
    )
    say(f"{INDENT}computes in {str(dtype).removeprefix('torch.')}", level=2)
    if config.verbose > 1:
        say("\n".join(model_lines(model)))
    say(model.net, level=2)
    if config.head == "logistic":
        views = pluralize(n_views(config), "view")
        say(
            f"train   the head alone, solved as a logistic regression on {views} of each image; "
            f"folds choose its penalty; augmentation {config.augment}"
        )
        say(f"{INDENT}each line below tries a penalty C; the head is then solved exactly for the best one")
        return
    passes = f" ({config.accumulate} passes each)" if config.accumulate > 1 else ""
    trains_backbone = any(p.requires_grad for p in model.parameters_by_part()["backbone"])
    backbone = f" (backbone {config.backbone_lr:g})" if config.backbone_lr and trains_backbone else ""
    rates = f"{config.lr:g}{backbone}"
    say(f"train   up to {pluralize(config.n_epochs, 'epoch')}, augmentation {config.augment}")
    say(
        f"{INDENT}steps of {pluralize(min(config.batch_size, len(splits.train)), 'image')}{passes}; "
        f"{config.optimizer} at {rates}, schedule {config.scheduler}",
        level=2,
    )
    if config.unfreeze_after:
        say(f"{INDENT}{_parts_text(config, rates, has_batch_norm(model))}")


def _parts_text(config: TrainConfig, rates: str, has_norm: bool) -> str:
    """Returns what trains in which epochs: `epochs 1 to 3: the head alone at 0.001; ...`."""
    first, then = (
        f"epoch {part.stop}" if len(part) == 1 else f"epochs {part.start + 1} to {part.stop}" for part in parts(config)
    )
    layers = f"the layers after {config.freeze_until}" if config.freeze_until else "all layers"
    layers += " but batch norm" * has_norm
    return (
        f"{first}: the head alone at {config.lr:g}; {then}: {layers} at {rates}; the schedule restarts in "
        f"epoch {config.unfreeze_after + 1}"
    )


def _describe_data(splits: Splits, n_skipped: int) -> None:
    counts = ", ".join(f"{len(part)} {name}" for name, part in splits.by_name().items())
    made = f" ({' and '.join(splits.made)} taken from train)" if splits.made else ""
    say(f"data    {splits.root}: {splits.layout}; {counts} images{made}")
    notes = [*splits.notes, *([others_text(splits.passed_over)] if splits.passed_over else [])]
    if n_skipped:
        notes.append(f"left out: {pluralize(n_skipped, 'image')} that cannot be read, listed in skipped.csv")
    for note in notes:
        say(INDENT + note)
    say("\n".join(class_lines(splits)))
    if letters := missing_glyphs("".join(splits.class_names)):
        say(f"{INDENT}no font here has {letters[:3]}; pictures show codes instead: install one, such as Noto Sans CJK")


def warn_of_random_layers(config: TrainConfig) -> None:
    """Warns if layers are frozen that have learned nothing, which is rarely meant."""
    if (config.freeze or config.freeze_until) and not config.use_pretrained and not config.weights:
        warn("the frozen layers have random weights; give them trained ones with --use_pretrained or --weights FILE")


def class_lines(splits: Splits, most: int = MOST_CLASSES) -> list[str]:
    """Returns the images of each class in each split, as the lines of a table."""
    parts = splits.by_name()
    counts = {name: Counter(sample.label for sample in part) for name, part in parts.items()}
    rows = [[INDENT + name, *(counts[split][name] for split in parts)] for name in splits.class_names]
    lines = aligned([[f"classes {len(rows)}", *parts], *rows[:most]])
    if rest := [row[1] for row in rows[most:]]:
        lines.append(f"{INDENT}... ({len(rest)} more, with {min(rest)} to {max(rest)} training images)")
    return lines


def model_lines(model: Classifier) -> list[str]:
    """Returns a line for each layer of the network that runs: its output for one image, parameters, what trains."""
    summary = torchinfo.summary(
        model, input_data=model.example_image(), depth=2, col_names=("num_params", "trainable"), mode="eval", verbose=0
    )
    states = {"True": "trains", "False": "frozen", "Partial": "trains in part", "--": ""}
    layers = {layer.var_name: layer for layer in summary.summary_list if layer.depth == 2}
    rows = [
        [name, " x ".join(map(str, layer.output_size[1:])), f"{layer.num_params:,}", states[layer.trainable]]
        for name, layer in layers.items()
    ]
    if own := list(model.net.parameters(recurse=False)):
        trains = any(parameter.requires_grad for parameter in own)
        n_own = sum(parameter.numel() for parameter in own)
        rows.append(["(its own)", "", f"{n_own:,}", "trains" if trains else "frozen"])
    n_all, n_trained = count_parameters(model)
    n_bytes = sum(tensor.numel() * tensor.element_size() for tensor in model.net.state_dict().values())
    rows.append(["total", f"{n_bytes / 1e6:.1f} MB", f"{n_all:,}", f"{n_trained:,} train"])
    return [INDENT + line for line in aligned([["layer", "output", "parameters", ""], *rows], left=(0, 1, 3))]


# --- after the last epoch ---------------------------------------------------------------------


def summarize(
    run: Run,
    checkpoint: BestCheckpoint,
    best: EpochResult,
    results: Results,
    reports: Mapping,
    spread: str,
    steps: Sequence[Mapping[str, str]],
) -> None:
    """Says what came out, what to type next and the accuracy that predict repeats.

    Args:
        spread: how far the accuracies of folds are apart, if there are any.
        steps: what to try next: a text and a command each.
    """
    _tell_skipped(run)
    splits = run.splits
    for name, report in reports.items():
        accuracy, calibration, classes = report_lines("folds" if splits.is_pooled and name == "valid" else name, report)
        say(f"{accuracy}\n{classes}")
        say(calibration, level=2)
        if spread and name == "valid":
            say(INDENT + spread)
    _say_files(run, checkpoint, best, results)
    new = ("--input", "new_photos") if splits.is_pooled and not splits.test else ()
    say(f"use     {predict_command('--model_fn', checkpoint.path, *new)}")
    say(f"{INDENT}{shell_command('tensorboard', '--logdir', run.folder.parent)}")
    for step in steps:
        say(f"next    {step['text']}: {step['command']}")
    say(f"result  of {checkpoint.path}, after {duration(run.seconds)}:")
    say(coloured("\n".join(accuracy_texts(splits, results)), "bold"), level=0)


def _say_files(run: Run, checkpoint: BestCheckpoint, best: EpochResult, results: Results) -> None:
    """Says where the weights and the reports are, and why these weights were kept."""
    strength, rows = best.rates.get("C"), run.epochs.rows
    say(f"saved   {checkpoint.path} ({f'C {strength:.3g}' if strength else f'epoch {best.epoch + 1} of {len(rows)}'})")
    if checkpoint.previous:
        say(f"{INDENT}the earlier {checkpoint.path} is now {checkpoint.previous}")
    accuracies = [float(row["valid_accuracy"]) for row in rows]
    chosen_by_accuracy = run.state.config["monitor"] == "accuracy"
    text = indistinguishable_epochs(accuracies, best.epoch, results["valid"].n_images, chosen_by_accuracy)
    if text and not strength:
        say(INDENT + text, level=2)
    say(f"report  {run.folder / PAGE}")
    say(f"{INDENT}{run.folder}: {', '.join(files_shown(run.folder))}", level=2)


def _tell_skipped(run: Run) -> None:
    reasons = run.skipped.reasons
    if reasons:
        path, reason = next(iter(reasons.items()))
        left_out = f"left out {pluralize(len(reasons), 'image')} that could not be read, listed in {run.skipped.path},"
        if run.state.config["verbose"]:
            say(f"{left_out}\n{INDENT}for example {path}: {reason}")
        else:
            warn(f"{left_out} for example {path}: {reason}")


def indistinguishable_epochs(accuracies: Sequence[float], epoch: int, n_images: int, chosen_by_accuracy: bool) -> str:
    """Returns how many other epochs the validation images cannot tell from that one, or an empty text."""
    low, high = wilson_interval(round(accuracies[epoch] * n_images), n_images)
    n = sum(low <= accuracy <= high for accuracy in accuracies) - 1
    if n < 1:
        return ""
    is_tie = accuracies.count(accuracies[epoch]) > 1 and chosen_by_accuracy
    return (
        f"with {n_images} images, {pluralize(n, 'other epoch')} of {len(accuracies)} cannot be told apart from it: "
        "their accuracy is within its interval" + "; the lowest loss decides between equally accurate epochs" * is_tie
    )


def files_shown(folder: Path) -> list[str]:
    """Returns the names of the files of a run folder that are for people."""
    names = sorted(path.name for path in folder.iterdir())
    return [name for name in names if name.endswith((".csv", ".png")) or name in ("report.html", "report.json")]


def accuracy_texts(splits: Splits, results: Results) -> list[str]:
    """Returns `test accuracy 0.9412 (144/153)` for each split."""
    return [f"{splits.title(name)} accuracy {r.accuracy:.4f} ({r.correct}/{r.n_images})" for name, r in results.items()]


# --- what tells runs apart --------------------------------------------------------------------


# told by the first words of a name, or derived from other flags
NOT_IN_NAMES = ("model_name", "use_pretrained", "weights", "freeze", "freeze_until", "unfreeze_after")
MOST_LETTERS = 80  # of the settings in a name


def run_name_words(config: TrainConfig, splits: Splits, given: Mapping[str, object]) -> list[str]:
    """Returns short words that tell this run from others, for its name: data, what trains, and the settings `given`."""
    data = os.path.splitext(own_name(splits.root))[0][:24]
    start = "finetuned" if config.use_pretrained or config.weights else "scratch"
    how = "frozen" if config.freeze else f"until_{config.freeze_until}" if config.freeze_until else start
    how = f"unfreeze_after_{config.unfreeze_after}" if config.unfreeze_after else how
    words = [
        _word(name, given[name])
        for name, default in result_flags().items()
        if name in given and name not in NOT_IN_NAMES and given[name] != default
        if name != "labels" or config.data_dir  # without a folder, the data has the table's name
    ]
    lengths = itertools.accumulate(len(word) + 1 for word in words)
    return [data, how, *(word for word, n in zip(words, lengths, strict=True) if n <= MOST_LETTERS)]


def _word(name: str, value: object) -> str:
    """Returns a setting as a word: `epochs20`, `augment_trivial`, `freeze_bn`."""
    if value is True:
        return name
    if isinstance(value, str):
        return f"{name}_{Path(value).stem[:16]}"
    return f"{name.removeprefix('n_')}{value:g}"


def finished_training(config: TrainConfig, kept: int, seconds: float | None) -> FinishedTraining:
    """Returns what the page says of the flags of a run, whose epoch `kept`, counted from 1, was saved."""
    values = {field.name: getattr(config, field.name) for field in fields(config) if field.metadata}
    settings = {name: value for name, value in values.items() if value != getattr(TrainConfig, name)}
    return FinishedTraining(config.model_name, settings, checkpoint_name(config), kept, seconds)


def hyperparameters(config: TrainConfig, splits: Splits, preprocess: Preprocess) -> dict[str, str | float]:
    """Returns what two runs can differ in, as the HParams tab shows it: every run has all of them."""
    types, values = {field.name: field.metadata.get("type") for field in fields(config)}, {}
    for name in result_flags():
        value, unset = getattr(config, name), "none" if types[name] is str else 0
        values[name] = str(value) if isinstance(value, bool) else unset if value is None else value
    known = {
        "data": own_name(splits.root),
        "n_train": len(splits.train),
        "n_classes": len(splits.class_names),
        "image_size": preprocess.image_size,
        "resize": preprocess.resize,
        "backbone_lr": 0.0 if config.freeze and not config.unfreeze_after else config.backbone_lr or config.lr,
        "views": n_views(config),
    }
    return values | known
