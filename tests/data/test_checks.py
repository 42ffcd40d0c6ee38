import csv
import multiprocessing
import os
import shutil

import pytest
import torch
from helpers import TINY, gallery, make_class_folders, weights_of

import data_loader
from photo_classifier.data import checks, workers
from photo_classifier.data.checks import find_duplicates
from photo_classifier.data.discovery import load_splits

RATIOS = {"train": 0.6, "valid": 0.2, "test": 0.2}


def rows(path):
    return list(csv.DictReader(open(path, encoding="utf-8")))


@pytest.fixture
def leaky(split_folder):
    """One image in both splits, one in two classes, and a harmless copy within one class."""
    shutil.copy(split_folder / "train" / "cat" / "00.png", split_folder / "val" / "cat" / "copy.png")
    shutil.copy(split_folder / "train" / "dog" / "01.png", split_folder / "train" / "cat" / "wrong.png")
    shutil.copy(split_folder / "train" / "dog" / "02.png", split_folder / "train" / "dog" / "harmless.png")
    return split_folder


def test_identical_files_in_two_splits_or_classes_are_found(leaky):
    found = find_duplicates(load_splits(leaky, RATIOS, 0))
    assert sorted(os.path.relpath(copy.path, leaky) for copy in found.copies) == sorted(
        os.path.join(*parts)
        for parts in (
            ("train", "cat", "00.png"),
            ("val", "cat", "copy.png"),
            ("train", "dog", "01.png"),
            ("train", "cat", "wrong.png"),
        )
    )


def test_leaks_are_counted_with_an_example_and_listed(cli, leaky):
    done = cli("train", "--data_dir", leaky, *TINY, "--n_epochs", 1, "--run_dir", "r")
    assert done.status == 0
    assert "warning: 1 image in two splits (" in done.err
    assert "1 image in two classes (" in done.err
    found = rows("r/duplicates.csv")
    assert len(found) == 4
    assert found[0].keys() == {"path", "similar_to", "similarity", "cluster", "label", "split"}
    assert "26 train, 16 valid" in done.out


def test_drop_removes_the_training_copies_alone(cli, leaky):
    done = cli("train", "--data_dir", leaky, *TINY, "--n_epochs", 1, "--run_dir", "r", "--on_leak", "drop")
    assert "23 train, 16 valid" in done.out
    left = {row["path"] for row in rows("r/splits.csv")}
    assert not left & {row["path"] for row in rows("r/duplicates.csv") if row["split"] == "train"}
    assert (leaky / "train" / "cat" / "00.png").exists(), "the user's files stay"


def test_error_stops_before_training(cli, leaky):
    done = cli("train", "--data_dir", leaky, *TINY, "--on_leak", "error")
    assert done.status == 2
    assert done.err.count("\n") == 1
    assert "in two splits" in done.err
    assert "epoch" not in done.out


def test_only_the_end_is_read_of_files_of_equal_length_that_end_differently(split_folder, monkeypatch):
    contents = {"00": b"x" * 9000, "01": b"x" * 8999 + b"y", "02": b"x" * 9000, "03": b"z" + b"x" * 8999}
    for name, content in contents.items():
        (split_folder / "train" / "cat" / f"{name}.png").write_bytes(content)
    os.replace(split_folder / "train" / "cat" / "02.png", split_folder / "val" / "cat" / "02.png")
    read = []
    whole = checks._content_hash
    monkeypatch.setattr(checks, "_content_hash", lambda path: read.append(os.path.basename(path)) or whole(path))
    found = find_duplicates(load_splits(split_folder, RATIOS, 0))
    assert sorted(read) == ["00.png", "02.png", "03.png"], "01 ends otherwise"
    assert sorted(os.path.basename(copy.path) for copy in found.copies) == ["00.png", "02.png"]


def test_a_clean_set_has_no_duplicates_and_reads_no_file_of_its_own_length(split_folder, monkeypatch):
    for n, path in enumerate(sorted(split_folder.rglob("*.png"))):
        with open(path, "ab") as file:
            file.write(b"\0" * 1000 * n)  # every file has another length now
    monkeypatch.setattr(
        "photo_classifier.data.checks._hash", lambda *_, **__: pytest.fail("read a file that has no twin")
    )
    assert not find_duplicates(load_splits(split_folder, RATIOS, 0)).copies


