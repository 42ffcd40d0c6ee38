"""A model of 8 bits is kept only if it is faster and hardly less accurate; otherwise the message says what it loses."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from helpers import assert_one_line_error

from photo_classifier import Predictor, UserError
from photo_classifier.data.samples import Sample
from photo_classifier.export import quantization
from photo_classifier.export.proof import load_file
from photo_classifier.export.quantization import add_int8, paired_interval, text_of
from photo_classifier.prediction.results import failure

pytestmark = pytest.mark.skipif(not find_spec("onnxruntime"), reason="requirements-export.txt is not installed")


@pytest.fixture
def add(exported, trained_once, monkeypatch):
    """Quantizes the exported model, with these times."""
    split = trained_once.folder.parent / "split"
    training, held_out = (
        [Sample(str(path), path.parent.name) for path in sorted((split / part).rglob("*.png"))]
        for part in ("train", "val")
    )
    ours = [p for batch in Predictor("tiny.pth", device="cpu").stream(held_out) for p in batch]

    def call(fp32, int8, most_loss):
        monkeypatch.setattr(quantization, "_times", lambda *_: {"fp32": fp32, "int8": int8})
        monkeypatch.setattr(quantization, "MOST_LOSS", most_loss)
        return add_int8(Path("tiny.onnx"), load_file(Path("tiny_onnx.py")), training, held_out, ours)

    return call


def test_a_faster_model_without_a_loss_is_kept_and_predicts(add, image_folder):
    report = add(2.0, 1.0, most_loss=1)
    assert report["kept"]
    assert text_of(report).startswith("kept tiny_int8.onnx: 2.00 times as fast as fp32, loses ")
    assert report["bytes"] == Path("tiny_int8.onnx").stat().st_size < Path("tiny.onnx").stat().st_size
    exact, small = (load_file(Path("tiny_onnx.py")).Predictor(name) for name in ("tiny.onnx", "tiny_int8.onnx"))
    paths = sorted(image_folder.rglob("*.png"))
    same = [p.predict == q.predict for p, q in zip(exact(paths), small(paths), strict=True)]
    assert sum(same) > 0.6 * len(paths)


@pytest.mark.parametrize(
    ("times", "most_loss", "why"),
    [((1, 2), 1, "not kept, as it is no faster here: 0.50"), ((2, 1), -1, "not kept, as it may lose a point or more")],
)
def test_a_slower_or_worse_model_is_removed_and_its_loss_told(add, times, most_loss, why):
    report = add(*times, most_loss)
    assert not Path("tiny_int8.onnx").exists()
    assert text_of(report).startswith(why)
    assert "95 % interval" in text_of(report)


def test_photos_to_calibrate_and_labels_to_measure_are_asked_for(exported):
    with pytest.raises(UserError, match=r"training photos, and none are known; name the run folder \(--splits\)"):
        add_int8(Path("tiny.onnx"), None, [], [], [])
    with pytest.raises(UserError, match="no label is known"):
        add_int8(Path("tiny.onnx"), None, [Sample("a.png")], [], [failure("a.png", "cat", "is empty")])


def test_the_flag_finds_the_training_photos_of_the_run(trained, cli, monkeypatch):
    taken = []

    def add_nothing(_model, _file, training, held_out, ours):
        taken.extend([len(training), len(held_out), len(ours)])
        raise UserError("enough")

    monkeypatch.setattr(quantization, "add_int8", add_nothing)
    assert_one_line_error(cli("export", "--model_fn", "tiny.pth", "--int8"), "enough")
    assert taken == [24, 15, 15]


def test_the_interval_of_a_paired_loss_is_that_of_agresti_and_min():
    low, high = paired_interval(0, 0, 153)
    assert (low, high) == pytest.approx((-0.01264516, 0.01264516))
    low, high = paired_interval(10, 4, 1000)
    assert low < 0.006 < high < 0.02
