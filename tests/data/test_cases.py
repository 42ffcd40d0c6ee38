"""Tables and folders as people have them: what is read is right, and what is not is explained in one line."""

import shutil

import pytest
from helpers import TINY, assert_one_line_error, make_class_folders
from helpers.cases import COCO, READ, REFUSED, ROWS, class_folders, csv, photos, table, workbook

from photo_classifier.data.discovery import load_splits
from photo_classifier.data.inputs import input_samples
from photo_classifier.data.table_columns import Columns
from photo_classifier.runtime.errors import UserError

RATIOS = {"train": 0.6, "valid": 0.2, "test": 0.2}


@pytest.mark.parametrize("name", READ)
def test_what_people_have_is_read(name, tmp_path):
    make, counts, classes = READ[name]
    make(tmp_path / "d")
    splits = load_splits(tmp_path / "d", RATIOS, 0)
    assert tuple(splits.class_names) == classes
    assert (len(splits.train), len(splits.valid), len(splits.test)) == counts
    names = dict(zip(("blue", "red"), classes, strict=True))
    right = {file: names[label] for file, label in ROWS}
    samples = [sample for part in splits.by_name().values() for sample in part]
    assert all(right.get(sample.path.rpartition("/")[2], sample.label) == sample.label for sample in samples)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_explained_in_one_line(name, tmp_path):
    make, expected = REFUSED[name]
    (tmp_path / "d").mkdir()
    make(tmp_path / "d")
    with pytest.raises(UserError) as caught:
        load_splits(tmp_path / "d", RATIOS, 0)
    assert all(words in str(caught.value) for words in expected), caught.value
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", READ)
def test_what_people_have_is_predicted_with_its_labels(name, tmp_path):
    make, counts, classes = READ[name]
    make(tmp_path / "d")
    labels = [sample.label for sample in input_samples([str(tmp_path / "d")], classes)]
    assert (len(labels), labels.count(None)) == (len(labels), len(labels) - sum(counts) or 0)


@pytest.mark.parametrize("ending", ["csv", "xlsx", "jsonl", "txt"])
def test_a_table_of_any_kind_is_an_input_of_a_prediction(ending, tmp_path):
    photos(tmp_path)
    if ending == "xlsx":
        workbook(tmp_path / "t.xlsx", [("Datei", "Klasse"), *ROWS])
    elif ending == "jsonl":
        table(tmp_path / "t.jsonl", [f'{{"image": "{file}", "label": "{label}"}}' for file, label in ROWS])
    else:
        table(tmp_path / f"t.{ending}", csv("file,label") if ending == "csv" else csv("p00.jpg red", ROWS[1:], " "))
    found = input_samples([str(tmp_path / f"t.{ending}")], ["red", "blue"])
    assert [(sample.path.rpartition("/")[2], sample.label) for sample in found] == ROWS


def test_the_flags_that_a_message_names_lead_to_the_training_that_was_meant(tmp_path):
    REFUSED["photos in numbered folders, with a table of unknown columns"][0](tmp_path / "d")
    columns = Columns("Image Index", "Finding Labels")
    for data in ((tmp_path / "d", None), (None, tmp_path / "d" / "Data_Entry_2017.csv")):
        splits = load_splits(data[0], RATIOS, 0, data[1], columns)
        assert (splits.class_names, len(splits.train)) == (["blue", "red"], 8)
    table(tmp_path / "e" / "x.csv", csv("p00.jpg,red,3", [(*row, 4) for row in ROWS[1:]]))
    photos(tmp_path / "e")
    assert len(load_splits(tmp_path / "e", RATIOS, 0, None, Columns(label="column 2")).train) == 8


def test_a_table_in_another_folder_is_named_and_its_flag_works(tmp_path):
    REFUSED["a table in a folder beside"][0](tmp_path / "d")
    with pytest.raises(UserError, match=r"add --labels '\S+/lists/my labels.csv'$"):
        load_splits(tmp_path / "d" / "images", RATIOS, 0)
    shutil.move(tmp_path / "d" / "lists" / "my labels.csv", tmp_path / "d" / "labels.csv")
    with pytest.raises(UserError, match=r"add --labels \S+labels.csv$"):
        load_splits(tmp_path / "d" / "images", RATIOS, 0)
    assert len(load_splits(tmp_path / "d" / "images", RATIOS, 0, tmp_path / "d" / "labels.csv").train) == 8


