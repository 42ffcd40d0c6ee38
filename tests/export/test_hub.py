"""A hub folder is what timm loads, and says what the model is worth; a checkpoint loads without this tool."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from helpers import RESNET18, assert_one_line_error
from PIL import Image

from photo_classifier import Predictor
from photo_classifier.data.samples import Sample


@pytest.fixture
def hub(trained, cli):
    done = cli("export", "--model_fn", "tiny.pth", "--to", "hub_folder")
    assert done.status == 0, done.err
    return done


def test_timm_loads_the_folder_and_agrees_to_the_image(hub, trained):
    assert "wrote   tiny_hub" in hub.out
    assert "proven  on 15 photos: 0 changed answers" in hub.out
    model = timm.create_model("local-dir:tiny_hub", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
    paths = sorted((trained.folder.parent / "split" / "val").rglob("*.png"))
    for path, ours in zip(paths, Predictor("tiny.pth", device="cpu", precision="fp32", top_k=3)(paths), strict=True):
        with torch.inference_mode():
            p = model(transform(Image.open(path).convert("RGB"))[None]).softmax(1)[0]
        # timm resizes with Pillow: a pixel may be one level off
        assert dict(ours.top) == pytest.approx(dict(zip(["cat", "dog", "개"], p.tolist(), strict=True)), abs=0.01)


def test_the_folder_has_what_hubs_expect(hub):
    assert {path.name for path in Path("tiny_hub").iterdir()} == {"config.json", "model.safetensors", "README.md"}
    config = json.loads(Path("tiny_hub/config.json").read_text(encoding="utf-8"))
    assert (config["architecture"], config["num_classes"]) == ("test_resnet", 3)
    assert config["label_names"] == ["cat", "dog", "개"]
    assert config["pretrained_cfg"]["input_size"] == [3, 32, 32]


def test_the_model_card_says_what_the_model_is_worth(hub):
    card = Path("tiny_hub/README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: timm\n")
    assert "| class | train | validation |" in card
    assert "| 개 | 8 | 5 |" in card
    assert "On 15 photos that training held out: " in card
    for words in ("95 % interval", "Calibration error", "## Known weak spots", "few training photos: cat (8)"):
        assert words in card
    assert 'timm.create_model("local-dir:.", pretrained=True)' in card


def test_a_network_that_timm_lacks_is_refused(cli, split_folder, tmp_path):
    import export
    from photo_classifier.export.hub import write_hub_folder
    from photo_classifier.runtime.errors import UserError

    assert export.EXPORTS.keys() == {"onnx", "hub_folder"}
    net = "shufflenet_v2_x0_5"
    args = ("--model_name", net, *RESNET18[2:], "--n_epochs", 1, "--data_dir", split_folder, "--model_fn", "s.pth")
    assert cli("train", *args).status == 0
    with pytest.raises(UserError, match=f"timm has no network {net}, so that it cannot load {net}; export it with"):
        write_hub_folder(tmp_path / "hub", Predictor("s.pth", device="cpu"))
    done = cli("export", "--model_fn", "s.pth", "--to", "hub_folder")
    assert_one_line_error(done, "export it with --to onnx")
    assert not Path("s_hub").exists()


@pytest.mark.parametrize(("splits", "expected"), [({"test": []}, {"train": 39}), ({"valid": []}, None), (None, None)])
def test_photos_that_validated_by_folds_count_as_trained_on(splits, expected, trained):
    import export
    from photo_classifier.config import ExportConfig

    parts = export.training_splits(ExportConfig(splits="r"), SimpleNamespace(metadata={"splits": splits}))
    assert {name: len(part) for name, part in parts.items()} == (expected or {"train": 24, "valid": 15})


def test_names_with_line_breaks_and_bars_stay_in_their_row_of_the_card():
    from photo_classifier.export.model_card import model_card

    names = ["a\nb", "c|d"]
    card = model_card("m", "resnet", names, "as it is", {"train": [Sample("1.png", names[0])]}, None, True)
    assert "Tells photos apart: a b, c|d." in card
    assert "| a b | 1 |\n| c\\|d | 0 |" in card
    assert "- few training photos: a b (1), c|d (0)\n- which classes it mixes up is not known" in card


def lines_of_the_page():
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
    lines = [line[4:] for line in page.split("`create_model`) alone:")[1].split("\n\n")[1].splitlines()]
    assert len(lines) == 3
    return "\n".join(lines)


def test_the_three_lines_of_the_page_load_a_checkpoint_with_timm_alone(trained):
    code = lines_of_the_page().replace("resnet.pth", "tiny.pth").replace("torch, torchvision", "torch, timm")
    values: dict = {}
    exec(code.replace("torchvision.models.resnet34(", "timm.create_model('test_resnet', "), values)
    assert values["model"].get_classifier().out_features == 3


def test_the_three_lines_of_the_page_load_a_checkpoint_with_torchvision_alone(cli, split_folder):
    args = (*RESNET18, "--n_epochs", 1, "--data_dir", split_folder, "--model_fn", "resnet.pth")
    assert cli("train", *args).status == 0
    values: dict = {}
    exec(lines_of_the_page().replace("resnet34", "resnet18"), values)
    paths = sorted(map(str, (split_folder / "val").rglob("*.png")))
    predictor = Predictor("resnet.pth", device="cpu", precision="fp32")
    images = torch.stack([predictor_image(predictor, path) for path in paths])
    with torch.inference_mode():
        classes = values["model"].eval()(predictor.engine.model.normalize(images)).argmax(1).tolist()
    assert [predictor.class_names[k] for k in classes] == [p.predict for p in predictor(paths)]


def predictor_image(predictor, path):
    from photo_classifier.data.decoding import decode
    from photo_classifier.data.preprocess import eval_transform

    p = predictor.engine.model.preprocess
    return eval_transform(p)(decode(path, p.decode_side))
