"""Reads and writes files of tensors, and trusts none that it reads."""

from __future__ import annotations

import errno
import pickle
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import torch

from photo_classifier.models import foreign_values
from photo_classifier.runtime.errors import UserError, did_you_mean_path
from photo_classifier.runtime.files import atomic_write, can_map
from photo_classifier.runtime.limits import resource_hint

NO_WEIGHTS = "not a PyTorch file; give a checkpoint of this tool, or a .pth or .safetensors file of weights"


def read(path: str | Path, mmap: bool = False) -> dict:
    """Reads a `.pth` or `.safetensors` file; never runs code from it.

    Args:
        mmap: leave the tensors on the disk until they are used; the file must exist as long as they do.

    Raises:
        UserError: the file is missing, incomplete, of another kind, or holds more than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no file {path}{did_you_mean_path(path)}; give an existing .pth or .safetensors file")
    try:
        content = _load(path, mmap)
    except pickle.UnpicklingError as error:
        raise UserError(_refused(path)) from error
    except UserError:
        raise
    # torch, zipfile and safetensors share no error class, and a damaged file makes each raise several: KeyError,
    # EOFError, RuntimeError, BadZipFile, SafetensorError, ... It always means the same.
    except Exception as error:
        if resource_hint(error):  # not the file's fault
            raise
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # but the system's
            raise UserError(f"cannot read {path}: {error.strerror}") from error
        raise UserError(_damaged(path)) from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, not a state_dict or a checkpoint")
    tensors = list(_tensors(content))
    if not all(map(_is_dense, tensors)):
        raise UserError(f"{path} holds a sparse, quantized or empty tensor; save plain tensors where it was made")
    if any(map(_is_hollow, tensors)):
        raise UserError(f"{path} declares a tensor that is larger than its data in the file; it was not used")
    return content


def is_of_run(path: str | Path, run_id: str) -> bool:
    """Returns whether the file is a checkpoint of that run."""
    try:
        return read(path, mmap=True).get("run_id") == run_id
    except UserError:
        return False


def has_format(content: object, version: int, path: str | Path) -> bool:
    """Returns whether a file has the newest known `format_version`; raises UserError if it has a newer one."""
    declared = content.get("format_version") if isinstance(content, dict) else None
    if type(declared) is int and declared > version:
        raise UserError(f"{path} has format {declared}, but this version reads only up to {version}; update the tool")
    return type(declared) is int and declared == version


def write(path: str | Path, content: dict, keep_existing: bool = False) -> None:
    """Writes plain values and tensors as a `.pth` file, atomically; `keep_existing` keeps an old one as `.prev`."""
    with atomic_write(path, keep_existing=keep_existing) as file:
        recorder = _ErrorRecorder(file)
        try:
            torch.save(content, recorder)
        except RuntimeError as error:  # PyTorch hides the system's error
            raise recorder.error or error from error


class _ErrorRecorder:
    """A file that remembers why writing failed."""

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


def _load(path: Path, mmap: bool) -> object:
    if _is_safetensors(path):
        from safetensors.torch import load_file

        return load_file(path)
    is_zip = zipfile.is_zipfile(path)
    if is_zip:
        _check_zip(path)
    with warnings.catch_warnings(), foreign_values.allowed():
        warnings.simplefilter("ignore")  # torch warns about files that it then refuses
        # only the zip format can be memory-mapped
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap and is_zip and can_map(path))


def _is_safetensors(path: Path) -> bool:
    """Returns whether the file begins as one: a length of 8 bytes, then a JSON header."""
    with open(path, "rb") as file:
        return file.read(9)[8:] == b"{"


def _check_zip(path: Path) -> None:
    """Refuses TorchScript, and a zip whose content would fill the memory: PyTorch's own are not compressed."""
    with zipfile.ZipFile(path) as file:
        if any(name.endswith("/constants.pkl") for name in file.namelist()):
            raise UserError(f"{path} is a TorchScript program, not weights; save its state_dict instead")
        unpacked = sum(entry.file_size for entry in file.infolist())
    if unpacked > path.stat().st_size:
        raise UserError(
            f"{path} has {path.stat().st_size:,} bytes but would unpack to {unpacked:,}; it was not opened, because "
            "files of weights are not compressed"
        )


def _tensors(content: object) -> Iterator[torch.Tensor]:
    """Yields all tensors inside, looking at each list and dict once, however often it occurs."""
    pending, seen = [content], set()
    while pending:
        item = pending.pop()
        if torch.is_tensor(item):
            yield item
        elif isinstance(item, (dict, list, tuple)) and id(item) not in seen:
            seen.add(id(item))
            pending += item.values() if isinstance(item, dict) else item


def _is_dense(tensor: torch.Tensor) -> bool:
    """Returns whether the tensor stores one number per element; others cannot be compared or copied alike."""
    return tensor.layout == torch.strided and not tensor.is_quantized and not tensor.is_meta


def _is_hollow(tensor: torch.Tensor) -> bool:
    # with strides of 0 a single number can pose as a tensor of any size
    return tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()


def _damaged(path: Path) -> str:
    with open(path, "rb") as file:
        start = file.read(1)
    # a zip, an old pickle, or an empty file
    if start in (b"P", b"\x80", b"") or _is_safetensors(path):
        return f"{path} is damaged or incomplete; delete it and get it again"
    return f"{path} is {NO_WEIGHTS}"


def _refused(path: Path) -> str:
    if not zipfile.is_zipfile(path):
        return f"{path} is {NO_WEIGHTS}"
    # torch.save(model) writes a zip file whose pickle names classes
    return (
        f"{path} holds more than tensors and plain values and was not opened, because such a file can run code; "
        "save only the weights where it was made: torch.save(model.state_dict(), FILE)"
    )
