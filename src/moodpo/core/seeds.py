"""Seeds: everything random in a run is keyed by what it is for, never by what ran before it."""

from __future__ import annotations

import hashlib

__all__ = ["derive_seed"]


def derive_seed(*key: int | str) -> int:
    """A 63-bit seed from a key such as (seed, step, position, stream); any part changes it all."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
