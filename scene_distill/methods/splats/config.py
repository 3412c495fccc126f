"""The settings of plain splats. Defaults are measured on two CPU cores and photos 395 pixels wide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from scene_distill.core.configs import RunConfig


@dataclass(frozen=True)
class SplatsConfig(RunConfig):
    """3D Gaussian splatting: splats that start from the scene's points, grow where the picture pulls, and are fitted
    to the photos. Blocks are independent here; one block is the paper's setting.

    Every schedule is a fraction of ``iterations``, lengths are multiples of the points' spacing.
    """

    blocks: int = 1
    """Units the scene is cut into (K); any number from 1."""
    lanes: int = 1
    """Blocks trained side by side in one round (L); any number from 1, independent of blocks and workers."""
    iterations: int = 8000
    """Steps per block, one view a step (paper: 30,000). Every schedule is a fraction of it."""

    partition: Literal["balanced", "cost", "grid"] = "balanced"
    """'balanced' cuts by observed points, 'cost' by what each block's views draw, 'grid' a regular grid in contracted
    space."""
    view_threshold: float = 0.2
    """A view trains a block when the block fills it at least this much, relative to the view it fills most."""

    visits: int = 20
    """Stays of a block on a lane; a visit lasts iterations / visits steps and ends with a commit."""
    dssim: float = 0.2
    """Weight of 1 - SSIM in the reconstruction loss."""
    sh_degree: int = 3
    """Degree of the view-dependent colour, 0 to 3."""
    sh_rise: float = 0.1
    """Fraction of the steps after which the colour gets another degree (paper: 1/30)."""

    grow_from: float = 0.02
    """Fraction of the steps after which growth starts."""
    grow_until: float = 0.5
    """Fraction of the steps after which the set of splats stays fixed (paper: 0.5)."""
    growth_events: int = 40
    """Growth and pruning events between the two (paper: 145)."""
    growth_gradient: float = 2e-4
    """Mean screen gradient, in normalised device units, from which on a splat becomes two (paper: 0.0002)."""
    growth_absolute: bool = True
    """Sum the absolute values of a splat's screen gradient over its pixels (AbsGS, Ye et al. 2024), so that pulls in
    opposite directions do not cancel (paper: False)."""
    growth_views: int = 4
    """Views of a splat before it is judged."""
    growth_limit: float = 4.0
    """A block may grow to this multiple of its first splats."""
    split_size: float = 0.5
    """Size in point spacings above which a splat is split instead of cloned (paper: 0.01 of the scene's extent)."""
    max_size: float = 20.0
    """Size in point spacings above which a splat is removed (paper: 0.1 of the scene's extent)."""
    min_opacity: float = 0.005
    """Opacity below which a splat is removed."""
    opacity_resets: int = 0
    """Times that all opacities are set back during growth (paper: 5)."""

    lr_means: tuple[float, float] = (2.4e-1, 6e-3)
    """Learning rate of means in point spacings, first and last (paper: 1.6e-4 to 1.6e-6 of the scene's extent)."""
    lr_scales: tuple[float, float] = (6e-2, 5e-3)
    """Learning rate of log-scales, first and last, log-linear in between (paper: 0.005)."""
    lr_rotations: tuple[float, float] = (1e-2, 1e-3)
    """Learning rate of quaternions, first and last (paper: 0.001)."""
    lr_opacities: tuple[float, float] = (1e-1, 5e-2)
    """Learning rate of opacity logits, first and last (paper: 0.05)."""
    lr_colors: tuple[float, float] = (2e-2, 2e-3)
    """Learning rate of the constant colour, first and last (paper: 0.0025)."""
    lr_harmonics: tuple[float, float] = (1e-3, 1e-4)
    """Learning rate of the view-dependent colour, first and last (paper: a twentieth of the constant's)."""
