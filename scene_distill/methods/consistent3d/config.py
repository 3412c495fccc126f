"""The settings of Consistent3D. Defaults are for the toy world's priors; configs/consistent3d_published.yaml has the
published ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from scene_distill.core.errors import UserError
from scene_distill.methods.text_to_3d.config import ObjectiveName, TextTo3DConfig

Pair = tuple[float, float]


@dataclass(frozen=True)
class Consistent3DConfig(TextTo3DConfig):
    """A radiance field that becomes a mesh, moved towards what a text-to-picture prior expects by consistency
    distillation sampling: the noise levels of its two predictions fall with training, and its noise can stay the same.

    Pairs of levels, guidance and clips are first and last of a stage, shares are of ``iterations``.
    """

    objective: ObjectiveName = "cds"
    """Score-distillation objective; all take the stages' levels, guidance and clip."""
    coarse_share: float = 0.7
    """Share of the steps for the radiance field (published: 3000 of 11000)."""
    geometry_share: float = 0.15
    """Share of the steps for the shape of the mesh (published: 3000 of 11000, called optional)."""
    texture_share: float = 0.15
    """Share of the steps for the colours of the mesh, its shape kept (published: 5000 of 11000)."""

    refine_image_size: int = 0
    """Pixels of a view's side in the two stages of the mesh (published: 512); 0: as in the field's."""
    refine_field_of_view: Pair = (0.0, 0.0)
    """Field of view in the two stages of the mesh (published: 30 to 45); 0: as in the field's."""

    noise: Literal["shared", "per-view", "resampled"] = "resampled"
    """One noise for all views and steps (published), one per view, or a new one each time."""
    sign: Literal["code", "literal"] = "code"
    """Direction of the gradient: the released code's, or that of the loss as it is written, which diverges."""
    solver: Literal["euler", "heun"] = "euler"
    """Step from the noisier to the cleaner level."""
    anneal: Literal["linear", "sqrt"] = "sqrt"
    """How the cleaner level falls."""
    gap: float = 80.0
    """Least distance of the two levels in thousandths (published: 100)."""
    coarse_levels: Pair = (700.0, 20.0)
    """Cleaner level of the field's stage (published: 700 to 100)."""
    coarse_jitter: float = 40.0
    """How much farther up the noisier level may lie, at random (published: 200)."""
    coarse_range: Pair = (20.0, 980.0)
    """Lowest and highest level of the field's stage (published: 100 to 980)."""
    coarse_guidance: Pair = (7.5, 7.5)
    """Scale of classifier-free guidance in standard form (published: 101 to 51)."""
    geometry_levels: Pair = (150.0, 20.0)
    """Cleaner level of the shape's stage (published: 300 to 20)."""
    geometry_range: Pair = (20.0, 500.0)
    """Lowest and highest level of the shape's stage."""
    geometry_guidance: Pair = (7.5, 7.5)
    """Scale of guidance of the shape's stage (published: 101 to 31)."""
    texture_levels: Pair = (150.0, 20.0)
    """Cleaner level of the colours' stage (published: 500 to 20)."""
    texture_range: Pair = (20.0, 980.0)
    """Lowest and highest level of the colours' stage."""
    texture_guidance: Pair = (7.5, 7.5)
    """Scale of guidance of the colours' stage (published: 51)."""
    refine_jitter: float = 40.0
    """How much farther up the noisier level may lie in the two stages of the mesh (published: 100)."""
    refine_weight: Literal["uniform", "one_minus_abar", "sigma"] = "one_minus_abar"
    """Weight of a level in the two stages of the mesh; the field's is uniform."""
    clip: Pair = (2.0, 8.0)
    """Largest value of an element of the gradient, after the weight."""
    reduction: Literal["sum", "sum_per_image", "mean"] = "sum_per_image"
    """How the gradients of the views of a step are put together."""

    resolutions: tuple[int, ...] = (8, 16, 32, 64)
    """Lattice points of the field's levels along an axis, coarse to fine."""
    first_levels: int = 2
    """Levels that are there from the beginning (published: 8 of 16)."""
    all_levels: float = 0.3
    """Share of the field's steps after which all levels are there."""
    radius: float = 1.1
    """Half the side of the cube that the object lives in."""
    density_scale: float = 25.0
    """Density per world unit of a softplus of 1 (published: 1)."""
    blob_scale: float = 10.0
    """Density at the middle of the soft ball that a field begins as, before softplus (Magic3D)."""
    blob_std: float = 0.5
    """Radius at which the soft ball's density falls through softplus' bend."""
    step: float = 1.0
    """Distance of samples along rays, in voxels of the finest level."""
    negligible: float = 0.02
    """Density below which a voxel counts as empty."""

    cells: int = 32
    """Cells of the mesh's grid of tetrahedra along an axis (published: 128)."""
    iso_density: float = 0.0
    """Density of the field where the mesh begins (published: 10); 0: the one whose outline is most like the field's."""
    supersampling: int = 2
    """Mesh pictures are drawn this much finer and averaged."""
    geometry_sees: Literal["normals", "colours", "both"] = "colours"
    """What the prior is shown of the shape: normals as colours (published; a prior of toys has never seen any), the
    coloured mesh, or both in turn."""

    orientation: Pair = (0.0, 0.0)
    """Weight of normals that face away from the camera (published: 10 to 1000)."""
    orientation_until: float = 0.67
    """Share of the field's steps after which the weight stays."""
    opacity_size: float = 0.0
    """Weight of the object's opacity (published: 0)."""
    opacity_entropy: float = 0.0
    """Weight of opacities between 0 and 1 (published: 0)."""
    tv: float = 100.0
    """Weight of the total variation of pictures in all stages (published: 0)."""
    variation: float = 0.0
    """Weight of the squared differences of neighbours in the field's table."""
    normal_consistency: float = 1.0
    """Weight of angles between neighbouring triangles (published: 100)."""
    laplacian: float = 1.0
    """Weight of vertices away from their neighbours' middle, in cells (published: 100)."""
    sign_agreement: float = 0.1
    """Weight of grid edges that cross the surface: the fewer the better."""

    optimiser: Literal["adam", "adan"] = "adam"
    """Adam, or the published Adan."""
    gradient_norm: float = 0.0
    """Largest norm of all parameters' gradient together (published: 5); 0: any."""
    lr_density: Pair = (0.05, 0.02)
    """Learning rate of raw densities (published: 0.05)."""
    lr_colors: Pair = (0.05, 0.02)
    """Learning rate of raw colours, of field and mesh (published: 0.05, 0.005)."""
    lr_surface: Pair = (0.02, 0.005)
    """Learning rate of signed distances, in cells (published: 0.01)."""
    lr_offsets: Pair = (0.02, 0.005)
    """Learning rate of the grid's deformation."""

    def __post_init__(self) -> None:
        """Raise UserError for numbers that no run can have."""
        super().__post_init__()
        shares = (self.coarse_share, self.geometry_share, self.texture_share)
        if min(shares) < 0 or self.coarse_share == 0:
            raise UserError("the shares of the stages are at least 0, and --coarse-share above 0: a mesh needs a field")
        for name in ("clip", "resolutions", "radius", "step", "blob_std", "density_scale"):
            value = getattr(self, name)
            if min(value if isinstance(value, tuple) else (value,)) <= 0:
                raise UserError(f"--{name.replace('_', '-')} must be above 0")
        if self.refine_image_size < 0:
            raise UserError("--refine-image-size must be at least 0")
        if self.iso_density < 0:
            raise UserError("--iso-density must be at least 0")
        if self.cells < 4 or self.supersampling < 1 or not 1 <= self.first_levels <= len(self.resolutions):
            raise UserError("--cells must be at least 4, --supersampling 1, and --first-levels one of the resolutions")
