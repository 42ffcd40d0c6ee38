"""Folders and tables as cameras, network disks, Excel, labelling tools and data-set hubs leave them."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from PIL import Image

_buffer = io.BytesIO()
Image.new("RGB", (8, 8), "red").save(_buffer, "JPEG")
JPEG = _buffer.getvalue()
ROWS = [(f"p{n:02d}.jpg", ("red", "blue")[n % 2]) for n in range(12)]


def photos(folder: Path, names: Iterable[str] = tuple(name for name, _ in ROWS)) -> None:
    """Writes a tiny photo under each name."""
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(JPEG)


def class_folders(folder: Path, classes: Sequence[str] = ("red", "blue"), n: int = 5) -> None:
    """Writes a folder per class."""
    photos(folder, [f"{label}/{k}.jpg" for label in classes for k in range(n)])


def table(path: Path, lines: Iterable[str], encoding: str = "utf-8", newline: str = "\n") -> None:
    """Writes lines of text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((newline.join(lines) + newline).encode(encoding))


def csv(header: str, rows: Iterable[Sequence[object]] = ROWS, separator: str = ",") -> list[str]:
    """Returns the lines of a table."""
    return [header, *(separator.join(map(str, row)) for row in rows)]


def workbook(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Writes an Excel workbook."""
    import openpyxl

    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    path.parent.mkdir(parents=True, exist_ok=True)
    book.save(path)


def one_hot(rows: Iterable[Sequence[str]] = ROWS) -> list[str]:
    """Returns a table with a column of zeros and ones for each class."""
    return csv("filename, red, blue", ((name, int(c == "red"), int(c == "blue")) for name, c in rows), ", ")


def _beside(write: Callable[[Path], None]) -> Callable[[Path], None]:
    """Makes photos and then whatever describes them."""

    def make(root: Path) -> None:
        photos(root)
        write(root)

    return make


def _lines(name: str, lines: Iterable[str], encoding: str = "utf-8", newline: str = "\n") -> Callable[[Path], None]:
    return _beside(lambda root: table(root / name, lines, encoding, newline))


def _named(names: dict[str, str]) -> list[tuple[str, str]]:
    return [(file, names[label]) for file, label in ROWS]


def _roboflow(root: Path) -> None:
    for split in ("train", "valid", "test"):
        photos(root / split)
        table(root / split / "_classes.csv", one_hot())


def _hub(root: Path) -> None:
    for split in ("train", "validation"):
        photos(root / split)
        table(root / split / "metadata.jsonl", [json.dumps({"file_name": f, "label": c}) for f, c in ROWS])


def _hospital(root: Path, header: str = "Image Index,Finding Labels,Patient ID") -> None:
    photos(root / "images_001" / "images", [name for name, _ in ROWS[:6]])
    photos(root / "images_002" / "images", [name for name, _ in ROWS[6:]])
    table(root / "Data_Entry_2017.csv", csv(header, [(*row, n) for n, row in enumerate(ROWS)]))


def _deep(root: Path) -> None:
    photos(root / "train" / "0" / "0" / "a")
    table(root / "train.csv", csv("id,landmark_id", [(name[:-4], c) for name, c in ROWS]))


def _patients(root: Path) -> None:
    photos(root / "1007", [name for name, _ in ROWS[:6]])
    photos(root / "1020", [name for name, _ in ROWS[6:]])
    table(root / "labels.csv", csv("file,label"))


def _label_studio(root: Path) -> None:
    photos(root)
    tasks = [
        {
            "id": n,
            "data": {"image": f"/data/upload/1/{n:08x}-{name}"},
            "annotations": [{"result": [{"value": {"choices": [label]}, "type": "choices"}]}],
        }
        for n, (name, label) in enumerate(ROWS)
    ]
    (root / "export.json").write_text(json.dumps(tasks))


def _camera_trap(root: Path) -> None:
    photos(root)
    content = {
        "images": [{"id": n, "file_name": name} for n, (name, _) in enumerate(ROWS)],
        "annotations": [{"image_id": n, "category_id": int(label == "red")} for n, (_, label) in enumerate(ROWS)],
        "categories": [{"id": 0, "name": "blue"}, {"id": 1, "name": "red"}],
    }
    (root / "annotations.json").write_text(json.dumps(content))


def _numbered_list(root: Path) -> None:
    photos(root)
    table(root / "train_list.txt", [f"{name} {int(label == 'blue')}" for name, label in ROWS])
    table(root / "labels.txt", ["0 red", "1 blue"])


def _synsets(root: Path) -> None:
    photos(root / "pictures of mine")
    table(root / "default.txt", [f"pictures of mine/{name} {int(label == 'blue')}" for name, label in ROWS])
    table(root / "synsets.txt", ["red", "blue"])


def _network_disk(root: Path) -> None:
    class_folders(root)
    for label in ("red", "blue"):
        photos(root / label / "@eaDir", [f"{n}.jpg/SYNOPHOTO_THUMB_M.jpg" for n in range(5)])
        photos(root / label / ".ipynb_checkpoints", ["0-checkpoint.jpg"])
        photos(root / label, ["._0.jpg", "Thumbs.db"])
    system = "#recycle,$RECYCLE.BIN,System Volume Information,lost+found,__MACOSX,.thumbnails,@Recycle,.git"
    for name in system.split(","):
        class_folders(root / name)
        photos(root / name)


def _lost_zeros(root: Path) -> None:
    photos(root, [f"{n:04d}.jpg" for n in range(12)])
    workbook(root / "t.xlsx", [("id", "label"), *((n, ("red", "blue")[n % 2]) for n in range(12))])


def _second_sheet(root: Path) -> None:
    import openpyxl

    photos(root)
    book = openpyxl.Workbook()
    book.active.append(("Author", "me"))
    sheet = book.create_sheet("Data")
    for row in (("Photo",), ("file", "date", "label"), *((f, 2020, c) for f, c in ROWS)):
        sheet.append(row)
    book.save(root / "t.xlsx")


def _splits(*names: str) -> Callable[[Path], None]:
    return lambda root: [class_folders(root / name) for name in names]


def _tables_of_splits(root: Path) -> None:
    photos(root / "images")
    for split, part in (("train", ROWS[:6]), ("dev", ROWS[6:])):
        table(root / f"{split}_labels.csv", csv("image,label", part))


WESTERN = {"red": "Käfer", "blue": "Grevy’s zebra"}
KOREAN = {"red": "고양이", "blue": "개"}
VALID = [(name, label, n >= 8) for n, (name, label) in enumerate(ROWS)]
HASHED = [(n, f"/data/upload/1/{n:08x}-{name}", label) for n, (name, label) in enumerate(ROWS)]
LOCAL = [(f"/data/local-files/?d=photos%2F{name}", label) for name, label in ROWS]

# what it is -> how it is made, and the images that it gives: training, validation, test; red and blue, unless named
READ: dict[str, tuple[Callable[[Path], None], tuple[int, int, int], tuple[str, str]]] = {
    name: (make, counts, classes[0] if classes else ("blue", "red"))
    for name, (make, counts, *classes) in {
        "Excel": (_beside(lambda root: workbook(root / "labels.xlsx", [("Datei", "Klasse"), *ROWS])), (8, 2, 2)),
        "Excel with an empty line above and a number as id": (
            _beside(
                lambda root: workbook(
                    root / "x.xlsx", [(), ("file", "class_id"), *((f, 1.0 * (c == "red")) for f, c in ROWS)]
                )
            ),
            (8, 2, 2),
            ("0", "1"),
        ),
        "Excel without a header": (_beside(lambda root: workbook(root / "labels.xlsx", ROWS)), (8, 2, 2)),
        "western": (
            _lines("labels.csv", csv("file;label", _named(WESTERN), ";"), "cp1252"),
            (8, 2, 2),
            ("Grevy’s zebra", "Käfer"),
        ),
        "korean": (_lines("labels.csv", csv("파일명,라벨", _named(KOREAN)), "cp949"), (8, 2, 2), ("개", "고양이")),
        "Excel with its table on the second sheet, below a title": (_second_sheet, (8, 2, 2)),
        "numbers whose zeros Excel dropped": (_lost_zeros, (8, 2, 2)),
        "a title above the header": (
            _lines("t.csv", ["Series 7;;", "file;label;note", *(f"{f};{c};" for f, c in ROWS)]),
            (8, 2, 2),
        ),
        "comments above the header": (_lines("t.csv", ["# by me", "# in May", *csv("file,label")]), (8, 2, 2)),
        "UTF-16": (_lines("labels.csv", csv("file\tlabel", ROWS, "\t"), "utf-16", "\r\n"), (8, 2, 2)),
        "Excel's sep line": (
            _lines("labels.csv", ["sep=;", *csv("file;label", ROWS, ";")], "utf-8-sig", "\r\n"),
            (8, 2, 2),
        ),
        "each line in quotes": (_lines("labels.csv", [f'"{line}"' for line in csv("file,label")]), (8, 2, 2)),
        "cells in single quotes": (
            _lines("labels.csv", csv("'file', 'label'", [(f"'{f}'", f"'{c}'") for f, c in ROWS], ", ")),
            (8, 2, 2),
        ),
        "a separator at the end of each line": (
            _lines("t.csv", csv("file,label", [(*row, "") for row in ROWS])),
            (8, 2, 2),
        ),
        "bars": (_lines("labels.csv", csv("file|label", ROWS, "|")), (8, 2, 2)),
        "decimal ids": (
            _lines("labels.csv", csv("file,label", [(f, f"{c == 'red':d}.0") for f, c in ROWS])),
            (8, 2, 2),
            ("0", "1"),
        ),
        "deep": (_deep, (8, 2, 2)),
        "a folder per patient": (_patients, (8, 2, 2)),
        "no header": (_lines("labels.csv", csv(",".join(ROWS[0]), ROWS[1:])), (8, 2, 2)),
        "one-hot in each split": (_roboflow, (12, 12, 12)),
        "one-hot": (_lines("GroundTruth.csv", one_hot()), (8, 2, 2)),
        "crosses for the classes": (
            _lines("t.csv", csv("file;red;blue", [(f, *("x ", " x")[c == "blue"].split(" ")) for f, c in ROWS], ";")),
            (8, 2, 2),
        ),
        "JSON of columns": (
            _lines(
                "x.json", [json.dumps(dict(zip(("file", "label"), map(list, zip(*ROWS, strict=True)), strict=True)))]
            ),
            (8, 2, 2),
        ),
        "JSON of the files of each class": (
            _lines("x.json", [json.dumps({c: [f for f, label in ROWS if label == c] for c in ("red", "blue")})]),
            (8, 2, 2),
        ),
        "addresses": (
            _lines("t.csv", csv("url,label", [(f"https://a.org/b/{f}?size=3", c) for f, c in ROWS])),
            (8, 2, 2),
        ),
        "a cloud's manifest": (
            _lines(
                "x.manifest",
                [json.dumps({"source-ref": f"s3://b/{f}", "k-metadata": {"class-name": c}}) for f, c in ROWS],
            ),
            (8, 2, 2),
        ),
        "JSON lines": (
            _lines("metadata.jsonl", [json.dumps({"file_name": f, "label": c}) for f, c in ROWS]),
            (8, 2, 2),
        ),
        "JSON lines in each split": (_hub, (12, 12, 0)),
        "a JSON mapping": (_lines("labels.json", [json.dumps(dict(ROWS))]), (8, 2, 2)),
        "a labelling tool's CSV": (_lines("project-1.csv", csv("annotation_id,image,choice", HASHED)), (8, 2, 2)),
        "a labelling tool's JSON": (_label_studio, (8, 2, 2)),
        "a labelling tool's local files": (
            lambda root: (photos(root / "photos"), table(root / "x.csv", csv("image,choice", LOCAL))),
            (8, 2, 2),
        ),
        "JSON of a camera trap": (_camera_trap, (8, 2, 2)),
        "a numbered list": (_numbered_list, (8, 2, 2)),
        "a list with spaces in its paths, and names by position": (_synsets, (8, 2, 2)),
        "is_valid": (_lines("labels.csv", csv("file,label,is_valid", VALID)), (8, 4, 0)),
        "a column subset": (
            _lines("labels.csv", csv("file,label,subset", [(f, c, "dev" if v else "Training") for f, c, v in VALID])),
            (8, 4, 0),
        ),
        "a network disk": (_network_disk, (6, 2, 2)),
        "train and validate": (_splits("train", "validate"), (10, 10, 0)),
        "Training, Dev and Testing": (_splits("Training", "Dev", "Testing"), (10, 10, 10)),
        "train2017 and val2017": (_splits("train2017", "val2017"), (10, 10, 0)),
        "training_images, validation_images, test_images": (
            _splits("training_images", "validation_images", "test_images"),
            (10, 10, 10),
        ),
        "train, eval": (_splits("train", "eval"), (10, 10, 0)),
        "a table for each split, named after it": (_tables_of_splits, (6, 6, 0)),
        "lines that repeat each other": (_lines("labels.csv", csv("file,label", [*ROWS, *ROWS[:3]])), (8, 2, 2)),
    }.items()
}


def _both_ids(root: Path) -> None:
    _deep(root)
    photos(root / "train" / "1", ["p00.jpg"])


def _faults(root: Path) -> None:
    photos(root)
    rows = [(name, "" if n in (3, 7) else label) for n, (name, label) in enumerate(ROWS)]
    table(root / "labels.csv", csv("file,label", [*rows, *rows[1:3], ("gone.jpg", "red")]))


def _several(root: Path) -> None:
    photos(root)
    table(root / "labels.csv", csv("file,label", [*ROWS, ("p00.jpg", "blue")]))


def _table_aside(root: Path) -> None:
    photos(root / "images")
    table(root / "lists" / "my labels.csv", csv("file,label"))


def _boxes(write: Callable[[Path], object]) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        photos(root / "images", ["train/a.jpg", "train/b.jpg", "val/c.jpg"])
        write(root)

    return make


COCO = {
    "images": [],
    "annotations": [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}],
    "categories": [{"id": 1}],
}
VOC = "<annotation><object><name>cat</name><bndbox><xmin>1</xmin></bndbox></object></annotation>"

# what it is -> how it is made, and the words that the one line of the error must have
REFUSED: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "photos in numbered folders, with a table of unknown columns": (
        _hospital,
        ("Data_Entry_2017.csv has the columns Image Index, Finding Labels", "--path_column", "--label_column"),
    ),
    "parts, with such a table": (
        lambda root: (class_folders(root, ("part1", "part2")), table(root / "x.csv", csv("a,b,c", [(1, 2, 3)]))),
        ("x.csv has the columns a, b, c", "move the tables away"),
    ),
    "parts, with an old workbook": (
        lambda root: (class_folders(root, ("part1", "part2")), table(root / "labels.xls", ["x"])),
        ("no class folders: part1, part2", "labels.xls: save it as .xlsx or .csv"),
    ),
    "numbered folders alone": (
        lambda root: class_folders(root, ("images_1", "images_2")),
        ("no class folders", "rename"),
    ),
    "photos and masks": (lambda root: class_folders(root, ("images", "masks")), ("no class folders: images, masks",)),
    "two files of one id": (_both_ids, ("'p00' could be", "1 faulty line")),
    "many faults": (_faults, ("2 faulty lines: line 5 has no label, line 9 has no label", "gone.jpg")),
    "a photo with two labels": (_several, ("'p00.jpg' is red in line 2 and blue here", "one label for each image")),
    "lines with two labels": (
        _lines("labels.csv", csv("file,label", [*ROWS[:-1], ("p11.jpg", "red|blue")])),
        ("line 13 has 2 labels (red, blue)", "one label for each image"),
    ),
    "a list of labels": (
        _lines("m.jsonl", [json.dumps({"image": f, "label": [c, "x"] if f == "p03.jpg" else [c]}) for f, c in ROWS]),
        ("line 4 has 2 labels (blue, x)", "one label for each image"),
    ),
    "one-hot lines with two ones and none": (
        _lines("labels.csv", [*one_hot(ROWS[:-2]), "p10.jpg, 1, 1", "p11.jpg, 0, 0"]),
        ("2 faulty lines: line 12 has 2 labels (red, blue), line 13 has no label", "one label for each image"),
    ),
    "no header, three columns": (
        _lines("labels.csv", csv("p00.jpg,red,3", [(*row, 4) for row in ROWS[1:]])),
        ("has no header line; its columns are called path (p00.jpg), column 2 (red), column 3 (3)", "--label_column"),
    ),
    "one label in all lines": (
        _lines("t.csv", csv("file,species,class", [(f, c, "x") for f, c in ROWS])),
        ("only one class ('x')", "name another column with --label_column (species)"),
    ),
    "JSON of something else": (
        _lines("x.json", [json.dumps({"a": [1, 2], "b": [3, 4]})]),
        ("x.json: not a list of images and labels, such as objects",),
    ),
    "a table in a folder beside": (_table_aside, ("add --labels '", "lists/my labels.csv'")),
    "a labelling tool's JSON without a usual column": (
        _lines(
            "a.ndjson", [json.dumps({"data_row": {"external_id": f}, "answer": {"x": c}, "by": "me"}) for f, c in ROWS]
        ),
        ("a.ndjson has the columns data_row.external_id, answer.x, by; name the label column with --label_column",),
    ),
    "an old workbook": (
        _beside(lambda root: (root / "labels.xls").write_bytes(b"\xd0\xcf\x11\xe0")),
        ("labels.xls: save it as .xlsx",),
    ),
    "a broken workbook": (
        _beside(lambda root: (root / "labels.xlsx").write_bytes(b"PK")),
        ("labels.xlsx is not a readable .xlsx workbook",),
    ),
    "a text of something else": (
        _lines("readme.txt", ["These photos are mine."]),
        ("readme.txt: not a list of images",),
    ),
    "only files that are not read": (
        lambda root: [(root / f"{n}.dng").write_bytes(b"x") for n in range(3)],
        ("contains no images that are read, but 3 .dng (is a camera raw file",),
    ),
    "COCO": (_boxes(lambda root: (root / "coco.json").write_text(json.dumps(COCO))), ("object detection", "coco.json")),
    "YOLO": (_boxes(lambda root: table(root / "labels" / "train" / "a.txt", ["0 .5 0.5 0.2 0.2"])), ("YOLO",)),
    "VOC": (_boxes(lambda root: table(root / "Annotations" / "a.xml", [VOC])), ("object detection", "Pascal VOC")),
}
