"""From a scene that can be drawn to a mesh: depth, surface, cleaning, texture, in the order that works.

Three ways to the surface:

    tsdf      fusion of depth from every camera: the most faithful, open where no camera looked
    poisson   a smooth closed surface through the points of the same depth, trimmed to where they are
    density   the level set of the Gaussians' own density: needs no camera, shows every Gaussian's bump

Everything here is in the frame of the source's cameras, whose origin should be near the scene.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from scene_distill.core.cameras import Camera
from scene_distill.core.errors import UserError
from scene_distill.export.depth_views import DepthSettings, DepthView, DepthViews, GaussiansFor, RenderedViews, Tell
from scene_distill.export.gaussian_density import LEVEL, GaussianDensity, box_of
from scene_distill.export.marching_cubes import Lattice, extract_level
from scene_distill.export.mesh_cleaning import CleaningSettings, clean
from scene_distill.export.mesh_texture import Pictures, TextureSettings, bake_texture, unwrap
from scene_distill.export.poisson import PoissonSettings, points_of_views, reconstruct
from scene_distill.export.tsdf import CELL, SurfaceCells, TsdfSettings, fuse, surface_cells
from scene_distill.representations.meshes import TriangleMesh
from scene_distill.representations.splats import Splats

Method = Literal["tsdf", "poisson", "density"]
METHODS: tuple[Method, ...] = ("tsdf", "poisson", "density")

PIXELS_PER_VOXEL = 1.5
"""Least edge of an automatic voxel in pixels at the median depth: finer ones hold noise."""

FACES_PER_CELL = 32.0
"""Faces of a surface in a cell of `surface_cells`: two for each of the 4 x 4 voxels that it crosses. Where depth is
noisy cells are more than surfaces, and faces fewer."""

RAW_FACES_PER_FACE = 6.0
"""Most faces of the raw surface, about, for each that the face budget keeps: automatic voxels grow up to that. More
would be fused, welded and thinned out again; benchmarks/meshes.py compares both ("export", "export, finest voxels")."""

DEPTHS_USED = 3.0
"""Automatic limit of the depth, in median depths: what is farther has too few pixels to be worth voxels."""


@dataclass(frozen=True, eq=False)
class SurfaceSource:
    """What is meshed: gaussians that each camera sees, cameras, and all splats for the density (made when asked)."""

    gaussians: GaussiansFor
    cameras: Sequence[Camera]
    splats: Callable[[], Splats]


_DEPTH, _CLEANING, _TEXTURE = DepthSettings(), CleaningSettings(max_faces=200_000), TextureSettings()


@dataclass(frozen=True)
class SurfaceSettings:
    """method; voxel_m, depth_max_m: world units, None chooses from the depth and the face budget (`resolution`);
    depth: how depth is drawn; carve, min_weight: `TsdfSettings`; trim_voxels: `PoissonSettings`; level: of the density;
    cleaning; texture: None gives vertex colours."""

    method: Method = "tsdf"
    voxel_m: float | None = None
    depth_max_m: float | None = None
    depth: DepthSettings = _DEPTH
    carve: bool = True
    min_weight: float = 2.0
    trim_voxels: float | None = 3.0
    level: float = LEVEL
    cleaning: CleaningSettings = _CLEANING
    texture: TextureSettings | None = _TEXTURE


def surface_of(
    source: SurfaceSource, settings: SurfaceSettings, pictures: Pictures | None = None,
    tell: Tell = lambda stage, done, total: None,
) -> TriangleMesh:  # fmt: skip
    """The cleaned mesh of a source, textured from ``pictures`` (default: the renders that the depth came with).

    Raises `UserError` when there is nothing to mesh.
    """
    views = RenderedViews(source.gaussians, source.cameras, settings.depth)
    mesh = raw_surface(source, views, settings, tell)
    tell("cleaning", 0, 1)
    mesh = clean(mesh, source.cameras, settings.cleaning)
    tell("cleaning", 1, 1)
    if settings.texture is None:
        return mesh
    pictures = pictures if pictures is not None else Renders(views)
    tell("unwrapping", 0, 1)
    unwrapped = unwrap(mesh, settings.texture)
    tell("unwrapping", 1, 1)
    return bake_texture(unwrapped, pictures, settings.texture, lambda done, total: tell("texturing", done, total))


def raw_surface(
    source: SurfaceSource, views: DepthViews, settings: SurfaceSettings,
    tell: Tell = lambda stage, done, total: None,
) -> TriangleMesh:  # fmt: skip
    """The coloured surface of the settings' method, before any cleaning."""
    voxel_m, depth_max_m, cells = resolution(views, settings, tell)
    if settings.method == "density":
        return density_surface(source.splats(), voxel_m, settings, tell)
    if settings.method == "poisson":
        poisson = PoissonSettings(voxel_m, settings.trim_voxels)
        points = points_of_views(
            views, poisson, lambda done, total: tell("collecting points", done, total), depth_max_m
        )
        tell("solving", 0, 1)
        mesh = reconstruct(points, poisson)
        tell("solving", 1, 1)
        return mesh
    tsdf = TsdfSettings(voxel_m, depth_max_m=depth_max_m, carve=settings.carve, min_weight=settings.min_weight)
    return fuse(views, tsdf, tell, cells)


