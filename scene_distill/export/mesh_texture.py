"""A texture for a mesh, from the photographs it was made from (or from renders).

Charts lie flat on the sides of a box (`mesh_charts`); xatlas (MIT) packs them. Every texel then looks for
the cameras that see its point of the surface, nothing in front, and takes the mean of their colours weighted by

    w = (cos(angle between normal and ray) * focal / depth)^4

so that the sharpest and most frontal photographs decide and the others fill in. Whether something is in front is read
from the mesh's own depth in each picture. Texels around the charts repeat the nearest one inside, or filtering would
bleed the background in. Faces that no camera sees get the colour of the nearest texel that has one.

Memory: texels of one texture plus one picture at a time; points of the surface are made in chunks, for each picture
those of the faces that may show in it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from scene_distill.core.cameras import Camera
from scene_distill.core.errors import UserError
from scene_distill.export.mesh_charts import find_charts, flattened
from scene_distill.export.open3d_library import load_open3d, ray_scene
from scene_distill.representations.meshes import TriangleMesh

SHARPNESS = 4
"""Power of the weights: 1 averages much and blurs, large values take the best photograph alone."""

_TEXELS_AT_ONCE = 1 << 19
_DEPTH_TOLERANCE = 0.01
"""Part of the depth by which a texel may lie behind the mesh's depth at its pixel and still count as seen."""


@dataclass(frozen=True)
class TextureSettings:
    """size: width and height in texels; padding: texels kept free around a chart; smallest_cosine: rays flatter to the
    surface than this do not count."""

    size: int = 2048
    padding: int = 3
    smallest_cosine: float = 0.1


