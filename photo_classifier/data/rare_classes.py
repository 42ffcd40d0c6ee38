"""Classes with few images or none: named all at once, and left out or kept as the user chose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from photo_classifier.data.image_files import what_is_in
from photo_classifier.data.layout_readers import ClassFolder
from photo_classifier.data.samples import Parts
from photo_classifier.runtime.errors import UserError
from photo_classifier.runtime.text import pluralize

MOST_NAMES = 50  # in one message


def without_rare_classes(parts: Parts, empty: Sequence[ClassFolder], least: int) -> tuple[Parts, list[str]]:
    """Leaves out the classes with fewer images to train on; returns the others by split, and a note.

    Args:
        empty: class folders without images.

    Raises:
        UserError: fewer than two classes have that many.
    """
    labels = {sample.label for part in parts.values() for sample in part}
    counts = dict.fromkeys(sorted(labels.union(place.label for place in empty if place.label)), 0) | Counter(
        sample.label for sample in parts.get("train", ())
    )
    rare = {label: n for label, n in counts.items() if n < least}
    first, second = sorted([*counts.values(), 0], reverse=True)[:2]
    if not rare or not second:  # a single class is reported as such
        return parts, []
    if second < least:
        advice = f"choose at most {second} (--min_images)" if first > 1 or "valid" in parts else "add images"
        raise UserError(
            f"fewer than two classes have {least} images or more to train on ({_counts_text(counts)}); {advice}"
        )
    kept = {split: [sample for sample in part if sample.label not in rare] for split, part in parts.items()}
    note = f"left out, with fewer than {pluralize(least, 'image')} to train on: {_counts_text(rare)}"
    note += _contents_text([place for place in empty if place.label in rare])
    return {split: part for split, part in kept.items() if part}, [note]


def refuse_small_classes(parts: Parts, empty: Sequence[ClassFolder], splits: Collection[str]) -> None:
    """Raises a UserError that names all classes with too few images or none, with advice that works.

    Args:
        parts: the images that there are.
        empty: class folders without images.
        splits: what the training images are to be divided into; one of each is needed, but groups are not divided.
    """
    train = parts.get("train", ())
    sizes = Counter(label for label, _ in {(sample.label, sample.group or sample.key) for sample in train})
    grouped = {sample.label for sample in train if sample.group}
    rare = {label: n for label, n in sorted(sizes.items()) if n < len(splits) and label not in grouped}
    if not rare:
        _refuse_empty_classes(parts, empty)
        return
    rare |= {place.label: 0 for place in empty if place.label not in sizes}
    advice = ["add images"]
    if len(sizes.keys() - rare) > 1:
        least = max(rare.values()) + 1
        advice.append(f"leave out the classes with fewer than {pluralize(least, 'image')} (--min_images {least})")
    if max(sizes.values()) > 1:
        advice.append("keep every class that has an image, if need be for training alone (--min_images 1)")
    counts = _counts_text(rare) + _contents_text(empty)
    raise UserError(f"too few images for {' + '.join(splits)}: {counts}; {', or '.join(advice)}")


def _refuse_empty_classes(parts: Parts, empty: Sequence[ClassFolder]) -> None:
    if not empty:
        return
    labels = {sample.label for part in parts.values() for sample in part}
    advice = ["add images"]
    if len({sample.label for sample in parts.get("train", ())}) > 1:
        is_needed = any(place.split == "train" and place.label in labels for place in empty)
        advice += [
            *["remove the folders that are not classes"] * (not is_needed),
            "leave out the classes without any (--min_images 1)",
        ]
    what = "look like classes but contain" if len(empty) > 1 else "looks like a class but contains"
    names = _names_text([place.folder for place in empty])
    raise UserError(f"{names} {what} no images{_contents_text(empty)}; {', or '.join(advice)}")


def _contents_text(empty: Sequence[ClassFolder]) -> str:
    """Returns in brackets which files class folders without images hold instead, or an empty string."""
    holds = {place.folder: what_is_in(place.folder).replace(";", ",") for place in empty}
    others = [f"{folder} {text}" for folder, text in holds.items() if " but " in text]
    return f" ({_names_text(others)})" if others else ""


def _counts_text(counts: Mapping[str, int]) -> str:
    return _names_text([f"{label} {n}" for label, n in counts.items()])


def _names_text(names: Sequence[str]) -> str:
    more = f", and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more
