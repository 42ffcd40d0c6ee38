"""Every layout that people bring, with a real tree of its shape, and everything that is nearly one."""

import os
import shutil
import unicodedata

import pytest
from helpers import TINY, assert_one_line_error, make_class_folders, save_image

from photo_classifier.data.discovery import load_splits
from photo_classifier.data.inputs import samples_at
from photo_classifier.data.layout_readers import flat_class
from photo_classifier.data.layouts import LAYOUTS

RATIOS = {"train": 0.6, "valid": 0.2, "test": 0.2}
CLASSES = ("cat", "dog")


def make_flat(folder, n_images, classes=CLASSES, seed=0):
    for hue, name in enumerate(classes):
        for n in range(n_images):
            save_image(folder / f"{name}.{n}.jpg", hue, seed + 100 * hue + n)
    return folder


def make_table(folder, n_images=10, header="path,label", classes=CLASSES, name="labels.csv", ending=".jpg", **options):
    rows = []
    for hue, label in enumerate(classes):
        for n in range(n_images):
            image = save_image(folder / "images" / f"{label[0]}{n}.jpg", hue, 100 * hue + n)
            rows.append(f"images/{image.stem}{ending},{label}")
    (folder / name).write_text("\n".join([header, *rows]) + "\n", **{"encoding": "utf-8", **options})
    return folder


def _splits(*names):
    def make(root):
        for seed, name in enumerate(names):
            make_class_folders(root / name, 5, CLASSES, seed=1000 * seed)

    return make


def _flat_splits(root):
    make_flat(root / "train", 5)
    make_flat(root / "val", 5, seed=1000)


def _kaggle_flat(root):
    make_flat(root / "train", 5)
    for n in range(3):
        save_image(root / "test1" / f"{n}.jpg", 0, 5000 + n)
        save_image(root / "extra" / f"{n}.jpg", 0, 6000 + n)


def _kaggle_table(root):
    make_table(root, 5, "image_id,breed", name="train.csv", ending="")
    (root / "train.csv").write_text((root / "train.csv").read_text().replace("images/", ""))
    (root / "images").rename(root / "train_images")
    for n in range(3):
        save_image(root / "test_images" / f"x{n}.jpg", 0, 5000 + n)
    (root / "sample_submission.csv").write_text("image_id,breed\nx0,cat\nx1,cat\nx2,cat\n")


def _split_tables(root):
    make_table(root, 5)
    lines = (root / "labels.csv").read_text().splitlines()
    (root / "labels.csv").unlink()
    for name, part in (("train", (1, 2, 3, 6, 7, 8)), ("val", (4, 5, 9, 10))):
        (root / f"{name}.csv").write_text("\n".join([lines[0], *(lines[n] for n in part)]))


# the shape, who makes it, images in train + valid + test
TREES = {
    "train and val": (_splits("train", "val"), "split folders", (10, 10, 0)),
    "train, valid and test": (_splits("train", "valid", "test"), "split folders", (10, 10, 10)),
    "train, validation and test": (_splits("train", "validation", "test"), "split folders", (10, 10, 10)),
    "train and test": (_splits("train", "test"), "split folders", (8, 2, 10)),
    "training_set and test_set": (_splits("training_set", "test_set"), "split folders", (8, 2, 10)),
    "nested": (_splits("training_set/training_set", "test_set/test_set"), "split folders", (8, 2, 10)),
    "three folders down": (_splits("photos/photos/data/train", "photos/photos/data/val"), "split folders", (10, 10, 0)),
    "upper case": (_splits("Train", "Test"), "split folders", (8, 2, 10)),
    "class folders": (lambda root: make_class_folders(root, 5, CLASSES), "class folders", (6, 2, 2)),
    "flat files": (lambda root: make_flat(root, 5), "files named after their class", (6, 2, 2)),
    "train of flat files": (lambda root: make_flat(root / "train", 5), "split folders", (6, 2, 2)),
    "train of flat files beside other folders": (_kaggle_flat, "split folders", (6, 2, 2)),
    "nested train of flat files": (lambda root: make_flat(root / "train" / "train", 5), "split folders", (6, 2, 2)),
    "splits of flat files": (_flat_splits, "split folders", (10, 10, 0)),
    "a table": (lambda root: make_table(root, 5), "a table of paths and labels", (6, 2, 2)),
    "a table of bare names": (_kaggle_table, "a table of paths and labels", (6, 2, 2)),
    "a table for each split": (_split_tables, "a table of paths and labels", (6, 4, 0)),
}


