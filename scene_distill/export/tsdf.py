"""Truncated signed distance fusion of depth views into a mesh (Curless and Levoy 1996), with Open3D's VoxelBlockGrid.

Space is a hash of blocks of 16^3 voxels. A first pass over the views finds the blocks near any surface; a second one
fuses, part by part: the blocks are split along their longest side until a part has at most ``max_blocks``. Each part is
fused with the ring of blocks around it and keeps only the triangles of its own cells, so parts meet without a gap and
the mesh does not depend on the split. Peak memory is one part, whatever the scene.

With ``carve`` every view updates all blocks it has in its image, not only those around its own surface: what one view
puts into space that the others see through is averaged away.

Open3D reads the depth of the pixel a voxel falls into (truncation, not rounding), so its pixel (i, j) covers
[j, j + 1) x [i, i + 1) and our intrinsics, with centres at half-integers, go in as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from scene_distill.core.cameras import Camera
from scene_distill.core.errors import UserError
from scene_distill.export.depth_views import DepthView, DepthViews
from scene_distill.export.open3d_library import load_open3d
from scene_distill.representations.meshes import TriangleMesh

BLOCK = 16
"""Voxels along the side of a block."""

BYTES_PER_BLOCK = BLOCK**3 * 20
"""Distance, weight and three colours as float32."""

_HALF = 1 << 20
"""Blocks are counted from -_HALF to _HALF along every axis."""


@dataclass(frozen=True)
class TsdfSettings:
    """voxel_m: edge of a voxel in world units; truncation_voxels: how far from a surface distances count;
    depth_max_m: farther depths are not used; min_weight: views that must have seen a voxel; carve: see above;
    max_blocks: blocks in memory, ring included up to a factor."""

    voxel_m: float
    truncation_voxels: float = 4.0
    depth_max_m: float = math.inf
    min_weight: float = 2.0
    carve: bool = True
    max_blocks: int = 4096


Report = Callable[[int, int], None]
"""(views done, views in all) over both passes."""


def fuse(views: DepthViews, settings: TsdfSettings, report: Report = lambda done, total: None) -> TriangleMesh:
    """Coloured mesh of the zero level of the fused distances, in the frame of the views' cameras.

    Raises `UserError` when no view has depth, when the voxels are so small that the blocks cannot be counted, or when
    nothing was seen by enough views.
    """
    if not settings.voxel_m > 0:
        raise UserError(f"a voxel of {settings.voxel_m} cannot be used; give a positive size in the scene's unit")
    anchor = _anchor(views, settings)
    blocks = _surface_blocks(views, settings, anchor, report)
    parts = list(split_blocks(blocks, settings.max_blocks))
    meshes, done, total = [], len(views.cameras), len(views.cameras) * (1 + len(parts))
    for part in parts:
        meshes.append(_fuse_part(views, settings, anchor, blocks, part, lambda i, base=done: report(base + i, total)))  # type: ignore[misc]
        done += len(views.cameras)
    mesh = TriangleMesh.cat([part for part in meshes if len(part)]).welded(settings.voxel_m)
    if len(mesh) == 0:
        raise UserError(
            f"no surface was seen by {settings.min_weight:g} views at voxels of {settings.voxel_m:g}; use larger "
            "voxels or ask for fewer views"
        )
    return mesh.moved(anchor)


def _anchor(views: DepthViews, settings: TsdfSettings) -> np.ndarray:
    """A lattice point near the cameras: float32 positions inside Open3D stay small however far the origin is."""
    center = np.median([camera.center for camera in views.cameras], axis=0)
    side = settings.voxel_m * BLOCK
    return np.round(center / side) * side


class _Grid:
    """An Open3D grid of at most ``capacity`` blocks, in the frame moved to the anchor."""

    def __init__(self, settings: TsdfSettings, anchor: np.ndarray, capacity: int) -> None:
        o3d = load_open3d()
        self._o3d, self._settings, self._anchor = o3d, settings, anchor
        kinds = (o3d.core.float32,) * 3
        self.grid = o3d.t.geometry.VoxelBlockGrid(
            ("tsdf", "weight", "color"), kinds, ((1,), (1,), (3,)), settings.voxel_m, BLOCK, max(capacity, 8)
        )

    def integrate(self, blocks: np.ndarray, view: DepthView) -> None:
        """Average the view into the blocks [n, 3]; what it sees through counts as empty."""
        o3d = self._o3d
        camera = view.camera.moved(self._anchor)
        intrinsics = np.array([[camera.fx, 0, camera.cx], [0, camera.fy, camera.cy], [0, 0, 1.0]])
        in_cam = blocks * self._settings.voxel_m * BLOCK @ camera.cam_from_world[2, :3] + camera.cam_from_world[2, 3]
        beyond = float(in_cam.max()) + 2 * self._settings.voxel_m * BLOCK + 1.0
        # Farther surfaces than the limit are only known to be far.
        limit = min(self._settings.depth_max_m, np.finfo(np.float32).max)
        depth = np.where(view.depth_m <= limit, view.depth_m, np.float32(beyond))
        depth = o3d.t.geometry.Image(o3d.core.Tensor(np.ascontiguousarray(depth[..., None], np.float32)))
        color = o3d.t.geometry.Image(o3d.core.Tensor(np.ascontiguousarray(view.color, np.float32)))
        self.grid.integrate(
            o3d.core.Tensor(np.ascontiguousarray(blocks, np.int32)), depth, color, o3d.core.Tensor(intrinsics),
            o3d.core.Tensor(camera.cam_from_world.astype(np.float64)), 1.0,
            max(beyond, float(view.surface_depth_m(self._settings.depth_max_m).max(initial=0.0))) * 1.01,
            self._settings.truncation_voxels,
        )  # fmt: skip

    def mesh(self) -> TriangleMesh:
        """The zero level where at least ``min_weight`` views have been."""
        made = self.grid.extract_triangle_mesh(max(self._settings.min_weight - 0.5, 0.0))
        if "indices" not in made.triangle or len(made.triangle.indices) == 0:
            return TriangleMesh(np.zeros((0, 3)), np.zeros((0, 3), np.int64), np.zeros((0, 3), np.float32))
        colors = made.vertex.colors.numpy().astype(np.float32).clip(0.0, 1.0)
        return TriangleMesh(
            made.vertex.positions.numpy().astype(np.float64), made.triangle.indices.numpy().astype(np.int64), colors
        )


def _surface_blocks(views: DepthViews, settings: TsdfSettings, anchor: np.ndarray, report: Report) -> np.ndarray:
    """Sorted unique blocks [n, 3] int32 near the surface of any view."""
    found = np.zeros((0, 3), np.int32)
    for index in range(len(views.cameras)):
        found = np.unique(np.concatenate([found, touched_blocks(views[index], settings, anchor)]), axis=0)
        report(index + 1, 2 * len(views.cameras))
    if len(found) == 0:
        raise UserError("no view shows any depth; the scene is empty or transparent from all of its cameras")
    return found


def touched_blocks(view: DepthView, settings: TsdfSettings, anchor: np.ndarray) -> np.ndarray:
    """Blocks [n, 3] int32 within the truncation (per axis) of any pixel of the view's surface.

    Open3D has such a function, which looks at every fourth pixel: blocks are missed, and the mesh has holes there.
    """
    depth = view.surface_depth_m(settings.depth_max_m)
    points = view.points()[depth > 0] - anchor
    # Points in one small cell touch the same blocks but for its size, which widens the truncation.
    cell = settings.voxel_m
    cells = np.floor(points / cell)
    if len(cells) and np.abs(cells).max() >= BLOCK * _HALF:
        raise UserError(f"voxels of {settings.voxel_m:g} are too small for a scene of this extent; use larger ones")
    centers = (_blocks_of(np.unique(_keys(cells // 4))) * 4.0 + 2.0) * cell
    reach = (settings.truncation_voxels + 2.0) * settings.voxel_m
    offsets = np.stack(np.meshgrid(*[[-reach, 0.0, reach]] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    near = np.floor((centers[:, None] + offsets).reshape(-1, 3) / (settings.voxel_m * BLOCK))
    return _blocks_of(np.unique(_keys(near)))


def split_blocks(blocks: np.ndarray, most: int) -> Iterator[np.ndarray]:
    """Row indices of ``blocks`` [n, 3] in parts of at most ``most``, halved at the median of the longest side."""
    waiting = [np.arange(len(blocks))]
    while waiting:
        rows = waiting.pop()
        if len(rows) <= most:
            yield rows
            continue
        place = blocks[rows]
        axis = int(np.argmax(place.max(0) - place.min(0)))
        order = rows[np.argsort(place[:, axis], kind="stable")]
        waiting += [order[len(order) // 2 :], order[: len(order) // 2]]


def _fuse_part(
    views: DepthViews, settings: TsdfSettings, anchor: np.ndarray, blocks: np.ndarray, part: np.ndarray,
    report: Callable[[int], None],
) -> TriangleMesh:  # fmt: skip
    """Triangles in the cells of the blocks at the rows ``part``, in the frame moved to the anchor."""
    own = blocks[part]
    with_ring = _with_ring(blocks, part)
    grid = _Grid(settings, anchor, int(1.1 * len(with_ring)) + 8)
    keys = _keys(with_ring)
    for index, camera in enumerate(views.cameras):
        seen = _in_image(with_ring, camera.moved(anchor), settings.voxel_m)
        if seen.any():
            view = views[index]
            if not settings.carve:
                seen &= np.isin(keys, _keys(touched_blocks(view, settings, anchor)))
            if seen.any():
                grid.integrate(with_ring[seen], view)
        report(index + 1)
    mesh = grid.mesh()
    # A triangle lies inside its cell, so its middle tells the block, the same one in whichever part it is made.
    middle = np.floor(mesh.corners.mean(axis=1) / (settings.voxel_m * BLOCK)).astype(np.int32)
    return mesh.select_faces(np.isin(_keys(middle), _keys(own)))


def _with_ring(blocks: np.ndarray, part: np.ndarray) -> np.ndarray:
    """The blocks of a part and those of their 26 neighbours that exist, [n, 3]."""
    offsets = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    near = np.unique((blocks[part][:, None] + offsets).reshape(-1, 3), axis=0)
    return blocks[np.isin(_keys(blocks), _keys(near))]


def _keys(blocks: np.ndarray) -> np.ndarray:
    """One int64 for each block [n, 3]: 21 bits a side."""
    wide = blocks.astype(np.int64) + _HALF
    return (wide[:, 0] << 42) | (wide[:, 1] << 21) | wide[:, 2]


def _blocks_of(keys: np.ndarray) -> np.ndarray:
    """Inverse of `_keys`, [n, 3] int32."""
    mask = 2 * _HALF - 1
    return (np.stack([keys >> 42, (keys >> 21) & mask, keys & mask], axis=1) - _HALF).astype(np.int32)


def _in_image(blocks: np.ndarray, camera: Camera, voxel_m: float) -> np.ndarray:
    """True [n] for blocks that may show in the camera's image."""
    side = voxel_m * BLOCK
    in_cam = (blocks + 0.5) * side @ camera.cam_from_world[:3, :3].T + camera.cam_from_world[:3, 3]
    radius = side * math.sqrt(3) / 2
    depth = in_cam[:, 2]
    seen = depth > -radius
    for axis, size, focal, center in (
        (0, camera.width, camera.fx, camera.cx),
        (1, camera.height, camera.fy, camera.cy),
    ):
        for edge, sign in ((0.0, 1.0), (float(size), -1.0)):
            # Signed distance to the plane through the centre and this image edge, positive inside.
            slope = (edge - center) / focal
            seen &= sign * (in_cam[:, axis] - slope * depth) / math.hypot(1.0, slope) > -radius
    return seen
