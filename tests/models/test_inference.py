import contextlib
from types import SimpleNamespace

import pytest
import torch
from helpers import RESNET18
from helpers.families import NAMED
from torch import nn

from model_loader import get_model
from photo_classifier.models import folding
from photo_classifier.models.folding import find_pairs
from photo_classifier.models.inference import Engine, FrozenModel
from photo_classifier.runtime.device import to_device

CPU = torch.device("cpu")
NAMES = [*NAMED, "timm/mobilenetv3_small_050", "googlenet", "timm/test_vit"]  # the last without a convolution to fold


def random_model(name):
    """A model whose batch norms have statistics, as after training."""
    model = get_model(name, 3, image_size=160 if "vit" in name else 64)
    randomise(model)
    return model.eval()


def randomise(model):
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            module.weight.data.uniform_(0.5, 1.5, generator=generator)
            module.bias.data.normal_(0, 0.1, generator=generator)


def test_wrong_pairs_are_detected_in_a_new_model_too():
    # MaxViT's stem feeds a skip connection beside the norm
    model = get_model("maxvit_t", 3, image_size=224).eval()
    engine = Engine(model, CPU, torch.float32, 1)
    assert not engine.is_folded


def random_images(n, model):
    size = model.preprocess.image_size
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))


def clouds(n, model):
    """Images of soft colours: noise alone looks the same to a network that has learned nothing."""
    generator, size = torch.Generator().manual_seed(0), model.preprocess.image_size
    coarse = nn.functional.interpolate(torch.rand(n, 3, 4, 4, generator=generator), (size, size), mode="bilinear")
    return ((coarse + torch.rand(n, 3, size, size, generator=generator) / 5).clamp(0, 1) * 255).to(torch.uint8)


