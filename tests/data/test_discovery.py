import gc
import os
import random
import unicodedata

import pytest
from helpers import make_class_folders, save_image

from photo_classifier.data.discovery import load_splits
from photo_classifier.data.image_files import others_text, walk_images
from photo_classifier.data.inputs import input_samples
from photo_classifier.data.samples import Sample
from photo_classifier.data.splitting import stratified_split
from photo_classifier.data.table_columns import Columns
from photo_classifier.runtime.errors import UserError

RATIOS = {"train": 0.6, "valid": 0.2, "test": 0.2}


def test_class_folders_are_split_by_the_ratios_class_by_class(image_folder):
    splits = load_splits(image_folder, RATIOS, seed=0)
    assert splits.class_names == ["cat", "dog", "개"]
    for part, n in ((splits.train, 6), (splits.valid, 2), (splits.test, 2)):
        assert [sum(s.label == name for s in part) for name in splits.class_names] == [n, n, n]
    paths = [s.path for part in splits.by_name().values() for s in part]
    assert sorted(paths) == sorted(walk_images(image_folder))


def test_garbage_collection_pauses_while_samples_are_loaded(image_folder, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "photo_classifier.data.discovery.stratified_split",
        lambda *args: seen.append(gc.isenabled()) or stratified_split(*args),
    )
    load_splits(image_folder, RATIOS, 0)
    assert (seen, gc.isenabled()) == ([False], True)
    with pytest.raises(UserError):
        load_splits("nowhere", RATIOS, 0)
    assert gc.isenabled()


def test_split_folders_are_taken_as_they_are(split_folder):
    splits = load_splits(split_folder, RATIOS, seed=0)
    assert {name: len(part) for name, part in splits.by_name().items()} == {"train": 24, "valid": 15}
    assert splits.held_out == "valid"


def test_the_split_does_not_depend_on_the_order_of_the_file_system(image_folder):
    found = load_splits(image_folder, RATIOS, seed=3).train
    shuffled = found + load_splits(image_folder, RATIOS, seed=3).valid
    first = stratified_split(shuffled, {"train": 0.7, "valid": 0.3}, seed=5)
    random.Random(1).shuffle(shuffled)
    assert stratified_split(shuffled, {"train": 0.7, "valid": 0.3}, seed=5) == first
    assert stratified_split(shuffled, {"train": 0.7, "valid": 0.3}, seed=6) != first


def test_the_split_is_the_same_on_every_machine():
    made = [Sample(f"/anywhere/{n}.png", "a", f"a/{n}.png") for n in range(10)]
    parts = stratified_split(made, RATIOS, seed=0)
    assert [s.key for s in parts["test"]] == ["a/2.png", "a/9.png"]


def test_korean_class_folders_match_whatever_their_unicode_form(tmp_path):
    make_class_folders(tmp_path / "d" / "train", 2, classes=("a", unicodedata.normalize("NFC", "강아지")))
    make_class_folders(tmp_path / "d" / "val", 2, classes=("a", unicodedata.normalize("NFD", "강아지")))
    splits = load_splits(tmp_path / "d", RATIOS, seed=0)
    assert splits.class_names == ["a", "강아지"]
    assert {s.label for s in splits.valid} == {"a", "강아지"}


def test_hidden_files_and_system_files_are_skipped(image_folder):
    before = list(walk_images(image_folder))
    for name in ("cat/.hidden.png", "cat/Thumbs.db", "cat/notes.txt", ".git/x.png", "__MACOSX/cat/00.png"):
        (image_folder / name).parent.mkdir(parents=True, exist_ok=True)
        (image_folder / name).write_bytes(b"x")
    assert list(walk_images(image_folder)) == before
    assert load_splits(image_folder, RATIOS, 0).class_names == ["cat", "dog", "개"]


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="no links here")
def test_a_circle_of_links_ends(image_folder):
    os.symlink(image_folder, image_folder / "cat" / "again")
    assert len(list(walk_images(image_folder))) == 30


