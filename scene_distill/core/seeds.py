"""Random numbers keyed by what they are for, never by the process that draws them.

A generator seeded by (seed, purpose, unit, step) gives the same numbers whichever worker asks and whether or not
training was interrupted, so there is no generator state to save.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch


def key(*parts: int | str) -> int:
    """A 63-bit key of the parts, equal on every machine."""
    digest = hashlib.blake2b("/".join(str(part) for part in parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def torch_generator(*parts: int | str) -> torch.Generator:
    """A CPU torch generator keyed by the parts."""
    return torch.Generator().manual_seed(key(*parts))


def numpy_generator(*parts: int | str) -> np.random.Generator:
    """A numpy generator keyed by the parts."""
    return np.random.default_rng(key(*parts))
