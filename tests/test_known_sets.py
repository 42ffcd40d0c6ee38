import os
import zipfile

import pytest
from conftest import make_class_folders, save_image

import known_sets
from known_sets import dataset_folder
from listing import walk_images
from samples import load_splits
from utils import UserError

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


def test_elpv_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr("known_sets.find_spec", lambda name: None)
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
    monkeypatch.setattr(known_sets, "HYMENOPTERA_URL", f"{file_server.url}/hymenoptera_data.zip")
    with pytest.raises(UserError, match="SHA-256"):
        dataset_folder("hymenoptera")
    assert not os.path.exists("dataset/hymenoptera")
    monkeypatch.setattr(known_sets, "HYMENOPTERA_SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    assert os.listdir(dataset_folder("hymenoptera") / "train" / "ants") == ["1.jpg"]
    assert os.listdir("dataset") == ["hymenoptera"]
