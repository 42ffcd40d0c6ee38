"""Checks plain values that were read from files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def first_failed(claims: Mapping[str, object]) -> str:
    """Returns the text of the first claim that is false, or an empty string."""
    return next((text for text, holds in claims.items() if not holds), "")


def first_mismatch(value: object, kind: object, name: str = "") -> str:
    """Returns how plain values first differ from a kind, such as `"class_names is not a list"`, or an empty string.

    Args:
        kind: a type (`float` includes integers; numbers must be finite), None, or `object` for anything; a tuple of
            alternatives; `[kind]` for a list; `{str: kind}` for a dict; `{"key": kind, ...}` for a dict with at
            least those keys.
    """
    if isinstance(kind, tuple):
        found = [first_mismatch(value, one, name) for one in kind]
        return "" if "" in found else found[-1]
    if isinstance(kind, (list, dict)):
        if not isinstance(value, (list, tuple) if isinstance(kind, list) else dict):
            return f"{name} is not a {type(kind).__name__}".lstrip()
        return next(filter(None, _inside(value, kind, name)), "")
    if kind is None or kind is object:
        return "" if kind is object or value is None else f"{name} is not None"
    right = isinstance(value, (int, float) if kind is float else kind) and isinstance(value, bool) == (kind is bool)
    if right and kind in (int, float) and not abs(value) < float("inf"):
        return f"{name} is {value}"
    return "" if right else f"{name} is a {type(value).__name__}, not a {kind.__name__}"


def _inside(value: Any, kind: Any, name: str) -> Iterator[str]:
    if isinstance(kind, list):
        yield from (first_mismatch(item, kind[0], f"an entry of {name}") for item in value)
    elif str in kind:
        yield from (first_mismatch(key, str, f"a key of {name}") for key in value)
        yield from (first_mismatch(item, kind[str], f"an entry of {name}") for item in value.values())
    else:
        yield from (f"{key} is missing" for key in kind if key not in value)
        yield from (first_mismatch(value[key], one, key) for key, one in kind.items() if key in value)