@pytest.fixture(params=TREES)
def tree(request, tmp_path):
    make, layout, counts = TREES[request.param]
    (tmp_path / "data").mkdir()
    make(tmp_path / "data")
    return tmp_path / "data", layout, counts


def _keys(splits):
    return {name: [(s.key, s.label) for s in part] for name, part in splits.by_name().items()}


def test_every_layout_is_recognised_as_it_is_in_a_folder_and_in_archives(tree, tmp_path):
    root, layout, counts = tree
    splits = load_splits(root, RATIOS, 0)
    assert splits.layout.startswith(layout)
    assert splits.class_names == ["cat", "dog"]
    assert (len(splits.train), len(splits.valid), len(splits.test)) == counts
    assert all(os.path.isfile(s.path) for part in splits.by_name().values() for s in part)
    assert layout in LAYOUTS
    for kind in ("zip", "gztar"):
        inside = shutil.make_archive(str(tmp_path / "inside"), kind, root)
        around = shutil.make_archive(str(tmp_path / "around"), kind, tmp_path, "data")
        for archive in (inside, around):
            assert _keys(load_splits(archive, RATIOS, 0)) == _keys(splits), "the same photos, the same splits"


def test_prediction_knows_the_labels_of_every_layout(tree, tmp_path):
    root, _, _ = tree
    splits = load_splits(root, RATIOS, 0)
    expected = {s.path: s.label for part in splits.by_name().values() for s in part}
    found = {s.path: s.label for s in samples_at(str(root), CLASSES)}
    assert {path: label for path, label in found.items() if label} == expected
    archive = shutil.make_archive(str(tmp_path / "archive"), "zip", root)
    again = [s.label for s in samples_at(archive, CLASSES)]
    assert again == list(found.values())
    assert not any(s.label for s in samples_at(str(root), ["cat"])), "a label that is no class makes none"


def test_a_table_beside_an_archive_names_the_files_inside(tmp_path):
    make_table(tmp_path / "photos", 5)
    (tmp_path / "photos" / "labels.csv").rename(tmp_path / "mine.csv")
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "photos")
    splits = load_splits(archive, RATIOS, 0, tmp_path / "mine.csv")
    assert (len(splits.train), len(splits.valid), len(splits.test)) == (6, 2, 2)
    assert all("archives" in s.path and os.path.isfile(s.path) for s in splits.train)


def test_a_table_trains_and_predicts_from_the_command_line(cli, tmp_path):
    make_table(tmp_path / "photos")
    shutil.make_archive("photos", "gztar", tmp_path / "photos")
    shutil.rmtree(tmp_path / "photos")
    done = cli("train", "--data_dir", "photos.tar.gz", *TINY, "--n_epochs", 1, "--model_fn", "m.pth")
    assert done.status == 0, done.err
    assert "unpacked photos.tar.gz into" in done.out
    assert "a table of paths and labels (labels.csv: path, label); 12 train, 4 valid, 4 test images" in done.out
    done = cli("predict", "--model_fn", "m.pth", "--input", "photos.tar.gz", "--n_workers", 0)
    assert "is already unpacked in" in done.out
    assert "/20)" in done.out.splitlines()[-1]


ODD = ("golden retriever", "강아지", "고양이 2호", "🐈 café")


def _in_form(form):
    return tuple(unicodedata.normalize(form, name) for name in ODD)


