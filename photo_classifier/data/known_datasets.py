"""Known data sets, which are fetched by name and written once below `dataset/`."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from photo_classifier.data.archives import extract
from photo_classifier.runtime.console import progress
from photo_classifier.runtime.download import DownloadError, download
from photo_classifier.runtime.errors import UserError, did_you_mean
from photo_classifier.runtime.files import atomic_folder
from photo_classifier.runtime.seeding import derive_seed


@dataclass(frozen=True)
class KnownSet:
    """A data set that the tool can create in a new folder, and the flags that suit it."""

    make: Callable[[Path], None]
    defaults: Mapping[str, object] = field(default_factory=dict)


def _make_digits(folder: Path) -> None:
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for n, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / str(label) / f"{n:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((pixels * 255 / 16).round().astype("uint8")).save(path)


HYMENOPTERA_URL = "https://download.pytorch.org/tutorial/hymenoptera_data.zip"
HYMENOPTERA_SHA256 = "fbc41b31d544714d18dd1230b1e2b455e1557766e13e67f9f5a7a23af7c02209"


def _make_hymenoptera(folder: Path) -> None:
    archive = folder.parent / "hymenoptera_data.zip"
    try:
        download(HYMENOPTERA_URL, archive, HYMENOPTERA_SHA256)
    except DownloadError as error:
        raise UserError(
            f"could not download {HYMENOPTERA_URL}: {error}; download and unpack it elsewhere and give "
            "--data_dir DIR, or use --dataset_name digits, which needs no network"
        ) from error
    extract(archive, folder, strip="hymenoptera_data")


def _make_elpv(folder: Path) -> None:
    package = find_spec("elpv_dataset")
    if package is None:
        raise UserError("--dataset_name elpv needs its package: pip install elpv-dataset (90 MB, CC BY-NC-SA)")
    source = Path(package.origin).parent / "data"
    rows = [line.split() for line in (source / "labels.csv").read_text(encoding="utf-8").splitlines()]
    test = _stratified_share(rows, ELPV_TEST_SHARE)
    for image, probability, _ in progress(rows, desc="elpv", unit="image"):
        split = "test" if image in test else "train"
        label = "defective" if float(probability) >= 0.5 else "functional"
        target = folder / split / label / Path(image).name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / image, target)


ELPV_TEST_SHARE = 0.25  # Deitsch et al. 2019: 1,968 cells to train on and 656 to test


def _stratified_share(rows: list[list[str]], share: float) -> set[str]:
    """Returns the names of a share of the rows `name, probability, type`, stratified by probability and type."""
    strata: dict[tuple[str, ...], list[str]] = {}
    for name, *properties in rows:
        strata.setdefault(tuple(properties), []).append(name)
    chosen, n_before = set(), 0
    for _, names in sorted(strata.items()):
        # rounds the running count: rounding each stratum separately would miss the overall share
        n = round((n_before + len(names)) * share) - round(n_before * share)
        chosen |= set(sorted(names, key=lambda name: derive_seed("elpv", name))[:n])
        n_before += len(names)
    return chosen


DATASETS = {
    "digits": KnownSet(
        _make_digits,
        # really 8 x 8 pixels; mirrored digits are not digits; a first run should be short
        {"preferred_size": 32, "augment": "none", "n_epochs": 5, "step_size": 4},
    ),
    "hymenoptera": KnownSet(_make_hymenoptera),  # 398 photos of ants and bees
    "elpv": KnownSet(_make_elpv),  # 2,624 solar cells
}


def dataset_folder(name: str, base: str | Path = "dataset") -> Path:
    """Returns the folder of a data set below `base`; creates a known one at its first use.

    Raises:
        UserError: there is neither a folder nor a known set of that name, or it cannot be created.
    """
    folder = Path(base) / name
    if folder.is_dir():
        return folder
    if name not in DATASETS:
        folders = [path.name for path in Path(base).glob("*/")]
        raise UserError(
            f"--dataset_name {name!r} is neither a known data set ({', '.join(DATASETS)}) nor the folder {folder}"
            f"{did_you_mean(name, [*DATASETS, *folders])}; for a folder elsewhere use --data_dir DIR"
        )
    with atomic_folder(folder) as target:
        DATASETS[name].make(target)
    return folder
