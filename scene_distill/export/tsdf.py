"""Truncated signed distance fusion of depth views into a mesh (Curless and Levoy 1996), with Open3D's VoxelBlockGrid.

Space is a hash of blocks of 16^3 voxels. A first pass over the views finds the cells that hold any surface, and so the
blocks near it; a second one fuses, part by part: the blocks are split along their longest side until a part has at most
``max_blocks``. Each part is fused with the ring of blocks around it and keeps only the triangles of its own cells, so
parts meet without a gap and the mesh does not depend on the split. Peak memory is one part, whatever the scene.

With ``carve`` every view updates all blocks it has in its image, not only those around its own surface: what one view
puts into space that the others see through is averaged away.

Open3D reads the depth of the pixel a voxel falls into (truncation, not rounding), so its pixel (i, j) covers
[j, j + 1) x [i, i + 1) and our intrinsics, with centres at half-integers, go in as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from scene_distill.core.cameras import Camera
from scene_distill.core.errors import UserError
from scene_distill.export.depth_views import DepthView, DepthViews, Tell
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


CELL = 4
"""Voxels along the side of a cell, the unit in which the first pass notes where surfaces are."""


@dataclass(frozen=True, eq=False)
class SurfaceCells:
    """The cubes of a lattice around ``anchor`` [3], ``size_m`` wide, that hold a pixel of a view's surface: keys [n]
    int64, sorted."""

    anchor: np.ndarray
    size_m: float
    keys: np.ndarray

    def centers(self) -> np.ndarray:
        """Their middles [n, 3] in the frame of the views' cameras."""
        return (_blocks_of(self.keys) + 0.5) * self.size_m + self.anchor


def fuse(
    views: DepthViews, settings: TsdfSettings, tell: Tell = lambda stage, done, total: None,
    cells: SurfaceCells | None = None,
) -> TriangleMesh:  # fmt: skip
    """Coloured mesh of the zero level of the fused distances, in the frame of the views' cameras.

    ``cells``: what `surface_cells` found at this voxel or a finer one; found here when not given. Raises `UserError`
    when no view has depth, when the voxels are so small that the blocks cannot be counted, or when nothing was seen by
    enough views.
    """
    if not settings.voxel_m > 0:
        raise UserError(f"a voxel of {settings.voxel_m} cannot be used; give a positive size in the scene's unit")
    if cells is None:
        cells = surface_cells(views, CELL * settings.voxel_m, settings.depth_max_m, tell)
    anchor = lattice_point(views, BLOCK * settings.voxel_m)
    blocks = blocks_near(cells, settings, anchor)
    parts = list(split_blocks(blocks, settings.max_blocks))
    rings = [_with_ring(blocks, part) for part in parts]
    work = sum(int(_in_image(ring, c.moved(anchor), settings.voxel_m).sum()) for ring in rings for c in views.cameras)
    meshes, done = [], 0
    for part, ring in zip(parts, rings, strict=True):
        grid = _Grid(settings, anchor, int(1.1 * len(ring)) + 8)
        for fused in _fused(grid, views, settings, anchor, ring):
            done += fused
            tell("fusing depth", done, work)
        meshes.append(_own_triangles(grid.mesh(), blocks[part], settings))
    mesh = TriangleMesh.cat([part for part in meshes if len(part)]).welded(settings.voxel_m)
    if len(mesh) == 0:
        raise UserError(
            f"no surface was seen by {settings.min_weight:g} views at voxels of {settings.voxel_m:g}; use larger "
            "voxels or ask for fewer views"
        )
    return mesh.moved(anchor)


def lattice_point(views: DepthViews, side: float) -> np.ndarray:
    """A point near the cameras whose coordinates are multiples of ``side``: float32 positions inside Open3D stay small
    however far the origin is."""
    center = np.median([camera.center for camera in views.cameras], axis=0)
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


def surface_cells(
    views: DepthViews, size_m: float, depth_max_m: float = math.inf, tell: Tell = lambda stage, done, total: None
) -> SurfaceCells:
    """Where any view shows a surface no farther than ``depth_max_m``, in cells of ``size_m``.

    Raises `UserError` when no view has depth, or when there are too many cells to be counted.
    """
    anchor = lattice_point(views, size_m)
    keys = np.zeros(0, np.int64)
    for index in range(len(views.cameras)):
        keys = np.union1d(keys, _cells_of(views[index], anchor, size_m, depth_max_m))
        tell("drawing depth", index + 1, len(views.cameras))
    if len(keys) == 0:
        raise UserError("no view shows any depth; the scene is empty or transparent from all of its cameras")
    return SurfaceCells(anchor, size_m, keys)


def _cells_of(view: DepthView, anchor: np.ndarray, size_m: float, depth_max_m: float) -> np.ndarray:
    """Sorted keys [n] of the cells with a pixel of the view's surface."""
    depth = view.surface_depth_m(depth_max_m)
    cells = np.floor((view.points()[depth > 0] - anchor) / size_m)
    if len(cells) and np.abs(cells).max() >= _HALF:
        raise UserError(f"voxels of {size_m / CELL:g} are too small for a scene of this extent; use larger ones")
    return np.unique(_keys(cells))


def blocks_near(cells: SurfaceCells, settings: TsdfSettings, anchor: np.ndarray) -> np.ndarray:
    """Sorted unique blocks [n, 3] int32 within the truncation (per axis) of any point of the cells.

    Open3D has a function that finds blocks of a view; it looks at every fourth pixel, and the mesh has holes there.
    """
    reach = settings.truncation_voxels * settings.voxel_m + cells.size_m / 2
    offsets = np.stack(np.meshgrid(*[[-reach, 0.0, reach]] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    keys = np.zeros(0, np.int64)
    centers = cells.centers() - anchor
    for offset in offsets:
        near = np.floor((centers + offset) / (settings.voxel_m * BLOCK))
        if len(near) and np.abs(near).max() >= _HALF:
            raise UserError(f"voxels of {settings.voxel_m:g} are too small for a scene of this extent; use larger ones")
        keys = np.union1d(keys, _keys(near))
    return _blocks_of(keys)


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


def _fused(
    grid: _Grid, views: DepthViews, settings: TsdfSettings, anchor: np.ndarray, blocks: np.ndarray
) -> Iterator[int]:
    """Average all views into the blocks [n, 3]; yields after each view how many of them are in its image."""
    keys = _keys(blocks)
    for index, camera in enumerate(views.cameras):
        seen = _in_image(blocks, camera.moved(anchor), settings.voxel_m)
        count = int(seen.sum())
        if count:
            view = views[index]
            if not settings.carve:
                size_m, cells_anchor = CELL * settings.voxel_m, lattice_point(views, CELL * settings.voxel_m)
                own = _cells_of(view, cells_anchor, size_m, settings.depth_max_m)
                near = blocks_near(SurfaceCells(cells_anchor, size_m, own), settings, anchor)
                seen &= np.isin(keys, _keys(near))
            if seen.any():
                grid.integrate(blocks[seen], view)
        yield count


def _own_triangles(mesh: TriangleMesh, own: np.ndarray, settings: TsdfSettings) -> TriangleMesh:
    """The triangles in the cells of the blocks ``own`` [n, 3]: a triangle lies inside its cell, so its middle tells the
    block, the same one in whichever part it is made."""
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
    return camera.may_see((blocks + 0.5) * side, side * math.sqrt(3) / 2)