@pytest.mark.parametrize(("here", "there"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_spaces_korean_and_emoji_are_names_in_every_layout(here, there, tmp_path):
    make_class_folders(tmp_path / "split" / "train", 3, _in_form(here))
    make_class_folders(tmp_path / "split" / "val", 2, _in_form(there), seed=1000)
    make_flat(tmp_path / "flat" / "train", 3, _in_form(here))
    make_flat(tmp_path / "flat" / "val", 2, _in_form(there), seed=1000)
    make_class_folders(tmp_path / "table" / "사진".strip(), 3, _in_form(here))
    rows = [f'"사진/{name}/{n:02d}.png",{name}' for name in _in_form(there) for n in range(3)]
    (tmp_path / "table" / "labels.csv").write_text("\n".join(["path,label", *rows]), encoding="utf-8")
    for name in ("split", "flat", "table"):
        splits = load_splits(tmp_path / name, RATIOS, 0)
        assert splits.class_names == sorted(ODD)
        assert {s.label for s in splits.valid} == set(ODD)
        samples = [s for part in splits.by_name().values() for s in part]
        assert all(os.path.isfile(s.path) and s.key == unicodedata.normalize("NFC", s.key) for s in samples)
        assert {s.label for s in samples_at(str(tmp_path / name), ODD)} == set(ODD)


def test_upper_case_endings_are_images(tmp_path):
    for n, ending in enumerate(("JPG", "Jpeg", "PNG", "jpg", "TIF")):
        for hue, name in enumerate(CLASSES):
            save_image(tmp_path / "flat" / f"{name}.{n}.{ending}", hue, n)
    assert sum(map(len, load_splits(tmp_path / "flat", RATIOS, 0).by_name().values())) == 10


def test_hidden_files_are_skipped_in_every_layout(tree):
    root, _, _ = tree
    before = _keys(load_splits(root, RATIOS, 0))
    for folder in [root, *(path for path in root.rglob("*") if path.is_dir())]:
        for name in (".DS_Store", "._cat.7.jpg", "Thumbs.db", ".hidden/cat.1.jpg", "__MACOSX/cat.1.jpg", ".labels.csv"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(b"x")
    splits = load_splits(root, RATIOS, 0)
    assert _keys(splits) == before
    assert splits.passed_over.keys() == {".hidden/", "__MACOSX/"}
    assert all(s.label or "test" in s.path for s in samples_at(str(root), CLASSES))


def test_a_time_in_a_file_name_is_not_a_class():
    assert [flat_class(name) for name in ("cat.1.jpg", "St. Bernard.12.JPG", "dog2.3.png", "7.1.png")] == [
        "cat", "St. Bernard", "dog2", "7"
    ]  # fmt: skip
    for name in ("Screenshot 2024-01-02 at 10.11.12.png", "cat.jpg", "cat.x.jpg", "1.jpg", ".1.jpg", "IMG_0001.jpg"):
        assert flat_class(name) is None


def test_class_folders_that_differ_between_splits_are_listed(cli, tmp_path):
    make_class_folders(tmp_path / "d" / "train", 3, ("cat", "dog", "wolf"))
    make_class_folders(tmp_path / "d" / "val", 3, ("cat", "dgo", "wlof"))
    done = cli("train", "--data_dir", tmp_path / "d")
    assert_one_line_error(
        done, "the valid split has classes that the training split lacks: dgo, wlof (and it lacks dog, wolf)"
    )
    shutil.rmtree(tmp_path / "d" / "val" / "dgo")
    shutil.rmtree(tmp_path / "d" / "val" / "wlof")
    assert "the valid split has no images of dog, wolf" in load_splits(tmp_path / "d", RATIOS, 0).notes


def test_images_without_a_class_are_counted(tmp_path):
    make_class_folders(tmp_path / "d", 5, CLASSES)
    save_image(tmp_path / "d" / "loose.png", 0, 0)
    assert any("left out 1 image without a class" in note for note in load_splits(tmp_path / "d", RATIOS, 0).notes)
    make_flat(tmp_path / "k" / "train", 5)
    for n in range(4):
        save_image(tmp_path / "k" / "test" / f"{n}.jpg", 0, n)
    splits = load_splits(tmp_path / "k", RATIOS, 0)
    assert (len(splits.test), splits.notes) == (
        2,
        (f"left out 4 images without a class ({tmp_path / 'k' / 'test'} 4)",),
    )


def test_images_that_a_table_does_not_list_are_told_from_those_that_cannot_be_read(tmp_path):
    root = make_class_folders(tmp_path / "d", 5, CLASSES)
    (root / CLASSES[0] / "bad.png").write_text("hello, this is text")
    save_image(root / "new.png", 0, 0)
    names = sorted(path for path in root.rglob("*.png") if path.name not in ("bad.png", "new.png"))
    rows = [f"{path.relative_to(root).as_posix()},{path.parent.name}" for path in names]
    table = tmp_path / "suspects.csv"
    table.write_text("\n".join(["path,label", *rows]), encoding="utf-8")
    unlisted, unreadable = load_splits(root, RATIOS, 0, labels=table).notes
    assert unlisted == f"left out 1 image that suspects.csv does not list ({root} 1)"
    bad = root / CLASSES[0] / "bad.png"
    assert unreadable == f"left out 1 image that cannot be read ({bad}: is not an image in a known format)"


def test_a_class_named_train_is_a_class(tmp_path):
    make_class_folders(tmp_path / "d", 5, ("car", "plane", "train"))
    for name in ("car", "plane", "train"):
        make_flat(tmp_path / "e" / name, 5, (name,))
    for name in "de":
        assert load_splits(tmp_path / name, RATIOS, 0).class_names == ["car", "plane", "train"]


def test_class_folders_take_precedence_over_a_table_and_a_note_says_so(tmp_path):
    make_class_folders(tmp_path / "d", 5, CLASSES)
    (tmp_path / "d" / "result.csv").write_text("file_dir,label\ncat/00.png,\ncat/01.png,wolf\n")
    splits = load_splits(tmp_path / "d", RATIOS, 0)
    assert (splits.layout, splits.class_names) == ("class folders", ["cat", "dog"])
    assert any("result.csv was not used" in note for note in splits.notes)


def _mixed(root):
    make_flat(root, 3)
    save_image(root / "photo.jpg", 0, 0)


def _two_tables(root):
    make_table(root, 3, name="a.csv")
    make_table(root, 3, name="b.csv")


def _archive_inside(root):
    make_class_folders(root / "photos", 3, CLASSES)
    shutil.make_archive(str(root / "photos"), "zip", root / "photos")
    shutil.rmtree(root / "photos")


NEARLY = {
    "an archive in a folder": (_archive_inside, "{root} contains no images but an archive; use --data_dir {root}"),
    "empty folder": (lambda root: None, "contains no images"),
    "one class folder": (lambda root: make_class_folders(root, 3, ("cat",)), "has only one class ('cat')"),
    "one class in train": (lambda root: make_class_folders(root / "train", 3, ("cat",)), "has only one class ('cat')"),
    "one class of flat files": (lambda root: make_flat(root, 3, ("cat",)), "has only one class ('cat')"),
    "one label in a table": (lambda root: make_table(root, 3, classes=("cat",)), "has only one class ('cat')"),
    "mixed names": (_mixed, "6 of 7 images in {root} are named like cat.0.jpg, but photo.jpg is not"),
    "no train": (_splits("val", "test"), "has the splits valid and test but no train folder"),
    "two for one split": (_splits("train", "val", "valid"), "are both the valid split"),
    "wrong columns": (
        lambda root: make_table(root, 3, "a,b"),
        "labels.csv has the columns a, b; name the path column with --path_column and",
    ),
    "two tables": (_two_tables, "has 2 tables of paths and labels"),
}


@pytest.mark.parametrize("name", NEARLY)
def test_what_is_nearly_a_layout_is_explained_in_one_line(name, cli, tmp_path):
    make, expected = NEARLY[name]
    (tmp_path / "d").mkdir()
    make(tmp_path / "d")
    assert_one_line_error(cli("train", "--data_dir", "d"), expected.format(root="d"))
