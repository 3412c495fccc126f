"""Differentiable pictures of triangle meshes on a CPU: hard visibility, exact interpolation, antialiased silhouettes.

Inside a triangle, attributes are interpolated with perspective-correct weights that are functions of the corners, so
colours and normals slide with the surface. Visibility itself jumps; what moves with a jump is the silhouette, and its
gradient comes from blending the two pixels on its sides by where it passes between them (Laine et al. 2020, from the
paper):

    t = place of the silhouette between the centres of pixel A (nearer) and B, in [0, 1]
    t > 1/2: B <- B + (t - 1/2) (A - B)        t < 1/2: A <- A + (1/2 - t) (B - A)

The silhouette between two pixels is found by walking over the surface from A towards B, across as many triangles as lie
there, until the surface turns away or ends (a silhouette) or B is reached (none), so triangles may be far smaller than
pixels. Steep edges blend along rows and flat ones along columns: then the sum of a mask changes by exactly the area
that its outline sweeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scene_distill.core.cameras import Camera
from scene_distill.renderers.mesh_visibility import (
    Projected,
    barycentric,
    neighbours,
    project,
    signed_areas,
    visible_faces,
)

LONGEST_WALK = 64
"""Triangles that a walk may cross between two pixels before it is given up (and the step between them stays hard)."""


@dataclass(frozen=True, eq=False)
class MeshPicture:
    """What C cameras see of a mesh. faces [F, 3]; face int64 [C, H, W], -1 for nothing; pixel int64 [M]: the covered
    ones, flat over [C, H, W]; weights [M, 3]: of their triangle's corners; depth [M] along z."""

    projected: Projected
    faces: Tensor
    face: Tensor
    pixel: Tensor
    weights: Tensor
    depth: Tensor

    def interpolate(self, attributes: Tensor) -> Tensor:
        """Attributes of vertices [V, D] at the covered pixels, [M, D]; differentiable in attributes and vertices."""
        corners = attributes[self.faces[self.face.reshape(-1)[self.pixel]]]
        return (corners * self.weights[..., None]).sum(dim=1)

    def image(self, values: Tensor, background: Tensor) -> Tensor:
        """Pictures [C, H, W, D] with values [M, D] at the covered pixels over a background [D] or [C, D]; not blended
        yet."""
        count, height, width = self.face.shape
        base = background.to(values).expand(count, values.shape[1])[:, None, None]
        flat = base.expand(count, height, width, -1).reshape(-1, values.shape[1])
        return flat.index_put((self.pixel,), values).reshape(count, height, width, -1)


def draw_mesh(vertices: Tensor, faces: Tensor, cameras: Sequence[Camera]) -> MeshPicture:
    """The mesh (vertices [V, 3] world, faces [F, 3]) in every camera; all pictures have one size."""
    projected = project(vertices, cameras)
    face = visible_faces(projected, faces)
    flat = face.reshape(-1)
    pixel = torch.nonzero(flat >= 0)[:, 0]
    within = pixel % (projected.height * projected.width)
    camera = pixel // (projected.height * projected.width)
    corner = faces[flat[pixel]]
    corners = projected.pixels[camera[:, None], corner]
    depths = projected.depths[camera[:, None], corner]
    x, y = within % projected.width + 0.5, within // projected.width + 0.5
    over_depth = barycentric(corners, x, y) / depths
    depth = 1 / over_depth.sum(dim=1)
    return MeshPicture(projected, faces, face, pixel, over_depth * depth[:, None], depth)


def antialias(image: Tensor, picture: MeshPicture) -> Tensor:
    """The pictures [C, H, W, D] with blended silhouettes; the gradient of vertices and colours goes through."""
    count, height, width = picture.face.shape
    flat = image.reshape(-1, image.shape[-1])
    depth = torch.full((len(flat),), torch.inf, dtype=picture.depth.dtype)
    depth[picture.pixel] = picture.depth.detach()
    across = neighbours(picture.faces)
    facing = signed_areas(picture.projected.pixels.detach(), picture.faces) > 0
    face, numbers = picture.face.reshape(-1), torch.arange(len(flat)).reshape(count, height, width)
    change = torch.zeros_like(flat)
    for axis in (0, 1):
        first, second = (numbers[:, :, :-1], numbers[:, :, 1:]) if axis == 0 else (numbers[:, :-1], numbers[:, 1:])
        first, second = first.reshape(-1), second.reshape(-1)
        differ = torch.nonzero(face[first] != face[second])[:, 0]
        first, second = first[differ], second[differ]
        nearer = depth[first] <= depth[second]
        a, b = torch.where(nearer, first, second), torch.where(nearer, second, first)
        pair, edge = _walk(picture, across, facing, a, b, axis)
        a, b = a[pair], b[pair]
        place, kept = _crossing(picture, edge, a, b, axis)
        a, b, place = a[kept], b[kept], place[kept][:, None] - 0.5
        step = flat[a] - flat[b]
        change = change.index_add(0, b, place.clamp(min=0) * step).index_add(0, a, place.clamp(max=0) * step)
    return (flat + change).reshape(image.shape)


