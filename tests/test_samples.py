import os
import random
import unicodedata
import zipfile

import pytest
from conftest import make_class_folders, save_image

import samples
from samples import dataset_folder, input_samples, load_splits, stratified_split, walk_images
from utils import UserError

RATIOS = {"train": 0.6, "valid": 0.2, "test": 0.2}


def test_class_folders_are_split_by_the_ratios_class_by_class(image_folder):
    splits = load_splits(image_folder, RATIOS, seed=0)
    assert splits.class_names == ["cat", "dog", "개"]
    for part, n in ((splits.train, 6), (splits.valid, 2), (splits.test, 2)):
        assert [sum(s.label == name for s in part) for name in splits.class_names] == [n, n, n]
    paths = [s.path for part in splits.by_name().values() for s in part]
    assert sorted(paths) == sorted(walk_images(image_folder))


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
    made = [samples.Sample(f"/anywhere/{n}.png", "a", f"a/{n}.png") for n in range(10)]
    parts = stratified_split(made, RATIOS, seed=0)
    assert [s.key for s in parts["test"]] == ["a/2.png", "a/9.png"]


def test_korean_class_folders_match_whatever_their_unicode_form(tmp_path):
    make_class_folders(tmp_path / "d" / "train", 2, classes=("a", unicodedata.normalize("NFC", "강아지")))
    make_class_folders(tmp_path / "d" / "val", 2, classes=("a", unicodedata.normalize("NFD", "강아지")))
    splits = load_splits(tmp_path / "d", RATIOS, seed=0)
    assert splits.class_names == ["a", "강아지"]
    assert {s.label for s in splits.valid} == {"a", "강아지"}


def test_hidden_files_and_what_systems_leave_behind_are_passed_over(image_folder):
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


