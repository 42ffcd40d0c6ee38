"""Checks plain values that were read from files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

# NaN is within no bounds, and no number that this tool writes comes near these
Finite = Annotated[float, msgspec.Meta(ge=-1e300, le=1e300)]
Positive = Annotated[float, msgspec.Meta(gt=0, le=1e300)]


def first_failed(claims: Mapping[str, object]) -> str:
    """Returns the text of the first claim that is false, or an empty string."""
    return next((text for text, holds in claims.items() if not holds), "")


def first_mismatch(value: object, kind: Any) -> str:
    """Returns how a value first differs from a type that msgspec knows, or an empty string.

    For example `expected array, got int (class_names)`. Keys that the type does not have are ignored.
    """
    try:
        msgspec.convert(value, kind)
    except ValueError as error:
        what, _, where = str(error).replace("`", "").partition(" - at ")
        return what[:1].lower() + what[1:] + (f" ({where.replace('$.', '')})" if where else "")
    return ""
