"""Folders and tables -> labelled samples in splits."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from utils import UserError, pick, seed_for

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


def load_table(
    table: str | Path,
    ratios: Mapping[str, float],
    seed: int,
    root: str | Path | None = None,
    path_column: str | None = None,
    label_column: str | None = None,
) -> Splits:
    """Reads a CSV of paths and labels, a line an image, and cuts it into splits.

    Args:
        root: what the paths are relative to; the table's own folder without it.
        path_column, label_column: their names; guessed from the usual ones without them.

    Raises:
        UserError: no such file or column, an empty cell, a path twice, or too few classes or images.
    """
    import pandas

    table = Path(table)
    try:
        # as text: a class named 007 or NA keeps its name
        frame = pandas.read_csv(table, dtype=str, keep_default_na=False, encoding="utf-8-sig", skipinitialspace=True)
    except (OSError, ValueError) as error:  # pandas' own errors are ValueErrors
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"--labels {table} cannot be read: {reason}; expected a CSV with a header line") from error
    columns = [
        _column(frame.columns, given, usual, flag, table)
        for given, usual, flag in (
            (path_column, PATH_COLUMNS, "--path_column"),
            (label_column, LABEL_COLUMNS, "--label_column"),
        )
    ]
    root, samples, seen = Path(root) if root else table.parent, [], {}
    for line, (path, label) in enumerate(zip(*(frame[column] for column in columns), strict=True), start=2):
        if not path.strip() or not label.strip():
            raise UserError(f"--labels {table}: line {line} has no {columns[1 if path.strip() else 0]}; fill it in")
        key = nfc(path).replace("\\", "/")
        if key in seen:
            raise UserError(f"--labels {table}: {path!r} stands in line {seen[key]} and in line {line}; remove one")
        seen[key] = line
        samples.append(Sample(os.path.normpath(os.path.join(root, path)), nfc(label), key))
    class_names = sorted({sample.label for sample in samples})
    if len(class_names) < 2:
        raise UserError(f"--labels {table} has {len(class_names)} class(es) in {columns[1]!r}; two or more are needed")
    parts = stratified_split(samples, ratios, seed)
    three = [parts.get(name, []) for name in SPLIT_FOLDERS]
    return Splits("a table of paths and labels", str(table), class_names, *three, made=tuple(parts)[1:])


PATH_COLUMNS = ("path", "file", "filename", "file_name", "file_dir", "image", "image_path", "img", "id")
LABEL_COLUMNS = ("label", "class", "category", "target", "species", "diagnosis", "y")


def _column(columns: Sequence[str], given: str | None, usual: Sequence[str], flag: str, table: Path) -> str:
    if given:
        return pick(flag, given, list(columns))
    found = [column for name in usual for column in columns if column.strip().lower() == name]
    if not found:
        raise UserError(f"--labels {table} has the columns {', '.join(columns)}; name the right one with {flag}")
    return found[0]


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
