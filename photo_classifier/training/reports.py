"""All that a trained run writes of its saved weights, its features and its photos, in the order of writing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from photo_classifier.data.samples import Splits
from photo_classifier.evaluation.report import main_report, write_report
from photo_classifier.evaluation.thumbnails import Thumbnails
from photo_classifier.features.loader import SplitFeatures
from photo_classifier.models.inference import Engine
from photo_classifier.runtime.console import say
from photo_classifier.training.best_checkpoint import BestCheckpoint
from photo_classifier.training.by_folds import spread_text, write_folds
from photo_classifier.training.explain import explain_mistakes
from photo_classifier.training.findings import Findings, findings_of
from photo_classifier.training.finish import report_splits, show_in_tensorboard, write_figures, write_predictions
from photo_classifier.training.label_check import check_labels
from photo_classifier.training.next_steps import Measured
from photo_classifier.training.photo_check import check_photos
from photo_classifier.training.results import FinalResults
from photo_classifier.training.run import Run
from photo_classifier.training.run_files import PREDICTIONS, REPORT
from photo_classifier.training.strategy import Strategy
from photo_classifier.training.summary import accuracy_texts


@dataclass(frozen=True)
class TrainedRun:
    """A run whose weights were measured, with what its reports are made from.

    Args:
        splits: as the run used them.
        folds: of each training photo in a run by folds.
        features: what is stored of a frozen backbone, by split; empty without it.
    """

    run: Run
    splits: Splits
    folds: Sequence[int]
    engine: Engine
    strategy: Strategy
    checkpoint: BestCheckpoint
    features: Mapping[str, SplitFeatures]
    final: FinalResults

    def spread(self) -> str:
        """Returns how far the accuracies of the folds are apart; an empty text without folds."""
        return spread_text(self.folds, self.final.results["valid"].outputs) if self.folds else ""


@dataclass(frozen=True)
class Reports:
    """What was found out about a trained run.

    Args:
        by_split: the evaluation of each held-out split.
        suspects: a line on labels that look wrong; empty if none does.
        oddities: lines on near-duplicates and odd photos.
        open_photo: opens photos as small pictures, and has those of the reports already.
    """

    by_split: dict[str, dict]
    findings: Findings
    suspects: str
    oddities: list[str]
    open_photo: Thumbnails


def write_reports(
    trained: TrainedRun,
    loader: object,
    hyperparameters: Mapping[str, str | float],
    seed: int,
    max_pixels: int,
    near_duplicates: str,
) -> Reports:
    """Writes the tables, the figures and what TensorBoard shows of the saved weights, and checks labels and photos.

    Args:
        loader: of the validation photos, or of their stored features.
        seed: of the run: heads of folds that judge photos are drawn from it.
        max_pixels: the size above which a photo is refused.
        near_duplicates: what was done about them before training, as `check_photos` takes it.
    """
    run, splits, engine, final = trained.run, trained.splits, trained.engine, trained.final
    features, temperature = trained.features, trained.checkpoint.temperature
    reports = report_splits(splits, final.results, temperature)
    run.epochs.begin_report()
    if trained.folds:
        write_folds(run.folder / "folds.csv", splits, trained.folds, final.results["valid"].outputs, temperature)
    n_photos = sum(len(report["examples"]) for report in reports.values())
    open_photo = Thumbnails(max_pixels, engine.model.preprocess.bit_depth, n_photos)
    main = main_report(reports, splits.held_out)
    findings = findings_of(splits, features, seed, trained.checkpoint.no_novelty, main)
    explain_mistakes(reports, splits, engine, features, max_pixels, run.spare_seconds)
    write_figures(run, reports, final.best.epoch + 1, open_photo)
    write_predictions(run.folder / PREDICTIONS, splits, final.results, temperature)
    show_in_tensorboard(run, splits, engine, loader, final.best.epoch, final.results, reports, hyperparameters)
    suspects = check_labels(run, findings.by_folds, final.results, temperature, open_photo)
    oddities = check_photos(run, features, trained.folds, near_duplicates, open_photo) if features else []
    run.epochs.close()
    return Reports(reports, findings, suspects, oddities, open_photo)


def measured_for_advice(trained: TrainedRun, reports: Reports) -> Measured:
    """Returns what the next steps are chosen by."""
    run, splits, strategy, best = trained.run, trained.splits, trained.strategy, trained.final.best
    times = [part.seconds_per_view for part in trained.features.values() if part.seconds_per_view]
    return Measured(
        run.folder,
        splits.root,
        reports.suspects,
        [] if "C" in best.rates else [float(row["valid_loss"]) for row in run.epochs.rows],
        best.train.accuracy,
        main_report(reports.by_split, splits.held_out),
        splits.counts_by_class(),
        strategy.uses_stored_features and strategy.has_head,
        strategy.has_linear_head,
        max(times, default=None),
        reports.findings.report.get("more_photos", ""),
    )


def write_report_file(trained: TrainedRun, reports: Reports, steps: Sequence[Mapping[str, str]]) -> None:
    """Writes `report.json`, and says how good the weights of the last epoch are, where others were kept.

    Args:
        steps: what to try next: a text and a command each.
    """
    run, splits, final = trained.run, trained.splits, trained.final
    content = {splits.title(name): report for name, report in reports.by_split.items()} | reports.findings.report
    content["next_steps"] = list(steps)
    if final.last is not final.best:
        text = f"epoch {final.last.epoch + 1}: {', '.join(accuracy_texts(splits, final.last_results))}"
        measured = {splits.title(name): result.metrics() for name, result in final.last_results.items()}
        content["last_epoch"] = {"epoch": final.last.epoch + 1, "text": text, **measured}
        say(f"last    {run.last_model}, {text}", level=2)
    write_report(run.folder / REPORT, content)


def say_findings(reports: Reports) -> None:
    """Says what the stored features tell, and which photos look odd."""
    for line in reports.findings.lines:
        say(line)
    for line in reports.oddities:
        say(f"photos  {line}")
