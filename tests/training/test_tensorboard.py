import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from google.protobuf.json_format import MessageToJson
from helpers import CLASSES, TINY, board_of
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from data_loader import ImageDataset
from photo_classifier.data.discovery import load_splits
from photo_classifier.data.preprocess import Preprocess, eval_transform
from photo_classifier.evaluation import figures
from photo_classifier.evaluation.contact_sheet import picture_of
from photo_classifier.evaluation.report import evaluation_report
from photo_classifier.training import first_look, tensorboard
from photo_classifier.training.tensorboard import principal_components

FINAL = {f"→ {what}" for what in ("accuracy validation", "epoch kept", "loss validation", "macro F1 validation")}
CURVES = {"Train/Loss", "Train/Accuracy", "Validation/Loss", "Validation/Accuracy"}


@pytest.fixture(scope="module")
def server(trained_once):
    """A real TensorBoard over the small training's folder; `server("scalars/tags")` asks one of its plugins."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(trained_once.folder), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)

    def get(path, body=None):
        data = json.dumps(body).encode() if body is not None else None
        headers = {"Content-Type": "application/json"} if data else {}
        request = urllib.request.Request(f"http://127.0.0.1:{port}/data/plugin/{path}", data, headers)
        with urllib.request.urlopen(request) as answer:
            content = answer.read()
        return json.loads(content) if "json" in answer.headers["Content-Type"] else content

    try:
        for _ in range(480):
            try:
                if get("scalars/tags").get("r", {}).keys() >= CURVES and get("pr_curves/tags").get("r"):
                    break
            except OSError:
                assert process.poll() is None, "the server ended"
            time.sleep(0.25)
        yield get
    finally:
        process.kill()
        process.wait()


def query(**values):
    return urllib.parse.urlencode(values)


def test_the_server_shows_the_curves(server):
    tags = server("scalars/tags")["r"]
    others = {"LearningRate/head", "LearningRate/backbone", "Speed/images_per_second", "Validation/MacroF1"}
    assert tags.keys() == CURVES | others, "no chart of a single dot"
    points = server("scalars/scalars?" + query(run="r", tag="Validation/Accuracy"))
    assert [step for _, step, _ in points] == [1, 2]


def test_the_first_charts_show_training_beside_validation(server):
    tags = server("scalars/tags")
    assert sorted(tag for of_run in tags.values() for tag in of_run)[0] == "Curves/accuracy"
    for what in ("loss", "accuracy"):
        for part, name in (("train", "Train"), ("validation", "Validation")):
            shown = server("scalars/scalars?" + query(run=f"r/{part}", tag=f"Curves/{what}"))
            points = server("scalars/scalars?" + query(run="r", tag=f"{name}/{what.capitalize()}"))
            assert [point[1:] for point in shown] == [point[1:] for point in points]


def test_the_server_shows_the_pictures(server):
    tags = server("images/tags")["r"]
    assert {"Train/images", "Validation/confusion", "Validation/mistakes", "Validation/calibration"} <= tags.keys()
    for tag in tags:
        (picture,) = server("images/images?" + query(run="r", tag=tag, sample=0))
        assert server("images/individualImage?" + picture["query"]).startswith(b"\x89PNG")


def test_the_server_shows_precision_and_recall_of_each_class(server):
    tags = server("pr_curves/tags")["r"]
    assert tags.keys() == {f"PrecisionRecall/{name}" for name in CLASSES}
    (curve,) = server("pr_curves/pr_curves?" + query(run="r", tag="PrecisionRecall/개"))["r"]
    assert curve["true_positives"][0] == 5  # every image reaches the threshold 0
    assert curve["false_positives"][0] == 10


def test_the_server_compares_runs_by_hyperparameters_and_final_metrics(server, trained_once):
    experiment = server("hparams/experiment", {"experimentName": ""})
    flags = {info["name"] for info in experiment["hparamInfos"]}
    assert {"model_name", "lr", "backbone_lr", "optimizer", "freeze", "batch_size", "image_size", "data"} <= flags
    assert flags >= FINAL
    columns = [{"hparam": "→ accuracy validation"}]
    asked = {"experimentName": "", "colParams": columns, "startIndex": 0, "sliceSize": 9}
    asked["allowedStatuses"] = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"]
    (group,) = server("hparams/session_groups", asked)["sessionGroups"]
    assert group["hparams"]["lr"] == 0.001
    assert group["hparams"]["freeze"] == "False"
    assert [session["name"] for session in group["sessions"]] == ["r"]
    accuracy = group["hparams"]["→ accuracy validation"]
    assert f"validation accuracy {accuracy:.4f}" in trained_once.out


def test_runs_that_differ_in_one_flag_have_rows_that_differ_there(cli, split_folder):
    rows, argv = [], ("--data_dir", split_folder, *TINY, "--freeze", "--n_epochs", 1, "--views", 1)
    extras = (("--resize", 40), ("--resize", 48), ("--resize", 48, "--bit_depth", 12, "--on_leak", "drop"))
    for n, extra in enumerate(extras):
        assert cli("train", *argv, *extra, "--run_dir", f"runs/{n}", "--model_fn", "m.pth").status == 0
        content = board_of(f"runs/{n}").PluginTagToContent("hparams")["_hparams_/session_start_info"]
        about = HParamsPluginData.FromString(content).session_start_info.hparams
        rows.append({name: MessageToJson(value) for name, value in about.items()})
    settings = [name for name in rows[0] if not name.startswith("→")]
    assert max(settings) < min(FINAL), "results come after the settings"
    assert {name for name in settings if rows[0][name] != rows[1][name]} == {"resize"}
    assert {name for name in settings if rows[1][name] != rows[2][name]} == {"bit_depth", "on_leak"}
    assert {"train_ratio", "valid_ratio", "test_ratio", "splits", "group_column", "labels"} <= rows[0].keys()


def test_the_server_shows_features_with_thumbnails_and_labels(server):
    assert server("projector/runs") == ["r"]
    (embedding,) = server("projector/info?" + query(run="r"))["embeddings"]
    asked = query(run="r", name=embedding["tensorName"])
    tensor = np.frombuffer(server("projector/tensor?" + asked), np.float32)
    table = server("projector/metadata?" + asked).decode().splitlines()
    assert table[0].split("\t") == ["label", "prediction", "verdict", "file"]
    assert sorted(row.split("\t")[0] for row in table[1:]) == sorted(5 * CLASSES)
    assert len(tensor) % 15 == 0
    assert server("projector/sprite_image?" + asked).startswith(b"\x89PNG")


def test_principal_components_keep_the_distances():
    features = torch.randn(20, 300, generator=torch.Generator().manual_seed(0))
    components = principal_components(features)
    assert torch.allclose(torch.cdist(components, components), torch.cdist(features, features), atol=1e-2)


def test_photos_that_take_long_to_decode_stop_at_the_clock(monkeypatch, split_folder):
    def slow(*_):
        time.sleep(0.1)
        return torch.zeros(3, 40, 40, dtype=torch.uint8)

    monkeypatch.setattr("photo_classifier.evaluation.contact_sheet.n_cores", lambda: 2)
    monkeypatch.setattr("data_loader.decode", slow)
    samples = load_splits(split_folder, {}, 0).train * 40
    small = Preprocess(32, 32, "bilinear", (0.5,) * 3, (0.5,) * 3)
    dataset = ImageDataset(samples, CLASSES, small, eval_transform(small))
    source, start = tensorboard.EmbeddingSource(dataset, lambda images, _: images.flatten(1)), time.monotonic()
    read = [part for *_, part in tensorboard._read_until(torch.arange(960), source, start + 0.35)]
    assert 2 <= sum(map(len, read)) < 20

    shown = {}
    log = SimpleNamespace(add_picture=lambda name, _, sheet: shown.update({name: sheet}))
    first_look.show_augmented(SimpleNamespace(spare_seconds=0.15, epochs=log), dataset)
    assert shown["augmented"].width < 6 * 152, "fewer than a row"

    report = evaluation_report(torch.eye(3)[[0] * 24], torch.ones(24, dtype=torch.int64), ["a.jpg"] * 24, CLASSES, 1.0)
    made = figures.figures_of("test", report, lambda path: picture_of(slow(path)), 0.15)
    assert made["mistakes"].width < 6 * 152
    assert time.monotonic() - start < 4, "each of the three needs a second or more without a clock"