def resolution(
    views: DepthViews, settings: SurfaceSettings, tell: Tell = lambda stage, done, total: None
) -> tuple[float, float, SurfaceCells | None]:
    """Edge of a voxel and limit of the depth in world units, given or chosen; where surfaces are, if that was looked
    at.

    An automatic voxel is `PIXELS_PER_VOXEL` wide, or as wide as it takes for the raw surface to have about
    `RAW_FACES_PER_FACE` times the faces that cleaning keeps.
    """
    if settings.voxel_m is not None and settings.depth_max_m is not None:
        return settings.voxel_m, settings.depth_max_m, None
    footprint, depth = typical_footprint(views)
    depth_max_m = DEPTHS_USED * depth if settings.depth_max_m is None else settings.depth_max_m
    if settings.voxel_m is not None:
        return settings.voxel_m, depth_max_m, None
    voxel_m = PIXELS_PER_VOXEL * footprint
    cells = surface_cells(views, CELL * voxel_m, depth_max_m, tell)
    if settings.cleaning.max_faces is not None:
        expected, wanted = FACES_PER_CELL * len(cells.keys), RAW_FACES_PER_FACE * settings.cleaning.max_faces
        voxel_m *= max(1.0, math.sqrt(expected / wanted))
    return voxel_m, depth_max_m, cells


def density_surface(splats: Splats, voxel_m: float, settings: SurfaceSettings, tell: Tell) -> TriangleMesh:
    """Level set of the density of the splats, coloured by them."""
    field = GaussianDensity(splats, box_of(voxel_m), settings.depth.min_opacity)
    low, high = field.bounds
    low = np.floor(low / voxel_m) * voxel_m
    mesh = extract_level(
        field, Lattice(low, high, voxel_m), settings.level, occupied=field.occupied,
        report=lambda done, total: tell("marching cubes", done, total),
    )  # fmt: skip
    return TriangleMesh(mesh.vertices, mesh.faces, field.colors(mesh.vertices))


def typical_footprint(views: DepthViews, most: int = 24) -> tuple[float, float]:
    """Size of a pixel on the surface (depth / focal length) and depth, medians over up to ``most`` views, world units.

    Raises `UserError` when none of them shows any depth.
    """
    count = len(views.cameras)
    footprints, depths = [], []
    for index in np.unique(np.linspace(0, count - 1, min(most, count)).astype(int)):
        view: DepthView = views[int(index)]
        depth = view.surface_depth_m()
        seen = depth[depth > 0]
        if len(seen):
            depths.append(float(np.median(seen)))
            footprints.append(depths[-1] / view.camera.fx)
    if not depths:
        raise UserError("no view shows any depth; the scene is empty or transparent from all of its cameras")
    return float(np.median(footprints)), float(np.median(depths))


class Renders:
    """The colours of depth views as `Pictures`."""

    def __init__(self, views: RenderedViews) -> None:
        self._views = views

    def __len__(self) -> int:
        return len(self._views)

    def __getitem__(self, index: int) -> tuple[Camera, np.ndarray]:
        """The camera and its render."""
        view = self._views[index]
        return view.camera, view.color
