"""Projection of Gaussians that are given by covariance matrices, for gsplat's ``covars``: torch in float64.

Our kernels take quaternions and scales; a covariance could be split into them, but the gradient of that split is
undefined where two axes are equal. So this evaluates the local affine projection of 3DGS (equation 5) on the matrices
themselves, with gsplat's clamp of x/z and y/z in the Jacobian and the extents of `ops.project`. Cost: about 60 torch
operations on [N] vectors a camera, several times the kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scene_distill.core.errors import UserError
from scene_distill.renderers.native import Limits


def matrices(covars: Tensor) -> Tensor:
    """Symmetric matrices [..., 3, 3] of their upper triangles [..., 6] = (xx, xy, xz, yy, yz, zz).

    Raises `UserError` for another shape.
    """
    if covars.shape[-1] != 6:
        raise UserError(f"gsplat: covars are {tuple(covars.shape)}, expected upper triangles [..., N, 6]")
    return covars[..., [0, 1, 2, 1, 3, 4, 2, 4, 5]].unflatten(-1, (3, 3))


def project_covariances(
    world: tuple[Tensor, Tensor, Tensor],
    camera: tuple[Tensor, Tensor],
    size: tuple[int, int],
    antialiased: bool,
    limits: Limits,
    orthographic: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """means2d, conics, depths, opacities2d, extents of world = (means [N, 3], covars [N, 3, 3], opacities [N]).

    Zero where not drawn, as `ops.project` returns them. Differentiable in the world and in camera = (cam_from_world
    [4, 4], intrinsics [4]). Raises `UserError` for NaN or infinite numbers.
    """
    means, covars, opacities = (t.double() for t in world)
    if not all(bool(torch.isfinite(t).all()) for t in (means, covars, opacities)):
        raise UserError("gsplat on the CPU: some Gaussians have a NaN or infinite mean, covariance or opacity")
    pose, (fx, fy, cx, cy) = camera[0].double(), camera[1].double().unbind()
    cam = means @ pose[:3, :3].T + pose[:3, 3]
    depths = cam[:, 2]
    ahead = (depths >= limits.near_m) & (opacities >= limits.alpha_min)
    z = torch.where(ahead, depths, torch.ones_like(depths))
    z = torch.ones_like(z) if orthographic else z
    x, y, zero = cam[:, 0] / z, cam[:, 1] / z, torch.zeros_like(z)
    slant_x, slant_y = zero, zero
    if not orthographic:
        low_x, high_x = _span(fx, cx, size[0], limits.frustum_margin)
        low_y, high_y = _span(fy, cy, size[1], limits.frustum_margin)
        slant_x, slant_y = -fx * x.clamp(low_x, high_x) / z, -fy * y.clamp(low_y, high_y) / z
    jacobian = torch.stack([fx / z, zero, slant_x, zero, fy / z, slant_y], dim=-1).reshape(-1, 2, 3)
    onto = jacobian @ pose[:3, :3]
    sharp = onto @ covars @ onto.transpose(1, 2)
    a, b, c = sharp[:, 0, 0] + limits.eps2d, sharp[:, 0, 1], sharp[:, 1, 1] + limits.eps2d
    det_sharp, det = sharp[:, 0, 0] * sharp[:, 1, 1] - b * b, a * c - b * b
    opacities2d = opacities * torch.sqrt(det_sharp.clamp(min=1e-12) / det) if antialiased else opacities
    means2d = torch.stack([fx * x + cx, fy * y + cy], dim=-1)
    conics = torch.stack([c, -b, a], dim=-1) / det[:, None]
    with torch.no_grad():
        cut = 2.0 * torch.log((opacities2d / limits.alpha_min).clamp(min=1.0))
        extents = torch.sqrt(cut[:, None] * torch.stack([a, c], dim=-1)).clamp(min=1e-6)
        inside = (means2d + extents >= 0.5) & (means2d - extents <= means2d.new_tensor(size) - 0.5)
        seen = ahead & (det > 0) & (opacities2d >= limits.alpha_min) & inside.all(-1) & torch.isfinite(extents).all(-1)

    def drawn(values: Tensor) -> Tensor:
        mask = seen if values.dim() == 1 else seen[:, None]
        return torch.where(mask, values, torch.zeros_like(values)).to(world[0].dtype)

    return drawn(means2d), drawn(conics), drawn(depths), drawn(opacities2d), drawn(extents)


@torch.no_grad()
def _span(focal: Tensor, center: Tensor, pixels: int, margin: float) -> tuple[Tensor, Tensor]:
    """Tangents of the frustum's sides along one axis, widened by ``margin`` of its half size."""
    wider = margin * 0.5 * pixels / focal
    return -center / focal - wider, (pixels - center) / focal + wider
