"""gsplat as a backend that is asked for: SCENE_DISTILL_BACKEND=gsplat, or `splat.DrawOptions(backend="gsplat")`.

Idea: one adapter a version (1.4, 1.5, 1.6) calls gsplat's parts (projection, tile lists, blending) with our conventions
spelt out: near plane NEAR_M, low-pass EPS2D_PX2, 16 px tiles, depth as a channel over background 0. gsplat brings its
own autograd, so this stands beside the op set, not in it. What it does differently stays: splats end at 3 sigma (1.4)
or 3.33 sigma (1.5) where ours end at ALPHA_MIN, and 1.6 clamps alpha at 0.99 where ours and the others clamp at
ALPHA_MAX = 0.999. What it cannot do raises `UserError` (`refuse`).

Cost: that of gsplat, plus one pass of blending for every CHUNK channels.
"""

from __future__ import annotations

import importlib
import math
import os
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from scene_distill.core.conventions import EPS2D_PX2, NEAR_M, TILE
from scene_distill.core.errors import UserError

BACKENDS = ("native", "reference", "gsplat")
"""Values of SCENE_DISTILL_BACKEND; unset means native. On a GPU, native is our CUDA kernels; the reference replaces the
CPU kernels of the whole process."""

DEVICES = ("cuda",)
"""Where gsplat draws."""

CHUNK = 32
CHANNELS = (1, 2, 3, 4, 8, 16, 32)
"""Channels of one pass of blending, which every build of gsplat has; others are padded up to the next."""


def asked(backend: str | None) -> bool:
    """Whether gsplat is asked for, by name ("native" or "gsplat") or else by SCENE_DISTILL_BACKEND.

    Raises `UserError` for unknown names.
    """
    name = backend or os.environ.get("SCENE_DISTILL_BACKEND") or "native"
    known = tuple(each for each in BACKENDS if backend is None or each != "reference")
    if name not in known:
        raise UserError(f"there is no rendering backend {name!r} here; choose one of {', '.join(known)}")
    return name == "gsplat"


def refuse(device: torch.device, wanted: dict[str, bool]) -> None:
    """Raises `UserError` for tensors on another device than a GPU, and for the first of ``wanted`` that is True: what
    was asked for beside the picture, in words."""
    if device.type not in DEVICES:
        raise UserError(
            f"gsplat draws tensors on a GPU, these are on the {device.type}; move them there or unset "
            "SCENE_DISTILL_BACKEND"
        )
    for what, is_wanted in wanted.items():
        if is_wanted:
            raise UserError(f"gsplat cannot give {what}; draw this with our own kernels (backend native)")


@dataclass(frozen=True, eq=False)
class Projected:
    """N Gaussians on the screen: means2d [N, 2] px, conics [N, 3], depths [N] metres, opacities [N] (times the
    compensation when antialiased), and gsplat's radii [1, N] or [1, N, 2] px, 0 where not drawn."""

    means2d: Tensor
    conics: Tensor
    depths: Tensor
    opacities: Tensor
    radii: Tensor

    @property
    def extents(self) -> Tensor:
        """Half sizes [N, 2] px of the box that gsplat draws a splat in; (0, 0) where it draws nothing."""
        radii = self.radii[0] if self.radii.dim() == 3 else self.radii[0][:, None].expand(-1, 2)
        return radii.to(self.means2d.dtype) * (radii > 0).all(-1, keepdim=True)