def test_what_is_no_data_folder_is_told_with_what_was_found(tmp_path):
    def error(folder):
        with pytest.raises(UserError) as caught:
            load_splits(folder, RATIOS, 0)
        return str(caught.value)

    assert "does not exist" in error(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    assert "is a file" in error(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert "holds no images" in error(tmp_path / "empty")
    save_image(tmp_path / "loose" / "a.png", 0, 0)
    assert "1 images but no class folders" in error(tmp_path / "loose")
    make_class_folders(tmp_path / "one", 3, classes=("only",))
    assert "one class only ('only')" in error(tmp_path / "one")
    make_class_folders(tmp_path / "hole", 3)
    (tmp_path / "hole" / "zebra").mkdir()
    assert "zebra was taken for a class, but it holds no images" in error(tmp_path / "hole")
    make_class_folders(tmp_path / "few", 2)
    assert "has 2 image(s), too few" in error(tmp_path / "few")
    make_class_folders(tmp_path / "hollow" / "train", 2)
    (tmp_path / "hollow" / "val").mkdir()
    assert "the valid folder in" in error(tmp_path / "hollow")
    save_image(tmp_path / "flat" / "train" / "a.png", 0, 0)
    save_image(tmp_path / "flat" / "val" / "a.png", 0, 0)
    assert "the train folder in" in error(tmp_path / "flat")


def test_a_folder_above_the_right_one_is_told(tmp_path):
    make_class_folders(tmp_path / "top" / "photos" / "train", 2)
    make_class_folders(tmp_path / "top" / "photos" / "val", 2)
    (tmp_path / "top" / "a").mkdir()
    for folder in (tmp_path / "top", tmp_path):
        with pytest.raises(UserError, match=r"did you mean --data_dir .*photos\?"):
            load_splits(folder, RATIOS, 0)


def test_train_alone_and_train_with_test_get_the_splits_they_lack(tmp_path):
    make_class_folders(tmp_path / "a" / "train", 8)
    splits = load_splits(tmp_path / "a", RATIOS, 0)
    assert (len(splits.valid), len(splits.test), splits.made) == (3, 6, ("valid", "test"))
    make_class_folders(tmp_path / "a" / "test", 2, seed=9)
    splits = load_splits(tmp_path / "a", RATIOS, 0)
    assert (len(splits.train), len(splits.valid), len(splits.test), splits.made) == (18, 6, 6, ("valid",))


def test_files_that_are_no_images_are_counted_by_their_ending(image_folder):
    for name in ("a.heic", "b.heic", "c.txt"):
        (image_folder / "cat" / name).write_bytes(b"x")
    splits = load_splits(image_folder, RATIOS, 0)
    assert splits.passed_over == {".heic": 2, ".txt": 1}
    assert "3 files that are no images by their ending (.heic 2, .txt 1)" in samples.others_text(splits.passed_over)


def test_a_class_that_training_lacks_is_listed(split_folder):
    make_class_folders(split_folder / "val", 1, classes=("wolf",))
    with pytest.raises(UserError, match="lacks: wolf"):
        load_splits(split_folder, RATIOS, 0)


def test_a_validation_split_without_a_class_is_fine(split_folder):
    import shutil

    shutil.rmtree(split_folder / "val" / "dog")
    assert load_splits(split_folder, RATIOS, 0).class_names == ["cat", "dog", "개"]


def test_digits_are_written_once_as_png_files():
    folder = dataset_folder("digits")
    images = list(walk_images(folder))
    assert len(images) == 1797
    assert str(folder) == os.path.join("dataset", "digits")
    stamp = os.stat(images[0]).st_mtime_ns
    assert os.stat(next(walk_images(dataset_folder("digits")))).st_mtime_ns == stamp


def test_a_folder_below_dataset_is_a_data_set_by_its_name(tmp_path):
    make_class_folders(tmp_path / "dataset" / "mine", 4)
    assert load_splits(dataset_folder("mine"), RATIOS, 0).class_names == ["cat", "dog", "개"]


def test_an_unknown_data_set_names_the_nearest():
    with pytest.raises(UserError, match=r"did you mean digits\?"):
        dataset_folder("digit")


def test_elpv_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install elpv-dataset"):
        dataset_folder("elpv")
    assert not os.path.exists("dataset/elpv")


def test_elpv_is_made_from_its_package(tmp_path, monkeypatch):
    data = tmp_path / "site" / "elpv_dataset" / "data"
    for n in range(4):
        save_image(data / "images" / f"cell{n}.png", 0, n)
    (data / "labels.csv").write_text(
        "".join(f"images/cell{n}.png  {p}  mono\n" for n, p in enumerate((0.0, 0.3333333, 0.6666667, 1.0)))
    )
    (data.parent / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    folder = dataset_folder("elpv")
    assert sorted(os.listdir(folder / "defective")) == ["cell2.png", "cell3.png"]
    assert sorted(os.listdir(folder / "functional")) == ["cell0.png", "cell1.png"]


def test_hymenoptera_is_downloaded_checked_and_unpacked(file_server, monkeypatch):
    import hashlib

    archive = file_server.folder / "hymenoptera_data.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for split in ("train", "val"):
            for name in ("ants", "bees"):
                file.writestr(f"hymenoptera_data/{split}/{name}/1.jpg", b"x")
    monkeypatch.setattr(samples, "HYMENOPTERA_URL", f"{file_server.url}/hymenoptera_data.zip")
    with pytest.raises(UserError, match="SHA-256"):
        dataset_folder("hymenoptera")
    assert not os.path.exists("dataset/hymenoptera")
    monkeypatch.setattr(samples, "HYMENOPTERA_SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    assert os.listdir(dataset_folder("hymenoptera") / "train" / "ants") == ["1.jpg"]
    assert os.listdir("dataset") == ["hymenoptera"]


def test_folders_are_labels_in_prediction_only_where_all_are_classes(image_folder, capsys):
    save_image(image_folder / "loose.png", 0, 0)
    for folder in (str(image_folder), f"{image_folder}{os.sep}"):
        assert len(input_samples([folder], ["cat", "dog", "개"])) == 31
    (image_folder / "loose.png").unlink()
    labelled = input_samples([str(image_folder)], ["cat", "dog", "개"])
    assert [s.label for s in labelled] == ["cat"] * 10 + ["dog"] * 10 + ["개"] * 10
    unlabelled = input_samples([str(image_folder)], ["cat", "dog"])
    assert {s.label for s in unlabelled} == {None}
    assert "not taken as labels" in capsys.readouterr().out
