"""An exported model and its one-file predictor answer as the checkpoint does."""

import csv
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from helpers import assert_one_line_error, gallery, save_image
from PIL import Image

from photo_classifier import Predictor, UserError
from photo_classifier.export import graph, proof
from photo_classifier.export.proof import load_file
from photo_classifier.models.checkpoint import load_checkpoint
from photo_classifier.runtime.files import sha256_file

FOREIGN = "torch torchvision timm pandas openpyxl msgspec scipy safetensors tqdm photo_classifier".split()

pytestmark = pytest.mark.skipif(not find_spec("onnxruntime"), reason="requirements-export.txt is not installed")


def run_alone(*args):
    """Runs the one file as in an environment that has nothing but its three libraries."""
    code = f"import runpy, sys; sys.modules.update(dict.fromkeys({FOREIGN})); sys.argv = sys.argv[1:]\n"
    code += "runpy.run_path(sys.argv[0], run_name='__main__')"
    return subprocess.run([sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, check=False)


def rows_of(path):
    return list(csv.DictReader(open(path, encoding="utf-8-sig", newline="")))


def assert_same_result(ours, theirs):
    """Checks that two results are the same bytes, but for the last digits of probabilities."""
    mine, its = rows_of(ours), rows_of(theirs)
    for one, other in zip(mine, its, strict=True):
        numbers = [name for name in one if name.startswith(("probability", "p_"))]
        assert [other[name] and float(other[name]) for name in numbers] == [
            one[name] and pytest.approx(float(one[name]), abs=1e-5) for name in numbers
        ]
        other |= {name: one[name] for name in numbers}
    assert mine == its
    assert Path(theirs).read_bytes().startswith(b"\xef\xbb\xbf" + Path(ours).read_bytes()[3:].partition(b"\r\n")[0])


def test_the_export_says_what_it_wrote_and_proved(exported):
    assert exported.status == 0
    assert "wrote   tiny.onnx" in exported.out
    assert "proven  on 15 photos: 0 changed answers, probabilities differ by at most" in exported.out
    report = json.loads(Path("export.json").read_text(encoding="utf-8"))
    assert report["proof"]["n_photos"] == 15
    assert report["proof"]["changed_answers"] == 0
    assert report["proof"]["largest_difference"] < 1e-5
    assert set(report["proof"]["milliseconds_per_photo"]) == {"checkpoint", "exported"}
    sizes = {name: Path(name).stat().st_size for name in ("tiny.onnx", "tiny_onnx.py")}
    assert report["bytes"] == {"checkpoint": Path("tiny.pth").stat().st_size, **sizes}
    assert not Path("tiny_int8.onnx").exists()
    assert Path("tiny_int8.onnx.prev").read_text(encoding="utf-8") == "of an earlier model"


def test_the_graph_holds_all_that_surrounds_the_network_and_takes_any_batch(exported, image_folder):
    import onnxruntime

    session = onnxruntime.InferenceSession("tiny.onnx", providers=["CPUExecutionProvider"])
    (images,) = session.get_inputs()
    assert (images.name, images.type, images.shape[1:]) == ("images", "tensor(uint8)", [32, 32, 3])
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["class_names"]) == ["cat", "dog", "개"]
    assert json.loads(about["preprocess"])["image_size"] == 32
    assert {"resize", "fit", "interpolation", "mean", "std"} <= set(json.loads(about["preprocess"]))
    assert about["checkpoint_sha256"] == sha256_file("tiny.pth")
    assert {"temperature", "min_probability", "colours", "model_name"} <= set(about)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3)).astype(np.uint8)
    together, _ = session.run(None, {"images": pixels})
    alone = np.concatenate([session.run(None, {"images": pixels[n : n + 1]})[0] for n in range(5)])
    assert together == pytest.approx(alone, abs=1e-6)
    assert together.sum(1) == pytest.approx(np.ones(5), abs=1e-6)


def test_the_one_file_needs_three_libraries_and_writes_the_same_result(exported, split_folder, cli, tmp_path):
    hard, broken = gallery.readable(tmp_path / "in" / "good"), gallery.unreadable(tmp_path / "in" / "bad")
    save_image(tmp_path / "in" / "large" / "a.jpg", 1, 5, (1700, 1300))
    Image.new("RGB", (30, 900), "red").save(tmp_path / "in" / "large" / "strip.png")
    inputs = ("in", split_folder / "val", "in/good/*.png", "missing.jpg")
    for flags in ((), ("--top_k", 2, "--probabilities", "--min_probability", 0.5)):
        done = cli("predict", "--model_fn", "tiny.pth", "--precision", "fp32", "--input", *inputs, *flags)
        assert done.status == 3
        alone = run_alone("tiny_onnx.py", "--input", *inputs, "--result", "alone.csv", *flags)
        assert alone.returncode == 3, alone.stderr
        assert_same_result("result.csv", "alone.csv")
    assert len(rows_of("alone.csv")) > len(hard) + len(broken)
    assert "accuracy" in alone.stdout


