"""A triangle mesh that is looked at: rays through the pixels (Open3D's ray casting, on the CPU), and what they meet.

A ray's length counts along the view axis, so that its length is the depth. A crop box cuts rays, not faces: what is
outside the box is not there, exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scene_distill.core.cameras import Camera
from scene_distill.core.conventions import NEAR_M
from scene_distill.core.errors import UserError
from scene_distill.export.open3d_library import load_open3d, ray_scene
from scene_distill.representations.meshes import TriangleMesh
from scene_distill.viewer.pictures import Look, Picture, coverage_picture, depth_picture, normals_picture
from scene_distill.viewer.scenes import EVERYTHING, Selection

LAYERS = ("rgb", "depth", "normals", "wireframe", "alpha")
"""Layers of a mesh."""

CLAY = np.array([0.80, 0.78, 0.75], np.float32)
EDGE = np.array([0.10, 0.16, 0.24], np.float32)
EDGE_PX = 0.6
"""Half the width of an edge in pixels."""

FINE_PX = 2_000_000
"""Pixels up to which fine pictures take four rays a pixel."""

NEAR_FRACTION = 1e-5
"""Nearest depth as a fraction of the mesh's size, where that is less than the rasterizer's."""


@dataclass(frozen=True, eq=False)
class Hits:
    """What P rays meet: depth [P] along the view axis (inf: nothing), face [P] (-1: none), barycentric weights [P, 3]
    of the face's corners."""

    depth: np.ndarray
    face: np.ndarray
    corners: np.ndarray

    @property
    def hit(self) -> np.ndarray:
        """Where there is something [P]."""
        return self.face >= 0


