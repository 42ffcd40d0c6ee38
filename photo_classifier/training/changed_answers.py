"""Held-out photos whose answer is another than that of the checkpoint that a run started from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from photo_classifier.data.batches import SampleDataset, StreamBatchSampler, make_stream_loader
from photo_classifier.data.samples import Splits
from photo_classifier.models.checkpoint import classifier_of, describes_itself
from photo_classifier.models.inference import Engine
from photo_classifier.runtime.console import say
from photo_classifier.runtime.files import read_json, write_text
from photo_classifier.runtime.text import escape_surrogates, pluralize
from photo_classifier.training.results import Results
from photo_classifier.training.run_folder import ANSWERS_BEFORE, write_table

MOST_SHOWN = 20


def write_answers_before(
    folder: Path,
    path: str | Path,
    content: Mapping,
    engine: Engine,
    splits: Splits,
    max_pixels: int,
    n_workers: int | None,
) -> None:
    """Writes what an earlier checkpoint of this tool says of each held-out photo of one of its classes.

    That happens before training: the run may overwrite the checkpoint, or continue where it is gone.

    Args:
        path, content: of the file of weights that the run starts from; nothing is written for one of another tool.
        engine: that of the run, of which the earlier network takes device, precision and batch size.
    """
    class_names = content["class_names"] if describes_itself(content) else []
    if not set(class_names) & set(splits.class_names):
        return
    engine = Engine(classifier_of(content, path).to(engine.device), engine.device, engine.dtype, engine.batch_size)
    samples = [s for part in (splits.valid, splits.test) for s in part if s.label in class_names]
    batches = StreamBatchSampler(samples, engine.batch_size)
    dataset = SampleDataset(class_names, engine.model.preprocess, max_pixels)
    answers = {}
    for batch in make_stream_loader(dataset, batches, n_workers, engine.device.type == "cuda"):
        handed_out = batches.handed_out.popleft()
        if len(batch.indices):
            chosen = engine(batch.images).argmax(1).tolist()
            for n, k in zip(batch.indices.tolist(), chosen, strict=True):
                answers[handed_out[n].path] = class_names[k]
    write_text(folder / ANSWERS_BEFORE, json.dumps(answers))


def report_changed_answers(folder: Path, splits: Splits, results: Results, weights: str | None) -> None:
    """Lists the held-out photos that are answered differently than before, in `changed_answers.csv` and on the console.

    `weights` is the checkpoint that the run started from.
    """
    before, rows = read_json(folder / ANSWERS_BEFORE), []
    if not before:
        return
    for name, result in results.items():
        samples, outputs = splits.by_name()[name], result.outputs
        for n, k in zip(outputs.indices.tolist(), outputs.logits.argmax(1).tolist(), strict=True):
            path, label, now = samples[n].path, samples[n].label, splits.class_names[k]
            if before.get(path, now) != now:
                rows.append({"path": path, "label": label, "before": before[path], "now": now, "split": name})
    write_table(folder / "changed_answers.csv", rows)
    n_right, n_wrong = (sum(row[key] == row["label"] for row in rows) for key in ("now", "before"))
    say(
        f"changed {len(rows)} of {pluralize(len(before), 'held-out photo')} of the earlier classes: the answer differs "
        f"from that of {weights}; {n_right} now right, {n_wrong} no longer right"
    )
    for row in rows[:MOST_SHOWN]:
        say(f"        {escape_surrogates(row['path'])} ({row['label']}): {row['before']} -> {row['now']}")
    if len(rows) > MOST_SHOWN:
        say(f"        ... all are listed in {folder / 'changed_answers.csv'}")