def add_bad_files(root):
    """Every bad file of the gallery, some in training and some in validation; the paths that are listed."""
    made = gallery.unreadable(root.parent / "bad")
    listed = []
    for n, (title, path) in enumerate(sorted(made.items())):
        if title in ("missing", "folder"):
            continue
        split = ("train", "val")[n % 2]
        target = root / split / ("cat", "dog")[n // 2 % 2] / path.name
        os.rename(path, target)
        listed.append(str(target))
    return sorted(listed)


def test_exactly_the_bad_files_are_left_out_whatever_the_workers(cli, tmp_path):
    root = tmp_path / "d"
    make_class_folders(root / "train", 16)
    make_class_folders(root / "val", 8, seed=500)
    bad = add_bad_files(root)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    for n_workers in (0, 2):
        argv = ("--data_dir", root, *TINY, "--n_epochs", 1, "--max_bad", 0.9, "--n_workers", n_workers)
        done = cli("train", *argv, "--run_dir", f"r{n_workers}", "--model_fn", f"{n_workers}.pth")
        assert done.status == 0, done.err
        assert sorted(row["path"] for row in rows(f"r{n_workers}/skipped.csv")) == bad
        assert all(row["reason"] for row in rows(f"r{n_workers}/skipped.csv"))
        assert f"left out {len(bad)} images" in done.out
    first, second = weights_of("0.pth"), weights_of("2.pth")
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert before == {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}


def test_too_many_bad_files_stop_before_the_first_epoch(cli, split_folder):
    for n in range(4):
        (split_folder / "train" / "cat" / f"0{n}.png").write_bytes(b"text")
    done = cli("train", "--data_dir", split_folder, *TINY, "--run_dir", "r")
    assert done.status == 2
    assert "4 of 39 images cannot be read (.png 4), more than a share of 0.05" in done.err
    assert "epoch" not in done.out
    assert len(rows("r/skipped.csv")) == 4


@pytest.mark.parametrize("frozen", [(), ("--freeze",)])
def test_too_many_half_photos_stop_within_the_first_epoch(frozen, cli, split_folder):
    for path in (split_folder / "train").rglob("*.png"):
        path.write_bytes(path.read_bytes()[:-500])
    done = cli("train", "--data_dir", split_folder, *TINY, *frozen, "--model_fn", "m.pth")
    assert done.status == 2
    assert "more than a share of" in done.err
    assert "epoch 1" not in done.out
    assert not os.path.exists("m.pth")


def test_a_file_that_vanishes_on_the_way_is_left_out(cli, split_folder, monkeypatch):
    victim = split_folder / "train" / "cat" / "03.png"
    real = data_loader.decode

    def vanish_first(path, *options):
        victim.unlink(missing_ok=True)
        return real(path, *options)

    monkeypatch.setattr(data_loader, "decode", vanish_first)
    done = cli("train", "--data_dir", split_folder, *TINY, "--n_epochs", 1, "--run_dir", "r")
    assert done.status == 0
    assert [row["path"] for row in rows("r/skipped.csv")] == [str(victim)]


def test_a_class_without_a_readable_image_is_an_error(cli, split_folder):
    for path in (split_folder / "train" / "cat").iterdir():
        path.write_bytes(b"")
    done = cli("train", "--data_dir", split_folder, *TINY, "--max_bad", 1)
    assert done.status == 2
    assert "no image of cat is left" in done.err


def test_two_epochs_give_the_same_weights_for_any_number_and_kind_of_workers(cli, split_folder, monkeypatch):
    found = []
    methods = [m for m in ("fork", "spawn") if m in multiprocessing.get_all_start_methods()]
    for n_workers, method in ((0, methods[0]), (2, methods[0]), (4, methods[0]), (1, methods[-1])):
        with monkeypatch.context() as patch:
            patch.setattr(workers, "START_METHOD", method)
            argv = ("--data_dir", split_folder, *TINY, "--n_epochs", 2, "--batch_size", 8, "--dropout", 0.3)
            done = cli("train", *argv, "--n_workers", n_workers, "--model_fn", "m.pth")
        assert done.status == 0, done.err
        found.append(weights_of("m.pth"))
    for other in found[1:]:
        assert all(torch.equal(found[0][key], other[key]) for key in other)


def test_the_order_of_the_file_system_changes_no_number(cli, split_folder, monkeypatch):
    argv = ("--data_dir", split_folder, *TINY, "--n_epochs", 1)
    cli("train", *argv, "--model_fn", "a.pth")
    scandir = os.scandir

    class Reversed(list):
        """What `os.scandir` gives: also a context manager, as libraries use it."""

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(os, "scandir", lambda *folder: Reversed(reversed(list(scandir(*folder)))))
    cli("train", *argv, "--model_fn", "b.pth")
    first, second = weights_of("a.pth"), weights_of("b.pth")
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_validation_split_without_a_class_changes_no_weight(cli, split_folder):
    argv = ("--data_dir", split_folder, *TINY, "--n_epochs", 1)
    cli("train", *argv, "--model_fn", "a.pth")
    shutil.rmtree(split_folder / "val" / "cat")
    done = cli("train", *argv, "--model_fn", "b.pth")
    assert "/10)" in done.out
    first, second = (torch.load(name, weights_only=True) for name in ("a.pth", "b.pth"))
    assert first["class_names"] == second["class_names"]
    assert all(torch.equal(first["state_dict"][key], second["state_dict"][key]) for key in first["state_dict"])