def _place(picture: MeshPicture, pixel: Tensor) -> tuple[Tensor, Tensor]:
    """Camera [M] and centre [M, 2] of flat pixels."""
    area, width = picture.projected.height * picture.projected.width, picture.projected.width
    within = pixel % area
    centre = torch.stack([within % width, within // width], dim=1) + 0.5
    return pixel // area, centre.to(picture.projected.pixels)


@torch.no_grad()
def _walk(picture: MeshPicture, across: Tensor, facing: Tensor, a: Tensor, b: Tensor, axis: int
          ) -> tuple[Tensor, Tensor]:  # fmt: skip
    """From pixels a towards their neighbours b over the surface: the pairs [K] that have a silhouette between them, and
    its edge [K, 2] as vertices. The line crosses exactly two edges of a triangle it passes; it leaves by the second."""
    camera, start = _place(picture, a)
    sign = (_place(picture, b)[1] - start)[:, axis]
    face = picture.face.reshape(-1)[a]
    turned = facing[camera, face]
    active = torch.arange(len(a))
    pairs, edges = [], []
    for _ in range(LONGEST_WALK):
        if len(active) == 0:
            break
        corner = picture.faces[face]
        points = picture.projected.pixels[camera[active, None], corner] - start[active, None]
        along, off = points[..., axis] * sign[active, None], points[..., 1 - axis]
        next_along, next_off = along.roll(-1, dims=1), off.roll(-1, dims=1)
        crossed = (off <= 0) != (next_off <= 0)
        span = torch.where(crossed, next_off - off, torch.ones_like(off))
        reached = torch.where(crossed, along - off * (next_along - along) / span, -torch.inf)
        distance, side = reached.max(dim=1)
        beyond = across[face, side]
        ends = (beyond < 0) | (facing[camera[active], beyond.clamp(min=0)] != turned[active])
        short = crossed.any(dim=1) & (distance < 1)
        found = short & ends
        rows = torch.nonzero(found)[:, 0]
        pairs.append(active[rows])
        edges.append(torch.stack([corner[rows, side[rows]], corner[rows, (side[rows] + 1) % 3]], dim=1))
        on = torch.nonzero(short & ~ends)[:, 0]
        active, face = active[on], beyond[on]
    none = torch.zeros(0, dtype=torch.int64)
    return torch.cat([none, *pairs]), torch.cat([none.reshape(0, 2), *edges])


def _crossing(picture: MeshPicture, edge: Tensor, a: Tensor, b: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Where edges pass between pixels a and b, [K] in [0, 1] with gradient, and which of them count along this axis."""
    camera, start = _place(picture, a)
    sign = (_place(picture, b)[1] - start)[:, axis]
    ends = picture.projected.pixels[camera[:, None], edge] - start[:, None]
    along, off = ends[..., axis] * sign[:, None], ends[..., 1 - axis]
    run, rise = along[:, 1] - along[:, 0], off[:, 1] - off[:, 0]
    counts = rise.abs() >= run.abs() if axis == 0 else rise.abs() > run.abs()
    safe = torch.where(rise == 0, torch.ones_like(rise), rise)
    return (along[:, 0] - off[:, 0] * run / safe).clamp(0, 1), torch.nonzero(counts)[:, 0]


def shrunk(image: Tensor, factor: int) -> Tensor:
    """Pictures [C, H, W, D] averaged over blocks of factor x factor pixels."""
    if factor == 1:
        return image
    count, height, width, channels = image.shape
    blocks = image.reshape(count, height // factor, factor, width // factor, factor, channels)
    return blocks.mean(dim=(2, 4))


def vertex_normals(vertices: Tensor, faces: Tensor) -> Tensor:
    """Unit normals [V, 3], area-weighted means of the triangles' around; differentiable, finite everywhere."""
    a, b, c = vertices[faces].unbind(dim=1)
    vectors = torch.cross(b - a, c - a, dim=1)
    sums = torch.zeros_like(vertices).index_add(0, faces.reshape(-1), vectors.repeat_interleave(3, dim=0))
    return torch.nn.functional.normalize(sums, dim=1, eps=1e-12)