def test_the_one_file_predicts_from_python_as_the_predictor_does(exported, tmp_path):
    module = load_file(tmp_path / "tiny_onnx.py")
    alone, predictor = module.Predictor(top_k=3), Predictor("tiny.pth", device="cpu", precision="fp32", top_k=3)
    path = save_image(tmp_path / "a.png", 1, 3)
    for photo in (path, path.read_bytes(), Image.open(path), np.asarray(Image.open(path))):
        (one,), (other,) = alone(photo), predictor(photo)
        assert (one.predict, one.file_dir, one.status) == (other.predict, other.file_dir, other.status)
        assert [p for _, p in one.top] == pytest.approx([p for _, p in other.top], abs=1e-5)
    with pytest.raises(module.UserError, match="is a folder; a predictor takes"):
        alone(tmp_path)
    with pytest.raises(module.UserError, match="a predictor takes paths"):
        alone(3)


def test_rows_on_stdout_and_mistakes_in_one_line(exported, tmp_path):
    save_image(tmp_path / "a.png", 1, 3)
    done = run_alone("tiny_onnx.py", "--input", "a.png", "--result", "-")
    assert done.stdout.startswith("file_dir,predict,probability")
    assert "wrote" in done.stderr
    for folder in ("empty", "folder.csv"):
        (tmp_path / folder).mkdir()
    one = ("--input", "a.png")
    wrong = [("--input", "none"), ("--input", "empty"), (*one, "--model", "b.onnx"), (*one, "--result", "a.png")]
    for args in (*wrong, (*one, "--result", "folder.csv"), (*one, "--top_k", 9), (*one, "--model", "tiny.pth")):
        done = run_alone("tiny_onnx.py", *args)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert not list(tmp_path.glob("*.partial"))
    done = run_alone("tiny_onnx.py", *one, "--min_probability", 7)
    assert (done.returncode, "needs a number at least 0 and at most 1, not '7'" in done.stderr) == (2, True)


def test_a_changed_answer_leaves_no_file_and_names_the_photo(exported, cli, tmp_path, monkeypatch):
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    (tmp_path / "new").mkdir()

    def load_with_another_preparation(path):
        module = load_file(path)
        right = module.prepare
        monkeypatch.setattr(module, "prepare", lambda image, p: right(image, p)[::-1, :, ::-1].copy())
        return module

    monkeypatch.setattr("photo_classifier.export.onnx_files.load_file", load_with_another_preparation)
    done = cli("export", "--model_fn", "tiny.pth", "--output", "new/tiny.onnx")
    assert_one_line_error(done, "no file was written, as it would answer differently")
    assert "val/" in done.err.replace("\\", "/")
    assert not list((tmp_path / "new").iterdir())
    done = cli("export", "--model_fn", "tiny.pth")
    assert done.status == 2
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


def test_a_network_that_no_file_can_hold_is_refused(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(graph, "LARGEST", 1000)
    model, _ = load_checkpoint("tiny.pth")
    with pytest.raises(UserError, match="x has more than 2 GB of weights"):
        graph.write_onnx(tmp_path / "a.onnx", model, ["a", "b"], 1.0, {"model_name": "x"})


def test_a_tie_may_fall_otherwise_and_is_counted():
    def prediction(first, second):
        from photo_classifier.prediction.results import answer

        p = [first, second]
        ranks = sorted(range(2), key=lambda k: -p[k])
        return answer("a.png", None, ["cat", "dog"], ranks, [p[k] for k in ranks], p, 0.0)

    compared = proof.Proof()
    compared.add(prediction(0.500001, 0.499999), prediction(0.499999, 0.500001))
    assert (compared.changed_answers, compared.ties) == (1, ["a.png"])


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_the_file_that_lists_it(missing, trained, cli, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    for name in ("onnx", "onnxscript", "onnxruntime"):
        if name != missing:
            monkeypatch.setitem(sys.modules, name, sys)
    done = cli("export", "--model_fn", "tiny.pth")
    assert_one_line_error(
        done, f"export.py needs {missing}, which is not installed; pip install -r requirements-export.txt"
    )


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--model_fn", "none.pth"), "there is no checkpoint none.pth"),
        (("--to", "coreml"), "to 'coreml' is unknown; choose from onnx"),
        (("--output", "a.txt"), "does not end in .onnx"),
        (("--input", "none"), "--input none does not exist"),
        (("--input", "empty"), "--input empty: no images were found"),
        (("--input", "empty.jpg"), "none of 1 photo can be read (empty.jpg: is empty), so nothing was proven"),
    ],
)
def test_mistakes_are_one_line(flags, expected, trained, cli, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.jpg").touch()
    assert_one_line_error(cli("export", "--model_fn", "tiny.pth", *flags), expected)


def test_photos_that_have_gone_are_asked_for(trained, cli, tmp_path):
    import torch

    content = torch.load("tiny.pth", weights_only=True)
    content["splits"]["valid"] = [["gone/a.png", "cat"]]
    torch.save(content, "moved.pth")
    assert_one_line_error(cli("export", "--model_fn", "moved.pth"), "none of its photos are where they were")


@pytest.mark.skipif(os.name == "nt", reason="pipes end otherwise there")
def test_a_reader_that_goes_early_ends_the_one_file_as_it_ends_predict(exported, tmp_path):
    save_image(tmp_path / "a.png", 1, 3)
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "tiny_onnx.py", "--input", "a.png", "--result", "-"], stdout=writing, stderr=subprocess.PIPE
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")