class Pictures(Protocol):
    """Pictures with their cameras, in the mesh's frame."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def __getitem__(self, index: int) -> tuple[Camera, np.ndarray]:
        """A camera and its picture [H, W, 3] float32 in [0, 1]."""
        ...


def unwrap(mesh: TriangleMesh, settings: TextureSettings = TextureSettings()) -> tuple[TriangleMesh, np.ndarray]:
    """The mesh with vertices doubled along the seams of its charts, and their places uv [V, 2] (v down) in [0, 1].

    Raises `UserError` when xatlas is not installed or cannot pack the charts into the size, when there is no face, or
    for a size that is not usable.
    """
    if not 16 <= settings.size <= 16384:
        raise UserError(f"a texture of {settings.size} texels cannot be made; choose 16 to 16384")
    if len(mesh) == 0:
        raise UserError("nothing to texture: the mesh has no faces")
    try:
        import xatlas
    except ImportError as error:
        raise UserError(
            f"textures need xatlas ({error}); install it with pip install 'scene-distill[meshes]'"
        ) from error
    texel = float(np.sqrt(mesh.face_areas().sum())) / settings.size
    if not texel > 0:
        raise UserError("nothing to texture: the faces of the mesh have no area")
    charts = find_charts(mesh, texel)
    flat = flattened(mesh, charts)
    atlas, packing = xatlas.Atlas(), xatlas.PackOptions()
    atlas.add_uv_mesh(
        (flat.place / texel).astype(np.float32), flat.faces.astype(np.uint32), charts.chart[:, None].astype(np.uint32)
    )
    # A resolution without a scale: xatlas chooses the scale so that one page of about that resolution holds all.
    packing.padding, packing.resolution, packing.bilinear = settings.padding, settings.size, True
    atlas.generate(pack_options=packing)
    kept, faces, uvs = atlas[0]
    if atlas.atlas_count != 1:
        raise UserError(f"{len(mesh)} faces do not fit one texture of {settings.size} texels; allow fewer faces")
    origin = flat.origin[kept]
    colors = None if mesh.colors is None else mesh.colors[origin]
    split = TriangleMesh(mesh.vertices[origin], faces.astype(np.int64), colors)
    return split, np.clip(uvs.astype(np.float32), 0.0, 1.0)


def textured(
    mesh: TriangleMesh, pictures: Pictures, settings: TextureSettings = TextureSettings(),
    report: Callable[[int, int], None] = lambda done, total: None,
) -> TriangleMesh:  # fmt: skip
    """The mesh with texture coordinates and a texture baked from the pictures; vertex colours are left out.

    Raises `UserError` as `unwrap` and `bake_texture` do.
    """
    return bake_texture(unwrap(mesh, settings), pictures, settings, report)


def bake_texture(
    unwrapped: tuple[TriangleMesh, np.ndarray], pictures: Pictures, settings: TextureSettings = TextureSettings(),
    report: Callable[[int, int], None] = lambda done, total: None,
) -> TriangleMesh:  # fmt: skip
    """What `unwrap` returned, with a texture from the pictures.

    Raises `UserError` when there is no picture, or none shows any part of the mesh.
    """
    split, uvs = unwrapped
    if len(pictures) == 0:
        raise UserError(f"nothing to texture: {len(split)} faces, 0 pictures")
    middle = split.vertices.mean(axis=0)
    local = split.moved(-middle)
    texels, faces, scene = _texels(local, uvs, settings.size), _Faces.of(local), ray_scene(local)
    colors, weights = np.zeros((len(texels), 3), np.float32), np.zeros(len(texels), np.float32)
    report(0, len(pictures))
    for index in range(len(pictures)):
        camera, picture = pictures[index]
        camera = camera.moved(middle)
        shown = texels.of_faces(faces.may_show(camera, settings.smallest_cosine))
        depth = mesh_depth(scene, camera) if len(shown) else np.zeros((0, 0), np.float32)
        for start in range(0, len(shown), _TEXELS_AT_ONCE):
            rows = shown[start : start + _TEXELS_AT_ONCE]
            points, normals = texels.points(local, rows), faces.normals[texels.face[rows]]
            seen, weight = _looks(camera, depth, points, normals, settings.smallest_cosine)
            pixels, _ = camera.project(points[seen])
            colors[rows[seen]] += weight[:, None] * _sampled(picture, pixels)
            weights[rows[seen]] += weight
        report(index + 1, len(pictures))
    known = weights > 0
    if not known.any():
        raise UserError("no picture shows any part of the mesh; check that cameras and mesh share a frame")
    image = np.zeros((settings.size, settings.size, 3), np.float32)
    image[texels.row[known], texels.column[known]] = colors[known] / weights[known, None]
    filled = np.zeros(image.shape[:2], bool)
    filled[texels.row[known], texels.column[known]] = True
    texture = np.rint(_spread(image, filled) * 255).clip(0, 255).astype(np.uint8)
    return TriangleMesh(split.vertices, split.faces, None, uvs, texture)


@dataclass(frozen=True, eq=False)
class _Faces:
    """Unit normals [F, 3], middles [F, 3], and radii [F] of balls around the middles that hold the faces."""

    normals: np.ndarray
    middles: np.ndarray
    radii: np.ndarray

    @staticmethod
    def of(mesh: TriangleMesh) -> _Faces:
        corners = mesh.corners
        middles = corners.mean(axis=1)
        return _Faces(mesh.face_normals(), middles, np.linalg.norm(corners - middles[:, None], axis=2).max(axis=1))

    def may_show(self, camera: Camera, smallest_cosine: float) -> np.ndarray:
        """True [F] where any point of a face may be in the image and turned to the camera by more than the cosine."""
        towards = camera.center - self.middles
        nearest = np.linalg.norm(towards, axis=1) - self.radii
        # The height over the face's plane is the same for all of its points: the nearest has the largest cosine.
        shown = (towards * self.normals).sum(axis=1) > smallest_cosine * nearest
        return shown & camera.may_see(self.middles, self.radii)


@dataclass(frozen=True, eq=False)
class _Texels:
    """Texels inside charts, face by face: row, column [T] in the texture, face [T], and barycentric weights [T, 2] of
    corners 1 and 2; those of face f are at ``starts[f]:starts[f + 1]``."""

    row: np.ndarray
    column: np.ndarray
    face: np.ndarray
    weights: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.face)

    def of_faces(self, chosen: np.ndarray) -> np.ndarray:
        """Indices of the texels of the faces for which ``chosen`` [F] is true."""
        return np.flatnonzero(np.repeat(chosen, np.diff(self.starts)))

    def points(self, mesh: TriangleMesh, rows: np.ndarray) -> np.ndarray:
        """Places [n, 3] of the texels at ``rows``."""
        corners = mesh.vertices[mesh.faces[self.face[rows]]]
        weights = self.weights[rows].astype(np.float64)
        points = corners[:, 0] + weights[:, :1] * (corners[:, 1] - corners[:, 0])
        return points + weights[:, 1:] * (corners[:, 2] - corners[:, 0])


def _texels(mesh: TriangleMesh, uvs: np.ndarray, size: int) -> _Texels:
    """Texels whose centre lies in a chart, found by looking down on the texture as on a flat mesh."""
    o3d = load_open3d()
    flat = np.concatenate([uvs * size, np.zeros((len(uvs), 1), np.float32)], axis=1)
    scene = ray_scene(TriangleMesh(flat.astype(np.float64), mesh.faces))
    parts = []
    rows_at_once = max(1, _TEXELS_AT_ONCE // size)
    for top in range(0, size, rows_at_once):
        row, column = np.mgrid[top : min(top + rows_at_once, size), 0:size].reshape(2, -1)
        rays = np.zeros((len(row), 6), np.float32)
        rays[:, 0], rays[:, 1], rays[:, 2], rays[:, 5] = column + 0.5, row + 0.5, 1.0, -1.0
        found = scene.cast_rays(o3d.core.Tensor(rays))
        hit = np.isfinite(found["t_hit"].numpy())
        face = found["primitive_ids"].numpy()[hit].astype(np.int64)
        parts.append((row[hit], column[hit], face, found["primitive_uvs"].numpy()[hit]))
    row, column, face, weights = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    order = np.argsort(face, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(face, minlength=len(mesh)))])
    return _Texels(row[order], column[order], face[order], weights[order], starts)


def mesh_depth(scene: Any, camera: Camera) -> np.ndarray:
    """Depth [H, W] float32 along the optical axis of an Open3D ray scene at pixel centres; infinite where no face."""
    o3d = load_open3d()
    rows, columns = np.mgrid[0 : camera.height, 0 : camera.width].reshape(2, -1) + 0.5
    in_cam = np.stack([(columns - camera.cx) / camera.fx, (rows - camera.cy) / camera.fy, np.ones(len(rows))], axis=1)
    directions = in_cam @ camera.cam_from_world[:3, :3]
    rays = np.concatenate([np.broadcast_to(camera.center, directions.shape), directions], axis=1).astype(np.float32)
    return scene.cast_rays(o3d.core.Tensor(rays))["t_hit"].numpy().reshape(camera.height, camera.width)


def _looks(
    camera: Camera, depth: np.ndarray, points: np.ndarray, normals: np.ndarray, smallest_cosine: float
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the points [n, 3] that the camera sees, and the weights of its view of them."""
    pixels, distance = camera.project(points)
    towards = camera.center - points
    cosine = (towards * normals).sum(1) / np.maximum(np.linalg.norm(towards, axis=1), 1e-12)
    inside = (distance > 0) & (pixels >= 0).all(1) & (pixels < [camera.width, camera.height]).all(1)
    seen = np.flatnonzero(inside & (cosine > smallest_cosine))
    column, row = pixels[seen].astype(np.int64).T
    front = depth[row, column]
    # A slanted surface changes its depth within the pixel: allow for it.
    slack = _DEPTH_TOLERANCE + 1.5 / (camera.fx * cosine[seen])
    seen = seen[distance[seen] <= front * (1 + slack)]
    weight = (cosine[seen] * camera.fx / distance[seen]) ** SHARPNESS
    return seen, weight.astype(np.float32)


def _sampled(picture: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Bilinear colours [n, 3] of a picture [H, W, 3] at pixel positions [n, 2]."""
    height, width = picture.shape[:2]
    x, y = (pixels - 0.5).T
    x, y = np.clip(x, 0, width - 1), np.clip(y, 0, height - 1)
    left, top = np.minimum(x.astype(np.int64), max(width - 2, 0)), np.minimum(y.astype(np.int64), max(height - 2, 0))
    right, bottom = np.minimum(left + 1, width - 1), np.minimum(top + 1, height - 1)
    a, b = (x - left)[:, None].astype(np.float32), (y - top)[:, None].astype(np.float32)
    upper = picture[top, left] * (1 - a) + picture[top, right] * a
    lower = picture[bottom, left] * (1 - a) + picture[bottom, right] * a
    return upper * (1 - b) + lower * b


def _spread(image: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The image [H, W, 3] with every unknown pixel showing the nearest known one."""
    from scipy.ndimage import distance_transform_edt

    row, column = distance_transform_edt(~known, return_distances=False, return_indices=True)
    return image[row, column]
