import os
import unicodedata

import pytest
from helpers import make_class_folders, save_image

from photo_classifier.data.file_finder import FileFinder
from photo_classifier.data.inputs import samples_at
from photo_classifier.data.label_cells import joined_names_note
from photo_classifier.data.table_columns import Columns
from photo_classifier.data.tables import Table
from photo_classifier.runtime.errors import UserError

ROWS = [("강아지/a.jpg", "강아지"), ("cat/b, c.jpg", "cat"), ("n/1.jpg", "007"), ("n/2.jpg", "NA"), ("n/3.jpg", "")]


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "cp949", "utf-16"])
@pytest.mark.parametrize(("separator", "newline"), [(",", "\n"), (";", "\r\n"), ("\t", "\n"), ("|", "\r\n")])
def test_tables_as_excel_and_others_write_them_are_read(encoding, separator, newline, tmp_path):
    lines = [separator.join(f'"{cell}"' for cell in row) for row in (("path", "label"), *ROWS)]
    table = Table(write(tmp_path / "t.csv", newline.join([*lines[:3], "", *lines[3:]]), encoding))
    assert [(row.path, row.label) for row in table.rows()] == ROWS


def test_columns_are_guessed_by_the_usual_names_or_given():
    for header, expected in {
        "id,Path,Label,x": ("Path", "Label", None),
        "image_id,dx,group": ("image_id", "dx", "group"),
        "id,breed": ("id", "breed", None),
        "Filename , Species,Split": ("Filename", "Species", None),
        "file_dir,predict,probability,label": ("file_dir", "label", None),
        "a,b": (None, None, None),
    }.items():
        with open("t.csv", "w") as file:
            file.write(f"{header}\n")
        table = Table("t.csv")
        assert (table.path, table.label, table.group) == expected
    assert Table("t.csv", Columns("b", "a")).path == "b"
    with pytest.raises(UserError, match="has the columns a, b; name the path column with --path_column and"):
        Table("t.csv").require("path", "label")
    with open("t.csv", "w") as file:
        file.write("cat/1.jpg,cat\ncat/2.jpg,cat\n")
    assert (Table("t.csv").path, Table("t.csv").label) == ("path", "label"), "its first line is no header"


