"""Bake a neural, view-dependent scene into standard splats with spherical-harmonics colours.

Teacher:   the neural scene, whose Gaussians change with the camera centre.
Student:   one `Splats` with the same means, so that any splat program can draw it.
Method:    every slot is decoded for the nearest training cameras that have its anchor in view. Colours are fitted to
           those samples by weighted ridge least squares over the SH basis; opacity is their mean, sizes their
           geometric mean, rotations their sign-aligned mean, weighted by opacity.
Cost:      (anchors x views) decoded slots and one K x K solve a slot; memory is one chunk of slots, whatever the scene.

For one slot with sample directions d_v (camera centre to the slot's mean, as a viewer evaluates them), colours c_v
and weights w_v = max(alpha_v, 0) / sum of max(alpha, 0):

    sh = argmin  sum_v w_v |B(d_v) sh + 0.5 - c_v|^2  +  ridge / (4 pi)  sum_lm  l (l + 1) / 2  |sh_lm|^2

The penalty is the smoothness of the colour on the sphere (the Laplace-Beltrami operator has eigenvalues l (l + 1));
it decides what is shown from directions that no training camera has, and leaves a constant colour untouched.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from torch import Tensor

from scene_distill.core import spherical_harmonics
from scene_distill.core.cameras import Camera
from scene_distill.core.conventions import ALPHA_MAX, ALPHA_MIN, NEAR_M
from scene_distill.core.errors import UserError
from scene_distill.core.gaussians import Gaussians
from scene_distill.representations.splats import Splats
from scene_distill.training.metrics import psnr

SlotDecoder = Callable[[np.ndarray, Tensor], Gaussians]
"""(camera centre [3] float64, anchor indices [V] int64) -> the V*S Gaussians of those anchors, anchor by anchor; the
number S of slots and their means are the same for every camera."""

Report = Callable[[int, int], None]
"""(anchors done, anchors in all), for a progress bar."""


@dataclass(frozen=True)
class BakeSettings:
    """How the fit is made: views that an anchor is sampled from (the nearest), smoothness weight, memory.

    ``ridge`` is relative to evenly spread directions (module docstring); ``frustum_margin`` widens the image on every
    side by this fraction, because an anchor outside it can own slots inside.
    """

    sh_degree: int = 3
    views_per_anchor: int = 12
    ridge: float = 0.02
    frustum_margin: float = 0.1
    slots_in_memory: int = 1 << 14


@dataclass(frozen=True, eq=False)
class _Samples:
    """What n slots look like from up to V views; where ``seen`` [n, V] is false everything else is zero.

    means [n, 3]; centers [n, V, 3] of the cameras; colors, scales [n, V, 3]; quats [n, V, 4]; alphas [n, V] >= 0.
    """

    means: Tensor
    centers: Tensor
    colors: Tensor
    scales: Tensor
    quats: Tensor
    alphas: Tensor
    seen: Tensor

    def select(self, rows: Tensor) -> _Samples:
        return _Samples(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


@torch.no_grad()
def bake_sh(
    decode: SlotDecoder,
    positions: Tensor,
    cameras: Sequence[Camera],
    settings: BakeSettings = BakeSettings(),
    report: Report = lambda done, total: None,
) -> Splats:
    """Standard splats (float32, CPU) that look like the neural slots of all anchors from the given cameras.

    positions [A, 3] of the anchors and the cameras are in the frame that ``decode`` uses and the splats get. Slots
    that no camera sees, or whose mean opacity is below `ALPHA_MIN`, are left out. Raises `UserError` when nothing
    remains.
    """
    if len(positions) == 0 or not cameras:
        raise UserError("There is nothing to bake: the scene has no anchors or no cameras.")
    slots_per_anchor = len(decode(cameras[0].center, torch.zeros(1, dtype=torch.int64)))
    anchors_per_chunk = max(1, settings.slots_in_memory // slots_per_anchor)
    parts = []
    for start in range(0, len(positions), anchors_per_chunk):
        anchors = torch.arange(start, min(start + anchors_per_chunk, len(positions)))
        views = _nearest_views(positions[anchors].double().numpy(), cameras, settings)
        samples = _gather(decode, anchors, views, cameras, slots_per_anchor)
        parts.append(_fit(samples, settings))
        report(int(anchors[-1]) + 1, len(positions))
    splats = Splats.cat(parts)
    if len(splats) == 0:
        raise UserError("Baking left no splats: no camera sees a slot with an opacity above 1/255; train longer.")
    return splats


def _gather(
    decode: SlotDecoder, anchors: Tensor, views: np.ndarray, cameras: Sequence[Camera], slots_per_anchor: int
) -> _Samples:
    """Samples of all slots of ``anchors`` [A] from the cameras ``views`` [A, V] chosen for each."""
    slot_count = len(anchors) * slots_per_anchor
    means = torch.zeros(slot_count, 3)
    looks = torch.zeros(slot_count, views.shape[1], 11)
    for camera_index in np.unique(views[views >= 0]):
        rows, ranks = (torch.from_numpy(index) for index in np.nonzero(views == camera_index))
        gaussians = decode(cameras[camera_index].center, anchors[rows])
        slots = (rows[:, None] * slots_per_anchor + torch.arange(slots_per_anchor)).flatten()
        look = [gaussians.features, gaussians.scales, gaussians.quats, gaussians.opacities[:, None]]
        means[slots] = gaussians.means.cpu().float()
        looks[slots, ranks.repeat_interleave(slots_per_anchor)] = torch.cat(look, dim=1).cpu().float()
    colors, scales, quats, alphas = looks.split([3, 3, 4, 1], dim=-1)
    seen = torch.from_numpy(views >= 0)
    all_centers = torch.from_numpy(np.stack([camera.center for camera in cameras]))
    centers = torch.where(seen[..., None], all_centers[views.clip(0)], 0.0)
    return _Samples(
        means=means,
        centers=centers.repeat_interleave(slots_per_anchor, 0),
        colors=colors,
        scales=scales,
        quats=quats,
        alphas=alphas.squeeze(-1).clamp_min(0.0),
        seen=seen.repeat_interleave(slots_per_anchor, 0),
    )


def _nearest_views(positions: np.ndarray, cameras: Sequence[Camera], settings: BakeSettings) -> np.ndarray:
    """Indices [A, V] of the nearest cameras that have the points [A, 3] in their image, -1 where there are fewer."""
    distances = np.full((len(positions), len(cameras)), np.inf)
    for index, camera in enumerate(cameras):
        pixels, depth = camera.project(positions)
        margin = np.array([camera.width, camera.height]) * settings.frustum_margin
        limit = np.array([camera.width, camera.height]) + margin
        inside = (depth > NEAR_M) & (pixels >= -margin).all(1) & (pixels <= limit).all(1)
        distances[inside, index] = np.linalg.norm(positions[inside] - camera.center, axis=1)
    count = min(settings.views_per_anchor, len(cameras))
    nearest = np.argsort(distances, axis=1, kind="stable")[:, :count]
    return np.where(np.isfinite(np.take_along_axis(distances, nearest, axis=1)), nearest, -1)


def _fit(samples: _Samples, settings: BakeSettings) -> Splats:
    """Splats of the slots that are worth keeping."""
    opacities = samples.alphas.sum(1) / samples.seen.sum(1).clamp_min(1)
    keep = opacities >= ALPHA_MIN
    samples, opacities = samples.select(keep), opacities[keep]
    weights = samples.alphas / samples.alphas.sum(1, keepdim=True)  # what is kept has a positive sum
    log_scales = torch.where(weights[..., None] > 0, samples.scales, 1.0).log()
    return Splats(
        means=samples.means,
        log_scales=(weights[..., None] * log_scales).sum(1),
        quats=_mean_rotations(torch.nn.functional.normalize(samples.quats, dim=-1), weights),
        opacity_logits=opacities.clamp_max(ALPHA_MAX).logit(),
        sh=_fit_colors(samples, weights, settings),
    )


def _mean_rotations(quats: Tensor, weights: Tensor) -> Tensor:
    """Unit quaternions [n, 4]: weighted means of quats [n, V, 4], each turned to the side of its heaviest sample."""
    heaviest = weights.argmax(1)[:, None, None].expand(-1, 1, 4)
    sides = torch.where((quats * quats.gather(1, heaviest)).sum(-1) < 0, -1.0, 1.0)
    return torch.nn.functional.normalize(((weights * sides)[..., None] * quats).sum(1), dim=1)


def _fit_colors(samples: _Samples, weights: Tensor, settings: BakeSettings) -> Tensor:
    """SH coefficients [n, K, 3] of the ridge fit in the module docstring, weights [n, V] summing to one."""
    directions = torch.nn.functional.normalize(samples.means.double()[:, None] - samples.centers, dim=-1)
    basis = spherical_harmonics.basis(directions, settings.sh_degree)
    weighted = basis * weights.double()[..., None]
    gram = weighted.transpose(1, 2) @ basis
    moment = weighted.transpose(1, 2) @ (samples.colors.double() - 0.5)
    degrees = torch.tensor([math.isqrt(index) for index in range(basis.shape[-1])], dtype=torch.float64)
    penalty = settings.ridge * degrees * (degrees + 1) / 2 + 1e-9  # the last term: solvable with a single view
    gram += torch.diag(penalty / (4 * math.pi))
    return torch.linalg.solve(gram, moment).float()


@dataclass(frozen=True)
class BakeReport:
    """Mean PSNR in dB over the views: baked against neural renders, and both against the photos."""

    views: int
    baked_to_neural_psnr: float
    neural_psnr: float
    baked_psnr: float

    @property
    def psnr_loss(self) -> float:
        """What the bake costs against the photos, in dB; positive is a loss."""
        return self.neural_psnr - self.baked_psnr


@torch.no_grad()
def bake_report(
    render_neural: Callable[[Camera], Tensor],
    render_baked: Callable[[Camera], Tensor],
    views: Iterable[tuple[Camera, Tensor]],
) -> BakeReport:
    """Measure the bake on pairs of a camera and its photo [H, W, 3] in [0, 1]; renders are clipped to [0, 1].

    Raises `ValueError` without views.
    """
    rows = []
    for camera, photo in views:
        neural, baked = render_neural(camera).clamp(0.0, 1.0), render_baked(camera).clamp(0.0, 1.0)
        rows.append((psnr(baked, neural), psnr(neural, photo), psnr(baked, photo)))
    if not rows:
        raise ValueError("bake_report needs at least one view")
    means = np.mean(rows, axis=0)
    return BakeReport(len(rows), *(float(value) for value in means))
