"""The labels of a run, checked at its end: suspects.csv and suspects.png."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from PIL import Image

from photo_classifier.curation.held_out import JudgedPhotos
from photo_classifier.curation.wrong_labels import Judged, LabelCheck, draw_suspects, rank_labels, suspects
from photo_classifier.data.samples import Splits
from photo_classifier.evaluation.calibration import fit_temperature
from photo_classifier.runtime.console import say
from photo_classifier.runtime.text import escape_surrogates, pluralize
from photo_classifier.training.results import Results
from photo_classifier.training.run import Run
from photo_classifier.training.run_folder import write_table

UNJUDGED = "those of training photos are not judged, as the network has learned them"


def check_labels(
    run: Run,
    by_folds: JudgedPhotos | None,
    results: Results,
    temperature: float,
    open_photo: Callable[[str], Image.Image],
) -> str:
    """Ranks all photos by how unlikely their label is, in `suspects.csv`, and draws the worst in `suspects.png`.

    A head that has seen a photo would confirm its label. Photos of a test split are judged by the head of the run, the
    others by heads of folds, on stored features.

    Args:
        by_folds: the photos of a frozen run that are not test; without them, no training photo is judged.
        temperature: of the outputs in `results`.

    Returns:
        What to say of the labels that look wrong; empty if none does.
    """
    parts = [_judged_by_the_run(run.splits, name, results, temperature) for name in results]
    if by_folds and not run.splits.is_pooled:
        parts = [part for part in parts if part.split == "test"] + _judged_by_folds(by_folds)
    checks = rank_labels(parts, run.splits.class_names)
    _write_table(run, checks)
    found = suspects(checks)
    if picture := draw_suspects(found, open_photo, run.spare_seconds):
        run.epochs.add_picture("suspects", "Labels/suspects", picture)
    return _text(run, found, parts)


def _judged_by_the_run(splits: Splits, name: str, results: Results, temperature: float) -> Judged:
    outputs, samples = results[name].outputs, splits.by_name()[name]
    judged = [samples[index] for index in outputs.indices.tolist()]
    return Judged(_title(splits, name), judged, (outputs.logits.double() / temperature).log_softmax(1))


def _judged_by_folds(judged: JudgedPhotos) -> list[Judged]:
    log_p = (judged.logits.double() / fit_temperature(judged.logits, judged.labels)).log_softmax(1)
    n = judged.n_training
    return [Judged("train", judged.samples[:n], log_p[:n]), Judged("valid", judged.samples[n:], log_p[n:])]


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


def _text(run: Run, found: Sequence[LabelCheck], parts: Sequence[Judged]) -> str:
    unjudged = "" if any(part.split == "train" for part in parts) else UNJUDGED
    if unjudged:
        say(f"labels  {unjudged}", level=2)
    if not found:
        return ""
    worst, folder = found[0], run.folder
    n_judged = sum(len(part.samples) for part in parts)
    first = f"first {escape_surrogates(worst.sample.path)}: labelled {worst.sample.label}, but {worst.reason}"
    about = f"{unjudged}; {first}" if unjudged else first
    return (
        f"{len(found):,} of {pluralize(n_judged, 'label')} {'look' if len(found) > 1 else 'looks'} wrong ({about}): "
        f"see {folder / 'suspects.png'}, correct suspects.csv beside it, and train with that"
    )
