"""Exports a checkpoint for other programs: as ONNX with a script that predicts, or as a folder for model hubs."""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from photo_classifier.config import ExportConfig
from photo_classifier.runtime.console import say, say_loading
from photo_classifier.runtime.errors import UserError, choose
from photo_classifier.runtime.files import sha256_file
from photo_classifier.runtime.flags import parse_flags
from photo_classifier.runtime.packages import require
from photo_classifier.runtime.text import pluralize
from photo_classifier.unused_flags import EXPORT, Predicting, warn_of_unused_flags
from utils import check_checkpoint, check_output_path, described, run_main

if TYPE_CHECKING:  # torch is imported after the arguments are parsed, so that --help answers at once
    from photo_classifier.data.samples import Sample
    from photo_classifier.prediction.predictor import Predictor
    from photo_classifier.prediction.results import Prediction

EXAMPLES = """examples:
  python export.py --model_fn resnet.pth                      resnet.onnx and resnet_onnx.py, proven to answer alike
  python export.py --model_fn resnet.pth --input more_photos  proven on these photos
  python export.py --model_fn resnet.pth --to hub_folder      for timm and model hubs
"""


def parse_args(argv: list[str] | None = None) -> dict:
    """Returns the flags that were given, and no defaults."""
    text = "Exports a checkpoint for other programs, and proves that its answers stay the same."
    return parse_flags(ExportConfig, argv, paths_flag="--input", prog="export.py", description=text, epilog=EXAMPLES)


def main(argv: list[str] | None = None) -> int:
    """Parses, checks and exports; returns the exit status."""
    given = parse_args(argv)
    config = ExportConfig(**given)
    choose("--to", config.to, EXPORTS)
    check_checkpoint(config.model_fn)
    warn_of_unused_flags(EXPORT, given, Predicting(config))
    say_loading()
    return EXPORTS[config.to](config)


def to_onnx(config: ExportConfig) -> int:
    """Writes the model as ONNX with its one-file predictor, proven on photos; returns the exit status."""
    output = Path(config.output or f"{os.path.splitext(config.model_fn)[0]}.onnx")
    if output.suffix != ".onnx":
        raise UserError(f"--output {output} does not end in .onnx; give a name like resnet.onnx")
    check_output_path(output, "--output")
    for name in ("onnx", "onnxscript", "onnxruntime"):
        require(name, "export.py", "-r requirements-export.txt")
    from photo_classifier.export.onnx_files import export_onnx, script_name
    from photo_classifier.export.quantization import add_int8, text_of

    predictor = make_predictor(config)
    samples = find_samples(config, predictor)
    training = training_splits(config, predictor).get("train", ()) if config.int8 else ()

    def quantize(model: Path, file: ModuleType, ours: Sequence[Prediction]) -> dict:
        return add_int8(model, file, training, samples, ours)

    about = metadata(config, predictor)
    report = export_onnx(predictor, samples, output, about, quantize if config.int8 else None)
    size = report["bytes"][output.name] / 1e6
    script = output.with_name(script_name(output))
    say(f"wrote   {output} ({size:.1f} MB), {script} and {output.with_name('export.json')}")
    say_proof(report["proof"])
    if predictor.novelty:
        say("left out --unknown, --coverage and the column `distance`, which only predict.py has")
    if config.int8:
        say(f"int8    {text_of(report['int8'])}")
    say(f"next    python {script} --input new_photos")
    return 0


def to_hub_folder(config: ExportConfig) -> int:
    """Writes the folder that timm and model hubs expect, proven on photos; returns the exit status."""
    from itertools import chain

    from photo_classifier.export.hub import read_hub_folder, write_hub_folder
    from photo_classifier.export.onnx_files import new_folder, publish
    from photo_classifier.export.proof import prove

    output = Path(config.output or f"{os.path.splitext(config.model_fn)[0]}_hub")
    check_output_path(output / "config.json" if output.exists() else output, "--output")
    predictor = make_predictor(config)
    samples = find_samples(config, predictor)
    with new_folder(output) as folder:
        write_hub_folder(folder, predictor)
        ours, theirs = (chain.from_iterable(p.stream(samples)) for p in (predictor, read_hub_folder(folder, predictor)))
        proof, predictions = prove(ours, theirs)
        card = make_card(config, predictor, predictions, output.name)
        (folder / "README.md").write_text(card, encoding="utf-8", errors="backslashreplace")
        publish(folder, output)
    say(f"wrote   {output}: config.json, model.safetensors and README.md, the model card")
    say_proof(asdict(proof))
    say(f"next    timm.create_model('local-dir:{output}', pretrained=True)")
    return 0


