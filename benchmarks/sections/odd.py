"""Odd photos: how many of a set are named, and whether some that are put among them are.

- clean     how many of the photos as they are: 1 % at most, but for drawings, black and one-coloured ones that are odd
            indeed; look at them
- planted   a blurred, a black and a one-coloured one, a screenshot, and a photo of another set
"""

from __future__ import annotations

import argparse

import torch
from common import Findings
from PIL import Image, ImageDraw, ImageFilter

from photo_classifier.curation.odd_photos import odd_photos
from photo_classifier.data.decoding import decode
from photo_classifier.data.samples import Sample
from photo_classifier.data.thumbnails import thumbnail_row, unpack_rows
from photo_classifier.evaluation.contact_sheet import picture_of
from sections import Photos, photos_of

INDEED = ("drawing", "black", "one colour")


def screenshot() -> Image.Image:
    """A page of text under a coloured bar."""
    image = Image.new("RGB", (800, 600), "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, 800, 60), fill=(40, 90, 200))
    for top in range(90, 560, 40):
        draw.text((40, top), "some lines of text, as a screen shows them", fill="black", font_size=24)
    return image


def planted(photo: Image.Image) -> dict[str, Image.Image]:
    """Returns flawed photos by a part of their reason."""
    blur = ImageFilter.GaussianBlur(max(photo.size) / 60)
    return {
        "blurred": photo.filter(blur),
        "black": photo.point(lambda value: value * 0.03),
        "one colour": Image.new("RGB", photo.size, (120, 130, 90)),
        "screenshot": screenshot(),
    }


def rows_of(pictures: list[Image.Image]) -> torch.Tensor:
    """Returns what is stored of pictures."""
    arrays = [torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8) for image in pictures]
    sizes = [(image.height, image.width, 3) for image in pictures]
    photos = [array.view(size).permute(2, 0, 1) for array, size in zip(arrays, sizes, strict=True)]
    return torch.stack([thumbnail_row(photo) for photo in photos])


def named(photos: Photos, rows: torch.Tensor, pictures: dict[str, Image.Image], stranger: torch.Tensor | None) -> dict:
    """Returns the reasons by path, with flawed pictures and a photo of another set, by its features, put among them."""
    label = photos.class_names[0]
    samples = [*photos.samples, *(Sample(name, label) for name in pictures)]
    rows = torch.cat([rows, rows_of(list(pictures.values()))]) if pictures else rows
    features = torch.cat([photos.features, photos.features[: len(pictures)]])
    if stranger is not None:
        samples.append(Sample("stranger", label))
        rows, features = torch.cat([rows, rows[:1]]), torch.cat([features, stranger[None]])
    found = odd_photos(samples, unpack_rows(rows)[1], features, torch.zeros(len(samples)))
    return {photo.sample.path: photo.reason for photo in found}


def work(options: argparse.Namespace, findings: Findings) -> None:
    """All sets."""
    sets = list(photos_of(options))
    for number, photos in enumerate(sets):
        decoded = [decode(sample.path, 512) for sample in photos.samples]
        rows = torch.stack([thumbnail_row(photo) for photo in decoded])
        clean = named(photos, rows, {}, None)
        share = sum(not any(word in reason for word in INDEED) for reason in clean.values()) / len(photos.samples)
        print(f"{photos.name}: {len(clean)} of {len(photos.samples)} are odd", flush=True)
        for path, reason in list(clean.items())[:5]:
            print(f"    {path}: {reason}")
        findings.reach(f"{photos.name}: odd photos of the set as it is", "<= 1 %", f"{share:.2%}", share <= 0.01)
        pictures = planted(picture_of(decoded[len(decoded) // 2]))
        stranger = sets[number - 1].features[0] if len(sets) > 1 else None
        found = named(photos, rows, pictures, stranger)
        for name in pictures:
            findings.expect(name in found.get(name, ""), f"{photos.name}: the {name} photo is not named")
        if stranger is not None:
            findings.expect(
                "unlike" in found.get("stranger", ""), f"{photos.name}: a photo of another set is not named"
            )
