import io
import os
import types

import pytest

from photo_classifier.data import inputs
from photo_classifier.data.inputs import input_samples
from photo_classifier.runtime.errors import UserError


def paths(given, class_names=("cat", "dog", "개")):
    return [sample.path for sample in input_samples([str(name) for name in given], class_names)]


@pytest.fixture
def stdin(monkeypatch):
    def give(content):
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))

    return give


def test_any_mix_of_inputs_keeps_its_order(image_folder, stdin):
    cat, dog = image_folder / "cat", image_folder / "dog"
    stdin(f"{dog / '01.png'}\r\n\n  spaced.png \nlast.png".encode())
    table = image_folder.parent / "some.csv"
    table.write_text("path,label\nphotos/cat/02.png,cat\nphotos/gone.png,dog\n", encoding="utf-8")
    found = paths([dog / "09.png", "gone.png", "-", os.path.join(image_folder, "c*", "0[01].png"), table, cat])
    assert found == [
        str(dog / "09.png"),
        "gone.png",
        *(str(dog / "01.png"), "  spaced.png ", "last.png"),
        *(str(cat / "00.png"), str(cat / "01.png")),
        *(str(image_folder / "cat" / "02.png"), str(image_folder / "gone.png")),
        *(str(cat / f"{n:02d}.png") for n in range(10)),
    ]


def test_only_the_first_name_may_have_a_byte_order_mark(stdin):
    stdin(b"\xef\xbb\xbfa.png\n\xef\xbb\xbfb.png\n")
    assert paths(["-"]) == ["a.png", "\ufeffb.png"]


def test_names_that_are_not_utf8_are_read_in_the_encoding_of_the_console(stdin, monkeypatch):
    monkeypatch.setattr(inputs.os, "fsdecode", lambda name: name.decode("utf-8", "surrogatepass"))  # as on Windows
    monkeypatch.setattr(inputs, "CONSOLE", "cp949")
    stdin("개.png\n".encode("cp949"))
    assert paths(["-"]) == ["개.png"]


def test_a_name_with_brackets_is_a_file_if_it_exists(image_folder):
    bracketed = image_folder / "a[1].png"
    os.rename(image_folder / "cat" / "00.png", bracketed)
    assert paths([bracketed]) == [str(bracketed)]


def test_a_pattern_reaches_into_folders(image_folder):
    assert len(paths([os.path.join(image_folder, "**", "*.png")])) == 30


def test_a_pattern_without_a_match_is_still_a_row_among_others(image_folder):
    assert paths(["*.bmp", image_folder / "cat" / "00.png"]) == ["*.bmp", str(image_folder / "cat" / "00.png")]
    with pytest.raises(UserError, match=r"\*\.bmp does not exist"):
        paths(["*.bmp"])


def test_inputs_are_listed_lazily(monkeypatch):
    def endless():
        while True:
            yield b"a.png\n"

    monkeypatch.setattr("sys.stdin", types.SimpleNamespace(buffer=endless()))
    samples = input_samples(["-"], [])
    assert [next(samples).path for _ in range(3)] == ["a.png"] * 3
