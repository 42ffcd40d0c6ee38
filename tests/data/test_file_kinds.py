"""Which files are read, which are passed over with a reason, and which hold no photo."""

import pytest

from photo_classifier.data.file_kinds import is_image_name, passed_over, passed_over_reason
from photo_classifier.data.image_files import walk_images


@pytest.mark.parametrize("name", "a.jpg a.JFIF a.mpo a.jp2 a.j2k a.pnm a.avif a.HEIC a.heif a.tif a.apng".split())
def test_every_photo_format_of_the_decoder_is_read(name):
    assert is_image_name(name)
    assert not passed_over_reason(name)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a.DNG", "camera raw"),
        ("a.cr3", "camera raw"),
        ("a.mp4", "video"),
        ("a.fli", "video"),
        ("a.pdf", "document"),
        ("a.eps", "document"),
        ("a.dcm", "medical"),
        ("a.npy", "arrays"),
        ("a.jxl", "the ending .jxl"),
        ("a.wmf", "the ending .wmf"),
        ("a.jpg.crdownload", "the ending .crdownload"),
        ("scan", "no ending"),
        ("scan.", "no ending"),
    ],
)
def test_what_may_hold_a_photo_is_passed_over_with_a_reason(name, reason):
    assert not is_image_name(name)
    assert reason in passed_over_reason(name)


@pytest.mark.parametrize("name", "labels.csv a.xml a.TXT photos.zip IMG_1.AAE IMG_1.xmp README Makefile a.py".split())
def test_what_holds_no_photo_is_not_counted_as_one(name):
    assert not is_image_name(name)
    assert not passed_over_reason(name)


def test_what_accompanies_an_image_is_no_lost_photo():
    names = ["IMG_1.HEIC", "IMG_1.mov", "IMG_2.JPG", "img_2.CR2", "IMG_3.cr2"]
    assert list(passed_over(names)) == ["IMG_3.cr2"]


def test_a_walk_yields_what_is_passed_over_in_its_place(tmp_path):
    for name in ("a.png", "b.dng", "c.png", "d.txt", "sub/e.mp4", "sub/f.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    unread = {}
    paths = [path[len(str(tmp_path)) + 1 :] for path in walk_images(tmp_path, unread=unread)]
    assert paths == ["a.png", "b.dng", "c.png", "sub/e.mp4", "sub/f.png"]
    assert {path.rpartition("/")[2] for path in unread} == {"b.dng", "e.mp4"}
    assert len(list(walk_images(tmp_path))) == 3
