"""gsplat's projection for CPU tensors: world Gaussians to screen ellipses, on our kernels.

Idea: one autograd node projects the Gaussians of a scene onto its C cameras with the native kernel, with gsplat's near
plane and low-pass instead of our constants, and lays the results out as gsplat does ([C, N, ...]; radius 0 = not
drawn). What a far plane or a smallest radius removes is removed before the backward pass sees it. Scenes of a batch
follow one another. Memory: 44 bytes a Gaussian and camera. Unlike gsplat, gradients also reach the intrinsics.

Names and meanings are those of gsplat 1.4 to 1.6 (Apache-2.0); its formulas are cited where they are used.
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
from scene_distill.plugins.gsplat_covariances import matrices, project_covariances
from scene_distill.renderers import cpu, native

LARGEST_CUT = 3.33
"""Standard deviations that gsplat 1.5 gives a radius at most."""


@dataclass(frozen=True)
class Lens:
    """How gsplat was asked to project: size (width, height) px, near and far plane and smallest radius to draw, the
    low-pass eps2d px², Mip-Splatting's compensation, radii per axis ([..., 2], gsplat 1.5) or one (1.4), and the
    camera model, 'pinhole' or 'ortho'; per axis, radii know the opacity unless ``opacity_aware`` is off;
    ``sparse_grad`` gives the gradients of means, quats and scales in the COO layout, with the rows that are drawn."""

    size: tuple[int, int]
    near: float = 0.01
    far: float = 1e10
    radius_clip: float = 0.0
    eps2d: float = conventions.EPS2D_PX2
    antialiased: bool = False
    radius_per_axis: bool = False
    camera_model: str = "pinhole"
    opacity_aware: bool = True
    sparse_grad: bool = False

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


@dataclass(frozen=True, eq=False)
class World:
    """Gaussians of a scene, or of as many as the leading axes hold: means [..., N, 3], opacities [..., N], and quats
    [..., N, 4] with scales [..., N, 3], or covars [..., N, 3, 3] in their place."""

    means: Tensor
    opacities: Tensor
    quats: Tensor | None
    scales: Tensor | None
    covars: Tensor | None = None

    @property
    def batch(self) -> tuple[int, ...]:
        """The leading axes."""
        return tuple(self.means.shape[:-2])

    @property
    def columns(self) -> tuple[Tensor, ...]:
        """(means, quats, scales, opacities) or (means, covars, opacities). Raises `UserError` where one is missing."""
        if self.covars is not None:
            return self.means, self.covars, self.opacities
        if self.quats is None or self.scales is None:
            raise UserError("gsplat on the CPU projects quats and scales, or covars; pass one of the two")
        return self.means, self.quats, self.scales, self.opacities


def scenes(tensor: Tensor, axes: int) -> list[Tensor]:
    """The parts of a tensor with so many leading batch axes, in order; itself when there are none."""
    return [tensor] if axes == 0 else list(tensor.flatten(0, axes - 1).unbind(0))


def _found_and_hidden(found: tuple[Tensor, ...], lens: Lens) -> tuple[Tensor, Tensor]:
    """gsplat's radii (float) of projected Gaussians, and which of them are not drawn."""
    _, conics, depths, opacities2d, extents = found
    radii = radii_of(conics, opacities2d if lens.opacity_aware else None, lens.radius_per_axis)
    largest = radii.amax(-1) if lens.radius_per_axis else radii
    return radii, (extents[:, 0] <= 0) | (depths > lens.far) | (largest <= lens.radius_clip)


def _projected(world: tuple[Tensor, ...], camera: tuple[Tensor, Tensor], lens: Lens) -> tuple[Tensor, ...]:
    """radii, means2d, conics, depths, opacities2d, extents of one camera, zero where not drawn, by the kernel."""
    gaussians: Any = world
    found = native.project(gaussians, camera, lens.size, lens.antialiased, lens.limits, orthographic=lens.orthographic)
    radii, hidden = _found_and_hidden(found, lens)
    for tensor in (radii, *found):
        tensor[hidden] = 0
    return radii.int(), *found


def _projected_covariances(world: tuple[Tensor, ...], camera: tuple[Tensor, Tensor], lens: Lens) -> tuple[Tensor, ...]:
    """The same in torch, differentiable, of world = (means, covars, opacities)."""
    gaussians: Any = world
    found = project_covariances(gaussians, camera, lens.size, lens.antialiased, lens.limits, lens.orthographic)
    with torch.no_grad():
        radii, hidden = _found_and_hidden(found, lens)
        radii[hidden] = 0
    shown = [torch.where(hidden if t.dim() == 1 else hidden[:, None], torch.zeros_like(t), t) for t in found]
    return radii.int(), *shown[:4], shown[4].detach()


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
        reached = totals or []
        if lens.sparse_grad:
            rows = (extents[..., 0] > 0).any(0).nonzero()[:, 0]
            reached = [*(_sparse(total, rows) for total in reached[:3]), *reached[3:]]
        return *reached, *moved, None


def _sparse(grad: Tensor, rows: Tensor) -> Tensor:
    """The COO layout of a gradient that is zero outside ``rows``."""
    return torch.sparse_coo_tensor(rows[None], grad[rows], grad.shape, check_invariants=False, is_coalesced=True)


