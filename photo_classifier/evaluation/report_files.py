"""Tells files that an earlier report wrote from those of the user."""

from __future__ import annotations

from photo_classifier.runtime.files import read_json

FIGURES = ("confusion", "calibration", "mistakes")  # of a report


SOFTWARE = "photo-classifier"  # stands in every picture, which tells it from those of the user


def is_own_picture(path: str) -> bool:
    """Whether an earlier run wrote that picture."""
    try:
        with open(path, "rb") as file:
            return f"Software\0{SOFTWARE}".encode() in file.read(200)
    except OSError:  # a folder, for example
        return False


def is_own_report(path: str) -> bool:
    """Whether an earlier run wrote that `report.json`."""
    splits = read_json(path).values()
    return bool(splits) and all(isinstance(about, dict) and "accuracy_interval_95" in about for about in splits)
