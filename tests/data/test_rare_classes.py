import json
import re
import shutil

import pytest
from helpers import TINY, make_class_folders

from photo_classifier.data.discovery import load_splits
from photo_classifier.data.samples import Sample
from photo_classifier.data.splitting import stratified_split
from photo_classifier.runtime.errors import UserError

RATIOS = {"train": 0.6, "valid": 0.2, "test": 0.2}


def make(root, counts):
    """A folder for each class, also for those without images."""
    for name, n in counts.items():
        make_class_folders(root, n, (name,))
        (root / name).mkdir(parents=True, exist_ok=True)
    return root


def load(root, least=None):
    return load_splits(root, RATIOS, 0, min_images=least)


def sizes(splits):
    return {name: len(part) for name, part in splits.by_name().items()}


# the folders, the classes in question, and how many classes each value that the message advises leaves
ADVICE = {
    "rare": ({"": {"cat": 6, "dog": 6, "fox": 1, "owl": 2}}, "fox 1, owl 2", {3: 2, 1: 4}),
    "all but one rare": ({"": {"cat": 6, "fox": 1, "owl": 1}}, "fox 1, owl 1", {1: 3}),
    "nothing to validate on": ({"": {"cat": 1, "dog": 1}}, "cat 1, dog 1", {}),
    "empty": ({"": {"cat": 3, "dog": 3, "fox": 0, "owl": 0}}, "fox, .*owl look like classes", {1: 2}),
    "empty beside rare": ({"": {"cat": 3, "dog": 1, "fox": 0}}, "test: dog 1, fox 0;", {1: 2}),
    "both beside others": ({"": {"cat": 3, "dog": 3, "fox": 0, "owl": 2}}, "test: owl 2, fox 0;", {3: 2, 1: 3}),
    "with a test split": ({"train": {"cat": 3, "dog": 3, "fox": 1}, "test": {"cat": 1}}, "valid: fox 1", {2: 2, 1: 3}),
    "nothing to train on": (
        {"train": {"cat": 3, "dog": 3, "fox": 0}, "val": {"cat": 1, "dog": 1, "fox": 2}},
        "fox looks like a class",
        {1: 2},
    ),
    "unlike in the splits": (
        {"train": {"cat": 3, "dog": 3}, "val": {"cat": 1, "dgo": 1}, "test": {"dog": 1, "cta": 1}},
        r"test split .*: cta \(and it lacks cat\); the valid split .*: dgo",
        {1: 2},
    ),
}


@pytest.mark.parametrize("name", ADVICE)
def test_rare_and_empty_classes_are_named_at_once_with_advice_that_works(name, tmp_path):
    folders, named, advice = ADVICE[name]
    for split, counts in folders.items():
        make(tmp_path / "d" / split, counts)
    with pytest.raises(UserError, match=named) as error:
        load(tmp_path / "d")
    assert {int(n) for n in re.findall(r"--min_images (\d+)", str(error.value))} == set(advice)
    for least, n_classes in advice.items():
        assert len(load(tmp_path / "d", least).class_names) == n_classes
    if "remove the folders that are not classes" in str(error.value):
        for folder in [path for path in (tmp_path / "d").rglob("*") if path.is_dir() and not any(path.iterdir())]:
            folder.rmdir()
        load(tmp_path / "d", 1)


def test_classes_left_out_are_named_with_their_counts_in_one_line(tmp_path):
    make(tmp_path / "d", {"cat": 6, "dog": 5, "fox": 4, "owl": 1, "yak": 0})
    splits = load(tmp_path / "d", 5)
    assert splits.class_names == ["cat", "dog"]
    assert "left out, with fewer than 5 images to train on: fox 4, owl 1, yak 0" in splits.notes
    with pytest.raises(UserError, match=r"7 images .*\(cat 6, dog 5, .*yak 0\); choose at most 5 \(--min_images\)"):
        load(tmp_path / "d", 7)


def test_a_rare_class_that_is_kept_goes_to_training_first():
    samples = [
        Sample(f"{n}", label, f"{label}{n}") for label, n_all in (("a", 9), ("b", 1), ("c", 2)) for n in range(n_all)
    ]
    parts = stratified_split(samples, RATIOS, 0)
    where = {label: [name for name, part in parts.items() for s in part if s.label == label] for label in "bc"}
    assert where == {"b": ["train"], "c": ["train", "valid"]}


def test_a_class_of_one_photo_trains_and_every_report_copes(cli, tmp_path):
    make(tmp_path / "d", {"cat": 6, "dog": 6, "fox": 1, "yak": 0})
    argv = ("train", "--data_dir", "d", *TINY, "--class_weights", "balanced", "--n_epochs", 1, "--model_fn", "m.pth",
            "--run_dir", "r", "--min_images", 1)  # fmt: skip
    done = cli(*argv)
    assert done.status == 0, done.err
    assert "left out, with fewer than 1 image to train on: yak 0" in done.out
    assert "the valid split has no images of fox" in done.out
    report = json.loads((tmp_path / "r" / "report.json").read_text(encoding="utf-8"))
    assert [row["support"] for row in report["validation"]["classes"]][2] == 0
    predicted = cli("predict", "--model_fn", "m.pth", "--n_workers", 0, "--gpu_id", -1, "--report", "p")
    assert predicted.out.splitlines()[-1] == done.out.splitlines()[-1]
    shutil.rmtree(tmp_path / "d" / "fox")
    assert "--min_images 2 would change the result" in cli("train", "--resume", "r", "--min_images", 2).err


def test_files_of_other_formats_in_a_class_that_is_left_out_do_not_count(tmp_path):
    make(tmp_path / "d", {"cat": 6, "dog": 6, "raw": 0, "fox": 1})
    (tmp_path / "d" / "raw" / "a.dng").write_bytes(b"x")
    with pytest.raises(UserError, match=r"raw 0 \(.*1 .dng \(is a camera raw file.*--min_images 2") as error:
        load(tmp_path / "d")
    assert str(error.value).count("raw contains no images") == 1
    splits = load(tmp_path / "d", 2)
    assert (splits.class_names, splits.unread) == (["cat", "dog"], {})
    assert "1 .dng" in " ".join(splits.notes)