class Gsplat14:
    """gsplat 1.4: one radius a splat, ceil(3 sqrt(lambda_max))."""

    def __init__(self, gsplat: ModuleType) -> None:
        self.gsplat: Any = gsplat

    def project_words(self, opacities: Tensor) -> dict[str, Any]:
        """Arguments of `fully_fused_projection` that this version has beside those of 1.4."""
        return {}

    def list_words(self, screen: Projected) -> dict[str, Any]:
        """Arguments of `isect_tiles` that this version has beside those of 1.4."""
        return {}

    def project(self, world: Sequence[Tensor], camera: tuple[Tensor, Tensor], size: tuple[int, int], antialiased: bool,
                orthographic: bool) -> Projected:  # fmt: skip
        """World = (means, quats, scales, opacities) seen by camera = (cam_from_world [4, 4], intrinsics [4])."""
        means, quats, scales, opacities = world
        fx, fy, cx, cy = camera[1].unbind()
        zero, one = torch.zeros_like(fx), torch.ones_like(fx)
        lens = torch.stack([fx, zero, cx, zero, fy, cy, zero, zero, one]).view(1, 3, 3)
        radii, means2d, depths, conics, compensations = self.gsplat.fully_fused_projection(
            means, None, quats, scales, camera[0][None], lens, *size, eps2d=EPS2D_PX2, near_plane=NEAR_M,
            calc_compensations=antialiased, camera_model="ortho" if orthographic else "pinhole",
            **self.project_words(opacities),
        )  # fmt: skip
        drawn = (radii > 0).all(-1) if radii.dim() == 3 else radii > 0
        # gsplat leaves what it does not draw undefined
        flat = [torch.where(drawn[0, :, None], t[0], torch.zeros_like(t[0])) for t in (means2d, conics)]
        depths = torch.where(drawn[0], depths[0], torch.zeros_like(depths[0]))
        if compensations is not None:
            opacities = opacities * torch.where(drawn[0], compensations[0], torch.zeros_like(opacities))
        return Projected(flat[0], flat[1], depths, opacities, radii)

    @torch.no_grad()
    def lists(self, screen: Projected, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """gsplat's isect_offsets [1, rows, columns] and flatten_ids [P]."""
        columns, rows = -(-size[0] // TILE), -(-size[1] // TILE)
        _, isect_ids, flatten_ids = self.gsplat.isect_tiles(
            screen.means2d[None], screen.radii, screen.depths[None], TILE, columns, rows, **self.list_words(screen)
        )
        return self.gsplat.isect_offset_encode(isect_ids, 1, columns, rows), flatten_ids

    def raster(self, means2d: Tensor, screen: Projected, painted: tuple[Tensor, Tensor], lists: tuple[Tensor, Tensor],
               size: tuple[int, int], absgrad: bool) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Image [H, W, D] and alpha [H, W] of means2d [1, N, 2] and the rest of the screen, painted = (features [N,
        D], background [D])."""
        (features, background), parts, alphas = painted, [], []
        for colors, behind in zip(features.split(CHUNK, dim=1), background.split(CHUNK), strict=True):
            channels = colors.shape[1]
            extra = min(count for count in CHANNELS if count >= channels) - channels
            image, alpha = self.gsplat.rasterize_to_pixels(
                means2d, screen.conics[None], torch.nn.functional.pad(colors, (0, extra))[None],
                screen.opacities[None], *size, TILE, *lists,
                backgrounds=torch.nn.functional.pad(behind, (0, extra))[None], absgrad=absgrad,
            )  # fmt: skip
            parts.append(image[0, ..., :channels])
            alphas.append(alpha[0, ..., 0])
        return torch.cat(parts, dim=-1), alphas[0]


class Gsplat15(Gsplat14):
    """gsplat 1.5: one radius an axis, cut where the opacity falls below ALPHA_MIN, at most 3.33 sigma."""

    def project_words(self, opacities: Tensor) -> dict[str, Any]:
        """The opacities, for tighter radii."""
        return {"opacities": opacities.detach()}


class Gsplat16(Gsplat15):
    """gsplat 1.6 (its main branch; not on PyPI): tile lists that leave out what the ellipse does not touch; alpha is
    clamped at 0.99. Written from its source, where these parts are thin wrappers of ``torch.ops.gsplat``."""

    def list_words(self, screen: Projected) -> dict[str, Any]:
        """The ellipses, for shorter lists."""
        return {"conics": screen.conics[None], "opacities": screen.opacities[None]}


ADAPTERS = {(1, 4): Gsplat14, (1, 5): Gsplat15, (1, 6): Gsplat16}


def load() -> Gsplat14:
    """The adapter of the gsplat that is installed. Raises `UserError` without gsplat and for versions unknown here."""
    try:
        gsplat = importlib.import_module("gsplat")
    except ImportError as error:
        raise UserError(
            f"the backend gsplat was asked for and cannot be imported ({error}); pip install gsplat"
        ) from None
    major, minor = (int(part) for part in gsplat.__version__.split(".")[:2])
    if (major, minor) not in ADAPTERS:
        raise UserError(f"gsplat {gsplat.__version__} is installed; the backend knows 1.4, 1.5 and 1.6")
    return ADAPTERS[major, minor](gsplat)


def draw(screen: Projected, features: Tensor, background: Tensor, size: tuple[int, int], absolute: bool,
         adapter: Gsplat14) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
    """Image [H, W, D], alpha [H, W] and, if ``absolute``, a probe [N, 2] whose ``grad`` holds after the backward pass
    the sum over pixels of |dL/d means2d|."""
    if absolute and features.shape[1] > CHUNK:
        raise UserError(f"gsplat gives absolute gradients of at most {CHUNK} channels, not {features.shape[1]}")
    means2d = screen.means2d[None]
    image, alpha = adapter.raster(means2d, screen, (features, background), adapter.lists(screen, size), size, absolute)
    return image, alpha, _probe(screen.means2d, means2d) if absolute else None


def _probe(means2d: Tensor, drawn: Tensor) -> Tensor:
    """A leaf [N, 2] that receives ``drawn.absgrad`` [1, N, 2], which gsplat sets, once means2d has its gradient.

    The probe keeps ``drawn`` alive and the hook knows the probe weakly: nothing of the graph outlives the rendering.
    """
    probe: Any = torch.zeros_like(means2d, requires_grad=True)
    probe.drawn = drawn
    known = weakref.ref(probe)

    def read(_: Tensor) -> None:
        here = known()
        if here is not None:
            found = here.drawn.absgrad[0]
            here.grad = found if here.grad is None else here.grad + found

    if means2d.requires_grad:
        means2d.register_hook(read)
    return probe


def wanted(mask: Tensor | None, gradient_bound: float, median_depth: bool, intrinsics: Tensor) -> dict[str, bool]:
    """For `refuse`: what our kernels can give and gsplat cannot."""
    return {
        "a mask of pixels": mask is not None,
        "clipped pixel gradients (gradient_bound)": not math.isinf(gradient_bound),
        "the median depth": median_depth,
        "gradients of the intrinsics": intrinsics.requires_grad and torch.is_grad_enabled(),
    }
