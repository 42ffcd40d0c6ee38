import csv
import os

import numpy as np
import pytest
import torch
from helpers import TINY
from helpers.pictures import picture
from PIL import Image, ImageDraw, ImageFilter

from photo_classifier.curation.odd_photos import n_shown, odd_photos
from photo_classifier.data.decoding import decode
from photo_classifier.data.samples import Sample
from photo_classifier.data.thumbnails import thumbnail_row, unpack_rows


def screenshot():
    image = Image.new("RGB", (320, 240), "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, 320, 30), fill=(40, 90, 200))
    for row in range(45, 230, 16):
        draw.text((10, row), "a line of text on a screen, and more", fill="black")
    return image


ODD = {
    "blurred": lambda: picture(90, (320, 256)).filter(ImageFilter.GaussianBlur(5)),
    "black": lambda: Image.fromarray((np.asarray(picture(91, (320, 256))) * 0.03).astype("uint8")),
    "nearly one colour": lambda: Image.new("RGB", (320, 256), (90, 140, 60)),
    "a screenshot or a drawing": screenshot,
}


@pytest.fixture
def photos(tmp_path):
    for n in range(24):
        path = tmp_path / "photos" / "ab"[n % 2] / f"{n:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(n, (320, 256)).save(path)
    for name, make in ODD.items():
        make().save(tmp_path / "photos" / "a" / f"{name}.jpg", quality=95)
    return tmp_path / "photos"


def test_flawed_photos_are_named_with_their_reason_and_ordinary_ones_are_not(photos):
    samples = [Sample(str(path), path.parent.name) for path in sorted(photos.rglob("*.jpg"))]
    rows = torch.stack([thumbnail_row(decode(sample.path)) for sample in samples])
    features = torch.ones(len(samples), 8)
    found = odd_photos(samples, unpack_rows(rows)[1], features, torch.zeros(len(samples)))
    assert {os.path.basename(photo.sample.path): photo.reason for photo in found} == {f"{n}.jpg": n for n in ODD}
    assert all(photo.score >= 1 for photo in found)


def test_a_photo_far_from_all_others_of_its_class_is_named():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(80) % 2
    features = 4 * torch.eye(16)[labels] + 0.5 * torch.randn(80, 16, generator=generator)
    features[7] = 4 * torch.eye(16)[9]
    features[40:] *= 1.5  # of another split, at another scale
    samples = [Sample(f"{n}.jpg", "ab"[n % 2]) for n in range(80)]
    ordinary = torch.tensor([250.0, 200.0, 0.5, 0.1, 0.1]).expand(80, 5)
    found = odd_photos(samples, ordinary, features, torch.arange(80) // 40)
    assert (found[0].sample.path, found[0].reason) == ("7.jpg", "unlike the other photos of b")
    assert len(found) <= 3
    shown = odd_photos(samples, ordinary, features, torch.arange(80) // 40, 20)
    assert (len(shown), shown[: len(found)]) == (20, found)
    rest = shown[len(found) :]
    assert all(photo.score < 1 and photo.reason.startswith("not conspicuous") for photo in rest)
    assert [photo.score for photo in rest] == sorted((photo.score for photo in rest), reverse=True)
    assert [n_shown(n) for n in (0, 19, 80, 400, 10_000)] == [0, 0, 4, 20, 20]


def test_what_most_photos_of_a_set_have_is_not_odd():
    samples = [Sample(f"{n}.jpg", "a") for n in range(30)]
    drawings = torch.tensor([250.0, 200.0, 0.01, 0.9, 0.1]).expand(30, 5)
    assert not odd_photos(samples, drawings, torch.ones(30, 4), torch.zeros(30))


def test_a_frozen_run_lists_and_draws_them_and_says_so_in_one_line(photos, cli):
    done = cli("train", "--data_dir", photos, *TINY, "--freeze", "--n_epochs", 1, "--run_dir", "r")
    assert done.status == 0, done.err
    with open("r/odd.csv", encoding="utf-8") as file:
        rows = {os.path.basename(row["path"]): row for row in csv.DictReader(file) if float(row["score"]) >= 1}
    for name in ODD:
        assert name in rows[f"{name}.jpg"]["reason"]
        assert float(rows[f"{name}.jpg"]["score"]) >= 1
    assert f"{len(rows)} photos look odd: see r{os.sep}odd.png" in done.out
    assert Image.open("r/odd.png").width > 4 * 200
