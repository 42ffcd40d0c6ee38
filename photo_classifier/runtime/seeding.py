"""Random draws that depend on an address, not on the order in which they are made."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator


def derive_seed(*address: int | str) -> int:
    """Returns a 63-bit seed that depends on the address alone: `derive_seed(seed, "order", epoch)`.

    Every random draw has such an address instead of a position in a stream, so neither the number of
    workers nor a resume can change it.
    """
    digest = hashlib.blake2b(repr(address).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@contextlib.contextmanager
def seeded_rng(*address: int | str) -> Iterator[None]:
    """Makes draws from torch's CPU generator inside the block depend on the address alone."""
    import torch

    state = torch.get_rng_state()
    torch.default_generator.manual_seed(derive_seed(*address))
    try:
        yield
    finally:
        torch.set_rng_state(state)