def test_parts_beside_a_table_that_is_moved_away_are_classes_as_the_message_says(tmp_path):
    REFUSED["parts, with such a table"][0](tmp_path / "d")
    (tmp_path / "d" / "x.csv").unlink()
    assert load_splits(tmp_path / "d", RATIOS, 0).class_names == ["part1", "part2"]


def test_the_folder_of_the_images_of_a_detection_set_is_one_too(tmp_path):
    for name in ("COCO", "YOLO", "VOC"):
        REFUSED[name][0](tmp_path / name)
    shutil.move(tmp_path / "COCO" / "coco.json", tmp_path / "COCO" / "images" / "train" / "_annotations.coco.json")
    assert COCO["annotations"]
    for name in ("COCO", "YOLO", "VOC"):
        with pytest.raises(UserError, match=r"object detection.*one label for each image"):
            load_splits(tmp_path / name / "images", RATIOS, 0)


def test_a_column_that_splits_is_named_by_a_flag(cli, tmp_path):
    photos(tmp_path / "d")
    rows = [(file, label, ("train", "val", "x")[n % 3 % 2]) for n, (file, label) in enumerate(ROWS)]
    table(tmp_path / "d" / "t.csv", csv("file,label,mine", rows))
    splits = load_splits(tmp_path / "d", RATIOS, 0, None, Columns(split="mine"))
    assert (len(splits.train), len(splits.valid)) == (8, 4)
    assert "splits by mine" in splits.layout
    done = cli("train", "--data_dir", "d", "--split_column", "label")
    assert_one_line_error(done, "12 faulty lines: line 2 has the label 'red' instead of train, valid or test")
    assert "and 2 more" in done.err


def test_photos_of_formats_that_are_not_read_count_as_unreadable(cli, tmp_path):
    make_class_folders(tmp_path / "d", 6, ("red", "blue"))
    for n in range(4):
        (tmp_path / "d" / "red" / f"raw{n}.dng").write_bytes(b"x" * n)
    splits = load_splits(tmp_path / "d", RATIOS, 0)
    assert (len(splits.unread), sum(map(len, splits.by_name().values()))) == (4, 12), "the splits stay as they are"
    done = cli("train", "--data_dir", "d", *TINY, "--run_dir", "r")
    assert_one_line_error(done, "4 of 16 images cannot be read (.dng 4), more than a share of 0.05;")
    assert (tmp_path / "r" / "skipped.csv").read_text(encoding="utf-8-sig").count("is a camera raw file") == 4
    found = list(input_samples(["d"], ["red", "blue"]))
    assert [sample.reason.partition(",")[0] for sample in found if sample.reason] == ["is a camera raw file"] * 4


def test_a_class_of_files_that_are_not_read_says_what_they_are(tmp_path):
    class_folders(tmp_path / "d")
    (tmp_path / "d" / "green").mkdir()
    (tmp_path / "d" / "green" / "a.dcm").write_bytes(b"x")
    class_folders(tmp_path / "e", ("red",))
    shutil.copytree(tmp_path / "d" / "green", tmp_path / "e" / "green")
    with pytest.raises(
        UserError, match=r"only one class \('red'\), as .*green contains no images that are read, but 1"
    ):
        load_splits(tmp_path / "e", RATIOS, 0)
    with pytest.raises(UserError, match=r"green looks like a class but contains no images.*1 .dcm \(is a medical"):
        load_splits(tmp_path / "d", RATIOS, 0)


def test_what_systems_keep_beside_photos_is_not_looked_into_and_named_once(tmp_path, capsys):
    READ["a network disk"][0](tmp_path / "d")
    splits = load_splits(tmp_path / "d", RATIOS, 0)
    assert splits.passed_over["@eaDir/"] == 2
    assert len(list(input_samples([str(tmp_path / "d")], ["red", "blue"]))) == 10
    assert capsys.readouterr().out.count("@eaDir (2 folders)") == 1
    assert len(list(input_samples([str(tmp_path / "d" / "**" / "*.jpg")], []))) == 10, "nor by a pattern"


def test_a_table_that_is_not_used_beside_class_folders_says_why(tmp_path):
    class_folders(tmp_path / "d")
    (tmp_path / "d" / "labels.xlsx").write_bytes(b"PK")
    table(tmp_path / "d" / "other.csv", ["a,b", "1,2"])
    notes = "\n".join(load_splits(tmp_path / "d", RATIOS, 0).notes)
    assert (
        "labels.xlsx was not used, as folder or file names give the classes, and it could not be used as a table"
        in notes
    )
    assert "other.csv has the columns a, b" in notes
