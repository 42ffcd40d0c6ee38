import pytest
import torch
from torch import nn

from model_loader import freeze, freeze_batch_norm, get_model
from photo_classifier.models.cut import LayersBehind, find_cut
from photo_classifier.models.inference import Engine

CPU = torch.device("cpu")
# a frozen layer, and where the network is cut then
CUTS = {
    "resnet layer2": "layer2",
    "resnet18 layer3.0.conv1": "layer2",  # what the shortcut takes is needed as well
    "alexnet features.5": "features.5",
    "vgg features.24": "features.23",  # its batch norm, which trains, is folded into it
    "squeezenet features.7": "features.7",
    "densenet features.denseblock2.denselayer2": "features.transition1",  # several outputs
    "efficientnet_lite0 blocks.3.1": "blocks.3.1",
    "mobilenet_v2 features.10": "features.10",
    "timm/test_vit blocks.2": "blocks.2",  # its tokens are summed up with positions outside of every layer
    "timm/test_convnext stages.1": "stages.1",
    "timm/test_resnet layer2": "layer2",
}


def frozen(name, until, image_size=32):
    size = {"timm/test_vit": 160, "alexnet": 64}.get(name, image_size)
    model = get_model(name, 3, image_size=size, dropout=0.3)
    freeze(model, until)
    images = torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return model, images


@pytest.mark.parametrize("place", CUTS)
def test_what_follows_a_cut_gives_the_bits_of_the_whole_network(place, narrow_classifiers):
    model, images = frozen(*place.split())
    for dtype in (torch.float32, torch.bfloat16):
        engine = Engine(model, CPU, dtype, batch_size=4)
        cut = find_cut(model, engine.pairs)
        assert cut.name == CUTS[place]
        engine.cut_at(cut)
        features = engine.features(images)
        assert len(features) == 3
        assert torch.equal(engine.from_features(features), engine(images))
        head_inputs = engine.head_inputs(features)
        engine.cut_at(None)
        assert torch.equal(engine.features(images), head_inputs)


@pytest.mark.parametrize("place", ["vgg avgpool", "densenet features.denseblock2", "timm/test_vit blocks.2"])
def test_what_follows_a_cut_trains_as_in_the_whole_network(place, narrow_classifiers):
    model, images = frozen(*place.split(), image_size=64)
    freeze_batch_norm(model)
    rest = LayersBehind(model, find_cut(model)).train()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, p in rest.named_parameters() if p.requires_grad} == trained.keys()
    model.train()
    results = []
    for compute in (model, lambda images: rest(model.features(images, find_cut(model).name))):
        model.zero_grad()
        torch.manual_seed(0)  # of the dropout
        logits = compute(images)
        logits.square().sum().backward()
        results.append([logits, *(p.grad.clone() for p in trained.values())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    norms = [module for module in rest.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert not any(norm.training for norm in norms), "frozen batch norm stays so behind the cut"


def test_batch_norm_behind_a_cut_moves_that_of_the_network_and_none_before():
    model, images = frozen("resnet18", "layer3")
    rest = LayersBehind(model, find_cut(model))
    assert rest.net.layer4 is model.net.layer4
    before = {name: value.clone() for name, value in model.net.state_dict().items()}
    rest.train()(model.features(images, "layer3"))
    moved = {name for name, value in model.net.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert all(name.startswith("layer4.") for name in moved)
    assert rest.state_dict().keys() == {f"net.{name}" for name in before if name.startswith(("layer4.", "fc."))}


def test_there_is_no_cut_where_the_first_layers_train_or_are_folded_into_one_that_does():
    model = get_model("resnet18", 3, image_size=32)
    assert find_cut(model) is None
    model, _ = frozen("resnet18", "conv1")
    assert find_cut(model, Engine(model, CPU, torch.float32, 4).pairs) is None
