"""Folders and tables -> labelled samples in splits."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from listing import count_others, nfc, others_text, subfolders, walk_images
from splits import SPLIT_FOLDERS, Parts, Sample, Splits, stratified_split
from utils import UserError, pick


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


# --- inputs of prediction ---------------------------------------------------------------------


def samples_at(path: str, class_names: Sequence[str]) -> Iterator[Sample]:
    """What one input of prediction stands for, one by one: a file, or the images of a folder in sorted order.

    The folders are labels only where every one of them is a class name.

    Raises:
        UserError: the path does not exist.
    """
    if os.path.isdir(path):
        is_empty = True
        for sample in _labelled(path, class_names):
            is_empty = False
            yield sample
        if is_empty:
            print(f"{path}: a folder without images")
        if others := count_others(path):
            print(f"{path}: {others_text(others)}")
    elif os.path.lexists(path):
        yield Sample(path)
    else:
        raise UserError(f"--input {path} does not exist; give files or folders that do")


def input_samples(paths: Sequence[str], class_names: Sequence[str]) -> list[Sample]:
    """All that `--input` stands for, in its order.

    Raises:
        UserError: a path does not exist, or there are no images.
    """
    samples = [sample for path in paths for sample in samples_at(path, class_names)]
    if not samples:
        raise UserError(f"--input {' '.join(paths)}: no images were found; give photos, or folders of photos")
    return samples


def _labelled(folder: str, class_names: Sequence[str]) -> Iterator[Sample]:
    """The images of a folder; its subfolders are labels only where every one is a class name."""
    folder = os.path.normpath(folder)
    children = subfolders(folder)
    are_classes = bool(children) and set(children) <= set(class_names)
    if children and not are_classes:
        print(f"{folder}: its folders are not all class names, so they are not taken as labels")
    labels = {path: name for name, path in children.items()} if are_classes else {}
    for path in walk_images(folder):
        below = os.path.relpath(path, folder).split(os.sep, 1)[0]
        yield Sample(path, labels.get(os.path.join(folder, below)))
