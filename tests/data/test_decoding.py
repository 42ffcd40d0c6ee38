"""The one decode path against a gallery of hard images, bad files and random damage."""

import io
import os

import numpy as np
import pytest
import torch
from helpers import gallery
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from data_loader import AUGMENTS, train_transform
from photo_classifier.data.decoding import BadImage, check_header, decode
from photo_classifier.data.preprocess import Preprocess, eval_transform

PREPROCESS = Preprocess(32, 36, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


def test_every_hard_image_shows_what_a_person_sees(tmp_path):
    made = gallery.readable(tmp_path / "gallery")
    assert len(made) >= 17
    for title, path in made.items():
        for shorter_side in (None, 4):
            pixels = decode(path, shorter_side).to(torch.int16)
            height, width = pixels.shape[1:]
            left, right = pixels[:, height // 2, width // 8], pixels[:, height // 2, -1 - width // 8]
            # lossy formats and the conversion of CMYK shift colours a little
            assert (left - torch.tensor(gallery.RED)).abs().max() < 40, title
            assert (right - torch.tensor(gallery.BLUE)).abs().max() < 40, title


def test_the_411_jpeg_really_is_one():
    with Image.open(io.BytesIO(gallery.JPEG_411)) as image:
        assert [layer[1:3] for layer in image.layer] == [(4, 1), (1, 1), (1, 1)]


def test_an_adobe_cmyk_jpeg_is_not_shown_inverted(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=95)
    content = (tmp_path / "a.jpg").read_bytes()
    assert b"Adobe" in content, "Pillow writes CMYK as Adobe does: inverted, with its mark"
    assert decode(tmp_path / "a.jpg")[:, 8, 8].tolist() == pytest.approx([255, 0, 0], abs=12)


@pytest.mark.parametrize("bit_depth", [10, 12, 14, 16])
def test_16_bit_files_are_scaled_by_their_bit_depth(bit_depth, tmp_path):
    most = 2**bit_depth - 1
    for name in ("a.png", "a.tif"):
        Image.fromarray(np.full((4, 4), most, np.uint16)).save(tmp_path / name)
        assert decode(tmp_path / name, bit_depth=bit_depth).unique().tolist() == [255]
        Image.fromarray(np.full((4, 4), most // 2, np.uint16)).save(tmp_path / name)
        assert decode(tmp_path / name, bit_depth=bit_depth).unique().tolist() == [127]


def test_more_bits_than_told_is_refused_not_shown_wrong(tmp_path):
    Image.fromarray(np.full((4, 4), 5000, np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(BadImage, match="more than --bit_depth 12 allows"):
        decode(tmp_path / "a.png", bit_depth=12)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_strange_shapes_are_prepared_to_the_usual_size(size, tmp_path):
    Image.new("RGB", size, (9, 99, 199)).save(tmp_path / "a.png")
    image = decode(tmp_path / "a.png", PREPROCESS.decode_side)
    assert image.shape[1:] == (size[1], size[0])
    recipes = {"evaluation": eval_transform(PREPROCESS), **{n: train_transform(n, PREPROCESS) for n in AUGMENTS}}
    for name, transform in recipes.items():
        prepared = transform(image)
        assert prepared.shape == (3, 32, 32)
        assert prepared.dtype == torch.uint8
        if name not in ("trivial", "rand"):  # which change colours
            assert prepared[:, 16, 16].tolist() == [9, 99, 199]


def test_a_very_large_photo_is_decoded_and_a_bomb_refused(tmp_path):
    Image.new("1", (12_000, 9_000), 1).save(tmp_path / "large.png")
    assert decode(tmp_path / "large.png").shape == (3, 9_000, 12_000)
    with pytest.raises(BadImage, match="12000 x 9000 pixels, more than --max_pixels 1000000; raise it"):
        decode(tmp_path / "large.png", max_pixels=1_000_000)
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    assert os.path.getsize(tmp_path / "bomb.png") < 100_000
    with pytest.raises(BadImage, match="more than --max_pixels"):
        check_header(tmp_path / "bomb.png")


def test_every_bad_file_is_refused_with_a_reason(tmp_path):
    made = gallery.unreadable(tmp_path / "bad")
    assert len(made) >= 60
    for title, path in made.items():
        for shorter_side in (None, 8):
            with pytest.raises(BadImage) as caught:
                decode(path, shorter_side)
            assert len(str(caught.value)) > 5, title
            assert "\n" not in str(caught.value)


def test_the_header_shows_what_needs_no_decoding(tmp_path):
    made = gallery.unreadable(tmp_path / "bad")
    for title in ("empty", "text", "html", "missing", "folder"):
        with pytest.raises(BadImage):
            check_header(made[title])
    for path in gallery.readable(tmp_path / "good").values():
        check_header(path)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="this user may read everything")
def test_a_file_without_permission_is_refused(tmp_path):
    gallery.flag().save(tmp_path / "a.png")
    os.chmod(tmp_path / "a.png", 0)
    with pytest.raises(BadImage, match="Permission denied"):
        decode(tmp_path / "a.png")


def whole_files() -> list[bytes]:
    rng = np.random.default_rng(1)
    noise = Image.fromarray(rng.integers(0, 255, (20, 30, 3)).astype("uint8"))
    contents = []
    for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP"):
        file = io.BytesIO()
        exif = Image.Exif()
        exif[0x0112] = 6
        noise.save(file, format=kind, **({"exif": exif} if kind in ("JPEG", "PNG", "WEBP") else {}))
        contents.append(file.getvalue())
    return contents


WHOLE = whole_files()
FUZZ = settings(max_examples=300, deadline=None, derandomize=True,
                suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip


def decoded_or_refused(path, content):
    path.write_bytes(content)
    try:
        image = decode(path, PREPROCESS.decode_side, max_pixels=4_000_000)
    except BadImage:
        return
    assert image.dtype == torch.uint8
    assert image.dim() == 3
    assert image.shape[0] == 3
    assert eval_transform(PREPROCESS)(image).shape == (3, 32, 32)


@FUZZ
@given(content=st.binary(max_size=300), start=st.sampled_from([b"", *(whole[:12] for whole in WHOLE)]))
def test_random_bytes_are_decoded_or_refused(tmp_path, content, start):
    decoded_or_refused(tmp_path / "x.jpg", start + content)


@FUZZ
@given(
    whole=st.sampled_from(WHOLE),
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=8),
    cut=st.integers(0, 10**6),
)
def test_damaged_photos_are_decoded_or_refused(tmp_path, whole, flips, cut):
    content = bytearray(whole)
    for place, bits in flips:
        content[place % len(content)] ^= bits
    if cut % 3 == 0:
        content = content[: cut % len(content)]
    decoded_or_refused(tmp_path / "x.jpg", bytes(content))
