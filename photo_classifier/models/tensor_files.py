"""Where a backbone's numbers come from: the library's cache or download, a local file, a package."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import torch
from torch import nn

from photo_classifier.runtime.errors import UserError, did_you_mean_path
from photo_classifier.runtime.files import atomic_write


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


def check_fit(own: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor], path: str | Path) -> None:
    """Checks that tensors of a file are those of the model.

    Raises:
        UserError: names, shapes or kinds of numbers differ, or a value is not finite.
    """
    # older files have no counter of batches, which nothing here reads
    missing = [key for key in own if key not in found and not key.endswith("num_batches_tracked")]
    unknown = [key for key in found if key not in own]
    wrong = [key for key in own if key in found and own[key].shape != found[key].shape]
    odd = [key for key in own if key in found and not _is_like(found[key].dtype, own[key].dtype)]
    mistakes = {"lacks": missing, "has the unknown": unknown, "has another shape for": wrong, "has odd numbers in": odd}
    for what, keys in mistakes.items():
        if keys:
            raise UserError(
                f"{path} does not fit the model: it {what} {', '.join(keys[:3])}"
                f"{f' and {len(keys) - 3} more' if len(keys) > 3 else ''}; is it of another --model_name?"
            )
    broken = [key for key, value in found.items() if not value.float().isfinite().all()]  # in fp32, as they are kept
    if broken:
        raise UserError(f"{path} has values that are not finite in {', '.join(broken[:3])}; it cannot be used")


WEIGHT_TYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def _is_like(dtype: torch.dtype, own: torch.dtype) -> bool:
    """Whether numbers of a file can stand for those of the model."""
    return dtype == own or (dtype in WEIGHT_TYPES and own in WEIGHT_TYPES)
