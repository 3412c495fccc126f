"""The settings of text to 3D with Gaussians. Defaults are for the toy world's priors; configs/dreamer_xl_published.yaml
has the published ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from scene_distill.core.errors import UserError
from scene_distill.methods.text_to_3d.config import Levels, NoiseName, ObjectiveName, TextTo3DConfig


@dataclass(frozen=True)
class DreamerXLConfig(TextTo3DConfig):
    """Gaussians that are moved towards what a text-to-picture prior expects: Dreamer XL's trajectory score matching, or
    with another objective SDS, SJC, CSD, VSD, ISM, CDS or SDI on the same loop."""

    objective: ObjectiveName = "tsm"
    """Score-distillation objective."""
    guidance: float | None = 5.0
    """Scale of classifier-free guidance in standard form; none: the method's published one."""
    strength: float | None = 1.0
    """Factor of the gradient of ISM and TSM; none: the published 0.1."""
    levels: Levels = "annealed"
    """Noise levels: annealed from high to low, uniform, or the method's published schedule."""
    level_range: tuple[float, float] = (20.0, 700.0)
    """Lowest and highest level in thousandths, where levels are not the published ones."""
    interval: tuple[float, float] = (1000.0, 1000.0)
    """Levels between s and t (ISM, TSM, CDS), first and after the warm-up, in thousandths
    (Dreamer XL: 100 to 80). 1000: s is the cleanest level."""
    inversion_stride: int = 200
    """Levels of one inversion step (ISM, TSM)."""
    gamma: float = 0.0
    """Where TSM's middle lies between s and t (Dreamer XL: 0.3). 0: at s, which is ISM."""
    gamma_rule: Literal["paper", "code"] = "paper"
    """Paper: a share gamma of the way; code: sqrt(1 - gamma^2) of it."""
    noise: NoiseName = "published"
    """Source of noise of SDS, SJC, CSD, VSD and CDS: fresh, one for all, one per view."""

    clip: Literal["none", "pixel", "element", "tensor"] = "pixel"
    """Clip of the gradient that reaches the pictures, inside the backward pass of the rasterizer."""
    clip_limit: float = 0.5
    """Largest value of a pixel's gradient (Dreamer XL: 0.05, PGC: 0.1)."""
    depth_clip: float = 0.01
    """Largest value of the gradient of depth maps, in mean sizes of the Gaussians, as one factor of the whole map; 0:
    not clipped."""
    spikes: float = 0.0
    """Share of the gradient's pixels that are multiplied by `spike_size`: simulated spikes of a latent prior, for
    experiments with clips."""
    spike_size: float = 50.0
    """What spikes are multiplied by."""

    start: Literal["ball", "shell", "boxes", "shap-e"] = "ball"
    """First points: in a ball, on a shell, in a few boxes, or from Shap-E through diffusers."""
    start_path: Path | None = None
    """Folder of Shap-E's pipeline, for --start shap-e."""
    start_count: int = 1500
    """First Gaussians."""
    start_radius: float = 0.6
    """Radius of the first points."""
    start_opacity: float = 0.1
    """Opacity of the first Gaussians."""
    largest_start: float = 0.12
    """Largest first size."""

    grow_from: float = 0.1
    """Fraction of the steps after which growth starts (Dreamer XL: 0.04)."""
    grow_until: float = 0.6
    """Fraction of the steps after which the set of Gaussians stays fixed."""
    growth_events: int = 10
    """Growth and pruning events between the two."""
    growth_gradient: float = 0.0
    """Mean screen gradient from which on a Gaussian becomes two (Dreamer XL: 7.5e-4); 0: the largest ones, as far as
    there is room."""
    growth_limit: int = 4000
    """Most Gaussians; the limit is approached linearly."""
    growth_views: Literal["all", "last"] = "all"
    """Views of a step whose screen gradients count: all, or as in the released code only the last."""
    split_size: float = 0.03
    """Size above which a Gaussian is split instead of cloned (Dreamer XL: 0.0105)."""
    max_size: float = 0.35
    """Size above which a Gaussian is removed (Dreamer XL: 0.35)."""
    max_screen: float = 0.0
    """Radius on the screen, in picture widths, above which a Gaussian is removed (Dreamer XL: 0.0195); 0: any."""
    bounds: float = 1.1
    """Distance from the origin beyond which growth removes Gaussians (published: none); 0: any."""
    min_opacity: float = 0.005
    """Opacity below which a Gaussian is removed."""
    opacity_resets: int = 0
    """Times that all opacities are set back during growth (Dreamer XL: 4)."""

    lr_means: tuple[float, float] = (5e-3, 5e-4)
    """Learning rate of positions, first and last (Dreamer XL: 5.6e-4 to 5.6e-6)."""
    lr_colors: tuple[float, float] = (2e-2, 1e-2)
    """Learning rate of colours (Dreamer XL: 1.4e-3 to 8.5e-4; 5e-3 to 3e-3 of the coefficient)."""
    lr_opacities: tuple[float, float] = (5e-2, 5e-2)
    """Learning rate of opacities."""
    lr_scales: tuple[float, float] = (1e-2, 2e-3)
    """Learning rate of sizes (Dreamer XL: 5e-3 to 1e-3)."""
    lr_rotations: tuple[float, float] = (5e-3, 1e-3)
    """Learning rate of rotations (Dreamer XL: 1e-3 to 2e-4)."""

    size_jitter: float = 0.0
    """Relative noise of the Gaussians' sizes in training renders (Dreamer XL: 0.112)."""
    clamp: Literal["inward", "hard"] = "inward"
    """Colours beyond 0..1 keep the gradients that lead back (inward), or none (hard, as in the released code)."""
    depth_share: float = 0.0
    """Share of steps in which the prior sees the depth map instead of the picture (Dreamer XL: 0.2)."""
    tv: float = 1.0
    """Weight of the total variation of pictures and, where it is drawn, of disparity."""
    tv_depth: float = 0.0
    """Weight of the total variation of disparity, which draws depth in every step (Dreamer XL: 1)."""
    size_loss: float = 1.0
    """Weight of the Gaussians' mean size."""
    opacity_loss: float = 10.0
    """Weight of the Gaussians' mean opacity: what no picture asks for fades (published: none; as in 3DGS-MCMC)."""

    def __post_init__(self) -> None:
        """Raise UserError for numbers that no run can have."""
        super().__post_init__()
        if self.bounds < 0:
            raise UserError(f"--bounds is {self.bounds}; it is a distance, or 0 for any")
        for name in ("flip", "overhead", "depth_share", "spikes", "start_opacity"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it lies between 0 and 1")
        if self.start_count < 4 or self.growth_limit < self.start_count:
            raise UserError("--start-count must be at least 4 and --growth-limit at least --start-count")
        if self.clip_limit <= 0 or self.start_radius <= 0:
            raise UserError("--clip-limit and --start-radius must be above 0")
        if (self.start == "shap-e") != (self.start_path is not None):
            raise UserError("--start shap-e and --start-path DIR belong together")
