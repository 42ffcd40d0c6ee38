"""Random draws that depend on an address, not on the order in which they are made."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def derive_seed(*address: int | str) -> int:
    """Returns a 63-bit seed that depends on the address alone: `derive_seed(seed, "order", epoch)`.

    Every random draw has such an address instead of a position in a stream, so neither the number of
    workers nor a resume can change it.
    """
    digest = hashlib.blake2b(repr(address).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_device(device: torch.device, *address: int | str) -> None:
    """Seeds what torch draws from on that device and on the CPU by the address."""
    import torch

    seed = derive_seed(*address)
    if device.type == "cpu":  # `torch.manual_seed` asks for every kind of device, which takes longer than a head's step
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


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
