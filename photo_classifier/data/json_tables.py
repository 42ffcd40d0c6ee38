"""Reads tables in JSON: a line or a list of objects, as data-set hubs and labelling tools write them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from photo_classifier.data.encodings import encoding_of
from photo_classifier.data.file_kinds import is_image_name
from photo_classifier.data.table_columns import Lines
from photo_classifier.runtime.errors import UserError

FORM = 'objects such as {"file_name": "a.jpg", "label": "cat"}, one a line or in a list'
EXPECTED_JSON = f"expected {FORM}"


def read_json(file: str, raw: bytes) -> Lines:
    """Returns the header and the lines of a JSON document or of JSON lines.

    Nested fields become columns such as `data.image`; several values of one field become a JSON list.

    Raises:
        UserError: it is no JSON, or does not describe one image per object.
    """
    objects = list(_objects(file, raw))
    flat = [(number, _flat(found)) for number, found in objects]
    header = list(dict.fromkeys(name for _, fields in flat for name in fields))
    if not header:
        raise UserError(f"{file} holds no table; {EXPECTED_JSON}")
    return [(0, header), *((number, [fields.get(name, "") for name in header]) for number, fields in flat)]


def _objects(file: str, raw: bytes) -> Iterator[tuple[int, Mapping]]:
    """Yields the objects with their line or their number in the list."""
    try:
        text = raw.decode(encoding_of(raw) or "utf-8").strip()
        try:
            document = json.loads(text)
        except json.JSONDecodeError as error:
            if not error.msg.startswith("Extra data"):
                raise
            document = _json_lines(text)
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, ValueError) else "it is nested too deeply"
        raise UserError(f"{file} cannot be read as JSON: {reason}; {EXPECTED_JSON}") from error
    try:
        records = _records(file, document)
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{file} lacks fields of COCO ({error}); {EXPECTED_JSON}") from error
    for number, found in enumerate(records, start=1):
        if not isinstance(found, dict):
            raise UserError(f"{file} holds {type(found).__name__} where an image is described; {EXPECTED_JSON}")
        yield number, found


def _json_lines(text: str) -> list:
    found = []
    for number, line in enumerate(text.split("\n"), start=1):
        try:
            found += [json.loads(line)] if line.strip() else [{}]
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number}, {error.msg}") from error
    return found


def _records(file: str, document: object) -> list:
    """Returns the list that a document is or holds, or the pairs of a mapping from path to label or back."""
    if isinstance(document, list):
        return document
    if not isinstance(document, dict):
        return [document]
    lists = {name: found for name, found in document.items() if isinstance(found, list) and found}
    if lists.keys() >= {"images", "annotations", "categories"}:
        return _coco(file, lists)
    if len(lists) == 1 and isinstance(next(iter(lists.values()))[0], dict):
        return next(iter(lists.values()))
    if all(isinstance(label, (str, int)) for label in document.values()) and any(map(is_image_name, document)):
        return [{"path": path, "label": label} for path, label in document.items()]
    return _columns(document) or [document]


def _columns(document: Mapping[str, object]) -> list:
    """Returns the records of columns, as pandas writes them, or of a list of paths for each label."""
    columns = {name: list(cells.values()) if isinstance(cells, dict) else cells for name, cells in document.items()}
    if len(columns) < 2 or not all(isinstance(cells, list) for cells in columns.values()):
        return []
    texts = [isinstance(cell, str) and is_image_name(cell) for cells in columns.values() for cell in cells]
    if texts and all(texts):
        return [{"path": path, "label": label} for label, paths in columns.items() for path in paths]
    is_even = any(texts) and len({len(cells) for cells in columns.values()}) == 1
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)] if is_even else []


def _coco(file: str, lists: Mapping[str, list]) -> list:
    """Joins images, annotations and categories, as sets of camera traps and species have them."""
    if any("bbox" in found or "segmentation" in found for found in lists["annotations"][:100]):
        raise UserError(f"{file} marks objects in images (COCO), and this tool takes one label for each image")
    names = {found["id"]: found.get("name", found["id"]) for found in lists["categories"]}
    labels: dict[object, list] = {}
    for found in lists["annotations"]:
        labels.setdefault(found["image_id"], []).append(names.get(found["category_id"]))
    return [{"path": found["file_name"], "label": labels.get(found["id"], "")} for found in lists["images"]]


def _flat(found: Mapping) -> dict[str, str]:
    """Returns dotted name -> text; list items share the name of their list."""
    values: dict[str, list] = {}
    pending = [("", found)]
    while pending:
        name, value = pending.pop()
        if isinstance(value, dict):
            pending += [(f"{name}.{key}" if name else str(key), item) for key, item in reversed(value.items())]
        elif isinstance(value, list):
            pending += [(name, item) for item in reversed(value)]
        elif value not in values.setdefault(name, []):
            values[name].append(value)
    return {name: _text_of(items) for name, items in values.items()}


def _text_of(items: list) -> str:
    """Returns the value of a field, or a JSON list of several; half a letter of UTF-16 becomes a question mark."""
    text = json.dumps(items, ensure_ascii=False) if len(items) > 1 else "" if items[0] is None else str(items[0])
    return text.encode("utf-8", "replace").decode()
