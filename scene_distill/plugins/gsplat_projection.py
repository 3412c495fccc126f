"""gsplat's projection and colour functions for CPU tensors: world Gaussians to screen ellipses, on our kernels.

Idea: one autograd node projects the Gaussians onto all C cameras with the native kernel, with gsplat's near plane and
low-pass instead of our constants, and lays the results out as gsplat does ([C, N, ...]; radius 0 = not drawn). What a
far plane or a smallest radius removes is removed before the backward pass sees it. Memory: 44 bytes a Gaussian and
camera. Unlike gsplat, gradients also reach the intrinsics.

Names and meanings are those of gsplat 1.4 and 1.5 (Apache-2.0); its formulas are cited where they are used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from scene_distill.core import conventions
from scene_distill.core.errors import UserError
from scene_distill.core.spherical_harmonics import MAX_DEGREE, basis, basis_count
from scene_distill.renderers import cpu, native

LARGEST_CUT = 3.33
"""Standard deviations that gsplat 1.5 gives a radius at most."""


@dataclass(frozen=True)
class Lens:
    """How gsplat was asked to project: size (width, height) px, near and far plane and smallest radius to draw, the
    low-pass eps2d px², Mip-Splatting's compensation, radii per axis ([..., 2], gsplat 1.5) or one (1.4), and the
    camera model, 'pinhole' or 'ortho'; per axis, radii know the opacity unless ``opacity_aware`` is off."""

    size: tuple[int, int]
    near: float = 0.01
    far: float = 1e10
    radius_clip: float = 0.0
    eps2d: float = conventions.EPS2D_PX2
    antialiased: bool = False
    radius_per_axis: bool = False
    camera_model: str = "pinhole"
    opacity_aware: bool = True

    def __post_init__(self) -> None:
        if self.camera_model not in ("pinhole", "ortho"):
            raise UserError(
                f"gsplat on the CPU has camera_model 'pinhole' and 'ortho', not {self.camera_model!r}; "
                "undistort the photos first"
            )

    @property
    def orthographic(self) -> bool:
        """Whether the camera looks in parallel rays."""
        return self.camera_model == "ortho"

    @property
    def limits(self) -> native.Limits:
        """The kernels' constants with this near plane and low-pass; raises `UserError` for a near plane at the eye."""
        if self.near <= 0 or self.eps2d < 0:
            raise UserError(f"gsplat on the CPU needs near_plane > 0 and eps2d >= 0, not {self.near} and {self.eps2d}")
        base = native.LIMITS
        return native.Limits(
            base.alpha_min, base.alpha_max, base.transmittance_min, self.eps2d, self.near, base.frustum_margin
        )


@dataclass(frozen=True, eq=False)
class Screen:
    """N Gaussians on C screens: radii int32 px ([C, N] or [C, N, 2], 0 = not drawn), means2d [C, N, 2] px, conics
    [C, N, 3], depths [C, N], opacities [C, N] (times the compensation when antialiased), extents [C, N, 2] px."""

    radii: Tensor
    means2d: Tensor
    conics: Tensor
    depths: Tensor
    opacities: Tensor
    extents: Tensor

    @property
    def drawn(self) -> Tensor:
        """[C, N] bool, where a Gaussian is drawn."""
        return self.extents[..., 0] > 0


def radii_of(conics: Tensor, opacities: Tensor | None, per_axis: bool) -> Tensor:
    """gsplat's radii in px (float) of ellipses with conics [..., 3] and opacities [...], None if they do not matter.

    gsplat 1.4: ceil(3 sqrt(lambda_max)). 1.5 per axis: ceil(min(k sigma_axis, k sqrt(lambda_max))) with k = min(3.33,
    sqrt(2 log(opacity / ALPHA_MIN))). lambda_max = b + sqrt(max(0.01, b² - det)), b half the trace.
    """
    a, b, c = conics.unbind(-1)
    det = 1.0 / (a * c - b * b).clamp(min=1e-30)
    variances = torch.stack([c * det, a * det], dim=-1)
    half_trace = 0.5 * variances.sum(-1)
    largest = half_trace + (half_trace * half_trace - det).clamp(min=0.01).sqrt()
    if not per_axis:
        return torch.ceil(3.0 * largest.sqrt())
    cut = torch.full_like(largest, LARGEST_CUT)
    if opacities is not None:
        cut = cut.minimum((2.0 * torch.log((opacities / conventions.ALPHA_MIN).clamp(min=1.0))).sqrt())
    return torch.ceil(cut[..., None] * torch.minimum(variances, largest[..., None]).sqrt())