class ViewedMesh:
    """A mesh in a frame whose zero lies in its middle (``origin`` [3] of the world), so that float32 is enough."""

    primitive = "faces"

    def __init__(self, mesh: TriangleMesh, threads: int = 0) -> None:
        low, high = mesh.vertices.min(0), mesh.vertices.max(0)
        self.origin = (low + high) / 2
        self.mesh, self._threads = mesh.moved(-self.origin), threads
        self._near = min(NEAR_M, NEAR_FRACTION * float(np.linalg.norm(high - low)))
        self._scene = ray_scene(self.mesh)
        self._normals = self.mesh.face_normals().astype(np.float32)
        self._texture = None if mesh.texture is None else MippedTexture(self.mesh)

    def __len__(self) -> int:
        return len(self.mesh)

    @property
    def positions(self) -> Tensor:
        """Positions [V, 3] of the vertices."""
        return torch.from_numpy(self.mesh.vertices)

    @property
    def painted(self) -> str:
        """What the mesh is coloured with."""
        return (
            "texture" if self._texture is not None else "vertex colours" if self.mesh.colors is not None else "nothing"
        )

    def hits(self, camera: Camera, selection: Selection = EVERYTHING, pixels: np.ndarray | None = None) -> Hits:
        """What the rays of a world camera meet; of some ``pixels`` [P, 2] (column, row) only when given."""
        if pixels is None:
            rows, columns = np.mgrid[: camera.height, : camera.width]
            pixels = np.stack([columns.ravel(), rows.ravel()], axis=1)
        directions = self._directions(camera, pixels)
        center = (camera.center - self.origin).astype(np.float32)
        near, far = self._span(center, directions, selection)
        found = self._cast(center + near[:, None] * directions, directions)
        depth = found["t_hit"] + near
        hit = np.isfinite(depth) & (depth <= far)
        face = np.where(hit, found["primitive_ids"].astype(np.int64), -1)
        uv = found["primitive_uvs"]
        corners = np.stack([1 - uv[:, 0] - uv[:, 1], uv[:, 0], uv[:, 1]], axis=1)
        return Hits(np.where(hit, depth, np.inf), face, corners)

    def _cast(self, origins: np.ndarray, directions: np.ndarray) -> dict[str, np.ndarray]:
        rays = np.concatenate([origins, directions], axis=1).astype(np.float32)
        found: Any = self._scene.cast_rays(load_open3d().core.Tensor(rays), nthreads=self._threads)
        return {name: found[name].numpy() for name in ("t_hit", "primitive_ids", "primitive_uvs")}

    @staticmethod
    def _directions(camera: Camera, pixels: np.ndarray) -> np.ndarray:
        x, y = pixels[:, 0] + 0.5, pixels[:, 1] + 0.5
        local = np.stack([(x - camera.cx) / camera.fx, (y - camera.cy) / camera.fy, np.ones(len(x))], axis=1)
        return (local @ camera.cam_from_world[:3, :3]).astype(np.float32)

    def _span(self, center: np.ndarray, directions: np.ndarray, selection: Selection) -> tuple[np.ndarray, np.ndarray]:
        """Depths [P] between which each ray is inside the crop box, and behind the near plane."""
        near, far = np.full(len(directions), self._near, np.float32), np.full(len(directions), np.inf, np.float32)
        if selection.crop is None:
            return near, far
        low, high = ((corner - self.origin).astype(np.float32) for corner in selection.crop)
        with np.errstate(divide="ignore", invalid="ignore"):
            ends = np.stack([(low - center) / directions, (high - center) / directions])
        inside = (center >= low) & (center <= high)
        parallel = np.abs(directions) < 1e-12
        enters = np.where(parallel, np.where(inside, -np.inf, np.inf), np.fmin(ends[0], ends[1])).max(1)
        leaves = np.where(parallel, np.where(inside, np.inf, -np.inf), np.fmax(ends[0], ends[1])).min(1)
        near = np.maximum(near, enters)
        missed = near > leaves
        return np.where(missed, self._near, near).astype(np.float32), np.where(missed, -1.0, leaves).astype(np.float32)

    def normals(self, hits: Hits, camera: Camera) -> np.ndarray:
        """Unit normals [P, 3] of the faces that were hit, turned towards the camera; zero elsewhere."""
        normals = self._normals[hits.face] * hits.hit[:, None]
        facing = self._facing(hits, camera, normals)
        return normals * np.where(facing < 0, -1.0, 1.0).astype(np.float32)[:, None]

    def _facing(self, hits: Hits, camera: Camera, normals: np.ndarray) -> np.ndarray:
        """Cosine [P] between normals and the way to the camera."""
        rows, columns = np.divmod(np.arange(len(hits.face)), camera.width)
        rays = self._directions(camera, np.stack([columns, rows], axis=1))
        return -(normals * rays).sum(1) / np.linalg.norm(rays, axis=1)

    # Layers

    @torch.no_grad()
    def draw(self, name: str, camera: Camera, selection: Selection, look: Look) -> Picture:
        """The picture of one of `LAYERS`; raises `UserError` for another one."""
        if name not in LAYERS:
            raise UserError("a mesh does not have this layer")
        fine = look.fine and name in ("rgb", "wireframe", "alpha") and camera.width * camera.height <= FINE_PX
        used = camera.resized(2 * camera.width) if fine else camera
        hits = self.hits(used, selection)
        size = (used.height, used.width)
        covered = torch.from_numpy(hits.hit).view(size)
        if name == "depth":
            return depth_picture(torch.from_numpy(hits.depth).view(size), covered, look.depth_range_m)
        if name == "normals":
            return normals_picture(torch.from_numpy(self.normals(hits, used)).view(*size, 3), covered.float())
        if name == "alpha":
            return coverage_picture(_halved(covered.float()[..., None], fine)[..., 0])
        colors = self.colors(hits, used) if name == "rgb" else self._wireframe(hits, used, 2 if fine else 1)
        return Picture(_halved(torch.from_numpy(colors * hits.hit[:, None]).view(*size, 3), fine))

    def colors(self, hits: Hits, camera: Camera) -> np.ndarray:
        """Colours [P, 3] float32 in [0, 1]: the texture's, the vertices', or clay lit from the camera."""
        if self._texture is not None:
            return self._texture.colors(hits, self.mesh, camera.fx)
        if self.mesh.colors is not None:
            return (self.mesh.colors[self.mesh.faces[hits.face]] * hits.corners[..., None]).sum(1).astype(np.float32)
        return self._clay(hits, camera)

    def _clay(self, hits: Hits, camera: Camera) -> np.ndarray:
        lit = np.abs(self._facing(hits, camera, self._normals[hits.face]))
        return (0.25 + 0.75 * lit)[:, None].astype(np.float32) * CLAY

    def _wireframe(self, hits: Hits, camera: Camera, thick: int) -> np.ndarray:
        """Clay with the edges of the faces over it, about ``thick`` pixels wide however far they are."""
        colors = self._clay(hits, camera)
        rows = np.flatnonzero(hits.hit)
        corners = self.mesh.corners[hits.face[rows]]
        view = camera.moved(self.origin).cam_from_world
        local = corners @ view[:3, :3].T + view[:3, 3]
        # Corners behind the camera would be projected to the wrong side: they are pulled before it along the view axis.
        z = np.maximum(local[..., 2], 1e-3 * hits.depth[rows, None])
        at = np.stack([camera.fx * local[..., 0] / z + camera.cx, camera.fy * local[..., 1] / z + camera.cy], axis=2)
        row, column = np.divmod(rows, camera.width)
        away = _pixels_to_edges(np.stack([column + 0.5, row + 0.5], axis=1), at)
        share = np.clip(EDGE_PX * thick + 0.5 - away, 0, 1)[:, None].astype(np.float32)
        colors[rows] = colors[rows] * (1 - share) + EDGE * share
        return colors


