"""The end of a run: the last and the best weights measured, and the reports of the best."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from PIL import Image

from photo_classifier.data.samples import Splits
from photo_classifier.evaluation.figures import curves_figure, figures_of, save_picture
from photo_classifier.evaluation.report import evaluation_report
from photo_classifier.features.loader import FeatureLoader
from photo_classifier.models.inference import Engine
from photo_classifier.runtime.text import percent
from photo_classifier.training import tensorboard
from photo_classifier.training.best_checkpoint import BestCheckpoint
from photo_classifier.training.results import EpochResult, FinalResults, PhaseResult, Results
from photo_classifier.training.run import Run, SilentRun
from photo_classifier.training.run_folder import write_table


def measure_last_and_best(
    evaluate: Callable[[Iterable, Run | SilentRun, str], PhaseResult],
    loaders: Mapping[str, Iterable],
    run: Run | SilentRun,
    checkpoint: BestCheckpoint,
    last: EpochResult,
    best: EpochResult,
) -> FinalResults:
    """Measures and writes the weights of the last and of the best epoch, and leaves the best in the model.

    `evaluate` is `Trainer.evaluate`.
    """

    def measure(valid: PhaseResult) -> Results:
        """Returns the results of the present weights, whose validation may have been measured in training."""
        results = {"valid": valid} if valid.outputs is not None else {}  # a resume loses the outputs
        for name in ("valid", "test"):
            if name in loaders and name not in results:
                results[name] = evaluate(loaders[name], run, name)
        return results

    last_results = results = measure(last.valid)
    run.save_measured(last.epoch, last_results, is_best=False)
    if last is not best:
        best = checkpoint.restore(best, last.epoch + 1)
        results = measure(best.valid)
    run.save_measured(best.epoch, results, is_best=True)
    return FinalResults(last, best, last_results, results)


def report_splits(splits: Splits, results: Results, temperature: float) -> dict[str, dict]:
    """Returns the report of each held-out split."""
    reports = {}
    for name, result in results.items():
        samples, outputs = splits.by_name()[name], result.outputs
        paths = [samples[index].path for index in outputs.indices.tolist()]
        reports[name] = evaluation_report(outputs.logits, outputs.labels, paths, splits.class_names, temperature)
    return reports


def write_predictions(path: Path, splits: Splits, results: Results, temperature: float) -> None:
    """Writes `predictions.csv`: the answer for each held-out photo, which compare.py counts photo by photo."""
    rows = []
    for name, result in results.items():
        samples, outputs = splits.by_name()[name], result.outputs
        best, answers = (outputs.logits.double() / temperature).softmax(1).max(1)
        for index, p, k in zip(outputs.indices.tolist(), best.tolist(), answers.tolist(), strict=True):
            answer = {"predict": splits.class_names[k], "probability": round(p, 6), "split": splits.title(name)}
            rows.append({"path": samples[index].path, "label": samples[index].label, **answer})
    write_table(path, rows)


def write_figures(
    run: Run, reports: Mapping[str, Mapping], step: int, open_photo: Callable[[str], Image.Image]
) -> None:
    """Writes `curves.png`, and the figures of the reports to the run folder and to TensorBoard.

    `step` is the epoch of the saved weights, counted from 1.
    """
    result = f"{percent(reports['valid']['accuracy'])} of the {run.splits.title('valid')} photos right"
    save_picture(run.folder / "curves.png", curves_figure(run.epochs.rows, step, result))
    seconds = run.spare_seconds / len(reports)
    for name, report in reports.items():
        title = run.splits.title(name)
        for what, picture in figures_of(title, report, open_photo, seconds).items():
            prefix = "" if name == "valid" else f"{title}_"
            run.epochs.add_picture(f"{prefix}{what}", f"{title.capitalize()}/{what}", picture, step)


def show_in_tensorboard(
    run: Run,
    splits: Splits,
    engine: Engine,
    loader: Iterable,
    best_epoch: int,
    results: Results,
    reports: Mapping[str, Mapping],
    hyperparameters: Mapping[str, str | float],
) -> None:
    """Adds what TensorBoard shows of the saved weights beside the curves; `best_epoch` counts from 0."""
    outputs, step, writer = results["valid"].outputs, best_epoch + 1, run.epochs.writer
    if isinstance(loader, FeatureLoader):
        small = loader.features.dataset.thumbnails(tensorboard.THUMBNAIL)  # nothing but thumbnails is decoded
        engine.refresh()

        def head_inputs(_images: torch.Tensor, indices: list[int]) -> torch.Tensor:
            return engine.head_inputs(loader.features.rows(indices))

        source = tensorboard.EmbeddingSource(small, head_inputs)
    else:
        source = tensorboard.engine_source(loader.dataset, engine)
    logits = outputs.logits / reports["valid"]["temperature"]
    paths = [sample.path for sample in splits.valid]
    titles = {name: splits.title(name) for name in results}
    metrics = tensorboard.final_metrics(step, results, reports, titles)
    with run.epochs.write_errors():
        tensorboard.add_pr_curves(writer, splits.class_names, logits, outputs.labels, step)
        tensorboard.add_embedding(writer, splits.class_names, paths, outputs, source, step, run.spare_seconds)
        tensorboard.add_hyperparameters(writer, hyperparameters, metrics)