def project(world: World, viewmats: Tensor, Ks: Tensor, lens: Lens) -> Screen:
    """The Gaussians on the screens of C cameras a scene, viewmats [..., C, 4, 4] and Ks [..., C, 3, 3]: I = batch · C
    screens, scene after scene.

    Differentiable in everything. Raises `UserError` for wrong shapes and types and for NaN.
    """
    if cpu.uses_reference():
        raise UserError("the gsplat stand-in runs the native kernels; unset SCENE_DISTILL_BACKEND to use it")
    _check_shapes(world, viewmats, Ks)
    intrinsics = torch.stack([Ks[..., 0, 0], Ks[..., 1, 1], Ks[..., 0, 2], Ks[..., 1, 2]], dim=-1)
    axes = len(world.batch)
    each = []
    for *gaussians, poses, focals in zip(
        *(scenes(t, axes) for t in (*world.columns, viewmats, intrinsics)), strict=True
    ):
        if world.covars is None:
            each.append(_Project.apply(*gaussians, poses, focals, lens))
            continue
        seen = [_projected_covariances(tuple(gaussians), camera, lens) for camera in zip(poses, focals, strict=True)]
        each.append(tuple(torch.stack(tensors) for tensors in zip(*seen, strict=True)))
    return Screen(*(each[0] if len(each) == 1 else (torch.cat(parts) for parts in zip(*each, strict=True))))


def _check_shapes(world: World, viewmats: Tensor, Ks: Tensor) -> None:
    batch, count = world.batch, world.means.shape[-2] if world.means.dim() > 1 else 0
    cameras = viewmats.shape[-3] if viewmats.dim() > 2 else 0
    rows = {"means": (world.means, (3,)), "opacities": (world.opacities, ())}
    if world.covars is None:
        _, quats, scales, _ = world.columns
        rows |= {"quats": (quats, (4,)), "scales": (scales, (3,))}
    else:
        rows |= {"covars": (world.covars, (3, 3))}
    expected = {name: (tensor, (*batch, count, *tail)) for name, (tensor, tail) in rows.items()}
    expected |= {"viewmats": (viewmats, (*batch, cameras, 4, 4)), "Ks": (Ks, (*batch, cameras, 3, 3))}
    for name, (tensor, shape) in expected.items():
        if tensor.shape != shape or tensor.dtype != torch.float32:
            raise UserError(
                f"gsplat on the CPU: {name} is {tensor.dtype} {tuple(tensor.shape)}, expected float32 {shape}"
            )
    if cameras * math.prod(batch) == 0:
        raise UserError("gsplat on the CPU: there is no camera; viewmats must be [..., C, 4, 4] with C >= 1")


@dataclass(frozen=True)
class Layout:
    """What differs in the results of gsplat's versions: radii per axis [..., 2] and ids of the batch (from 1.5 on), and
    the row pointers of a packed projection (from 1.6 on)."""

    radius_per_axis: bool = False
    row_pointers: bool = False

    @staticmethod
    def of(version: str) -> Layout:
        """The layout of gsplat ``version``, such as "1.5.3"."""
        major, minor = (int(part) for part in version.split(".")[:2])
        return Layout((major, minor) >= (1, 5), (major, minor) >= (1, 6))


def fully_fused_projection(given: Mapping[str, Any], layout: Layout) -> tuple[Tensor | None, ...]:
    """What gsplat's function of that name returns for the arguments ``given`` by name.

    radii, means2d, depths, conics, compensations ([..., C, N, ...]; compensations None unless asked for); when packed,
    the batch ids (from 1.5 on), camera ids and Gaussian ids of the M drawn ones, the row pointers of each image (1.6),
    and everything as [M, ...]. Without ``opacities``, Gaussians count as opaque.
    """
    means, opacities, covars = given["means"], given.get("opacities"), given["covars"]
    compensate, sparse = given["calc_compensations"], given["packed"] and given["sparse_grad"]
    lens = Lens(
        (given["width"], given["height"]), given["near_plane"], given["far_plane"], given["radius_clip"],
        given["eps2d"], compensate, layout.radius_per_axis, given["camera_model"],
        opacities is not None, sparse,
    )  # fmt: skip
    full = means.new_ones(means.shape[:-1]) if opacities is None else opacities
    world = World(means, full, given["quats"], given["scales"], None if covars is None else matrices(covars))
    refuse_sparse_gradients(sparse, world.batch, covars)
    screen = project(world, given["viewmats"], given["Ks"], lens)
    cameras = given["viewmats"].shape[-3]
    compensations = None
    if compensate:
        each = full.reshape(-1, 1, full.shape[-1]).expand(-1, cameras, -1).reshape(screen.opacities.shape)
        compensations = screen.opacities if opacities is None else screen.opacities / each.clamp(min=1e-12)
    found = (screen.radii, screen.means2d, screen.depths, screen.conics, compensations)
    if not given["packed"]:
        return tuple(None if t is None else t.reshape(*world.batch, cameras, *t.shape[1:]) for t in found)
    image_ids, gaussian_ids = torch.where(screen.drawn)
    ids = (image_ids // cameras, image_ids % cameras) if layout.radius_per_axis else (image_ids,)
    pointers: tuple[Tensor, ...] = ()
    if layout.row_pointers:
        pointers = (torch.nn.functional.pad(torch.cumsum(screen.drawn.sum(1), 0), (1, 0)).int(),)
    values = (None if t is None else t[image_ids, gaussian_ids] for t in found)
    return *ids, gaussian_ids, *pointers, *values


def refuse_sparse_gradients(asked: bool, batch: tuple[int, ...], covars: Tensor | None) -> None:
    """Raises `UserError` where sparse gradients are asked for and cannot be had."""
    if asked and (batch or covars is not None):
        raise UserError(
            "gsplat on the CPU gives sparse gradients of means, quats and scales of one scene; pass sparse_grad=False "
            "with covars or leading batch axes"
        )