def make_card(config: ExportConfig, predictor: Predictor, predictions: Sequence[Prediction], title: str) -> str:
    """Returns the model card, with the accuracy of these predictions."""
    from photo_classifier.evaluation.metrics import StreamingMetrics
    from photo_classifier.evaluation.report import metrics_report
    from photo_classifier.export.model_card import model_card

    metrics = StreamingMetrics(predictor.class_names, predictor.temperature)
    metrics.add_predictions(predictions)
    preprocess = predictor.engine.model.preprocess
    return model_card(
        title,
        predictor.metadata["model_name"],
        predictor.class_names,
        preprocess.text().replace("--", ""),
        training_splits(config, predictor) or known_splits(predictor),
        metrics_report(metrics) if metrics.n_images else None,
        is_held_out=not config.input,
    )


def known_splits(predictor: Predictor) -> dict[str, list[Sample]]:
    """Returns the photos of the splits that a checkpoint lists: all but those of training."""
    from photo_classifier.data.samples import SPLIT_FOLDERS, Sample

    splits = predictor.metadata["splits"] or {}
    return {name: [Sample(*pair) for pair in splits[name]] for name in SPLIT_FOLDERS if name in splits}


def training_splits(config: ExportConfig, predictor: Predictor) -> dict[str, list[Sample]]:
    """Returns the photos of all splits of the training, from its run folder; none if that is not found."""
    from photo_classifier.data.split_files import read_splits

    file = config.splits or run_folder_of(predictor.metadata)
    parts = read_splits(file)[0] if file else {}
    if "valid" not in (predictor.metadata["splits"] or parts) and "valid" in parts:  # by folds, they train as well
        parts["train"] = parts.get("train", []) + parts.pop("valid")
    return parts


def run_folder_of(metadata: Mapping) -> str | None:
    """Returns the folder of the run that wrote a checkpoint, or None if it is not found."""
    from photo_classifier.models.tensor_files import is_of_run

    cwd = (metadata["splits"] or {}).get("cwd", "")
    named = os.path.join(cwd, str((metadata.get("config") or {}).get("run_dir") or ""))
    for folder in [named, *glob.glob(os.path.join(glob.escape(cwd), "runs", "*"))]:
        if os.path.exists(f"{folder}/splits.csv") and is_of_run(f"{folder}/last.pth", metadata.get("run_id")):
            return folder
    return None


def say_proof(proof: Mapping) -> None:
    """Prints what a proof came to."""
    unread = f" ({proof['n_unreadable']} cannot be read)" if proof["n_unreadable"] else ""
    say(
        f"proven  on {pluralize(proof['n_photos'], 'photo')}{unread}: {proof['changed_answers']} changed answers, "
        f"probabilities differ by at most {proof['largest_difference']:.1e} (in fp32, as `predict.py --precision fp32`)"
    )


def make_predictor(config: ExportConfig) -> Predictor:
    """Loads the checkpoint, to compute as its export does: in fp32 on the CPU."""
    from photo_classifier.prediction.predictor import Predictor

    return Predictor(
        config.model_fn, device="cpu", precision="fp32", engine="torch", probabilities=True, **described(config)
    )


def find_samples(config: ExportConfig, predictor: Predictor) -> Sequence[Sample]:
    """Returns the photos that the export is proven on: those of `--input`, else those that training held out.

    Raises:
        UserError: there are none.
    """
    from photo_classifier.data.inputs import input_samples, no_images
    from photo_classifier.data.table_columns import Columns
    from photo_classifier.prediction.photos import held_out_samples

    if not config.input:
        samples = held_out_samples(predictor.metadata["splits"], config.model_fn)
    else:
        columns = Columns(config.path_column, config.label_column)
        samples = list(input_samples(config.input, predictor.class_names, columns))
    if not any(os.path.isfile(sample.path) for sample in samples):
        if config.input:
            raise no_images(config.input)
        raise UserError(f"{config.model_fn}: none of its photos are where they were; give some with --input")
    return samples


def metadata(config: ExportConfig, predictor: Predictor) -> dict[str, object]:
    """Returns what an exported model says about where it comes from."""
    return {
        "model_name": predictor.metadata["model_name"],
        "checkpoint": os.path.basename(config.model_fn),
        "checkpoint_sha256": sha256_file(config.model_fn),
        "checkpoint_bytes": os.path.getsize(config.model_fn),
        "min_probability": config.min_probability,
    }


EXPORTS = {"onnx": to_onnx, "hub_folder": to_hub_folder}


if __name__ == "__main__":
    run_main(main)
