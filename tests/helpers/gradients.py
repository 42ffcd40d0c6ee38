"""Compares the gradients of convolutions with those in contiguous memory and fp64, in a process that may crash.

`python gradients.py NAME ...` does so for every kind of convolution in those networks, with one thread and with two,
and prints those that are wrong.
"""

import copy
import sys
from collections.abc import Iterator

import torch
from torch import nn

from photo_classifier.models.backbones import build, find_backbone
from photo_classifier.models.classifier import Classifier

TOLERANCE = 1e-3  # of the largest gradient


def convolutions(names: list[str]) -> Iterator[nn.Conv2d]:
    """One of each kind in the networks, with new weights; above 32 channels their number makes no kind."""
    seen = set()
    for name in names:
        # a network on `meta` takes no memory and no time; a RegNet reads numbers while it is built
        with torch.device("cpu" if name.startswith("regnet") else "meta"):
            net, preprocess, _ = build(find_backbone(name), will_load=True)
            model = Classifier(net, "", preprocess)
        for module in model.net.modules():
            if isinstance(module, nn.Conv2d) and (kind := kind_of(module)) not in seen:
                seen.add(kind)
                conv = copy.deepcopy(module).to_empty(device="cpu")
                for parameter in conv.parameters():
                    nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
                yield conv


def kind_of(conv: nn.Conv2d) -> tuple:
    """What oneDNN and this package choose code by."""
    geometry = conv.kernel_size, conv.stride, conv.padding, conv.dilation
    return type(conv), *geometry, min(conv.in_channels, 33), min(conv.out_channels, 33), min(conv.groups, 2)


def gradients(conv: nn.Conv2d, images: torch.Tensor) -> list[torch.Tensor]:
    """The gradients of the images and of the weights."""
    images = images.detach().requires_grad_()
    output = conv.train()(images)
    towards = torch.rand(output.shape, generator=torch.Generator().manual_seed(1)).to(output)
    return [gradient.double() for gradient in torch.autograd.grad(output, [images, conv.weight], towards)]


def error(conv: nn.Conv2d, n_threads: int) -> float:
    """The largest difference, as a share of the largest gradient."""
    plain = copy.deepcopy(conv).double()
    vars(plain).pop("forward", None)
    side = 16 if conv.in_channels <= 32 else 4
    images = torch.rand(4, side, side, conv.in_channels, generator=torch.Generator().manual_seed(2)).permute(0, 3, 1, 2)
    torch.set_num_threads(n_threads)
    actual = gradients(conv.to(memory_format=torch.channels_last), images)
    torch.set_num_threads(1)
    expected = gradients(plain, images.double().contiguous())
    return max(float((a - e).abs().max() / e.abs().max()) for a, e in zip(actual, expected, strict=True))


if __name__ == "__main__":
    for conv in convolutions(sys.argv[1:]):
        for n_threads in (1, 2):
            if (share := error(conv, n_threads)) > TOLERANCE:
                print(f"{conv} with {n_threads} threads: {share:.0e}", flush=True)
