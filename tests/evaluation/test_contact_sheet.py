import time

import pytest
import torch
from helpers import TINY
from PIL import Image, ImageFont

from photo_classifier.evaluation import contact_sheet as sheets
from photo_classifier.evaluation import fonts
from photo_classifier.evaluation.contact_sheet import Tile, contact_sheet, picture_of
from photo_classifier.evaluation.fonts import font_for

RED = (255, 0, 0)


def test_a_sheet_shows_every_picture_over_its_caption():
    colours = [(200, 10 * n, 0) for n in range(5)]
    sheet = contact_sheet([Tile(Image.new("RGB", (40, 20), colour), "a") for colour in colours], n_columns=2, side=60)
    assert sheet.size == (2 * 68, 3 * (68 + sheets.TEXT_SIZE + 4))
    found = {colour for _, colour in sheet.getcolors(100000)}
    assert set(colours) <= found
    assert any(max(colour) < 100 for colour in found), "the captions are written in black"


def test_threads_return_photos_in_order_and_as_many_as_the_time_allows(monkeypatch):
    monkeypatch.setattr(sheets, "n_cores", lambda: 2)

    def slow(n):
        time.sleep(0.05)
        return -n

    assert sheets.map_until(slow, range(4)) == [(0, 0), (1, -1), (2, -2), (3, -3)]
    start = time.monotonic()
    made = sheets.map_until(slow, range(100), 0.12)
    assert time.monotonic() - start < 1
    assert made == [(n, -n) for n in range(len(made))]
    assert 2 <= len(made) < 20


def test_a_frame_is_drawn_where_one_is_given():
    image = Image.new("RGB", (60, 60), "blue")
    sheet = contact_sheet([Tile(image, ""), Tile(image, "", "red")], n_columns=2, side=60)
    columns = [x for x in range(sheet.width) for y in range(sheet.height) if sheet.getpixel((x, y)) == RED]
    assert columns
    assert min(columns) >= 68


def test_long_captions_do_not_run_into_their_neighbours():
    sheet = contact_sheet([Tile(Image.new("RGB", (9, 9), "white"), "a" * 500), Tile(Image.new("RGB", (9, 9)), "")], 2)
    right = sheet.crop((sheet.width // 2, 160, sheet.width, sheet.height))
    assert right.getcolors() == [(right.width * right.height, (255, 255, 255))]


def test_captions_are_broken_between_words_and_a_title_stands_above():
    font = font_for("a")
    assert sheets._wrapped("says aaaaaaaaaa 83\N{NO-BREAK SPACE}%,\nb", font, 120) == ["says aaaaaaaaaa", "83 %,", "b"]
    caption = f"says {'a' * 40} over 99\N{NO-BREAK SPACE}%,"
    _, second = sheets._wrapped(caption, font, 160)
    assert second.endswith("... over 99 %,"), "the probability stays where the name is cut"
    assert font.getlength(second) <= 160
    name = "a" * 12 + "-" + "b" * 12 + ".jpg"
    assert "".join(sheets._wrapped(name, font, 120)) == name
    tile = Tile(Image.new("RGB", (9, 9)), "a")
    assert contact_sheet([tile], 1, title="b").height == contact_sheet([tile], 1).height + sheets.LINE + 2 * sheets.GAP


def test_letters_without_a_font_are_written_as_their_codes(monkeypatch):
    monkeypatch.setattr(fonts, "_installed_fonts", lambda: iter(["nowhere.ttf"]))
    fonts._font_for.cache_clear()
    font = font_for("개 a")
    assert sheets._fitting("개 a", font, 200) == "\\uac1c a"
    contact_sheet([Tile(Image.new("RGB", (9, 9)), "개")], 1)
    fonts._font_for.cache_clear()


def test_a_font_that_has_the_letters_is_found_among_those_installed(monkeypatch, tmp_path):
    if not any("nanum" in path.lower() or "cjk" in path.lower() for path in fonts._installed_fonts()):
        pytest.skip("no font for Korean is installed")
    fonts._font_for.cache_clear()
    font = font_for("고양이 cat")
    assert isinstance(font, ImageFont.FreeTypeFont)
    assert sheets._fitting("고양이 cat", font, 500) == "고양이 cat"


def test_pixels_become_the_same_picture():
    pixels = torch.arange(24, dtype=torch.uint8).view(3, 2, 4)
    picture = picture_of(pixels)
    assert picture.size == (4, 2)
    assert picture.getpixel((3, 1)) == (7, 15, 23)


def test_training_names_letters_that_no_font_has(monkeypatch, cli, split_folder):
    monkeypatch.setattr(fonts, "_installed_fonts", lambda: iter(()))
    monkeypatch.setattr(fonts, "_font_for", fonts._font_for.__wrapped__)
    assert fonts.missing_glyphs("cat dog 개") == "개"
    done = cli("train", "--data_dir", split_folder, *TINY, "--dry_run")
    assert "no font here has 개; pictures show codes instead: install one, such as Noto Sans CJK" in done.out
