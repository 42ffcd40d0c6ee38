import sys
from pathlib import Path

import pytest
import torch
from helpers import TINY

from model_loader import get_model
from photo_classifier.models import compiled
from photo_classifier.models.compiled import FOLDER
from photo_classifier.models.inference import Engine
from photo_classifier.runtime.errors import UserError

openvino = pytest.importorskip("openvino")
CPU = torch.device("cpu")
FROZEN = (*TINY, "--freeze", "--views", 2, "--n_epochs", 2, "--run_dir", "r", "--model_fn", "m.pth", "--verbose", 2)


@pytest.fixture
def model():
    return get_model("resnet18", 3, image_size=32).eval()


def images(n):
    return torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.02)])
def test_openvino_answers_as_torch_does_whatever_the_neighbours(model, dtype, tolerance, two_threads):
    torch_engine, engine = Engine(model, CPU, dtype, 4), Engine(model, CPU, dtype, 4)
    engine.compile()
    photos = images(6)
    answers = engine(photos)
    assert (answers.softmax(1) - torch_engine(photos).softmax(1)).abs().max() < tolerance
    assert engine.features(photos).dtype == torch_engine.features(photos).dtype
    for n in range(6):
        assert torch.equal(engine(photos[n : n + 1])[0], answers[n])


def test_a_new_head_needs_no_new_conversion_and_a_broken_file_is_replaced(model, monkeypatch):
    engine, photos = Engine(model, CPU, torch.float32, 4), images(4)
    engine.compile()
    before = engine(photos)
    torch.nn.init.normal_(model.head.weight)
    again = Engine(model, CPU, torch.float32, 4)
    with monkeypatch.context() as patch:
        patch.setattr(openvino, "convert_model", None)
        again.compile()
    assert not torch.allclose(again(photos), before)
    assert torch.allclose(again(photos), Engine(model, CPU, torch.float32, 4)(photos), atol=1e-4)
    [file] = FOLDER.glob("*.xml")
    file.write_bytes(b"broken")
    Engine(model, CPU, torch.float32, 4).compile()
    assert file.read_bytes() != b"broken"


def test_only_the_newest_networks_are_kept(model, monkeypatch):
    monkeypatch.setattr(compiled, "MOST_FILES", 1)
    for batch_size in (1, 2):
        Engine(model, CPU, torch.float32, batch_size).compile()
    assert len(list(FOLDER.glob("*.xml"))) == len(list(FOLDER.glob("*.bin"))) == 1


def test_a_network_that_openvino_computes_wrongly_is_refused(model, monkeypatch):
    monkeypatch.setattr(compiled.CompiledFeatures, "__call__", lambda self, images: torch.ones(len(images), 512))
    with pytest.raises(UserError, match="computes other features of"):
        Engine(model, CPU, torch.float32, 4).compile()


def test_a_run_with_openvino_resumes_and_predicts_with_it(cli, split_folder):
    first = cli("train", "--data_dir", split_folder, *FROZEN, "--engine", "openvino")
    assert f"computed by openvino {openvino.__version__.split('-')[0]}" in first.out
    done = cli("train", "--resume", "r", "--n_epochs", 3)
    assert "computed by openvino" in done.out
    predicted = cli("predict", "--model_fn", "m.pth", "--n_workers", 0)
    assert predicted.out.splitlines()[-1] == done.out.splitlines()[-1]
    answers = Path("result.csv").read_text()
    cli("predict", "--model_fn", "m.pth", "--n_workers", 0, "--engine", "openvino")
    assert Path("result.csv").read_text() == answers
    cli("predict", "--model_fn", "m.pth", "--n_workers", 0, "--engine", "torch")
    assert [row.split(",")[:2] for row in Path("result.csv").read_text().splitlines()] == [
        row.split(",")[:2] for row in answers.splitlines()
    ]


def test_many_images_are_computed_by_openvino_and_few_by_torch(cli, split_folder, monkeypatch):
    argv = ("--data_dir", split_folder, *FROZEN)
    assert "computed by torch" in cli("train", *argv).out
    monkeypatch.setattr(compiled, "ENOUGH_IMAGES", 24 * 2 + 15)
    assert "computed by openvino" in cli("train", *argv[:-1], 2, "--run_dir", "s").out
    monkeypatch.setattr(compiled, "is_installed", lambda: False)
    assert "computed by torch" in cli("train", *argv[:-1], 2, "--run_dir", "t").out
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert cli("predict", "--model_fn", "m.pth", "--input", split_folder / "val").status == 0


@pytest.mark.parametrize(
    ("flags", "expected"),
    [(("--freeze",), "pip install openvino"), ((), "add --freeze"), (("--freeze", "--views", 0), "--views 0")],
)
def test_an_engine_that_cannot_compute_is_refused_in_one_line(flags, expected, cli, split_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    done = cli("train", "--data_dir", split_folder, *TINY, "--engine", "openvino", *flags)
    assert done.status == 2
    [line] = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert expected in line
