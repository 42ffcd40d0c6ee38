"""Folders and known data sets -> labelled samples in splits."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from download import DownloadError, download, extract
from utils import UserError, did_you_mean, progress, seed_for

IMAGE_ENDINGS = frozenset(
    ".jpg .jpeg .jpe .jfif .png .apng .bmp .gif .tif .tiff .webp .avif .ppm .pgm .pbm .jp2 .ico .tga".split()
)
PASSED_OVER = frozenset({"thumbs.db", "desktop.ini", "__macosx"})
SPLIT_FOLDERS = {
    "train": ("train", "training", "training_set"),
    "valid": ("val", "valid", "validation"),
    "test": ("test", "testing", "test_set"),
}


@dataclass(frozen=True)
class Sample:
    """One image. `key` names it in every random draw, the same on every machine."""

    path: str
    label: str | None = None
    key: str = ""


@dataclass(frozen=True)
class Splits:
    """Samples by split, and the class names in the order of the training folders."""

    layout: str
    root: str
    class_names: list[str]
    train: list[Sample] = field(repr=False)
    valid: list[Sample] = field(repr=False)
    test: list[Sample] = field(repr=False)
    made: tuple[str, ...] = ()  # the splits that were cut from the training images here
    passed_over: Mapping[str, int] = field(default_factory=dict)  # files without an image's ending, by ending

    def by_name(self) -> dict[str, list[Sample]]:
        """The splits that hold images, by name."""
        return {name: part for name in SPLIT_FOLDERS if (part := getattr(self, name))}

    @property
    def held_out(self) -> str:
        """The split that the last line of training speaks of, and predict takes by default."""
        return "test" if self.test else "valid"


# --- listing ----------------------------------------------------------------------------------


def nfc(name: str) -> str:
    """Unicode NFC: macOS writes Korean names decomposed, and they must match all the same."""
    return unicodedata.normalize("NFC", name)


def is_image_name(name: str) -> bool:
    """Whether the ending of a file name is that of an image."""
    return os.path.splitext(name)[1].lower() in IMAGE_ENDINGS


def subfolders(folder: str | Path) -> dict[str, str]:
    """The visible folders below `folder`: NFC name -> path, sorted by name.

    Raises:
        UserError: two folders have the same name but for its Unicode form.
    """
    found: dict[str, str] = {}
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror}") from error
    for entry in entries:
        if _is_dir(entry) and _is_visible(entry.name):
            if nfc(entry.name) in found:
                raise UserError(f"{folder} has two folders named {nfc(entry.name)!r}; rename or merge them")
            found[nfc(entry.name)] = os.path.join(folder, entry.name)
    return dict(sorted(found.items()))


def walk_images(folder: str | Path) -> Iterator[str]:
    """Every file below `folder` that is an image by its ending, sorted by name."""
    return (path for path in walk_files(folder) if is_image_name(path))


def count_others(folder: str | Path) -> dict[str, int]:
    """Visible files below `folder` that are no images by their ending: ending -> count."""
    others = (path for path in walk_files(folder) if not is_image_name(path))
    return dict(sorted(Counter(os.path.splitext(path)[1].lower() or "no ending" for path in others).items()))


def others_text(others: Mapping[str, int]) -> str:
    """`passed over 3 files that are no images by their ending (.heic 2, .txt 1)`."""
    kinds = ", ".join(f"{ending} {count}" for ending, count in others.items())
    return f"passed over {sum(others.values())} files that are no images by their ending ({kinds})"


def walk_files(folder: str | Path) -> Iterator[str]:
    """Every visible file below `folder`, sorted by name; links are followed, but not in circles."""
    pending, seen = [str(folder)], set()
    while pending:
        current = pending.pop()
        real = os.path.realpath(current)
        if real in seen:
            continue
        seen.add(real)
        try:
            entries = sorted(os.scandir(current), key=lambda entry: nfc(entry.name))
        except OSError as error:
            raise UserError(f"cannot read the folder {current}: {error.strerror}") from error
        visible = [entry for entry in entries if _is_visible(entry.name)]
        pending.extend(entry.path for entry in reversed(visible) if _is_dir(entry))
        yield from (entry.path for entry in visible if not _is_dir(entry))


def _is_dir(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself: reading it will tell
        return False


def _is_visible(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in PASSED_OVER


def _class_samples(folder: str | Path, root: str | Path) -> list[Sample]:
    """The samples of a folder of class folders."""
    samples = []
    for label, path in subfolders(folder).items():
        splits_below = [name for name in subfolders(path) if _split_of(name)]
        if splits_below:
            what = f"holds the folder(s) {', '.join(splits_below)}"
            raise UserError(f"{path} was taken for a class, but it {what}{_did_you_mean_below(root)}; {EXPECTED}")
        images = [Sample(image, label, sample_key(image, root)) for image in walk_images(path)]
        if not images:
            hint = _did_you_mean_below(root)
            raise UserError(f"{path} was taken for a class, but it holds no images{hint}; {EXPECTED}")
        samples += images
    return samples


def _split_of(folder_name: str) -> str | None:
    return next((split for split, names in SPLIT_FOLDERS.items() if folder_name.lower() in names), None)


def _did_you_mean_below(root: str | Path) -> str:
    """The folder one or two levels below that has `train` in it, as a hint."""
    for path in subfolders(root).values():
        for candidate in (path, *subfolders(path).values()):
            if any(_split_of(name) == "train" for name in subfolders(candidate)):
                return f"; did you mean --data_dir {candidate}?"
    return ""


def sample_key(path: str | Path, root: str | Path) -> str:
    """The path below the data folder, with `/` and in NFC, so that it is the same everywhere."""
    return nfc(os.path.relpath(path, root)).replace(os.sep, "/")


# --- layouts ----------------------------------------------------------------------------------

Parts = dict[str, list[Sample]]


def _split_folders(root: Path) -> Parts | None:
    """`train/` [+ `val/`] [+ `test/`] of class folders."""
    folders = subfolders(root)
    found = {split: path for name, path in folders.items() if (split := _split_of(name))}
    if "train" not in found or len(found) < min(2, len(folders)):
        return None
    return {split: _class_samples(found[split], root) for split in SPLIT_FOLDERS if split in found}


def _class_folders(root: Path) -> Parts | None:
    """Class folders only."""
    return {"train": _class_samples(root, root)} if subfolders(root) else None


LAYOUTS: dict[str, Callable[[Path], Parts | None]] = {
    "split folders of class folders": _split_folders,
    "class folders": _class_folders,
}

EXPECTED = "expected DIR/train/CLASS/*.jpg with DIR/val/CLASS/*.jpg, or DIR/CLASS/*.jpg, for two classes or more"


def load_splits(root: str | Path, ratios: Mapping[str, float], seed: int) -> Splits:
    """Recognises the layout of a data folder and returns its samples in splits.

    Args:
        ratios: the shares of `train`, `valid` and `test`, used where the folder has no such split.

    Raises:
        UserError: what was found is not what a classifier can be trained on.
    """
    root = Path(root)
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise UserError(f"the data folder {root} {what}; {EXPECTED}")
    layout, parts = next(
        ((name, parts) for name, recognise in LAYOUTS.items() if (parts := recognise(root))), ("", None)
    )
    if parts is None:
        n_loose = sum(1 for _ in walk_images(root))
        found = f"{n_loose} images but no class folders" if n_loose else "no images"
        raise UserError(f"{root} holds {found}; {EXPECTED}")
    for split, samples in parts.items():
        if not samples:
            what = "holds no class folders with images; put them there, or remove it"
            raise UserError(f"the {split} folder in {root} {what}; {EXPECTED}")
    class_names = sorted({sample.label for sample in parts["train"]})
    if len(class_names) < 2:
        raise UserError(f"{root} has one class only ({class_names[0]!r}){_did_you_mean_below(root)}; {EXPECTED}")
    _check_classes(parts, class_names)
    filled = _fill_splits(parts, ratios, seed)
    made = tuple(name for name in filled if name not in parts)
    three = [filled.get(name, []) for name in SPLIT_FOLDERS]
    return Splits(layout, str(root), class_names, *three, made=made, passed_over=count_others(root))


def _check_classes(parts: Parts, class_names: list[str]) -> None:
    for split, samples in parts.items():
        unknown = sorted({sample.label for sample in samples} - set(class_names))
        if unknown:
            raise UserError(
                f"the {split} split has classes that training lacks: {', '.join(unknown)}; "
                f"training has {', '.join(class_names)}: rename or remove those folders"
            )


def _fill_splits(parts: Parts, ratios: Mapping[str, float], seed: int) -> Parts:
    """Makes the splits that the layout does not bring, out of its training images."""
    if "valid" in parts:
        return parts
    wanted = {name: ratios[name] for name in SPLIT_FOLDERS if name not in parts or name == "train"}
    return parts | stratified_split(parts["train"], wanted, seed)


def stratified_split(samples: list[Sample], ratios: Mapping[str, float], seed: int) -> Parts:
    """Cuts every class by the ratios, in an order that depends on the seed and the keys alone.

    Because each image draws its own place, a photo that is added later moves no other across by more
    than the rounding of the ratio: yesterday's test images do not become today's training images.

    Raises:
        UserError: a class has too few images for every split to get one.
    """
    total, names = sum(ratios.values()), [name for name, ratio in ratios.items() if ratio > 0]
    parts: Parts = {name: [] for name in names}
    by_label: dict[str, list[Sample]] = {}
    for sample in samples:
        by_label.setdefault(sample.label, []).append(sample)
    for label, members in by_label.items():
        count = len(members)
        if count < len(names):
            raise UserError(
                f"the class {label!r} has {count} image(s), too few for {' + '.join(names)}; "
                "add images, or set --test_ratio 0"
            )
        members.sort(key=lambda sample: (seed_for(seed, "split", sample.key), sample.key))
        start, share = 0, 0.0
        for place, name in enumerate(names):
            share += ratios[name] / total
            # every split gets at least one image, and leaves one for each that follows
            end = min(max(round(count * share), start + 1), count - (len(names) - place - 1))
            parts[name] += members[start:end]
            start = end
    return {name: sorted(part, key=lambda sample: (sample.label, sample.key)) for name, part in parts.items()}


# --- known data sets --------------------------------------------------------------------------


@dataclass(frozen=True)
class KnownSet:
    """A data set that this tool can bring by itself, and the flags that suit it."""

    make: Callable[[Path], None]
    about: str
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
            f"could not download {HYMENOPTERA_URL}: {error}; unpack it on another machine and give --data_dir DIR, "
            "or use --dataset_name digits, which needs no network"
        ) from error
    folder.rmdir()
    extract(archive, folder, strip="hymenoptera_data")
    archive.unlink()


def _make_elpv(folder: Path) -> None:
    import shutil
    from importlib.util import find_spec

    package = find_spec("elpv_dataset")
    if package is None:
        raise UserError("--dataset_name elpv needs its package: pip install elpv-dataset (90 MB, CC BY-NC-SA)")
    source = Path(package.origin).parent / "data"
    lines = (source / "labels.csv").read_text(encoding="utf-8").splitlines()
    for line in progress(lines, desc="elpv", unit="image"):
        image, probability, _ = line.split()
        label = "defective" if float(probability) >= 0.5 else "functional"
        (folder / label).mkdir(exist_ok=True)
        shutil.copyfile(source / image, folder / label / Path(image).name)


DATASETS = {
    "digits": KnownSet(
        _make_digits,
        "1,797 handwritten digits from scikit-learn",
        # 8 x 8 pixels in truth, no mirror images, and a first run that a newcomer has the patience for
        {"preferred_size": 32, "augment": "none", "n_epochs": 5, "step_size": 4},
    ),
    "hymenoptera": KnownSet(_make_hymenoptera, "398 photos of ants and bees, downloaded"),
    "elpv": KnownSet(_make_elpv, "2,624 solar cells from pip's elpv-dataset"),
}


def dataset_folder(name: str, base: str | Path = "dataset") -> Path:
    """The folder of a data set below `base`; a known one is made there at its first use.

    Raises:
        UserError: no such folder and no known set of that name, or it cannot be made.
    """
    folder = Path(base) / name
    if folder.is_dir():
        return folder
    if name not in DATASETS:
        raise UserError(
            f"--dataset_name {name!r} is neither a known set ({', '.join(DATASETS)}) nor the folder {folder}"
            f"{did_you_mean(name, DATASETS)}; for a folder elsewhere use --data_dir DIR"
        )
    _make_beside(folder, DATASETS[name].make)
    return folder


def _make_beside(folder: Path, make: Callable[[Path], None]) -> None:
    """Makes the set in a folder of another name, so that a broken attempt is never taken for it."""
    import shutil
    import tempfile

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}") from error
    try:
        made = staging / folder.name
        made.mkdir()
        make(made)
        os.replace(made, folder)
    except OSError as error:
        raise UserError(f"cannot make {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


# --- inputs of prediction ---------------------------------------------------------------------


def input_samples(paths: Sequence[str], class_names: Sequence[str]) -> list[Sample]:
    """Files, and the images of folders in sorted order; labelled by their folder where all are classes.

    Raises:
        UserError: a path does not exist, or a folder holds no images.
    """
    samples: list[Sample] = []
    for path in paths:
        if os.path.isdir(path):
            found, others = _labelled(path, class_names), count_others(path)
            if others:
                print(f"{path}: {others_text(others)}")
            if not found:
                print(f"{path}: a folder without images")
            samples += found
        elif os.path.lexists(path):
            samples.append(Sample(path))
        else:
            raise UserError(f"--input {path} does not exist; give files or folders that do")
    if not samples:
        raise UserError(f"--input {' '.join(paths)}: no images were found; give photos, or folders of photos")
    return samples


def _labelled(folder: str, class_names: Sequence[str]) -> list[Sample]:
    """The images of a folder; its subfolders are labels only where every one is a class name."""
    folder = os.path.normpath(folder)
    children = subfolders(folder)
    if children and set(children) <= set(class_names):
        direct = [Sample(path) for path in walk_images(folder) if os.path.dirname(path) == folder]
        return direct + [Sample(path, label) for label, below in children.items() for path in walk_images(below)]
    if children:
        print(f"{folder}: its folders are not all class names, so they are not taken as labels")
    return [Sample(path) for path in walk_images(folder)]
