"""Tells which columns of a table hold paths, labels, groups and splits."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from photo_classifier.data.file_kinds import is_image_name
from photo_classifier.runtime.errors import choose

# in the order in which they are preferred
PATH_COLUMNS = (
    "path file_path filepath image_path img_path photo_path file filename file_name file_dir image image_file "
    "image_name image_id img photo picture external_id id_code id name url image_url img_url uri image_uri source_ref "
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
Lines = list[tuple[int, Sequence[str]]]


def without_titles(lines: Lines) -> Lines:
    """Returns the lines from the header on, without a title or the names of groups of columns above it."""
    most = max(sum(map(bool, cells)) for _, cells in lines[:10])
    start = next((n for n, (_, cells) in enumerate(lines[:10]) if not _is_title(cells, most)), 0)
    return lines if any(map(is_image_name, lines[start][1])) else lines[start:]


def _is_title(cells: Sequence[str], most: int) -> bool:
    """Returns whether a line fills at most half as many cells as others do, and is neither header nor image."""
    is_header = all(find_column("", cells, None, usual) for usual in (PATH_COLUMNS, LABEL_COLUMNS))
    return 2 * sum(map(bool, cells)) <= most and not is_header and not any(map(is_image_name, cells))


def find_column(where: str, header: Sequence[str], given: str | None, usual: Sequence[str]) -> str | None:
    """Returns the column that was named, also by the end of a dotted name, or the first with a usual name.

    Args:
        where: the file and the flag, for the message that the header has no such column.
    """
    if given:
        ends = [name for name in header if name.endswith(f".{given}")]
        return ends[0] if len(ends) == 1 else choose(where, given, header)
    names = {re.sub(r"[\s-]+", "_", name.strip().lower()): name for name in reversed(header) if name}
    names = {name.rpartition(".")[2]: names[name] for name in names} | names
    return next((names[name] for name in usual if name in names), None)


def boolean_splits(column: str | None, cells: Iterable[str]) -> dict[str, str]:
    """Returns cell -> split for a column of true and false such as `is_valid`; nothing for any other column."""
    name = (column or "").lower()
    other = "test" if "test" in name else "valid" if "val" in name else ""
    if not other or not {cell.lower() for cell in cells} <= BOOLEAN.keys():
        return {}
    return {cell: other if is_other else "train" for cell, is_other in BOOLEAN.items()}
