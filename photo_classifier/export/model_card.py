"""The model card: what a model is for, what it was trained on, how good it is and where it is weak."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from photo_classifier.data.samples import Sample, split_title
from photo_classifier.evaluation.metrics import wilson_interval

FEW = 50  # training photos of a class below which the card warns
N_CONFUSIONS = 5
CARD = """---
library_name: timm
pipeline_tag: image-classification
tags:
- image-classification
- timm
---
# {title}

Tells photos apart: {classes}. The network is {model_name}, trained on photos of these classes. It always answers one
of them, so it is no use for photos of anything else, and it is untested on photos taken differently from those that it
was trained on.

## Load it

    import timm, torch
    from PIL import Image

    model = timm.create_model("local-dir:.", pretrained=True).eval()  # or "hf-hub:you/name"
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
    image = transform(Image.open("a.jpg").convert("RGB"))[None]
    probabilities = model(image).softmax(1)[0]  # calibrated: the temperature is a part of the head
    print(dict(zip({class_names}, probabilities.tolist())))

Turn photos of phones upright first (`PIL.ImageOps.exif_transpose`). The transform prepares them as in training:
{preparation}.

## Photos

{photos}

## Accuracy

{accuracy}

## Known weak spots

{weak_spots}
"""


def model_card(
    title: str,
    model_name: str,
    class_names: Sequence[str],
    preparation: str,
    parts: Mapping[str, Sequence[Sample]],
    report: Mapping | None,
    is_held_out: bool,
) -> str:
    """Returns the card as Markdown.

    Args:
        preparation: how photos are prepared, in words.
        parts: the photos of each split, as far as they are known.
        report: of `metrics_report`; None if no labels are known.
        is_held_out: whether it is on the photos that training held out, and not on others that were named.
    """
    return CARD.format(
        title=title,
        model_name=model_name,
        classes=_in_line(", ".join(class_names)),
        class_names=list(class_names),
        preparation=preparation,
        photos=_photos(class_names, parts),
        accuracy=_accuracy(report, is_held_out),
        weak_spots=_weak_spots(class_names, parts, report),
    )


def _photos(class_names: Sequence[str], parts: Mapping[str, Sequence[Sample]]) -> str:
    counts = {split_title(name): Counter(sample.label for sample in part) for name, part in parts.items() if part}
    if not counts:
        return "Not known."
    rows = [[name, *(str(count[name]) for count in counts.values())] for name in class_names]
    total = ["all", *(str(count.total()) for count in counts.values())]
    return _table(["class", *counts], [*rows, total])


def _accuracy(report: Mapping | None, is_held_out: bool) -> str:
    if not report:
        return "Not measured: no labels are known."
    whose = (
        "that training held out"
        if is_held_out
        else "that were named for this card (training photos among them raise the accuracy)"
    )
    low, high = report["accuracy_interval_95"]
    all_classes = f"{report['accuracy']:.4f}, 95 % interval {low:.4f} to {high:.4f}; macro F1 {report['macro_f1']:.4f}."
    rows = []
    for row in report["classes"]:
        n = row["support"]
        low, high = wilson_interval(round(row["recall"] * n), n)
        interval = f"{low:.4f} to {high:.4f}"
        rows.append([row["name"], str(n), f"{row['recall']:.4f}", interval, f"{row['precision']:.4f}"])
    calibration = (
        f"Calibration error {report['expected_calibration_error']:.4f}, negative log-likelihood "
        f"{report['negative_log_likelihood']:.4f}, with the temperature {report['temperature']:.3f}."
    )
    table = _table(["class", "photos", "recognised", "95 % interval", "precision"], rows)
    return "\n\n".join([f"On {report['n_images']} photos {whose}: {all_classes}", table, calibration])


def _weak_spots(class_names: Sequence[str], parts: Mapping[str, Sequence[Sample]], report: Mapping | None) -> str:
    spots = []
    trained = Counter(sample.label for sample in parts.get("train", ()))
    if few := [f"{name} ({trained[name]})" for name in class_names if trained and trained[name] < FEW]:
        spots.append(f"few training photos: {', '.join(few)}")
    for row in (report or {}).get("confusions", [])[:N_CONFUSIONS]:
        spots.append(f"{row['label']} is taken for {row['predict']}: {row['n_images']} of the photos above")
    if report and (unseen := [row["name"] for row in report["classes"] if not row["support"]]):
        spots.append(f"never tested: {', '.join(unseen)}")
    if not report:
        spots.append("which classes it mixes up is not known, as no labels are")
    spots = spots or ["none was found on these photos"]
    return "\n".join(f"- {_in_line(spot)}" for spot in spots)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_in_line(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def _in_line(text: str) -> str:
    """Returns a name without line breaks, which would end the row or the item of a list that it is in."""
    return " ".join(text.splitlines())
