"""Total variation of pictures: what keeps colours smooth that no prior's prediction shows.

Teacher:   none; neighbouring pixels of a render.
Student:   the pictures [C, H, W, D].
Gradient:  TV(I) = 2 (mean (dI/dx)^2 + mean (dI/dy)^2) (Dreamer XL's released code, weight 1).
"""

from __future__ import annotations

from torch import Tensor


def total_variation(images: Tensor) -> Tensor:
    """Scalar for [C, H, W, D], mean over everything."""
    across = (images[:, :, 1:] - images[:, :, :-1]).square().mean()
    down = (images[:, 1:] - images[:, :-1]).square().mean()
    return 2 * (across + down)
