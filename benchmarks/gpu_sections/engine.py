"""The engine against the plain model: probabilities and images/s."""

from __future__ import annotations

import copy

import torch
from torch import nn

from gpu_sections import Bench

NETWORKS = ("resnet18", "resnet50", "efficientnet_lite0", "efficientnet_b0", "convnext_tiny", "vit_b_16")


def engine(bench: Bench) -> None:
    """Every network in fp32 and in the precision of this device, in batches of 256; and of 32, which is the default."""
    from model_loader import get_model

    runs = {(torch.float32, 256), (bench.dtype, 256), *([(bench.dtype, 32)] if bench.on_gpu else [])}
    for name in NETWORKS if bench.on_gpu else NETWORKS[::2]:
        model = get_model(name, 10).to(bench.device).eval()
        for dtype, n in sorted(runs, key=str):
            compare_engine(bench, name, model, dtype, bench.scaled(n))


@torch.inference_mode()
def compare_engine(bench: Bench, name: str, model: nn.Module, dtype: torch.dtype, n: int) -> None:
    """One network: images/s of both sides, and how far probabilities are from each other and from exact ones."""
    from photo_classifier.models.inference import Engine

    size = model.preprocess.image_size
    images = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = images.to(bench.device)
    sharpen(model, images)
    plain = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    fast = Engine(model, bench.device, dtype, n)

    def by_hand() -> torch.Tensor:
        with torch.autocast(bench.device.type, dtype, enabled=dtype != torch.float32):
            return plain(images)

    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        exact = plain(images).softmax(1)
    theirs, ours = by_hand().softmax(1), fast(images).softmax(1)
    elsewhere = fast(images.roll(1, 0)).softmax(1).roll(-1, 0)
    apart = [(a - b).abs().max().item() for a, b in ((ours, theirs), (theirs, exact), (ours, exact), (ours, elsewhere))]
    speeds = bench.speed(by_hand, n), bench.speed(lambda: fast(images), n)
    wrong = bench.expect(apart[0] < (1e-2 if dtype == torch.float32 else 5e-2))
    note = (
        f"{speeds[1] / speeds[0]:.2f}x; {wrong}probabilities differ by {apart[0]:.1e} (plain from exact fp32 by "
        f"{apart[1]:.1e}, ours by {apart[2]:.1e}), with other neighbours by {apart[3]:.1e}"
    )
    bench.row(f"{name}, batch {n}", dtype, f"{speeds[0]:,.0f} images/s", f"{speeds[1]:,.0f} images/s", note)


def sharpen(model: nn.Module, images: torch.Tensor) -> None:
    """Scales the head of an untrained network: its probabilities are nearly equal, which hides any difference."""
    head = model.head
    scale = 2 / model(images).std()
    head.weight *= scale
    head.bias *= scale
