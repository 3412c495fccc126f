"""What primitives are: a class for each, or features that say it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

NO_CLASS = -1


@dataclass(frozen=True, eq=False)
class Semantics:
    """Either ``labels`` [N] int64, the place of each primitive's class in ``names`` (`NO_CLASS` for none), or
    ``features`` [N, D] float32. ``source`` says where they come from, for people."""

    source: str
    labels: Tensor | None = None
    names: tuple[str, ...] = ()
    features: Tensor | None = None

    def __post_init__(self) -> None:
        if (self.labels is None) == (self.features is None):
            raise ValueError("semantics are labels or features, one of the two")
