import pytest
import torch

from model_loader import freeze, freeze_batch_norm, get_model
from photo_classifier.config import TrainConfig
from photo_classifier.data.samples import Sample, Splits
from photo_classifier.runtime.text import width
from photo_classifier.training.run_folder import predict_command
from photo_classifier.training.summary import class_lines, model_lines, run_name_words


def splits_of(**counts):
    """Splits with so many images: `splits_of(cat=(3, 1, 0))`."""
    parts = [[Sample("", name) for name, numbers in counts.items() for _ in range(numbers[k])] for k in range(3)]
    return Splits("made here", "photos", list(counts), *parts)


def test_the_images_of_each_class_stand_in_a_table():
    lines = class_lines(splits_of(cat=(60, 2, 0), 강아지=(7, 12, 0)))
    assert lines == [
        "classes 2       train  valid",
        "        cat        60      2",
        "        강아지      7     12",
    ]
    assert len({width(line) for line in lines}) == 1


def test_many_classes_are_cut_short():
    lines = class_lines(splits_of(**{f"c{n:02d}": (n + 1, 1, 1) for n in range(30)}), most=10)
    assert len(lines) == 12
    assert lines[-1].strip() == "... (20 more, with 11 to 30 training images)"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, ["photos", "scratch"]),
        ({"use_pretrained": True, "n_epochs": 20, "lr": 0.001}, ["photos", "finetuned", "epochs20"]),
        ({"freeze": True, "head_hidden": 64, "seed": 3}, ["photos", "frozen", "head_hidden64", "seed3"]),
        ({"data_dir": "photos", "labels": "my/list.csv", "augment": "trivial", "lr": 1e-4, "freeze_bn": True},
         ["photos", "scratch", "labels_list", "augment_trivial", "freeze_bn", "lr0.0001"]),
        ({"labels": "photos.csv", "seed": 3}, ["photos", "scratch", "seed3"]),
    ],
)  # fmt: skip
def test_the_name_of_a_run_says_what_was_set(given, words):
    assert run_name_words(TrainConfig(**given), splits_of(cat=(1, 1, 0)), given) == words


def test_the_command_that_predicts_works_where_training_was_called(monkeypatch):
    for called, script in (
        ("train.py", "predict.py"),
        ("my tool/train.py", "'my tool/predict.py'"),
        ("-c", "predict.py"),
    ):
        monkeypatch.setattr("sys.argv", [called])
        monkeypatch.setattr("sys.platform", "linux")
        assert predict_command("--model_fn", "m.pth") == f"python {script} --model_fn m.pth"


def test_the_layers_of_a_model_tell_their_output_parameters_and_what_trains():
    model = get_model("resnet18", 3, image_size=64)
    freeze(model, "layer1")
    rows = {line.split()[0]: line for line in model_lines(model)[1:]}
    assert list(rows) == [*(name for name, _ in model.net.named_children()), "total"]
    assert rows["conv1"].split() == "conv1 64 x 32 x 32 9,408 frozen".split()
    assert rows["layer4"].split() == "layer4 512 x 2 x 2 8,393,728 trains".split()
    assert rows["avgpool"].split() == "avgpool 512 x 1 x 1 0".split()
    assert rows["fc"].split() == "fc 3 1,539 trains".split()
    n_all = sum(p.numel() for p in model.net.parameters())
    n_trained = sum(p.numel() for p in model.net.parameters() if p.requires_grad)
    n_bytes = sum(t.numel() * t.element_size() for t in model.net.state_dict().values())
    assert rows["total"].split() == f"total {n_bytes / 1e6:.1f} MB {n_all:,} {n_trained:,} train".split()


def test_layers_that_train_in_part_and_parameters_of_the_root_are_told():
    model = get_model("resnet18", 3, image_size=64)
    freeze_batch_norm(model)
    rows = {line.split()[0]: line for line in model_lines(model)}
    assert rows["layer1"].endswith("trains in part")
    assert rows["bn1"].endswith("frozen")
    rows = {line.split("  ")[4]: line for line in model_lines(get_model("timm/test_vit", 3, image_size=160))}
    assert rows["(its own)"].endswith("trains")


@pytest.mark.parametrize("name", ["squeezenet", "timm/test_vit"])
def test_looking_changes_nothing(name):
    model = get_model(name, 3, image_size=160)
    freeze(model)
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    assert model_lines(model)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
