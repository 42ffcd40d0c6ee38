"""Whether it is worth storing what a network computes up to a cut."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from photo_classifier.features.extraction import (
    ExtractionPlan,
    FeatureRequest,
    existing_part,
    plan_extraction,
    size_text,
)
from photo_classifier.models.inference import Engine
from photo_classifier.runtime import distributed
from photo_classifier.runtime.console import say
from photo_classifier.runtime.limits import free_bytes
from photo_classifier.runtime.text import pluralize

# What a processor computes in the time of reading a byte: a fixed estimate, as a measured one would let the same
# command train in one way today and in another tomorrow.
OPERATIONS_PER_BYTE = 200


def why_not_store(engine: Engine, requests: Mapping[str, FeatureRequest], cache: Path) -> str:
    """Says what the outputs at the engine's cut will take; returns why they should not be stored, or an empty text."""
    plan, name = plan_extraction(engine, requests, cache), engine.cut.name
    if engine.cut.n_operations < OPERATIONS_PER_BYTE * plan.row_bytes:
        return (
            f"the output of {name} takes {size_text(plan.row_bytes)} an image, and reading that is slower than "
            f"computing it ({engine.cut.n_operations / 1e6:.0f} million operations)"
        )
    return distributed.broadcast_from_main(lambda: _lack_of_room(name, plan, requests, cache))


def _lack_of_room(name: str, plan: ExtractionPlan, requests: Mapping[str, FeatureRequest], cache: Path) -> str:
    """Returns that the outputs do not fit on the disk, or an empty text after saying what they will take."""
    existing = existing_part(cache)
    free = free_bytes(existing)
    if plan.n_bytes > free:
        return (
            f"the output of {name} needs {size_text(plan.n_bytes)} and {existing} has {size_text(free)} free "
            "(--feature_cache, --views)"
        )
    sizes = [f"{pluralize(len(one.dataset), 'photo')} x {pluralize(one.n_views, 'view')}" for one in requests.values()]
    total = sum(len(one.dataset) * one.n_views for one in requests.values()) * plan.row_bytes
    say(f"stores  the output of {name} for {' + '.join(sizes)} = {size_text(total)} in {cache}; later layers train")
    return ""
