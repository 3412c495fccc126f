"""The settings of Momentum-GS. Defaults are measured on a laptop-sized schedule; configs/ holds the published
setting."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from scene_distill.core.configs import RunConfig


@dataclass(frozen=True)
class MomentumGSConfig(RunConfig):
    """Momentum-GS: a city in blocks whose anchors share one Gaussian decoder and learn from its momentum teacher.

    Every schedule is a fraction of ``iterations`` (of the decoder's own clock for the decoder), so 60 and 60,000
    both train.
    """

    partition: Literal["balanced", "cost", "grid"] = "balanced"
    """'balanced' cuts by observed points, 'cost' by what each block's views draw; 'grid' is the paper's regular grid in
    contracted space."""
    view_threshold: float = 0.2
    """A view trains a block when the block fills it at least this much, relative to the view it fills most."""

    assignment: Literal["points", "render"] = "points"
    """How views find their blocks: by the points they see, or by the paper's coarse pre-run and render differences."""
    coarse_iterations: int = 500
    """Steps of the coarse pre-run (paper: 30,000)."""
    render_threshold: float = 0.05
    """1 - SSIM that a view must lose without a block, for the render assignment (paper: 0.03 to 0.05)."""

    halo: Literal["shared", "private"] = "shared"
    """Anchors outside a block's cell that its views show: 'shared' trains the owner's anchors; 'private' is the
    paper's: copies of the block's own that the merge throws away."""
    seam_finish: float = 0.0
    """With a private halo: blocks train what lies around their borders jointly in this last fraction of their steps
    (not in the paper; 0: never)."""
    level_of_detail: float = 0.0
    """Far anchors whose voxel is smaller than this many pixels in a view are not drawn; coarser ones stand in for them
    (not in the paper; 0: all are drawn at any distance)."""
    copies_rate: float = 1.0
    """Copies of an anchor that n lanes train side by side are averaged, so each steps n to this power times as far (not
    in the paper; 0: as far as alone, 1: their mean goes as far as all of them together)."""
    share_decoder: bool = True
    """One decoder for all blocks; False trains independent blocks, each with its own."""
    block_order: Literal["interleaved", "cost", "contiguous"] = "interleaved"
    """Order of blocks in the stream of visits: a seeded permutation, blocks of like cost side by side (several workers
    wait less for each other), or cell by cell as in the paper's code."""
    momentum: float = 0.9
    """m of the teacher (paper: `momentum_coefficient`, 0.9)."""
    teacher_clock: Literal["step", "visit"] = "step"
    """When the teacher moves: with every update of the decoder (paper), or once a visit."""
    consistency: float = 2.0
    """Weight lambda_c of the consistency loss (paper: `consistency_loss_weight`, 50 to 100, which slows a short run
    down: docs/ablation.md; 0 takes the teacher away)."""
    attach_teacher: bool = False
    """Let the consistency loss reach the anchors through the teacher's branch too (the paper's code does)."""
    quaternion_loss: Literal["nearer", "plain"] = "nearer"
    """Quaternions are compared up to their sign, which means nothing, or as they are (the paper's code)."""
    memory: float = 0.0
    """Weight of a second consistency loss, to a memory of the decoder that moves once a visit (not in the paper)."""
    memory_momentum: float = 0.7
    """m of the memory, per visit."""
    weighting: Literal["both", "psnr", "ssim", "none"] = "both"
    """Signal of the reconstruction-guided block weights (paper: both)."""
    weighting_sigma: float = 10.0
    """sigma_w of the block weights (paper: `adaptive_sigma`, 9 to 13)."""
    score_momentum: float = 0.5
    """Momentum of a block's running PSNR and SSIM, per visit."""

    add_opacity_dist: bool = False
    """The opacity head also sees the distance to the camera (off in the paper's runs)."""
    add_cov_dist: bool = False
    """The covariance head also sees the distance (off in the paper's runs)."""
    add_color_dist: bool = False
    """The colour head also sees the distance (off in the paper's runs)."""
    use_feat_bank: bool = False
    """Blend three resolutions of an anchor's feature by direction and distance (off in the paper's runs)."""
    appearance_dim: int = 0
    """Length of an appearance vector per training photo that the colour head sees; 0: none (the paper's runs). Their
    table is shared by all blocks; held-out views are drawn with the mean."""
    exposure: float = 0.0
    """Fit gain and bias of each channel of a render to its photo before they are compared, relative to their running
    mean over the block's photos, pulled towards no change with this weight per pixel; 0: compare as they are
    (paper)."""
    exposure_from: float = 0.5
    """Fraction of the steps after which exposures are fitted: before, a fit takes up what is not learned yet."""

    visits: int = 20
    """Stays of a block on a lane; a visit lasts iterations / visits steps (paper: 120)."""
    dssim: float = 0.2
    """Weight of 1 - SSIM in the reconstruction loss."""
    volume: float = 0.01
    """Weight of the mean Gaussian volume in units of the point spacing cubed."""
    points_per_voxel: float = 0.5
    """Anchors start in voxels of this many point spacings."""
    start: Literal["picture", "paper"] = "picture"
    """'picture' starts from the coloured points; 'paper' from zero features and offsets."""

    grow_from: float = 0.05
    """Fraction of the steps after which growth starts."""
    grow_until: float = 0.6
    """Fraction of the steps after which the set of anchors stays fixed (paper: 0.5)."""
    growth_events: int = 24
    """Growth and pruning events between the two."""
    growth_gradient: float = 2e-4
    """Mean screen gradient, in normalised device units, above which a slot makes a new anchor at the coarse level."""
    growth_cells: tuple[float, float, float] = (1.0, 0.5, 0.25)
    """Edges of new anchors' cells in point spacings, coarse to fine."""
    growth_views: int = 8
    """Views of a slot or an anchor before it is judged."""
    growth_limit: float = 3.0
    """A block may grow to this multiple of its first anchors."""
    min_opacity: float = 0.005
    """Mean summed opacity below which an anchor is removed."""

    lr_offsets: tuple[float, float] = (2e-2, 2e-4)
    """Learning rate of offsets, first and last, log-linear in between (paper: 1e-2, 1e-4)."""
    lr_features: tuple[float, float] = (1.5e-2, 5e-3)
    """Learning rate of anchor features, first and last (paper: 7.5e-3)."""
    lr_scales: tuple[float, float] = (1.4e-2, 3e-3)
    """Learning rate of anchor log-scales, first and last (paper: 7e-3)."""
    lr_opacity_head: tuple[float, float] = (2e-3, 2e-5)
    """Learning rate of the opacity head, first and last."""
    lr_covariance_head: tuple[float, float] = (4e-3, 4e-3)
    """Learning rate of the covariance head, first and last."""
    lr_color_head: tuple[float, float] = (8e-3, 5e-5)
    """Learning rate of the colour head, first and last."""
    lr_feat_bank: tuple[float, float] = (1e-2, 1e-5)
    """Learning rate of the feature bank, first and last."""
    lr_appearance: tuple[float, float] = (5e-2, 5e-4)
    """Learning rate of the appearance vectors, first and last."""
    lr_until: float = 0.8
    """Fraction of the steps over which learning rates fall from first to last."""
