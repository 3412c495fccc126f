"""Which triangle every pixel sees: projection and a z-buffer, for many cameras at once, without gradients.

Work unit: a pixel inside the box around a projected triangle. All of them are listed, tested against the three edges,
and the nearest one of every pixel is kept by one scatter of (depth, triangle) packed into 64 bits, so that the answer
does not depend on the order of triangles or threads. A pixel sees a triangle when its centre lies in it or on its edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scene_distill.core.cameras import Camera
from scene_distill.core.errors import UserError

NEAR = 1e-3
"""Triangles with a corner closer than this, in world units along z, are not drawn."""

_FAR = torch.iinfo(torch.int64).max


@dataclass(frozen=True, eq=False)
class Projected:
    """The vertices in C pictures of one size: pixels [C, V, 2] (centres at half-integers) and depths [C, V] along z."""

    pixels: Tensor
    depths: Tensor
    height: int
    width: int


def project(vertices: Tensor, cameras: Sequence[Camera]) -> Projected:
    """World vertices [V, 3] in every camera, differentiable. `UserError` when the pictures differ in size."""
    sizes = {(camera.height, camera.width) for camera in cameras}
    if len(sizes) != 1:
        raise UserError(f"pictures that are drawn together need one size, got {sorted(sizes)}")
    pose = torch.stack([torch.as_tensor(camera.cam_from_world) for camera in cameras]).to(vertices)
    focal = torch.tensor([[c.fx, c.fy] for c in cameras]).to(vertices)
    middle = torch.tensor([[c.cx, c.cy] for c in cameras]).to(vertices)
    in_camera = vertices @ pose[:, :3, :3].transpose(1, 2) + pose[:, None, :3, 3]
    depths = in_camera[..., 2]
    safe = torch.where(depths < NEAR, torch.ones_like(depths), depths)
    pixels = in_camera[..., :2] / safe[..., None] * focal[:, None] + middle[:, None]
    return Projected(pixels, depths, *sizes.pop())


@torch.no_grad()
def visible_faces(projected: Projected, faces: Tensor) -> Tensor:
    """The nearest triangle at every pixel, int64 [C, H, W], -1 for none; faces [F, 3], seen from any side."""
    count, height, width = len(projected.pixels), projected.height, projected.width
    corners = projected.pixels[:, faces]
    depths = projected.depths[:, faces]
    low, high = corners.amin(dim=2), corners.amax(dim=2)
    limits = torch.tensor([width, height], device=faces.device)
    first = torch.ceil(low - 0.5).clamp(min=0).long()
    extent = (torch.minimum(torch.floor(high - 0.5).long(), limits - 1) - first + 1).clamp(min=0)
    extent[(depths < NEAR).any(dim=2)] = 0
    boxes = extent.prod(dim=2).reshape(-1)
    drawn = torch.nonzero(boxes)[:, 0]
    boxes = boxes[drawn]
    which = torch.repeat_interleave(torch.arange(len(drawn), device=faces.device), boxes)
    place = torch.arange(len(which), device=faces.device) - (boxes.cumsum(0) - boxes)[which]
    across = extent.reshape(-1, 2)[drawn, 0]
    start = first.reshape(-1, 2)[drawn]
    column = start[which, 0] + place % across[which]
    row = start[which, 1] + place // across[which]
    weights = barycentric(corners.reshape(-1, 3, 2)[drawn][which], column + 0.5, row + 0.5)
    hit = torch.nonzero((weights >= 0).all(dim=1))[:, 0]
    weights, which = weights[hit], which[hit]
    depth = 1 / (weights / depths.reshape(-1, 3)[drawn][which]).sum(dim=1)
    camera, face = drawn[which] // len(faces), drawn[which] % len(faces)
    pixel = (camera * height + row[hit]) * width + column[hit]
    # Positive float32 numbers and their bits rise together.
    key = depth.float().view(torch.int32).long() << 32 | face
    nearest = torch.full((count * height * width,), _FAR, device=faces.device)
    nearest.scatter_reduce_(0, pixel, key, "amin")
    seen = torch.where(nearest == _FAR, -1, nearest & 0xFFFFFFFF)
    return seen.reshape(count, height, width)


def barycentric(corners: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Weights [M, 3] of the corners [M, 3, 2] of triangles at points (x, y) [M] in the plane; they add up to 1.

    Differentiable. A triangle without area gets weights of -1: nothing lies in it.
    """
    a, b, c = corners.unbind(dim=1)
    px, py = x - c[:, 0], y - c[:, 1]
    ax, ay, bx, by = a[:, 0] - c[:, 0], a[:, 1] - c[:, 1], b[:, 0] - c[:, 0], b[:, 1] - c[:, 1]
    area = ax * by - ay * bx
    flat = area == 0
    safe = torch.where(flat, torch.ones_like(area), area)
    first, second = (px * by - py * bx) / safe, (ax * py - ay * px) / safe
    weights = torch.stack([first, second, 1 - first - second], dim=1)
    return torch.where(flat[:, None], -torch.ones_like(weights), weights)


def signed_areas(pixels: Tensor, faces: Tensor) -> Tensor:
    """Twice the projected areas [C, F] of triangles, negative when counter-clockwise on a screen with y down."""
    a, b, c = pixels[:, faces].unbind(dim=2)
    return (b[..., 0] - a[..., 0]) * (c[..., 1] - a[..., 1]) - (b[..., 1] - a[..., 1]) * (c[..., 0] - a[..., 0])


def neighbours(faces: Tensor) -> Tensor:
    """The triangle across each edge (corner k, corner k+1), int64 [F, 3]; -1 where there is none or more than one."""
    count = len(faces)
    ends = torch.stack([faces, faces.roll(-1, dims=1)], dim=2).reshape(-1, 2).sort(dim=1)[0]
    key = ends[:, 0] * (int(faces.max()) + 1 if count else 1) + ends[:, 1]
    order = torch.argsort(key, stable=True)
    ranked = key[order]
    same = ranked[1:] == ranked[:-1]
    none = torch.zeros(1, dtype=torch.bool, device=faces.device)
    with_next, with_last = torch.cat([same, none]), torch.cat([none, same])
    next_with_next = torch.cat([with_next[1:], none])
    paired = with_next & ~with_last & ~next_with_next
    here = torch.nonzero(paired)[:, 0]
    across = torch.full((3 * count,), -1, dtype=torch.int64, device=faces.device)
    across[order[here]] = order[here + 1] // 3
    across[order[here + 1]] = order[here] // 3
    return across.reshape(count, 3)
