import errno
import os
import zipfile

import pytest
from helpers import make_class_folders, save_image

from photo_classifier.data import known_datasets
from photo_classifier.data.discovery import load_splits
from photo_classifier.data.image_files import walk_images
from photo_classifier.data.known_datasets import dataset_folder
from photo_classifier.runtime.errors import UserError

RATIOS = {"train": 0.6, "valid": 0.2, "test": 0.2}


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


def known_as(monkeypatch, make):
    monkeypatch.setitem(known_datasets.DATASETS, "tiny", known_datasets.KnownSet(make))


def test_two_runs_that_make_a_known_set_at_once_are_both_served(monkeypatch):
    def slow(folder):
        known_as(monkeypatch, lambda faster: make_class_folders(faster, 2))
        dataset_folder("tiny")  # the other run is faster
        make_class_folders(folder, 1)

    known_as(monkeypatch, slow)
    assert len(list(walk_images(dataset_folder("tiny")))) == 2 * 3
    assert os.listdir("dataset") == ["tiny"]


def test_a_known_set_that_cannot_be_written_leaves_nothing(monkeypatch):
    def full(folder):
        make_class_folders(folder, 1)
        raise OSError(errno.ENOSPC, "No space left on device")

    known_as(monkeypatch, full)
    with pytest.raises(UserError, match=r"cannot make dataset.tiny: No space left on device"):
        dataset_folder("tiny")
    assert os.listdir("dataset") == []


def test_elpv_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr("photo_classifier.data.known_datasets.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install elpv-dataset"):
        dataset_folder("elpv")
    assert not os.path.exists("dataset/elpv")


def test_elpv_is_made_from_its_package_with_the_split_of_its_paper(tmp_path, monkeypatch):
    data = tmp_path / "site" / "elpv_dataset" / "data"
    # as many of each probability and type as the real set has, divided by ten
    sizes = {"0.0 mono": 59, "0.0 poly": 92, "0.3333333333333333 mono": 12, "0.3333333333333333 poly": 18}
    sizes |= {"0.6666666666666666 mono": 5, "0.6666666666666666 poly": 5, "1.0 mono": 31, "1.0 poly": 40}
    kinds = [kind for kind, size in sizes.items() for _ in range(size)]
    save_image(data / "images" / "cell0.png", 0, 0)
    for n in range(1, len(kinds)):
        os.link(data / "images" / "cell0.png", data / "images" / f"cell{n}.png")
    (data / "labels.csv").write_text("".join(f"images/cell{n}.png  {kind}\n" for n, kind in enumerate(kinds)))
    (data.parent / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    folder = dataset_folder("elpv")
    found = {}
    for path in folder.rglob("*.png"):
        kind = kinds[int(path.stem.removeprefix("cell"))]
        assert path.parent.name == ("functional" if kind < "0.5" else "defective")
        found.setdefault(path.parent.parent.name, []).append(kind)
    assert len(found["test"]) == round(len(kinds) / 4)
    assert len(found["train"]) + len(found["test"]) == len(kinds)
    assert all(abs(found["test"].count(kind) - size / 4) < 1 for kind, size in sizes.items())


def test_hymenoptera_is_downloaded_checked_and_unpacked(file_server, monkeypatch):
    import hashlib

    archive = file_server.folder / "hymenoptera_data.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for split in ("train", "val"):
            for name in ("ants", "bees"):
                file.writestr(f"hymenoptera_data/{split}/{name}/1.jpg", b"x")
    monkeypatch.setattr(known_datasets, "HYMENOPTERA_URL", f"{file_server.url}/hymenoptera_data.zip")
    with pytest.raises(UserError, match="SHA-256"):
        dataset_folder("hymenoptera")
    assert not os.path.exists("dataset/hymenoptera")
    monkeypatch.setattr(known_datasets, "HYMENOPTERA_SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    assert os.listdir(dataset_folder("hymenoptera") / "train" / "ants") == ["1.jpg"]
    assert os.listdir("dataset") == ["hymenoptera"]
