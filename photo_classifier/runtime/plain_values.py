"""Checks plain values that were read from files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def first_failed(claims: Mapping[str, object]) -> str:
    """The text of the first claim that does not hold, or nothing."""
    return next((text for text, holds in claims.items() if not holds), "")


def first_mismatch(value: object, kind: object, name: str = "") -> str:
    """What is not as it should be in plain values from a file: `"class_names is no list"`, or nothing.

    Args:
        kind: a type (`float` takes whole numbers too, neither takes what is not finite); a tuple of alternatives,
            None among them; `[kind]` for a list; `{str: kind}` for a dict, `{"key": kind, ...}` for one
            that has those keys at least.
    """
    if isinstance(kind, tuple):
        found = [first_mismatch(value, one, name) for one in kind]
        return "" if "" in found else found[-1]
    if isinstance(kind, (list, dict)):
        if not isinstance(value, (list, tuple) if isinstance(kind, list) else dict):
            return f"{name} is no {type(kind).__name__}".lstrip()
        return next(filter(None, _inside(value, kind, name)), "")
    if kind is None or kind is object:
        return "" if kind is object or value is None else f"{name} is no None"
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
        yield from (f"it has no {key}" for key in kind if key not in value)
        yield from (first_mismatch(value[key], one, key) for key, one in kind.items() if key in value)