BROKEN = {
    "more cells": (b"path,label\n1,2\n\n1,2,3,4\n", "line 4 has 4 cells but its header has 2"),
    "more cells after a line break in quotes": (b'path,label\n"x\ny",2\n1,2,3\n', "line 3 has 3 cells"),
    "more cells far down": (b"path,label\n" + b"1,2\n" * 200_000 + b"1,2,3\n", "line 200002 has 3 cells"),
    "an open quote": (b'path,label\n1,2\n3,"4\n5,6\n', "line 3 opens a quote that is never closed"),
    "binary": (b"\x00\x80\xff\x00" * 100, "is not a text file; save the table as CSV"),
    "half a character": (b"\xff\xfe\x00", "is not a text file"),
    "empty": (b"", "is empty; expected a header line"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_table_is_refused_with_the_line(name, tmp_path):
    content, expected = BROKEN[name]
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UserError, match=expected):
        list(Table(tmp_path / "t.csv").rows())


def test_lines_are_numbered_with_the_blank_ones_and_a_repeated_name_means_its_first_column(tmp_path):
    table = Table(write(tmp_path / "t.csv", "path,path,label,label\n\na.jpg,b.jpg,1,2\n , \nc.jpg\n"))
    assert [(row.line, row.path, row.label) for row in table.rows()] == [(3, "a.jpg", "1"), (5, "c.jpg", "")]


@pytest.fixture
def photos(tmp_path):
    for name in ("a.jpg", "B.JPG", "train/c.png", "train/d.1.jpg", "test/e.jpg", "both.jpg", "both.png"):
        save_image(tmp_path / "photos" / name, 0, 0)
    save_image(
        tmp_path / "photos" / unicodedata.normalize("NFD", "강아지") / unicodedata.normalize("NFD", "é.jpg"), 0, 0
    )
    return tmp_path / "photos"


def test_a_file_is_found_where_its_table_says_or_near(photos):
    find = FileFinder(photos)
    for written, expected in {
        "a.jpg": "a.jpg",
        " ./train/../a.jpg": "a.jpg",
        "a": "a.jpg",
        "b.jpg": "B.JPG",
        "train\\c.png": "train/c.png",
        "c": "train/c.png",
        "d.1": "train/d.1.jpg",
        "e.jpg": "test/e.jpg",
        "/home/me/photos/train/c.png": "train/c.png",
        "D:\\photos\\a.jpg": "a.jpg",
        str(photos / "a.jpg"): "a.jpg",
    }.items():
        assert find(written) == str(photos / expected), written
    assert os.path.isfile(find("강아지/é.jpg"))
    assert find.n_near == 5
    for missing in ("x.jpg", "train", "", "train/x", "train/a.jpg"):
        assert find(missing) is None
    with pytest.raises(UserError, match=r"could be .*both.jpg or .*both.png; write its ending too"):
        find("both")


def test_a_name_in_two_folders_is_not_guessed(photos):
    save_image(photos / "test" / "c.png", 0, 0)
    with pytest.raises(UserError, match=r"could be .*; write its folder too"):
        FileFinder(photos)("c.png")
    assert FileFinder(photos)("test/c.png") == str(photos / "test" / "c.png")


def test_a_table_is_predicted_in_its_order_with_its_labels(tmp_path, capsys):
    make_class_folders(tmp_path / "d", 2, ("cat", "dog"))
    write(tmp_path / "d" / "t.csv", "file,y\ndog/01.png,dog\ngone.png,cat\ncat/00,cat\ndog/00.png,wolf\ncat/01.png,\n")
    samples = list(samples_at(str(tmp_path / "d" / "t.csv"), ["cat", "dog"]))
    assert [os.path.relpath(s.path, tmp_path / "d") for s in samples] == [
        os.path.join("dog", "01.png"), "gone.png", os.path.join("cat", "00.png"), os.path.join("dog", "00.png"),
        os.path.join("cat", "01.png"),
    ]  # fmt: skip
    assert [s.label for s in samples] == ["dog", "cat", "cat", None, None]
    assert "t.csv: ignored 1 label without a matching class (wolf)" in capsys.readouterr().out
    assert len(list(samples_at(str(tmp_path / "d" / "t.csv"), ["cat"], Columns("file")))) == 5
    with pytest.raises(UserError, match="did you mean file"):
        next(samples_at(str(tmp_path / "d" / "t.csv"), ["cat"], Columns("fiel")))


def test_a_column_of_another_meaning_does_not_split(tmp_path):
    rows = "".join(f"{n}.jpg,{'ab'[n % 2]},{('control', 'test')[n % 2]}\n" for n in range(4))
    table = Table(write(tmp_path / "t.csv", "file,label,phase\n" + rows))
    assert not table.has_splits
    assert table.notes() == [
        f"{table.file}: phase is not used for the splits, as not all of its cells are train, val or test"
    ]
    assert Table(table.file, Columns(split="phase")).has_splits, "but if it is named it must"


def test_labels_with_separators_are_several_only_if_their_parts_are_labels(tmp_path):
    def faults(*labels):
        rows = "".join(f'{n}.jpg,"{label}"\n' for n, label in enumerate(labels))
        return [row.fault for row in Table(write(tmp_path / "t.csv", "file,label\n" + rows)).rows() if row.fault]

    assert faults("dog", "hot", "hot dog", "Paris, France", "a|b", "cat; young") == []
    found = faults("dog", "cat", "cat, dog", "dog;cat", "dog|wolf")
    assert found == [f"has 2 labels ({labels})" for labels in ("cat, dog", "dog, cat", "dog, wolf")]


def test_a_folder_with_a_text_for_each_photo_is_looked_through_quickly(tmp_path, monkeypatch):
    from photo_classifier.data import layouts
    from photo_classifier.data.image_files import Listing

    for n in range(60):
        write(tmp_path / f"{n:02d}.txt", f"{n:02d}.jpg cat\n")
    write(tmp_path / "labels.csv", "path,label\na.jpg,cat\n")
    opened = []
    monkeypatch.setattr(layouts, "Table", lambda file, columns: opened.append(file) or Table(file, columns))
    layouts.find_tables(Listing(tmp_path), Columns())
    assert [os.path.basename(file) for file in opened] == ["labels.csv"]


def test_a_header_that_names_few_of_its_columns_is_no_title(tmp_path):
    table = Table(write(tmp_path / "t.csv", "id,label,,\n1,cat,x,y\n2,dog,x,y\n"))
    assert [(row.path, row.label) for row in table.rows()] == [("1", "cat"), ("2", "dog")]
    assert Table(write(tmp_path / "t.csv", "Photo,,Result,\nfile,date,label,by\na.jpg,1,cat,me\n")).label == "label"
    assert len(list(Table(write(tmp_path / "t.csv", "a.jpg,cat,,\nb.jpg,dog,x,y\n")).rows())) == 2, "nor is an image"


def test_class_names_that_look_like_several_labels_are_noted():
    joined = ["apple;red", "apple;green", "pear;red", "plum"]
    (note,) = joined_names_note(joined)
    assert "3 class names look like several labels (apple;red, apple;green): this tool takes one label" in note
    assert not joined_names_note(["mac & cheese", "fish & chips", "salt", "a/b testing"])
    (note,) = joined_names_note(["apple", "red", "apple;red"])
    assert note.startswith("1 class name looks like several labels (apple;red)")
    for names in (
        ["apple;red", "pear;green", "plum;blue"],
        ["a|b", "c|d"],
        ["cat", "dog", "cat, dog"],
        ["a", "b", "a+b"],
    ):
        assert len(joined_names_note(names)) == 1
    for names in (["apple;red", "pear", "plum"], ["apple;", "pear;"], ["cat", "cat, black"], ["a", "b/c", "d/e"]):
        assert not joined_names_note(names)
