import io
import zipfile

import openpyxl
import pytest

from photo_classifier.data import workbooks
from photo_classifier.data.workbooks import read_workbook
from photo_classifier.runtime.errors import UserError

SHEET = (
    '<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><sheetData>{}</sheetData></worksheet>'
)


def packed(sheet="", more=b""):
    """A workbook with this XML as its sheet, if it is given."""
    book, plain, changed = openpyxl.Workbook(), io.BytesIO(), io.BytesIO()
    for row in (
        ("photos of 2021", None),
        (None, None),
        ("path", "class_id", None),
        ("a.jpg", 7),
        (None, None),
        ("b.jpg", 2.5, "note"),
    ):
        book.active.append(row)
    book.save(plain)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(changed, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry, sheet if sheet and "worksheets/" in entry.filename else old.read(entry))
        new.writestr("xl/more.bin", more)
    return changed.getvalue()


def test_a_workbook_has_the_lines_and_numbers_that_excel_shows_below_its_title():
    assert read_workbook("t.xlsx", packed()) == [(3, ["path", "class_id"]), (4, ["a.jpg", "7"]), (6, ["b.jpg", "2.5"])]


HOSTILE = {
    "entities": ('<!DOCTYPE x [<!ENTITY a "aa">]>' + SHEET.format("<row/>"), "it defines entities"),
    "a line far down": (SHEET.format('<row r="1"/><row r="99999999999"/>'), "more cells than a table"),
    "a wide line": (SHEET.format(f"<row>{'<c/>' * 20_000}</row>"), "more cells than a table"),
    "far cells in many lines": (
        SHEET.format("".join(f'<row r="{n}"><c r="XFD{n}"><v>1</v></c></row>' for n in range(1, 99))),
        "more cells than a table",
    ),
    "deep": ("<a>" * 1000 + "</a>" * 1000, "more cells than a table"),
    "no XML": ("hello", "is not a readable .xlsx workbook"),
    "another XML": ("<a/>", "has only empty sheets"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_workbook_of_a_stranger_is_refused_in_one_line(name, monkeypatch):
    sheet, expected = HOSTILE[name]
    monkeypatch.setattr(workbooks, "MAX_ELEMENTS", 1_000_000)
    with pytest.raises(UserError, match=expected):
        read_workbook("t.xlsx", packed(sheet))


def test_a_workbook_that_unpacks_to_much_is_not_unpacked():
    with pytest.raises(UserError, match="unpacks to more than 250 MB"):
        read_workbook("t.xlsx", packed(more=bytes(workbooks.MAX_UNPACKED)))
    for content in (b"", b"PK\3\4" + bytes(99), b"\xd0\xcf\x11\xe0" + bytes(99)):
        with pytest.raises(UserError, match="is not a readable"):
            read_workbook("t.xlsx", content)
