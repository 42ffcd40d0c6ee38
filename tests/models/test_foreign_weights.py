"""Checkpoints as other scripts write them: each predicts as its maker did."""

import argparse
import collections
import copy
from pathlib import Path

import pytest
import timm
import torch
from helpers import NAME, assert_one_line_error, save_image
from timm.utils import CheckpointSaver, ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel

from model_loader import get_model
from photo_classifier.models.checkpoint import Description, load_checkpoint
from photo_classifier.runtime.errors import UserError

CLASSES = ("a", "b", "c")


@pytest.fixture
def net():
    return network()


def network(seed=0, n=3, name="test_resnet"):
    """A network that was trained a little, so that its batch norm has statistics."""
    torch.manual_seed(seed)
    net = timm.create_model(name, num_classes=n)
    net(torch.randn(4, 3, 64, 64))
    return net.eval()


def images():
    return torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def normalized(images):
    config = timm.create_model("test_resnet").pretrained_cfg
    mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))
    return (images / 255 - mean) / std


def predicted(path="m.pth", **described):
    description = Description(**{"model_name": NAME, "class_names": CLASSES, **described})
    model, content = load_checkpoint(path, description)
    with torch.no_grad():
        return model(images()).softmax(1), content


def assert_predicts_as(maker, path="m.pth", **described):
    with torch.no_grad():
        expected = maker.eval()(normalized(images())).softmax(1)
    probabilities, content = predicted(path, **described)
    assert torch.allclose(probabilities, expected, atol=1e-5)
    return content["notes"]


def trained_a_step(net):
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    nn.functional.cross_entropy(net.train()(normalized(images())), torch.tensor([0, 2])).backward()
    optimizer.step()
    net.eval()
    return optimizer


def test_a_checkpoint_of_timms_training_script(net, tmp_path):
    average = ModelEmaV3(net, decay=0.9)
    optimizer = trained_a_step(net)
    average.update(net)
    args = argparse.Namespace(model="test_resnet", lr=0.1, output=Path("out"), crop_pct=None)
    CheckpointSaver(net, optimizer, args, average, checkpoint_dir=str(tmp_path)).save_checkpoint(0, metric=81.5)
    notes = assert_predicts_as(average.module, "last.pth.tar")
    assert "taken: the averaged ones, state_dict_ema" in notes[0]
    assert_predicts_as(net, "last.pth.tar", weights_key="state_dict")


def test_a_checkpoint_of_torchvisions_references(net):
    average = AveragedModel(net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True)
    average.update_parameters(net)  # the first time copies
    optimizer = trained_a_step(net)
    average.update_parameters(net)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 30)
    # as references/classification/train.py: utils.save_on_master(checkpoint, ...)
    checkpoint = {
        "model": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": schedule.state_dict(),
        "epoch": 0,
        "args": argparse.Namespace(model="test_resnet", data_path="/data", output_dir=Path("out")),
        "model_ema": average.state_dict(),
    }
    torch.save(checkpoint, "m.pth")
    assert "taken: the averaged ones, model_ema.module" in assert_predicts_as(average.module)[0]
    assert_predicts_as(net, weights_key="model")


class Lightning(nn.Module):
    """A module as scripts write it for Lightning: a network, a loss with weights, a measure that is counted."""

    def __init__(self, net):
        super().__init__()
        self.net = net
        self.criterion = nn.CrossEntropyLoss(weight=torch.ones(3))
        self.val_confusion = nn.Module()
        self.val_confusion.register_buffer("confmat", torch.zeros(3, 3))


def test_a_checkpoint_of_lightning(net):
    history = collections.defaultdict(list)
    torch.save(
        {
            "epoch": 3,
            "pytorch-lightning_version": "2.4.0",
            "state_dict": Lightning(net).state_dict(),
            "optimizer_states": [trained_a_step(net).state_dict()],
            "loops": {"fit_loop": history},
            "hparams_name": "kwargs",
            "hyper_parameters": {"lr": 0.1, "root": Path("photos")},
        },
        "m.pth",
    )
    assert assert_predicts_as(net) == []


def test_a_checkpoint_of_a_compiled_model(net):
    torch.save(torch.compile(net).state_dict(), "m.pth")
    assert "_orig_mod" in next(iter(torch.load("m.pth")))
    assert_predicts_as(net)
    torch.save({"model": torch.compile(nn.DataParallel(net)).state_dict()}, "m.pth")
    assert_predicts_as(net)
    plain = copy.deepcopy(net)  # computing in the compiled one needs a C++ compiler
    net.layer1 = torch.compile(net.layer1)
    torch.save(net.state_dict(), "m.pth")
    assert_predicts_as(plain)