@torch.no_grad()
def decided_model(name):
    """A model whose answers differ from image to image, as after training, and those images."""
    model = get_model(name, 3, image_size=64)
    images, norms = clouds(6, model), [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    generator = torch.Generator().manual_seed(0)
    randomise(model)
    for norm in norms:
        norm.momentum = 1.0  # it takes the statistics of what comes
    for conv in model.modules() if not norms else ():
        if isinstance(conv, nn.Conv2d):
            nn.init.kaiming_normal_(conv.weight, generator=generator)
    model.train()(images)
    logits = model.eval()(images)
    stretch = 2 / (logits - logits.mean(0)).std()
    model.head.weight.mul_(stretch)
    model.head.bias.copy_((model.head.bias - logits.mean(0)) * stretch)
    return model, images


@pytest.mark.parametrize("name", NAMES[:-1])
def test_the_engine_answers_as_the_plain_model_does(name):
    model, images = decided_model(name)
    with torch.no_grad():
        plain = model(images).softmax(1)
    assert plain.std(0).max() > 0.2
    difference = (Engine(model, CPU, torch.float32, batch_size=4)(images).softmax(1) - plain).abs().max()
    assert difference < 1e-3  # processors round differently


@pytest.mark.parametrize("name", NAMES)
def test_the_engine_agrees_with_the_plain_model(name):
    # a network that has learned nothing amplifies the rounding of bf16 from layer to layer: answers that differ
    # strongly, as above, would differ by more than those of a trained one
    model = random_model(name)
    images = random_images(3, model)
    with torch.no_grad():
        plain = model(images).softmax(1)
    for dtype, tolerance in ((torch.float32, 1e-4), (torch.bfloat16, 0.02)):
        engine = Engine(model, CPU, dtype, batch_size=4)
        assert (engine(images).softmax(1) - plain).abs().max() < tolerance
        has_norms = any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
        assert engine.is_folded == has_norms


def test_what_really_runs_is_paired_and_the_rest_left():
    model = random_model("densenet")
    pairs = dict(find_pairs(model))
    assert pairs["net.features.conv0"] == "net.features.norm0"
    assert "net.features.norm5" not in pairs.values(), "it takes a concatenation, not a convolution's output"


def test_an_activation_inside_a_batch_norm_survives():
    engine = Engine(random_model("efficientnet_lite0"), CPU, torch.float32, 2)
    assert engine.is_folded
    left = [m for m in engine.evaluated.modules() if isinstance(m, nn.BatchNorm2d)]
    assert not left
    assert any(isinstance(m, nn.ReLU6) for m in engine.evaluated.modules())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0"])
def test_a_sample_does_not_depend_on_its_neighbours(name, dtype, two_threads):
    model = random_model(name)
    engine = Engine(model, CPU, dtype, batch_size=8)
    images = random_images(8, model)
    for compute in (engine, engine.features):
        together = compute(images)
        for n in range(8):
            assert torch.equal(compute(images[n : n + 1])[0], together[n])


def test_a_new_view_every_epoch_computes_no_more_images_than_a_step_has():
    model = get_model("resnet18", 3, image_size=32)
    engine, computed = Engine(model, CPU, torch.float32, batch_size=32), []
    engine.evaluated.register_forward_pre_hook(lambda _, inputs: computed.append(len(inputs[0])))
    engine.evaluated.net.conv1.register_forward_pre_hook(lambda _, inputs: computed.append(len(inputs[0])))
    logits = FrozenModel(engine, model.head_module(), 4)(random_images(4, model))
    assert computed == [4]
    with torch.no_grad():
        assert torch.allclose(logits, model.eval()(random_images(4, model)), atol=1e-4)


@pytest.mark.parametrize(("device", "expected"), [("cuda", True), ("mps", False), ("cpu", False)])
def test_only_cuda_copies_without_waiting(device, expected):
    tensor = SimpleNamespace(to=lambda device, **options: options)
    assert to_device(tensor, torch.device(device))["non_blocking"] == expected


def test_a_refresh_takes_over_new_weights_and_leaves_the_model_alone():
    model = random_model("resnet18")
    engine = Engine(model, CPU, torch.float32, 2)
    images, state = random_images(2, model), {k: v.clone() for k, v in model.net.state_dict().items()}
    before = engine(images)
    model.head.weight.data.mul_(2)
    assert torch.equal(engine(images), before)
    engine.refresh()
    assert not torch.equal(engine(images), before)
    assert all(torch.equal(state[k], v) for k, v in model.net.state_dict().items() if not k.startswith("fc"))


@pytest.fixture
def unfoldable(monkeypatch):
    """ResNet-18 whose convolutions' outputs are used beside the batch norm too: folding would be wrong."""
    block = type(get_model("resnet18", 3, image_size=32).net.layer1[0])

    def forward(self, x):
        seen = self.conv1(x)
        out = self.bn2(self.conv2(self.relu(self.bn1(seen))))
        return self.relu(out + (self.downsample(x) if self.downsample else x)) + seen

    monkeypatch.setattr(block, "forward", forward)


def test_a_model_that_cannot_be_folded_runs_plain(unfoldable):
    model = random_model("resnet18")
    engine = Engine(model, CPU, torch.float32, 2)
    assert not engine.is_folded
    assert engine.is_refused
    images = random_images(2, model)
    with torch.no_grad():
        assert torch.allclose(engine(images), model(images), atol=1e-4)


def test_a_network_that_asks_its_batch_norm_for_what_folding_removes_runs_plain(monkeypatch):
    block = type(get_model("resnet18", 3, image_size=32).net.layer1[0])

    def forward(self, x):
        scale = self.bn2.weight.abs().mean()
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(out + (self.downsample(x) if self.downsample else x)) * scale

    monkeypatch.setattr(block, "forward", forward)
    engine = Engine(random_model("resnet18"), CPU, torch.float32, 2)
    assert engine.is_refused
    assert engine(random_images(2, engine.model)).isfinite().all()


def test_a_refused_fold_is_reported_with_verbose_2(unfoldable, cli, image_folder):
    done = cli("train", "--data_dir", image_folder, *RESNET18, "--dry_run", "--verbose", 2)
    assert "evaluation runs unfolded: batch norm could not be folded into the convolutions" in done.out


def test_without_batch_norm_no_fold_is_refused():
    engine = Engine(get_model("squeezenet", 3, image_size=64), CPU, torch.float32, 2)
    assert not engine.is_folded
    assert not engine.is_refused


def round_convolutions(monkeypatch):
    """Makes convolutions round their inputs unless TF32 is off, as the tensor cores of a GPU do."""

    def rounded(tensor):  # to 8 bits: coarser than a GPU's 11, so that no processor's own rounding can hide it
        return tensor.bfloat16().float()

    def rounding(module, images, weight, bias):
        if torch.backends.cudnn.allow_tf32:
            images, weight = rounded(images), rounded(weight)
        return forward(module, images, weight, bias)

    forward = nn.Conv2d._conv_forward
    monkeypatch.setattr(nn.Conv2d, "_conv_forward", rounding)


def test_fp32_is_exact_where_the_device_rounds_convolutions(monkeypatch):
    model = random_model("resnet18")
    images = random_images(2, model)
    engine = Engine(model, CPU, torch.float32, 2)
    expected = engine(images)
    round_convolutions(monkeypatch)
    assert torch.equal(engine(images), expected)
    assert not torch.equal(engine.evaluated(images), expected), "the rounding must be one that matters"


def test_a_right_fold_is_not_refused_where_the_device_rounds_convolutions(monkeypatch):
    round_convolutions(monkeypatch)
    assert torch.backends.cudnn.allow_tf32
    model = random_model("resnet18")
    assert Engine(model, CPU, torch.float32, 2).is_folded
    assert torch.backends.cudnn.allow_tf32
    monkeypatch.setattr(folding, "exact_fp32", contextlib.nullcontext)
    assert not Engine(model, CPU, torch.float32, 2).is_folded, "the rounding must be one that matters"
