import csv
import json
import os

import pytest
import torch
from helpers import TINY, save_image
from PIL import Image

from model_loader import get_model
from photo_classifier.data.preprocess import Preprocess
from photo_classifier.evaluation.heat_pictures import heat_picture
from photo_classifier.features.explanations import NO_TIME, UNREADABLE, add_heat_maps, seen_area
from photo_classifier.models.heat_maps import NO_PLACES, HeatMaps
from photo_classifier.models.inference import Engine, Measure
from photo_classifier.prediction.predictor import Predictor
from photo_classifier.runtime.errors import UserError

CPU = torch.device("cpu")


def maps_of(name, image_size, dtype=torch.float32, **options):
    return HeatMaps(Engine(get_model(name, 3, image_size=image_size, **options), CPU, dtype, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_where_the_head_takes_the_mean_the_map_is_what_each_place_adds_to_the_score(dtype):
    maps = maps_of("resnet18", 96, dtype)
    images = torch.randint(256, (2, 3, 96, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    classes = torch.tensor([0, 2])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        logits, bias = maps.engine.evaluated(images), maps.engine.evaluated.head.bias
    added = maps._pooled(images, classes)
    assert added.shape == (2, 3, 3)
    expected = logits[range(2), classes] - logits.mean(1) - (bias[classes] - bias.mean())
    assert torch.allclose(added.mean((1, 2)), expected.float(), rtol=0.05, atol=0.01)
    by_gradient = maps._by_gradient(images, classes)  # which is exact here as well
    assert torch.allclose(by_gradient, added / 9, rtol=0.1, atol=0.02)
    same_logits, seen = maps.engine.observe(images, Measure(maps.layer, maps.of_answers))
    assert torch.equal(same_logits, maps.engine(images)), "the pass that answers is not changed"
    assert torch.allclose(seen.view(2, 3, 3), maps(images, same_logits.argmax(1)), atol=0.05)


@pytest.mark.parametrize(
    ("name", "size", "places"),
    [("timm/test_vit", 160, 10), ("squeezenet", 64, 3), ("timm/test_resnet", 64, 2), ("densenet", 64, 2)],
)
def test_every_family_of_networks_has_a_map(name, size, places):
    maps = maps_of(name, size)
    images = torch.randint(256, (2, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    made = maps(images, maps.engine(images).argmax(1))
    assert made.shape == (2, places, places)
    assert made.amax((1, 2)).tolist() == [1, 1]
    assert made.min() >= 0
    assert not torch.equal(made[0], made[1])


def test_a_network_that_cannot_be_looked_into_has_no_map(trained, monkeypatch):
    def refuse(*_):
        raise RuntimeError("no gradient here")

    monkeypatch.setattr("photo_classifier.models.heat_maps._last_layer_with_places", refuse)
    maps = maps_of("timm/test_resnet", 64)
    assert maps.layer == ""
    rows = [{"file_dir": "a.png", "predict": "cat"}]
    add_heat_maps(rows, maps, ["cat", "dog", "owl"], 10**6)
    assert rows == [{"file_dir": "a.png", "predict": "cat", "no_heat": NO_PLACES}]
    with pytest.raises(UserError, match="--explain"):
        Predictor("tiny.pth", device="cpu", heat=True)


def test_a_map_lies_over_the_part_of_the_photo_that_the_network_sees():
    crop = Preprocess(80, 100, "bilinear", (0.5,) * 3, (0.5,) * 3)
    assert seen_area(crop, 200, 100) == [0.3, 0.1, 0.7, 0.9]
    assert seen_area(Preprocess(80, 80, "bilinear", (0.5,) * 3, (0.5,) * 3, fit="squash"), 200, 100) == [0, 0, 1, 1]
    pad = Preprocess(80, 80, "bilinear", (0.5,) * 3, (0.5,) * 3, fit="pad")
    assert seen_area(pad, 200, 100) == [0, -0.5, 1, 1.5]
    heat = {"values": bytes([255] * 4).hex(), "area": seen_area(crop, 200, 100)}
    picture = heat_picture(heat, 200, 100)
    assert picture.size == (64, 32)
    alphas = picture.getchannel("A")
    assert alphas.getpixel((32, 16)) > 150
    assert alphas.getpixel((2, 16)) == alphas.getpixel((32, 0)) == 0


def test_rows_without_time_or_a_photo_get_no_map(tmp_path):
    maps = maps_of("timm/test_resnet", 64)
    photo = str(save_image(tmp_path / "a.png", 0, 0))
    rows = [{"file_dir": path, "predict": "dog"} for path in (photo, "gone.png")]
    add_heat_maps(rows, maps, ["cat", "dog", "owl"], 10**6, seconds=0)
    assert [row["no_heat"] for row in rows] == [NO_TIME, NO_TIME]
    add_heat_maps(rows, maps, ["cat", "dog", "owl"], 10**6)
    assert len(rows[0]["heat"]["values"]) == 2 * 4
    assert "no_heat" not in rows[0]
    assert (rows[1]["no_heat"], "heat" in rows[1]) == (UNREADABLE, False)


def test_mistakes_of_a_run_and_photos_of_a_prediction_are_explained(cli, split_folder):
    # a wrong label makes a mistake, whatever the network learns
    os.rename(split_folder / "val" / "cat" / "00.png", split_folder / "val" / "dog" / "wrong.png")
    size = [64 if word == 32 else word for word in TINY]
    argv = (
        "--data_dir",
        split_folder,
        *size,
        "--freeze",
        "--head",
        "logistic",
        "--run_dir",
        "r",
        "--model_fn",
        "m.pth",
    )
    done = cli("train", *argv)
    assert done.status == 0, done.err
    examples = json.load(open("r/report.json", encoding="utf-8"))["out-of-fold"]["examples"]
    (wrong,) = (row for row in examples if row["file_dir"].endswith("wrong.png"))
    assert len(wrong["heat"]["values"]) == 2 * 4
    labels = {row["path"]: row["label"] for row in csv.DictReader(open("r/splits.csv", encoding="utf-8"))}
    assert [labels[row["path"]] for row in wrong["similar"]] == [row["label"] for row in wrong["similar"]]
    assert len(wrong["similar"]) == 3
    assert wrong["file_dir"] not in [row["path"] for row in wrong["similar"]]
    page = open("r/report.html", encoding="utf-8").read()
    assert '<img class="heat" src="data:image/png' in page
    assert "most similar in training" in page

    photos = [split_folder / "val" / "cat" / "01.png", split_folder / "val" / "dog" / "01.png"]
    plain = ("predict", "--model_fn", "m.pth", "--n_workers", 0, "--input", *photos)
    assert cli(*plain, "--result", "plain.csv").status == 0
    explain = ("predict", "--model_fn", "m.pth", "--n_workers", 1, "--explain", "heat", "--input")
    assert cli(*explain, *photos).status == 0
    assert open("result.csv").read() == open("plain.csv").read(), "heat maps change no answer"
    assert sorted(os.listdir("heat")) == ["01-2.jpg", "01.jpg"]
    with Image.open("heat/01.jpg") as picture:
        assert picture.info["comment"] == b"Software\0photo-classifier"
        assert picture.width == 248, "not larger than its photo and caption need"
    assert cli(*explain, *photos).status == 0
    with open("heat/01.jpg", "w") as file:
        file.write("mine")
    assert cli(*explain, *photos).status == 0
    assert sorted(os.listdir("heat")) == ["01-2.jpg", "01-3.jpg", "01.jpg"]
    assert open("heat/01.jpg").read() == "mine"