def _pixels_to_edges(points: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Distance [P] of points [P, 2] to the nearest of the three lines through the sides of triangles [P, 3, 2]."""
    distances = []
    for one, other in ((0, 1), (1, 2), (2, 0)):
        side = triangles[:, other] - triangles[:, one]
        gap = points - triangles[:, one]
        across = np.abs(side[:, 0] * gap[:, 1] - side[:, 1] * gap[:, 0])
        distances.append(across / np.maximum(np.linalg.norm(side, axis=1), 1e-9))
    return np.min(distances, axis=0)


def _halved(image: Tensor, fine: bool) -> Tensor:
    """Means of 2 x 2 pixels of an image [2H, 2W, C]; as it is when not ``fine``."""
    if not fine:
        return image
    height, width = image.shape[0] // 2, image.shape[1] // 2
    return image[: 2 * height, : 2 * width].view(height, 2, width, 2, -1).mean((1, 3))


class MippedTexture:
    """A texture at half, a quarter, ... of its size too, read where its texels are about as large as pixels; repeated
    outside of [0, 1]."""

    def __init__(self, mesh: TriangleMesh) -> None:
        assert mesh.texture is not None and mesh.uvs is not None
        self.levels = [mesh.texture]
        while min(self.levels[-1].shape[:2]) >= 4:
            last = self.levels[-1]
            even = last[: last.shape[0] // 2 * 2, : last.shape[1] // 2 * 2].astype(np.uint16)
            parts = even.reshape(even.shape[0] // 2, 2, even.shape[1] // 2, 2, 3)
            self.levels.append(((parts.sum((1, 3)) + 2) // 4).astype(np.uint8))
        uv = mesh.uvs[mesh.faces].astype(np.float64) * [mesh.texture.shape[1], mesh.texture.shape[0]]
        one, other = uv[:, 1] - uv[:, 0], uv[:, 2] - uv[:, 0]
        texels = np.abs(one[:, 0] * other[:, 1] - one[:, 1] * other[:, 0]) / 2
        self._density = np.sqrt(texels / np.maximum(mesh.face_areas(), 1e-30)).astype(np.float32)

    def colors(self, hits: Hits, mesh: TriangleMesh, focal: float) -> np.ndarray:
        """Colours [P, 3] float32 in [0, 1] where rays hit; ``focal`` in pixels."""
        assert mesh.uvs is not None
        uv = (mesh.uvs[mesh.faces[hits.face]] * hits.corners[..., None]).sum(1)
        texels_a_pixel = self._density[hits.face] * np.where(hits.hit, hits.depth, 0.0) / focal
        level = np.clip(np.floor(np.log2(np.maximum(texels_a_pixel, 1e-9)) + 0.5), 0, len(self.levels) - 1).astype(int)
        found = np.zeros((len(uv), 3), np.float32)
        for number in np.unique(level[hits.hit]):
            rows = np.flatnonzero(hits.hit & (level == number))
            found[rows] = _bilinear(self.levels[number], uv[rows])
        return found


def _bilinear(texture: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """Colours [P, 3] in [0, 1] of a texture [H, W, 3] uint8 at [P, 2] (u right, v down), repeated."""
    height, width = texture.shape[:2]
    x, y = (uv[:, 0] % 1.0) * width - 0.5, (uv[:, 1] % 1.0) * height - 0.5
    left, top = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    fx, fy = (x - left)[:, None].astype(np.float32), (y - top)[:, None].astype(np.float32)
    columns, rows = (left % width, (left + 1) % width), (top % height, (top + 1) % height)
    upper = texture[rows[0], columns[0]] * (1 - fx) + texture[rows[0], columns[1]] * fx
    lower = texture[rows[1], columns[0]] * (1 - fx) + texture[rows[1], columns[1]] * fx
    return ((upper * (1 - fy) + lower * fy) / 255).astype(np.float32)