def _projected(
    world: tuple[Tensor, Tensor, Tensor, Tensor], camera: tuple[Tensor, Tensor], lens: Lens
) -> tuple[Tensor, ...]:
    """radii, means2d, conics, depths, opacities2d, extents of one camera, zero where not drawn."""
    found = native.project(world, camera, lens.size, lens.antialiased, lens.limits, orthographic=lens.orthographic)
    _, conics, depths, opacities2d, extents = found
    radii = radii_of(conics, opacities2d if lens.opacity_aware else None, lens.radius_per_axis)
    largest = radii.amax(-1) if lens.radius_per_axis else radii
    hidden = (extents[:, 0] <= 0) | (depths > lens.far) | (largest <= lens.radius_clip)
    for tensor in (radii, *found):
        tensor[hidden] = 0
    return radii.int(), *found


class _Project(torch.autograd.Function):
    """Means [N, 3], quats [N, 4], scales [N, 3], opacities [N], poses [C, 4, 4], intrinsics [C, 4] to a `Screen`."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        *tensors, lens = inputs
        world, poses, intrinsics = tuple(t.contiguous() for t in tensors[:4]), *map(Tensor.contiguous, tensors[4:])
        each = [_projected(world, camera, lens) for camera in zip(poses, intrinsics, strict=True)]
        out = tuple(torch.stack(tensors) for tensors in zip(*each, strict=True))
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(out[0], out[5])
        ctx.save_for_backward(*world, poses, intrinsics, out[5])
        ctx.lens = lens
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        *world, poses, intrinsics, extents = ctx.saved_tensors
        given = [None if grad is None else grad.contiguous() for grad in grads[1:5]]
        if all(grad is None for grad in given):
            return (None,) * 7
        lens, camera_grad = ctx.lens, ctx.needs_input_grad[4] or ctx.needs_input_grad[5]
        totals: list[Tensor] | None = None
        cameras = []
        for c in range(poses.shape[0]):
            here: Any = tuple(None if grad is None else grad[c] for grad in given)
            *found, pose, focal = native.project_backward(
                tuple(world), (poses[c], intrinsics[c]), lens.size, lens.antialiased, extents[c], here, camera_grad,
                lens.limits, orthographic=lens.orthographic,
            )  # fmt: skip
            cameras.append((pose, focal))
            totals = found if totals is None else [total.add_(part) for total, part in zip(totals, found, strict=True)]
        moved = [torch.stack(parts) if camera_grad else None for parts in zip(*cameras, strict=True)]
        return *(totals or ()), *moved, None


def project(world: tuple[Tensor, Tensor, Tensor, Tensor], viewmats: Tensor, Ks: Tensor, lens: Lens) -> Screen:
    """World = (means, quats, scales, opacities) on the screens of C cameras, viewmats [C, 4, 4], Ks [C, 3, 3].

    Differentiable in everything. Raises `UserError` for wrong shapes and types and for NaN.
    """
    if cpu.uses_reference():
        raise UserError("the gsplat stand-in runs the native kernels; unset SCENE_DISTILL_BACKEND to use it")
    count, cameras = world[0].shape[0] if world[0].dim() else 0, viewmats.shape[0] if viewmats.dim() else 0
    shapes = ((count, 3), (count, 4), (count, 3), (count,), (cameras, 4, 4), (cameras, 3, 3))
    names = ("means", "quats", "scales", "opacities", "viewmats", "Ks")
    for name, tensor, shape in zip(names, (*world, viewmats, Ks), shapes, strict=True):
        if tensor.shape != shape or tensor.dtype != torch.float32:
            raise UserError(
                f"gsplat on the CPU: {name} is {tensor.dtype} {tuple(tensor.shape)}, expected float32 {shape}; "
                "one scene a call, without leading batch axes"
            )
    if cameras == 0:
        raise UserError("gsplat on the CPU: there is no camera; viewmats must be [C, 4, 4] with C >= 1")
    intrinsics = torch.stack([Ks[:, 0, 0], Ks[:, 1, 1], Ks[:, 0, 2], Ks[:, 1, 2]], dim=-1)
    return Screen(*_Project.apply(*world, viewmats, intrinsics, lens))


def fully_fused_projection(given: Mapping[str, Any], radius_per_axis: bool) -> tuple[Tensor | None, ...]:
    """What gsplat's function of that name returns for the arguments ``given`` by name.

    radii, means2d, depths, conics, compensations ([C, N, ...]; compensations None unless asked for); when packed, first
    the camera and Gaussian ids of the M drawn ones and everything as [M, ...] (gsplat 1.5 puts batch ids, all 0,
    before). Without ``opacities``, Gaussians count as opaque.
    """
    if given["quats"] is None or given["scales"] is None:
        raise UserError("gsplat on the CPU projects quats and scales; covariance matrices (covars) are not supported")
    means, opacities = given["means"], given.get("opacities")
    compensate = given["calc_compensations"]
    lens = Lens(
        (given["width"], given["height"]), given["near_plane"], given["far_plane"], given["radius_clip"],
        given["eps2d"], compensate, radius_per_axis, given["camera_model"],
        opacities is not None,
    )  # fmt: skip
    full = means.new_ones(means.shape[0]) if opacities is None else opacities
    screen = project((means, given["quats"], given["scales"], full), given["viewmats"], given["Ks"], lens)
    compensations = None
    if compensate:
        compensations = screen.opacities if opacities is None else screen.opacities / full.clamp(min=1e-12)
    if not given["packed"]:
        return screen.radii, screen.means2d, screen.depths, screen.conics, compensations
    refuse_sparse_gradients(given["sparse_grad"])
    camera_ids, gaussian_ids = torch.where(screen.drawn)
    at = (camera_ids, gaussian_ids)
    batch = (torch.zeros_like(camera_ids),) if radius_per_axis else ()
    return (
        *batch, *at, screen.radii[at], screen.means2d[at], screen.depths[at], screen.conics[at],
        None if compensations is None else compensations[at],
    )  # fmt: skip


def refuse_sparse_gradients(asked: bool) -> None:
    """Raises `UserError` when sparse gradients are asked for."""
    if asked:
        raise UserError("gsplat on the CPU gives dense gradients only; pass sparse_grad=False")


def spherical_harmonics(degree: int, dirs: Tensor, coeffs: Tensor, masks: Tensor | None = None) -> Tensor:
    """Sum of the first (degree + 1)² harmonics at dirs [..., 3] (any length) with coeffs [..., K, 3]: [..., 3].

    Zero where masks [...] is False. The caller adds 0.5. Raises `UserError` for a degree above 3 or too few
    coefficients.
    """
    count = basis_count(degree)
    if not 0 <= degree <= MAX_DEGREE or coeffs.shape[-2] < count:
        raise UserError(
            f"gsplat on the CPU: spherical harmonics of degree {degree} with {coeffs.shape[-2]} coefficients; "
            f"the degree must be 0 to {MAX_DEGREE} with at least (degree + 1)² coefficients"
        )
    if masks is not None:
        at = torch.where(masks)
        colors = spherical_harmonics(degree, dirs[at], coeffs[..., :count, :][at])
        return colors.new_zeros(dirs.shape).index_put(at, colors)
    if degree == 0:
        return conventions.SH_C0 * coeffs[..., 0, :]
    values = basis(torch.nn.functional.normalize(dirs, dim=-1), degree)
    return (values[..., None] * coeffs[..., :count, :]).sum(-2)


def quat_scale_to_covar_preci(given: Mapping[str, Any]) -> tuple[Tensor | None, Tensor | None]:
    """Covariance and precision matrices [N, 3, 3] ([N, 6] upper triangles with ``triu``); None if not asked."""
    from scene_distill.core.geometry import rotmats_from_quats

    rotations = rotmats_from_quats(given["quats"])
    upper_rows, upper_columns = [0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]

    def squared(scales: Tensor) -> Tensor:
        factor = rotations * scales[..., None, :]
        matrices = factor @ factor.transpose(-1, -2)
        return matrices[..., upper_rows, upper_columns] if given["triu"] else matrices

    scales = given["scales"]
    return (
        squared(scales) if given["compute_covar"] else None,
        squared(1.0 / scales) if given["compute_preci"] else None,
    )


def compute_relocation(given: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Opacities [N] and scales [N, 3] of Gaussians that ``ratios`` [N] copies of one share (3DGS-MCMC, equation 9).

    o' = 1 - (1 - o)^(1/n); s' = s o / sum over i = 1..n, k = 0..i-1 of C(i-1, k) (-1)^k / sqrt(k + 1) o'^(k+1). Like
    gsplat, clamps the ratios in place to 1..n_max, the size of the table ``binoms``.
    """
    opacities, scales, binoms = given["opacities"], given["scales"], given["binoms"]
    limit = binoms.shape[0]
    copies = given["ratios"].clamp_(min=1, max=limit).long()
    shared = 1.0 - (1.0 - opacities) ** (1.0 / copies)
    k = torch.arange(limit, device=opacities.device)
    signs = torch.where(k % 2 == 0, 1.0, -1.0) / torch.sqrt(k + 1.0)
    summed = torch.cumsum(binoms.double() * signs, dim=0)[copies - 1]
    powers = shared.double()[:, None] ** (k + 1)
    share = opacities / (summed * powers).sum(-1).to(opacities.dtype)
    return shared, share[:, None] * scales


def tile_bits(tiles: int) -> int:
    """Bits that gsplat's intersection ids give to the tile, between 32 bits of depth and the camera."""
    return math.floor(math.log2(tiles)) + 1
