"""Recognises sets for object detection and segmentation, whose labels belong to parts of an image."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from photo_classifier.data.image_files import Listing, ending_of, is_image_name

MAX_FILES, MAX_BYTES = 5000, 1 << 18  # a look, not a search
# what a file of annotations begins with, by its ending
MARKS = {
    ".json": (re.compile(rb'"(bbox|segmentation|region_shape_attributes|coordinates|imageHeight)"'), "COCO, VIA, ..."),
    ".xml": (re.compile(b"<(ro)?bndbox|<polygon"), "Pascal VOC"),
    ".txt": (re.compile(rb"\A\d+( -?\d*\.?\d+){4,}\s*(\n\d|\Z)"), "YOLO"),
    ".csv": (re.compile(rb"\A[^\n]*\b(xmin|x_min|bbox|bbox_x|left_x)\b", re.I), "boxes"),
}
NAMES = {"images", "jpegimages", "img", "train", "val", "valid", "test"}  # folders beside their annotations


def find_annotations(root: str) -> str:
    """Returns a file that marks parts of images with its format, such as `labels/a.txt (YOLO)`, or an empty text."""
    places, here = [root], os.path.abspath(root)
    for _ in range(2):
        if os.path.basename(here).lower() in NAMES:
            here = os.path.dirname(here)
            beside = Listing(here).folders.items()
            places += [path for name, path in beside if name.lower() in ("labels", "annotations")]
    for place in places:
        for path in _files(place):
            pattern, kind = MARKS[ending_of(path)]
            if pattern.search(_beginning(path)):
                return f"{path} ({kind})"
    return ""


def _files(root: str) -> Iterator[str]:
    """Yields the first files below a folder that may hold annotations."""
    pending, n_seen = [root], 0
    while pending and n_seen < MAX_FILES:
        here = Listing(pending.pop(0))
        pending += here.folders.values()
        n_seen += 1 + sum(not is_image_name(name) for name in here.files)
        yield from (os.path.join(here.root, name) for name in sorted(here.files) if ending_of(name) in MARKS)


def _beginning(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(MAX_BYTES)
    except OSError:
        return b""