def test_a_folder_that_is_not_a_data_set_is_refused_with_what_was_found(tmp_path):
    def error(folder):
        with pytest.raises(UserError) as caught:
            load_splits(folder, RATIOS, 0)
        return str(caught.value)

    assert "does not exist" in error(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    assert "is a file" in error(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert "contains no images" in error(tmp_path / "empty")
    save_image(tmp_path / "loose" / "a.png", 0, 0)
    assert "1 image but no class folders" in error(tmp_path / "loose")
    make_class_folders(tmp_path / "one", 3, classes=("only",))
    assert "only one class ('only')" in error(tmp_path / "one")
    make_class_folders(tmp_path / "hole", 3)
    (tmp_path / "hole" / "zebra").mkdir()
    assert "zebra looks like a class but contains no images" in error(tmp_path / "hole")
    make_class_folders(tmp_path / "few", 2)
    assert "too few images for train + valid + test: cat 2, dog 2, 개 2" in error(tmp_path / "few")
    make_class_folders(tmp_path / "hollow" / "train", 2)
    (tmp_path / "hollow" / "val").mkdir()
    assert "the valid folder" in error(tmp_path / "hollow")
    save_image(tmp_path / "flat" / "train" / "a.png", 0, 0)
    save_image(tmp_path / "flat" / "val" / "a.png", 0, 0)
    assert "the train folder" in error(tmp_path / "flat")


def test_a_folder_above_the_right_one_gets_a_hint(tmp_path):
    make_class_folders(tmp_path / "top" / "photos" / "train", 2)
    make_class_folders(tmp_path / "top" / "photos" / "val", 2)
    (tmp_path / "top" / "a").mkdir()
    for folder in (tmp_path / "top", tmp_path):
        with pytest.raises(UserError, match=r"did you mean --data_dir .*photos\?"):
            load_splits(folder, RATIOS, 0)


def test_missing_splits_are_taken_from_training(tmp_path):
    make_class_folders(tmp_path / "a" / "train", 8)
    splits = load_splits(tmp_path / "a", RATIOS, 0)
    assert (len(splits.valid), len(splits.test), splits.made) == (3, 6, ("valid", "test"))
    make_class_folders(tmp_path / "a" / "test", 2, seed=9)
    splits = load_splits(tmp_path / "a", RATIOS, 0)
    assert (len(splits.train), len(splits.valid), len(splits.test), splits.made) == (18, 6, 6, ("valid",))


def test_files_that_are_not_images_are_counted_by_ending(image_folder):
    for name in ("a.doc", "b.doc", "c.txt"):
        (image_folder / "cat" / name).write_bytes(b"x")
    splits = load_splits(image_folder, RATIOS, 0)
    assert splits.passed_over == {".doc": 2, ".txt": 1}
    assert "skipped 3 files without an image ending (.doc 2, .txt 1)" in others_text(splits.passed_over)


def test_a_class_missing_from_training_is_listed(split_folder):
    make_class_folders(split_folder / "val", 1, classes=("wolf",))
    with pytest.raises(UserError, match="lacks: wolf"):
        load_splits(split_folder, RATIOS, 0)


def test_a_validation_split_without_a_class_is_fine(split_folder):
    import shutil

    shutil.rmtree(split_folder / "val" / "dog")
    assert load_splits(split_folder, RATIOS, 0).class_names == ["cat", "dog", "개"]


def test_folders_are_labels_in_prediction_only_where_all_are_classes(image_folder, capsys):
    save_image(image_folder / "loose.png", 0, 0)
    for folder in (str(image_folder), f"{image_folder}{os.sep}"):
        assert len(list(input_samples([folder], ["cat", "dog", "개"]))) == 31
    (image_folder / "loose.png").unlink()
    labelled = list(input_samples([str(image_folder)], ["cat", "dog", "개"]))
    assert [s.label for s in labelled] == ["cat"] * 10 + ["dog"] * 10 + ["개"] * 10
    unlabelled = list(input_samples([str(image_folder)], ["cat", "dog"]))
    assert {s.label for s in unlabelled} == {None}
    assert "not used as labels" in capsys.readouterr().out


def write_table(root, header, rows):
    text = "\n".join([header, *rows]) + "\n"
    (root / "labels.csv").write_text(text, encoding="utf-8-sig")
    return root / "labels.csv"


def table_rows(root):
    return [f"{path.parent.name}/{path.name},{path.parent.name}" for path in sorted(root.rglob("*.png"))]


def test_a_table_of_paths_and_labels_is_a_data_set(image_folder):
    table = write_table(image_folder, "Filename,Species", table_rows(image_folder))
    splits = load_splits(None, RATIOS, 0, table)
    assert splits.class_names == ["cat", "dog", "개"]
    assert {name: len(part) for name, part in splits.by_name().items()} == {"train": 18, "valid": 6, "test": 6}
    by_folder = load_splits(image_folder, RATIOS, 0)
    assert [s.key for s in splits.test] == [s.key for s in by_folder.test], "the same photos, the same split"
    assert all(os.path.isfile(s.path) for s in splits.train)


def test_a_label_keeps_its_name_as_it_is_written(image_folder):
    rows = [row.rpartition(",")[0] + (",007" if "cat" in row else ",NA") for row in table_rows(image_folder)]
    assert load_splits(None, RATIOS, 0, write_table(image_folder, "path,label", rows)).class_names == ["007", "NA"]


def test_the_paths_of_a_table_can_be_relative_to_another_folder(image_folder, tmp_path):
    (tmp_path / "tables").mkdir()
    table = write_table(tmp_path / "tables", "a,b", table_rows(image_folder))
    splits = load_splits(image_folder, RATIOS, 0, table, Columns("a", "b"))
    assert all(os.path.isfile(s.path) for s in splits.train)


def test_an_unusable_table_is_refused_with_line_and_reason(image_folder):
    rows = table_rows(image_folder)

    def error(header, rows, **options):
        with pytest.raises(UserError) as caught:
            load_splits(None, RATIOS, 0, write_table(image_folder, header, rows), Columns(**options))
        return str(caught.value)

    assert "has the columns a, b; name the path column with --path_column" in error("a,b", rows)
    assert "did you mean path?" in error("path,label", rows, path="paht")
    assert "has 1 faulty line: line 3 has no label; 1 file not found (x.png)" in error(
        "path,label", [rows[0], "x.png,"]
    )
    clash = "line 3 has 2 labels ('cat/00.png' is cat in line 2 and dog here)"
    assert clash in error("path,label", [rows[0], rows[0].replace(",cat", ",dog")])
    assert "none of its images" in error("path,label", ["a.png,x", "b.png,x"])
    assert "is empty; expected a header line" in error("", [])
    with pytest.raises(UserError, match="No such file"):
        load_splits(None, RATIOS, 0, image_folder / "nothing.csv")
