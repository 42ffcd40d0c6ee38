import csv
import os

import pytest
import torch
from conftest import assert_one_line_error


def rows(path="result.csv"):
    with open(path, encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def test_one_row_for_every_input_in_input_order(cli, trained, image_folder, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"nothing")
    done = cli("predict", "--model_fn", "tiny.pth", "--input", image_folder / "dog", "bad.jpg",
               image_folder / "cat" / "00.png", "--n_workers", 0)  # fmt: skip
    assert done.status == 3
    found = rows()
    assert [row["file_dir"] for row in found] == [
        *(str(image_folder / "dog" / f"{n:02d}.png") for n in range(10)),
        "bad.jpg",
        str(image_folder / "cat" / "00.png"),
    ]
    assert [row["status"] for row in found] == ["ok"] * 10 + ["error", "ok"]
    assert (found[10]["predict"], found[10]["probability"]) == ("", "")
    assert found[10]["reason"]
    assert "1 of them could not be read" in done.out


def test_the_table_opens_in_excel_and_has_the_fixed_columns(cli, trained):
    cli("predict", "--model_fn", "tiny.pth", "--n_workers", 0)
    assert open("result.csv", "rb").read(3) == b"\xef\xbb\xbf"
    header = open("result.csv", encoding="utf-8-sig").readline().strip()
    assert header == "file_dir,predict,probability,label,status,reason"
    assert {row["label"] for row in rows()} == {"cat", "dog", "개"}
    assert all(0 <= float(row["probability"]) <= 1 for row in rows())


def test_folders_that_are_classes_are_labels(cli, trained, image_folder):
    done = cli("predict", "--model_fn", "tiny.pth", "--input", image_folder, "--n_workers", 0)
    assert "/30)" in done.out
    (image_folder / "wolf").mkdir()
    done = cli("predict", "--model_fn", "tiny.pth", "--input", image_folder, "--n_workers", 0)
    assert "not taken as labels" in done.out
    assert "accuracy" not in done.out


def test_the_held_out_images_are_found_from_another_folder(cli, trained, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    done = cli("predict", "--model_fn", "../tiny.pth", "--n_workers", 0)
    assert done.out.splitlines()[-1] == trained.out.splitlines()[-1]


def test_a_name_with_a_newline_is_one_row(cli, trained, image_folder):
    try:
        os.rename(image_folder / "cat" / "00.png", image_folder / "cat" / "a\nb 개.png")
    except OSError:
        pytest.skip("no such names here")
    cli("predict", "--model_fn", "tiny.pth", "--input", image_folder / "cat", "--n_workers", 0)
    assert [row["file_dir"].endswith("a\nb 개.png") for row in rows()].count(True) == 1


MISTAKES = {
    "no checkpoint": (["--model_fn", "nowhere.pth"], "there is no checkpoint nowhere.pth; this folder has"),
    "no input": (["--model_fn", "tiny.pth", "--input", "nowhere"], "--input nowhere does not exist"),
    "empty folder": (["--model_fn", "tiny.pth", "--input", "empty"], "no images were found"),
    "no model": (["--model_fn", "text.pth"], "text.pth"),
    "device": (["--model_fn", "tiny.pth", "--gpu_id", "7"], "--gpu_id 7 is not on this machine"),
    "flag": (["--model_file", "tiny.pth"], "did you mean --model_fn?"),
    "result": (["--model_fn", "tiny.pth", "--result", "tiny.pth/result.csv"], "cannot write"),
    "result into a folder": (["--model_fn", "tiny.pth", "--result", "empty"], "--result empty is a folder"),
    "result over the model": (["--model_fn", "tiny.pth", "--result", "tiny.pth"], "would overwrite a model"),
    "another model": (["--model_fn", "resnet.pth"], "this folder has text.pth, tiny.pth; name it with --model_fn"),
    "no flag": (["photos"], "did you mean --input photos?"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_ends_in_one_line_that_says_what_to_do(name, cli, trained, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.pth").write_text("hello")
    argv, expected = MISTAKES[name]
    done = cli("predict", *argv)
    assert_one_line_error(done, expected)


def test_any_family_predicts_the_recorded_accuracy(cli, split_folder):
    for name, size in (("squeezenet", 32), ("timm/mobilenetv3_small_050", 32)):
        for precision in ("fp32", "bf16"):
            argv = ("--data_dir", split_folder, "--model_name", name, "--image_size", size, "--n_epochs", 2)
            done = cli("train", *argv, "--n_workers", 0, "--model_fn", "m.pth", "--precision", precision)
            metrics = torch.load("m.pth", weights_only=True)["metrics"]["valid"]
            predicted = cli("predict", "--model_fn", "m.pth", "--n_workers", 0)
            assert predicted.out.splitlines()[-1] == done.out.splitlines()[-1]
            assert f"({metrics['correct']}/15)" in predicted.out
