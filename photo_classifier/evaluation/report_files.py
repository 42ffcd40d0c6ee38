"""Recognises files that an earlier report wrote; does not import torch."""

from __future__ import annotations

from photo_classifier.runtime.files import read_json

FIGURES = ("confusion", "calibration", "mistakes")  # of a report
PAGE = "report.html"
SOFTWARE = "photo-classifier"  # marks every picture and page that this tool writes


def is_own_picture(path: str) -> bool:
    """Returns whether this tool wrote the picture."""
    try:
        with open(path, "rb") as file:
            return f"Software\0{SOFTWARE}".encode() in file.read(200)
    except OSError:  # a folder, for example
        return False


def is_own_file(path: str) -> bool:
    """Returns whether this tool wrote the picture, the `report.json` or the `report.html`."""
    if path.endswith(".png"):
        return is_own_picture(path)
    return _is_own_report(path) if path.endswith(".json") else _is_own_page(path)


def _is_own_report(path: str) -> bool:
    return any(isinstance(report, dict) and "accuracy_interval_95" in report for report in read_json(path).values())


def _is_own_page(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return f'content="{SOFTWARE}"'.encode() in file.read(500)
    except OSError:
        return False
