"""A triangle mesh that is looked at: rays through the pixels (Open3D's ray casting, on the CPU), and what they meet.

A ray's length counts along the view axis, so that its length is the depth. A crop box cuts rays, not faces: what is
outside the box is not there, exactly.
"""

from __future__ import annotations

from collections.abc import Callable
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
from scene_distill.viewer.scenes import Selection

LAYERS = ("rgb", "depth", "normals", "wireframe", "alpha")
"""Layers of a mesh."""

CLAY = np.array([0.80, 0.78, 0.75], np.float32)
EDGE = np.array([0.10, 0.16, 0.24], np.float32)
EDGE_PX = 0.6
"""Half the width of an edge in pixels."""

EDGE_COSINE, EDGE_DEPTH = 0.95, 0.02
"""Neighbouring pixels whose normals' cosine is less, or whose depths differ by more of the nearer, lie at an edge."""

SUBPIXELS = np.array([[0.375, 0.125], [0.875, 0.375], [0.125, 0.625], [0.625, 0.875]], np.float32)
"""Where four rays go through a pixel: a turned square, good for lines that are nearly level or upright."""

FARTHEST = 3e38

NEAR_FRACTION = 1e-5
"""Nearest depth as a fraction of the mesh's size, where that is less than the rasterizer's."""


@dataclass(frozen=True, eq=False)
class Hits:
    """What rays through points of a picture meet. Of the M rays that meet something: ``rows`` [M], which of them it is;
    ``points`` [M, 2] in pixels (a pixel's middle has halves); depth [M] along the view axis, face [M], and barycentric
    weights [M, 3] of the face's corners."""

    rows: np.ndarray
    points: np.ndarray
    depth: np.ndarray
    face: np.ndarray
    corners: np.ndarray


Paint = Callable[[Hits, Camera], np.ndarray]
"""Hits and the camera they were found with -> their colours [M, 3]."""


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

    def hits(self, camera: Camera, selection: Selection, points: np.ndarray) -> Hits:
        """What the rays of a world camera through points [P, 2] of its picture meet."""
        directions = _directions(camera, points)
        center = (camera.center - self.origin).astype(np.float32)
        near, far = self._span(center, directions, selection)
        rays = np.concatenate([center + near[:, None] * directions, directions], axis=1)
        found: Any = self._scene.cast_rays(load_open3d().core.Tensor(rays), nthreads=self._threads)
        depth = found["t_hit"].numpy() + near
        rows = np.flatnonzero(depth <= far)
        uv = found["primitive_uvs"].numpy()[rows]
        corners = np.stack([1 - uv[:, 0] - uv[:, 1], uv[:, 0], uv[:, 1]], axis=1)
        return Hits(rows, points[rows], depth[rows], found["primitive_ids"].numpy()[rows].astype(np.int64), corners)

    def _span(self, center: np.ndarray, directions: np.ndarray, selection: Selection) -> tuple[np.ndarray, np.ndarray]:
        """Depths [P] between which each ray is inside the crop box, and behind the near plane."""
        near, far = np.full(len(directions), self._near, np.float32), np.full(len(directions), FARTHEST, np.float32)
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

    # Layers

    @torch.no_grad()
    def draw(self, name: str, camera: Camera, selection: Selection, look: Look) -> Picture:
        """The picture of one of `LAYERS`; raises `UserError` for another one."""
        if name not in LAYERS:
            raise UserError("a mesh does not have this layer")
        hits = self.hits(camera, selection, _middles(camera))
        shape = (camera.height, camera.width)
        covered = _image(hits, np.ones((len(hits.rows), 1), np.float32), shape)[..., 0]
        if name == "depth":
            return depth_picture(_image(hits, hits.depth[:, None], shape)[..., 0], covered > 0, look.depth_range_m)
        if name == "normals":
            return normals_picture(_image(hits, self._facing(hits, camera)[0], shape), covered)
        paint = {"rgb": self.colors, "wireframe": self._wireframe, "alpha": _white}[name]
        image = _image(hits, paint(hits, camera), shape)
        if look.fine:
            edges = self._edges(hits, camera)
            image.view(-1, 3)[edges] = self._smoothed(edges, camera, selection, paint)
        return coverage_picture(image[..., 0]) if name == "alpha" else Picture(image)

    def colors(self, hits: Hits, camera: Camera) -> np.ndarray:
        """Colours [M, 3] float32 in [0, 1]: the texture's, the vertices', or clay lit from the camera."""
        if self._texture is not None:
            return self._texture.colors(hits, self.mesh, camera.fx)
        if self.mesh.colors is not None:
            return (self.mesh.colors[self.mesh.faces[hits.face]] * hits.corners[..., None]).sum(1)
        return self._clay(hits, camera)

    def _facing(self, hits: Hits, camera: Camera) -> tuple[np.ndarray, np.ndarray]:
        """Unit normals [M, 3], turned towards the camera, and the cosines [M] between them and the way to it."""
        normals, rays = self._normals[hits.face], _directions(camera, hits.points)
        cosines = -(normals * rays).sum(1) / np.sqrt((rays * rays).sum(1))
        return normals * np.where(cosines < 0, -1, 1).astype(np.float32)[:, None], np.abs(cosines)

    def _clay(self, hits: Hits, camera: Camera) -> np.ndarray:
        return (0.25 + 0.75 * self._facing(hits, camera)[1])[:, None] * CLAY

    def _wireframe(self, hits: Hits, camera: Camera) -> np.ndarray:
        """Clay with the edges of the faces over it, about a pixel wide however far they are."""
        colors = self._clay(hits, camera)
        view = camera.moved(self.origin).cam_from_world
        local = (self.mesh.vertices @ view[:3, :3].T + view[:3, 3]).astype(np.float32)[self.mesh.faces[hits.face]]
        # Corners behind the camera would be projected to the wrong side: they are pulled before it along the view axis.
        z = np.maximum(local[..., 2], 1e-3 * hits.depth[:, None])
        focal, middle = np.array([camera.fx, camera.fy], np.float32), np.array([camera.cx, camera.cy], np.float32)
        away = _pixels_to_edges(hits.points, focal * local[..., :2] / z[..., None] + middle)
        share = np.clip(EDGE_PX + 0.5 - away, 0, 1)[:, None]
        return colors * (1 - share) + EDGE * share

    def _edges(self, hits: Hits, camera: Camera) -> np.ndarray:
        """Numbers of the pixels beside which something else begins: nothing, another depth, or another slope."""
        shape = (camera.height, camera.width)
        seen = np.concatenate([self._facing(hits, camera)[0], 1 / hits.depth[:, None]], axis=1)
        image = _image(hits, seen.astype(np.float32), shape).numpy()
        normals, nearness = image[..., :3], image[..., 3]
        found = np.zeros(shape, bool)
        for axis in (0, 1):
            one, other = ((slice(None), part) if axis else part for part in (slice(None, -1), slice(1, None)))
            bent = (normals[one] * normals[other]).sum(-1) < EDGE_COSINE
            apart = np.abs(nearness[one] - nearness[other]) > EDGE_DEPTH * np.maximum(nearness[one], nearness[other])
            begins = (bent | apart) & (np.maximum(nearness[one], nearness[other]) > 0)
            found[one] |= begins
            found[other] |= begins
        return np.flatnonzero(found)

    def _smoothed(self, pixels: np.ndarray, camera: Camera, selection: Selection, paint: Paint) -> Tensor:
        """Means [E, 3] of four rays through each of some pixels."""
        row, column = np.divmod(pixels, camera.width)
        corners = np.stack([column, row], axis=1).astype(np.float32)[:, None] + SUBPIXELS
        hits = self.hits(camera, selection, corners.reshape(-1, 2))
        return _image(hits, paint(hits, camera), (len(pixels), 4)).mean(1)