@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod.", "_orig_mod.module.", "net.", "1.", "a.b.c."])
@pytest.mark.parametrize("key", [None, "network", "checkpoint.weights.best"])
def test_the_weights_are_found_under_any_prefix_and_key(prefix, key, net):
    content = {prefix + name: value for name, value in net.state_dict().items()}
    for word in reversed(key.split(".") if key else []):
        content = {"step": 7, word: content, "shape": torch.ones(2)}
    torch.save(content, "m.pth")
    assert_predicts_as(net)
    model = get_model(NAME, 5, image_size=64, weights_file="m.pth")
    assert torch.equal(model.net.conv1[0].weight, net.conv1[0].weight)


def test_of_several_networks_none_is_guessed(net):
    other = network(1)
    content = {"student": net.state_dict(), "teacher": other.state_dict(), "copy": net.state_dict()}
    torch.save(content, "m.pth")
    with pytest.raises(UserError, match=r"of 2 networks: student, teacher; choose one \(--weights_key student\)"):
        predicted()
    assert_predicts_as(other, weights_key="teacher")
    with pytest.raises(UserError, match=r"none in 'techer' .*did you mean teacher\?"):
        predicted(weights_key="techer")
    with pytest.raises(UserError, match="choose one"):
        get_model(NAME, 5, image_size=64, weights_file="m.pth")
    model = get_model(NAME, 5, image_size=64, weights_file="m.pth", weights_key="teacher")
    assert torch.equal(model.net.conv1[0].weight, other.conv1[0].weight)


@pytest.mark.parametrize("names", [("_model", "_ema_model"), ("model", "_ema_model")])
def test_private_names_are_two_networks(names, net):
    average = network(1)
    states = dict(zip(names, (net, average), strict=True))
    torch.save({f"{key}.{name}": v for key, made in states.items() for name, v in made.state_dict().items()}, "m.pth")
    assert "taken: the averaged ones, _ema_model (--weights_key" in assert_predicts_as(average)[0]
    assert_predicts_as(net, weights_key=names[0])


def test_private_names_of_equal_rank_are_not_guessed(net):
    script = nn.ModuleDict({"_student": net, "_teacher": network(1)})
    torch.save(script.state_dict(), "m.pth")
    with pytest.raises(UserError, match="of 2 networks: _student, _teacher; choose one"):
        predicted()
    assert_predicts_as(script["_teacher"], weights_key="_teacher")


def test_a_compiled_network_beside_a_plain_one_is_another(net):
    other = network(1)
    compiled = {f"_orig_mod.{name}": value for name, value in other.state_dict().items()}
    torch.save({**net.state_dict(), **compiled}, "m.pth")
    with pytest.raises(UserError, match="holds the weights of 2 networks"):
        predicted()
    torch.save(compiled, "m.pth")
    assert_predicts_as(other)


@pytest.mark.parametrize("keys", [("optimal_model",), ("net_and_optimizer", "net"), ("optimized", "weights")])
def test_weights_under_a_word_like_optimizer_are_found(keys, net):
    content = net.state_dict()
    for key in reversed(keys):
        content = {"epoch": 3, key: content}
    torch.save(content, "m.pth")
    assert_predicts_as(net)


def test_the_state_of_an_optimizer_is_no_network(net):
    moments = {name: torch.zeros_like(value) for name, value in net.state_dict().items()}
    for name in ("optimizer", "optimizer_state_dict", "optim_states"):
        torch.save({"weights": net.state_dict(), name: {"momentum": moments}}, "m.pth")
        assert_predicts_as(net)


# --- heads ------------------------------------------------------------------------------------

HEADS = {
    "a dropout before it": (lambda n: nn.Sequential(nn.Dropout(0.5), nn.Linear(n, 3)), ()),
    "a hidden layer": (lambda n: nn.Sequential(nn.Linear(n, 8), nn.ReLU(), nn.Linear(8, 3)), ("relu",)),
    "a dropout behind it": (
        lambda n: nn.Sequential(nn.Linear(n, 8), nn.Tanh(), nn.Dropout(), nn.Linear(8, 3)),
        ("tanh",),
    ),
    "batch norm": (
        lambda n: nn.Sequential(nn.BatchNorm1d(n), nn.Linear(n, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 3)),
        ("relu",),
    ),
    "two hidden layers": (
        lambda n: nn.Sequential(nn.Linear(n, 8), nn.GELU(), nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 3)),
        ("gelu", "silu"),
    ),
    "probabilities": (lambda n: nn.Linear(n, 3, bias=False), ()),
}


@pytest.mark.parametrize("what", HEADS)
def test_a_head_is_rebuilt_by_its_numbers(what, net):
    make, activations = HEADS[what]
    net.fc = make(net.num_features)
    torch.save(net.state_dict(), "m.pth")
    assert_predicts_as(net, head_activation=activations)
    if activations:
        with pytest.raises(UserError, match=r"does not tell what its head computes at fc\.\d.*--head_activation relu"):
            predicted()


