"""Tables of images: one line per image, with its path and what is known about it."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from photo_classifier.data.image_files import is_image_name, nfc
from photo_classifier.data.label_cells import ReadLabel, label_reader, names_of_numbers, one_hot_columns, one_hot_label
from photo_classifier.data.samples import split_of
from photo_classifier.data.table_files import LISTS, read_cells
from photo_classifier.runtime.errors import UserError, choose

# in the order in which they are preferred
PATH_COLUMNS = (
    "path file_path filepath image_path img_path photo_path file filename file_name file_dir image image_file "
    "image_name image_id img photo picture external_id id_code id name "
    "경로 파일 파일명 이미지 datei dateiname dateipfad bild bilddatei foto pfad fichier nom_fichier chemin archivo "
    "nombre_archivo imagen ruta immagine arquivo imagem "
    "ファイル ファイル名 画像 画像名 パス 文件 文件名 图片 图像 路径 檔案 檔名 圖片 файл имя_файла изображение путь"
).split()
LABEL_COLUMNS = (
    "label labels class class_name label_name category category_name target species breed diagnosis disease dx y "
    "choice choices classification class_label 라벨 레이블 분류 클래스 "
    "klasse kategorie bezeichnung étiquette etiquette classe catégorie categorie espèce espece "
    "etiqueta clase categoría categoria especie "
    "ラベル クラス 分類 カテゴリ 标签 类别 分类 標籤 類別 метка класс категория class_id label_id category_id"
).split()
SPLIT_COLUMNS = (
    "split splits set subset data_set partition phase usage fold is_valid is_validation is_val is_test".split()
)
BOOLEAN = {
    "true": True,
    "1": True,
    "1.0": True,
    "yes": True,
    "false": False,
    "0": False,
    "0.0": False,
    "no": False,
    "": False,
}
ONE_LABEL = "this tool takes one label for each image"
LANGUAGES = {
    "cp949": "Korean",
    "cp1252": "Western European",
    "cp1250": "Central European",
    "cp1251": "Cyrillic",
    "cp932": "Japanese",
    "gb18030": "Chinese",
    "cp950": "traditional Chinese",
}


@dataclass(frozen=True)
class Columns:
    """The column names that the user gave; None means: look for one of the usual names."""

    path: str | None = None
    label: str | None = None
    group: str | None = None
    split: str | None = None

    def first_flag(self) -> str | None:
        """Returns the first flag that names a column."""
        kinds = ("path", "label", "group", "split")
        return next((f"--{kind}_column" for kind in kinds if getattr(self, kind)), None)


USUAL = Columns()


@dataclass(frozen=True)
class Row:
    """One line of a table; cells that it lacks are empty. `fault` says why it has no label."""

    line: int
    path: str
    label: str
    group: str
    split: str
    fault: str = ""


class Table:
    """A table whose columns are known: CSV, Excel, JSON, or lines of a path and a label.

    Without a label column, two or more columns of zeros and ones are the classes.

    Args:
        file: the table.
        columns: the names of columns that do not have one of the usual names.

    Raises:
        UserError: the table cannot be read, or it lacks a column that was named.
    """

    def __init__(self, file: str | Path, columns: Columns = USUAL) -> None:
        self.file = str(file)
        self.cells = read_cells(self.file)
        self.header = self.cells.header
        self.path = self._column("path", columns.path, PATH_COLUMNS)
        self.label = self._column("label", columns.label, LABEL_COLUMNS) or self._only_other_column()
        self.group = self._column("group", columns.group, ("group",))
        self.split = self._column("split", columns.split, SPLIT_COLUMNS)
        self._is_split_given = bool(columns.split)
        used = {self.path, self.group, self.split}
        self.one_hot = [] if self.label else one_hot_columns(self.header, self.cells.lines, used)

    def _column(self, kind: str, given: str | None, usual: Sequence[str]) -> str | None:
        """Returns the column that was named, by the end of a dotted name too, or the first with a usual name."""
        if given:
            ends = [name for name in self.header if name.endswith(f".{given}")]
            return ends[0] if len(ends) == 1 else choose(f"{self.file}: --{kind}_column", given, self.header)
        names = {re.sub(r"[\s-]+", "_", name.strip().lower()): name for name in reversed(self.header) if name}
        names = {name.rpartition(".")[2]: names[name] for name in names} | names
        return next((names[name] for name in usual if name in names), None)

    def _only_other_column(self) -> str | None:
        """Returns the column beside that of the paths in a table of two, if its cells repeat as labels do."""
        others = [name for name in self.header if name != self.path]
        if not self.path or len(self.header) != 2 or len(others) != 1:
            return None
        return others[0] if len(set(self._cells_of(others[0]))) <= len(self.cells.lines) / 2 else None

    def is_result(self) -> bool:
        """Returns whether predict.py wrote it."""
        return list(self.header[:3]) == ["file_dir", "predict", "probability"]

    def lists_images(self) -> bool:
        """Returns whether the first lines name images, as a text or JSON file of something else does not."""
        paths = [row.path for row in itertools.islice(self.rows(), 20)] if self.path else []
        return any(is_image_name(os.path.basename(path)) for path in paths)

    def require(self, *kinds: str) -> None:
        """Checks that the table has columns of these kinds, such as `path` and `label`.

        Raises:
            UserError: one is missing; the message says which flag names it.
        """
        missing = [kind for kind in kinds if not getattr(self, kind) and not (kind == "label" and self.one_hot)]
        if missing and len(missing) == len(kinds) and self.file.lower().endswith(LISTS):
            raise UserError(
                f"{self.file} is no list of images and labels; expected lines such as `a.jpg cat`, or a first line that "
                "names the columns, such as path,label"
            )
        if missing:
            flags = " and ".join(f"the {kind} column with --{kind}_column" for kind in missing)
            hint = "; if these are no names of columns, add a line above them that names them, such as path,label"
            is_doubtful = len(missing) == len(kinds) and any(map(str.isdigit, "".join(self.header)))
            raise UserError(f"{self.file} {self.columns_text()}; name {flags}{hint if is_doubtful else ''}")

    def columns_text(self) -> str:
        """Returns which columns there are, and for a table without a header what is in them."""
        if self.cells.first:
            shown = ", ".join(f"{name} ({cell})" for name, cell in zip(self.header, self.cells.first, strict=False))
            return f"has no header line; its columns are called {shown}"
        return f"has the columns {', '.join(self.header)}"

    def description(self) -> str:
        """Returns the file name and the columns that are read, for the console."""
        label = f"a column of zeros and ones for each of {len(self.one_hot)} classes" if self.one_hot else self.label
        split = self.split and (self.split if self.split.lower() == "split" else f"splits by {self.split}")
        names = (self.path, label, self.group and f"groups by {self.group}", self.has_splits and split)
        return f"{os.path.basename(self.file)}: {', '.join(name for name in names if name)}"

    def notes(self) -> list[str]:
        """Returns what was guessed of the file: its columns, its encoding, the names of numbered classes."""
        found = []
        if self.cells.first:
            cells = ", ".join(f"{name} ({cell})" for name, cell in zip(self.header, self.cells.first, strict=False))
            found.append(f"{self.file} has no header line; its first line was read as {cells}")
        if not (encoding := self.cells.encoding).startswith("utf"):
            what = f"{encoding} ({LANGUAGES[encoding]})" if encoding in LANGUAGES else encoding
            found.append(f"{self.file} was read as {what}; if names look wrong, save it as UTF-8")
        if self._names_of_numbers[1]:
            found.append(f"the numbers in {self.file} are named by {self._names_of_numbers[0]}")
        return found

    def rows(self) -> Iterator[Row]:
        """Yields the lines in order, without the blank ones."""
        columns = [self.header.index(name) if name else None for name in (self.path, self.group, self.split)]
        for number, cells in self.cells.lines:
            if any(cells):
                path, group, split = ("" if column is None else cells[column] for column in columns)
                label, fault = self._label_of(cells)
                yield Row(number, path, label, nfc(group), self._split_of(nfc(split)), fault)

    def _cells_of(self, name: str) -> list[str]:
        column = self.header.index(name)
        return [cells[column] for _, cells in self.cells.lines]

    def _label_of(self, cells: Sequence[str]) -> tuple[str, str]:
        if self.one_hot:
            return one_hot_label([self.header[n] for n in self.one_hot], [cells[n] for n in self.one_hot])
        return self._read_label(cells[self.header.index(self.label)]) if self.label else ("", "has no label")

    @cached_property
    def _read_label(self) -> ReadLabel:
        return label_reader(self._cells_of(self.label), self._names_of_numbers[1])

    @cached_property
    def _names_of_numbers(self) -> tuple[str, dict[str, str]]:
        is_numbered = self.label and (self.cells.first or self.label.lower().endswith("_id"))
        return (
            names_of_numbers(os.path.dirname(self.file), set(self._cells_of(self.label))) if is_numbered else ("", {})
        )

    @cached_property
    def has_splits(self) -> bool:
        """Whether the split column names splits, rather than fold numbers, for example; it must if it was named."""
        return bool(self.split) and (self._is_split_given or any(split_of(row.split) for row in self.rows()))

    def _split_of(self, cell: str) -> str:
        return self._boolean_splits.get(cell.lower(), cell)

    @cached_property
    def _boolean_splits(self) -> dict[str, str]:
        """Cell -> split for a column of true and false, such as `is_valid`."""
        name = (self.split or "").lower()
        other = "test" if "test" in name else "valid" if "val" in name else ""
        if not other or not {cell.lower() for cell in self._cells_of(self.split)} <= BOOLEAN.keys():
            return {}
        return {cell: other if is_other else "train" for cell, is_other in BOOLEAN.items()}