def _directions(camera: Camera, points: np.ndarray) -> np.ndarray:
    """World directions [P, 3] float32 through points [P, 2] of a picture, of length one along the view axis."""
    local = np.ones((len(points), 3), np.float32)
    local[:, 0] = (points[:, 0] - np.float32(camera.cx)) * np.float32(1 / camera.fx)
    local[:, 1] = (points[:, 1] - np.float32(camera.cy)) * np.float32(1 / camera.fy)
    return local @ camera.cam_from_world[:3, :3].astype(np.float32)


def _middles(camera: Camera) -> np.ndarray:
    """The middles [H * W, 2] of all pixels, row by row."""
    points = np.empty((camera.height, camera.width, 2), np.float32)
    points[..., 0] = np.arange(camera.width) + 0.5
    points[..., 1] = np.arange(camera.height)[:, None] + 0.5
    return points.reshape(-1, 2)


def _image(hits: Hits, values: np.ndarray, shape: tuple[int, int]) -> Tensor:
    """Values [M, C] of hits in a picture of ``shape`` (H, W), zero elsewhere, [H, W, C] float32."""
    image = np.zeros((shape[0] * shape[1], values.shape[1]), np.float32)
    image[hits.rows] = values
    return torch.from_numpy(image).view(*shape, -1)


def _white(hits: Hits, camera: Camera) -> np.ndarray:
    return np.ones((len(hits.rows), 3), np.float32)


def _pixels_to_edges(points: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Distance [P] of points [P, 2] to the nearest of the three lines through the sides of triangles [P, 3, 2]."""
    distances = []
    for one, other in ((0, 1), (1, 2), (2, 0)):
        side = triangles[:, other] - triangles[:, one]
        gap = points - triangles[:, one]
        across = np.abs(side[:, 0] * gap[:, 1] - side[:, 1] * gap[:, 0])
        distances.append(across / np.maximum(np.linalg.norm(side, axis=1), 1e-9))
    return np.min(distances, axis=0)


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
        """Colours [M, 3] float32 in [0, 1]; ``focal`` in pixels."""
        assert mesh.uvs is not None
        uv = (mesh.uvs[mesh.faces[hits.face]] * hits.corners[..., None]).sum(1)
        texels_a_pixel = self._density[hits.face] * hits.depth / np.float32(focal)
        level = np.clip(np.rint(np.log2(np.maximum(texels_a_pixel, 1e-9))), 0, len(self.levels) - 1).astype(np.int8)
        found = np.zeros((len(uv), 3), np.float32)
        for number in np.unique(level):
            rows = np.flatnonzero(level == number)
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
