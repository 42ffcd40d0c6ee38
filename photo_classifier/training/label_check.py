"""The labels of a run, checked at its end: suspects.csv and suspects.png."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence

import torch
from PIL import Image

from photo_classifier.curation.held_out import held_out_logits, mean_features
from photo_classifier.curation.wrong_labels import Judged, LabelCheck, draw_suspects, rank_labels, suspects
from photo_classifier.data.samples import Splits
from photo_classifier.evaluation.calibration import fit_temperature
from photo_classifier.features.loader import SplitFeatures
from photo_classifier.runtime.errors import UserError
from photo_classifier.runtime.text import pluralize
from photo_classifier.training.results import Results
from photo_classifier.training.run import Run
from photo_classifier.training.run_folder import write_table
from photo_classifier.training.summary import INDENT

MOST_CLASSES = 100  # with more, the heads of the folds take more than a tenth of the backbone's time


def check_labels(
    run: Run,
    features: Mapping[str, SplitFeatures],
    results: Results,
    temperature: float,
    seed: int,
    open_photo: Callable[[str], Image.Image],
) -> str:
    """Ranks all photos by how unlikely their label is, in `suspects.csv`, and draws the worst in `suspects.png`.

    A head that has seen a photo would confirm its label. Photos of a test split are judged by the head of the run, the
    others by heads of folds, on stored features.

    Args:
        features: of a frozen backbone, by split; without any, no training photo is judged.
        temperature: of the outputs in `results`.

    Returns:
        A line on the labels that look wrong; empty if none does.
    """
    parts = [_judged_by_the_run(run.splits, name, results, temperature) for name in results]
    if features and not run.splits.is_pooled and len(run.splits.class_names) <= MOST_CLASSES:
        with contextlib.suppress(UserError):  # there are fewer photos than folds
            by_folds = _judged_by_folds(run.splits, features, seed)
            parts = [part for part in parts if part.split == "test"] + by_folds
    checks = rank_labels(parts, run.splits.class_names)
    _write_table(run, checks)
    found = suspects(checks)
    if picture := draw_suspects(found, open_photo, run.spare_seconds):
        run.epochs.add_picture("suspects", "Labels/suspects", picture)
    return _text(run, found, len(checks))


def _judged_by_the_run(splits: Splits, name: str, results: Results, temperature: float) -> Judged:
    outputs, samples = results[name].outputs, splits.by_name()[name]
    judged = [samples[index] for index in outputs.indices.tolist()]
    return Judged(_title(splits, name), judged, (outputs.logits.double() / temperature).log_softmax(1))


def _judged_by_folds(splits: Splits, features: Mapping[str, SplitFeatures], seed: int) -> list[Judged]:
    rows, samples, labels = [], [], []
    for name in ("train", "valid"):
        means, indices = mean_features(features[name])
        rows.append(means)
        samples += [splits.by_name()[name][index] for index in indices.tolist()]
        labels += [features[name].dataset.label_of(index) for index in indices.tolist()]
    labels = torch.tensor(labels)
    logits = held_out_logits(torch.cat(rows), labels, samples, len(splits.class_names), seed)
    log_p = (logits.double() / fit_temperature(logits, labels)).log_softmax(1)
    n = len(rows[0])
    return [Judged("train", samples[:n], log_p[:n]), Judged("valid", samples[n:], log_p[n:])]


def _title(splits: Splits, name: str) -> str:
    return "train" if splits.is_pooled and name == "valid" else name


def _write_table(run: Run, checks: Sequence[LabelCheck]) -> None:
    """Writes all photos, so that the table can take the place of the labels: also those that nobody has judged."""
    judged = {check.sample.path for check in checks}
    others = {
        sample.path: LabelCheck(sample, _title(run.splits, name))
        for name, samples in run.splits.by_name().items()
        for sample in samples
        if sample.path not in judged
    }
    rows = [check.row() for check in (*checks, *others.values())]
    has_groups = any(row["group"] for row in rows)
    write_table(run.folder / "suspects.csv", rows, [name for name in rows[0] if name != "group" or has_groups])


def _text(run: Run, found: Sequence[LabelCheck], n_judged: int) -> str:
    if not found:
        return ""
    worst, folder = found[0], run.folder
    return (
        f"{len(found):,} of {pluralize(n_judged, 'label')} {'look' if len(found) > 1 else 'looks'} wrong: see "
        f"{folder / 'suspects.png'}\n{INDENT}first {worst.sample.path}: labelled {worst.sample.label}, {worst.reason}\n"
        f"{INDENT}correct them in {folder / 'suspects.csv'}, and start a new run with it as --labels"
    )