def test_a_head_beside_the_network_is_found(net):
    fc, net.fc = nn.Linear(net.num_features, 3), nn.Identity()
    for script in (nn.Sequential(net, fc), nn.ModuleDict({"backbone": net, "classifier": fc})):
        torch.save(script.state_dict(), "m.pth")
        assert_predicts_as(nn.Sequential(net, fc))


def test_a_replaced_classifier_of_several_layers_is_rebuilt():
    from torchvision import models

    torch.manual_seed(0)
    net = models.mobilenet_v3_small().eval()
    net.classifier = nn.Sequential(nn.Dropout(), nn.Linear(576, 3))
    torch.save(net.state_dict(), "m.pth")
    model, _ = load_checkpoint("m.pth", Description("mobilenet_v3_small", CLASSES))
    with torch.no_grad():
        assert torch.allclose(model(images()), net(model.normalize(images())), atol=1e-5)


def test_one_output_with_a_sigmoid_is_two_classes():
    net = network(n=1)
    torch.save(net.state_dict(), "m.pth")
    probabilities, _ = predicted(class_names=("good", "bad"))
    with torch.no_grad():
        bad = net(normalized(images())).sigmoid()[:, 0]
    assert torch.allclose(probabilities, torch.stack([1 - bad, bad], 1), atol=1e-5)
    with pytest.raises(UserError, match="has 1 outputs but 3 class names"):
        predicted()


ONE_OUTPUT = {
    "a dropout before it": lambda n: nn.Sequential(nn.Dropout(), nn.Linear(n, 1)),
    "a hidden layer": lambda n: nn.Sequential(nn.Linear(n, 8), nn.ReLU(), nn.Linear(8, 1)),
    "a hidden unit with batch norm": lambda n: nn.Sequential(
        nn.Linear(n, 1), nn.BatchNorm1d(1), nn.ReLU(), nn.Linear(1, 1)
    ),
    "beside the network": lambda n: nn.Linear(n, 1),
}


@pytest.mark.parametrize("what", ONE_OUTPUT)
def test_the_bias_of_one_output_is_kept(what, net):
    head = ONE_OUTPUT[what](net.num_features).eval()
    nn.init.constant_((head if what == "beside the network" else head[-1]).bias, 5)
    net.fc = nn.Identity() if what == "beside the network" else head
    script = nn.ModuleDict({"backbone": net, "head": head}) if what == "beside the network" else net
    script.register_buffer("pos_weight", torch.ones(1))  # of a loss
    torch.save(script.state_dict(), "m.pth")
    activations = ("relu",) if "hidden" in what else ()
    probabilities, _ = predicted(class_names=("good", "bad"), head_activation=activations)
    with torch.no_grad():
        outputs = net(normalized(images()))
        bad = (head(outputs) if what == "beside the network" else outputs).sigmoid()[:, 0]
    assert torch.allclose(probabilities[:, 1], bad, atol=1e-5)


def test_a_head_that_cannot_be_rebuilt_is_named(net):
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 3)

    net.fc = Head()
    torch.save(net.state_dict(), "m.pth")
    with pytest.raises(UserError, match=r"has fc\.first\.weight, but its head can be rebuilt only from layers"):
        predicted()
    net.fc = nn.Linear(8, 3)
    torch.save({**net.state_dict(), "fc.999999999.weight": torch.ones(3, 8)}, "m.pth")
    with pytest.raises(UserError, match=r"has fc\.999999999"):
        predicted()


# --- preparation ------------------------------------------------------------------------------


def test_the_preparation_of_a_plain_state_dict_is_printed_and_can_be_told(cli, net, tmp_path):
    torch.save(net.state_dict(), "m.pth")
    image = save_image(tmp_path / "a.png", 0, 5, size=(64, 64))
    argv = ("--model_fn", "m.pth", "--model_name", NAME, "--class_names", *CLASSES, "--input", image, "--gpu_id", -1)
    assert (
        "images  --image_size 160 --resize 168 --fit crop --interpolation bilinear --mean 0.5 "
        in cli("predict", *argv).out
    )
    flags = (
        "--image_size",
        64,
        "--resize",
        64,
        "--fit",
        "squash",
        "--interpolation",
        "bicubic",
        "--mean",
        0.1,
        "--std",
        0.2,
        0.3,
        0.4,
    )
    done = cli("predict", *argv, *flags)
    assert f"images  {' '.join(map(str, flags[:8]))} --mean 0.1 0.1 0.1 --std 0.2 0.3 0.4; as" in done.out
    assert_one_line_error(cli("predict", *argv, "--mean", 1, 2), "the preparation of images cannot be used")
    assert_one_line_error(cli("predict", *argv, "--fit", "x"), "invalid enum value 'x' (fit)")
    assert_one_line_error(cli("predict", *argv, "--interpolation", "x"), "invalid enum value 'x' (interpolation)")
