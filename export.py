"""Exports a checkpoint for other programs: as ONNX with a script that predicts, or as a folder for model hubs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from photo_classifier.config import ExportConfig
from photo_classifier.runtime.console import say
from photo_classifier.runtime.errors import UserError, choose
from photo_classifier.runtime.files import sha256_file
from photo_classifier.runtime.flags import parse_flags
from photo_classifier.runtime.packages import require
from photo_classifier.runtime.text import pluralize
from utils import check_checkpoint, check_output_path, described, run_main

if TYPE_CHECKING:  # torch is imported after the arguments are parsed, so that --help answers at once
    from photo_classifier.data.samples import Sample
    from photo_classifier.prediction.predictor import Predictor

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
    config = ExportConfig(**parse_args(argv))
    choose("--to", config.to, EXPORTS)
    check_checkpoint(config.model_fn)
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

    predictor = make_predictor(config)
    samples = find_samples(config, predictor)
    report = export_onnx(predictor, samples, output, metadata(config, predictor))
    proof, size = report["proof"], report["bytes"][output.name] / 1e6
    script = output.with_name(script_name(output))
    say(f"wrote   {output} ({size:.1f} MB), {script} and {output.with_name('export.json')}")
    n_changed = proof["changed_answers"]
    say(
        f"proven  on {pluralize(proof['n_photos'], 'photo')}: {n_changed} changed answers, probabilities differ by at "
        f"most {proof['largest_difference']:.1e}"
    )
    say(f"next    python {script} --input new_photos")
    return 0


def make_predictor(config: ExportConfig) -> Predictor:
    """Loads the checkpoint, to compute as its export does: in fp32 on the CPU."""
    from photo_classifier.prediction.predictor import Predictor

    return Predictor(config.model_fn, device="cpu", precision="fp32", probabilities=True, **described(config))


def find_samples(config: ExportConfig, predictor: Predictor) -> Sequence[Sample]:
    """Returns the photos that the export is proven on: those of `--input`, else those that training held out.

    Raises:
        UserError: there are none.
    """
    from photo_classifier.data.inputs import input_samples
    from photo_classifier.data.table_columns import Columns
    from photo_classifier.prediction.photos import held_out_samples

    if not config.input:
        samples = held_out_samples(predictor.metadata["splits"], config.model_fn)
    else:
        columns = Columns(config.path_column, config.label_column)
        samples = list(input_samples(config.input, predictor.class_names, columns))
    if not any(os.path.isfile(sample.path) for sample in samples):
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


EXPORTS = {"onnx": to_onnx}


if __name__ == "__main__":
    run_main(main)
