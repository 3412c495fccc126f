"""`scene-distill export RUN|FILE --format mesh-tsdf|mesh-poisson|mesh-density|points|cameras-...`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from scene_distill.core.console import Meter, progress, say
from scene_distill.core.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from scene_distill.core.cameras import Camera
    from scene_distill.data.images import ImageCache
    from scene_distill.data.scene import Frame, Scene
    from scene_distill.export.metadata import SplatMetadata
    from scene_distill.export.surface import SurfaceSettings, SurfaceSource, Tell

FORMATS = (
    "mesh-tsdf", "mesh-poisson", "mesh-density", "points", "cameras-colmap", "cameras-colmap-text",
    "cameras-nerfstudio",
)  # fmt: skip
"""What ``--format`` takes beside the splat formats."""

LEAST_FACES, TEXELS = 4, (16, 16_384)
"""Faces of the smallest mesh, and sides of the smallest and the largest texture, that are made."""

LARGEST_WIDTH_PX = 1600
"""Width that photos of a file's cameras are shrunk to; a run's photos keep the width it was trained at."""


@dataclass(frozen=True)
class MeshOptions:
    """How meshes and point clouds are made."""

    files: tuple[Literal["glb", "obj", "ply"], ...] = ("glb",)
    """Files of every mesh: glb, obj (with .mtl and .png), ply."""
    voxel: float | None = None
    """Edge of a voxel in the scene's unit; default: 1.5 pixels at the median depth."""
    max_depth: float | None = None
    """Farthest depth used, in the scene's unit; default: 3 times the median depth."""
    depth: Literal["median", "mean"] = "median"
    """Depth of a pixel: of the Gaussian at half transmittance, or the mean over Gaussians."""
    min_opacity: float = 0.2
    """Gaussians fainter than this are haze and left out of the geometry."""
    faces: int = 200_000
    """Face budget; 0 keeps all faces."""
    texture: int = 2048
    """Texels along a side of the texture; 0 gives vertex colours."""
    texture_from: Literal["photos", "renders"] = "photos"
    """What the texture is baked from."""
    min_component: float = 1e-4
    """Smallest piece kept, as a share of the whole area."""
    drop_unseen: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Drop the faces that no camera sees."""
    trim: float = 3.0
    """Poisson: voxels from the nearest point beyond which faces are dropped; 0 keeps the closed surface."""
    level: float = 0.3
    """Density: value of the surface."""
    points: tuple[Literal["ply", "pcd", "las"], ...] = ("ply",)
    """Files of the point cloud."""
    point_opacity: float = 0.5
    """Smallest opacity of a splat in the point cloud."""


@dataclass(frozen=True, eq=False)
class GeometrySource:
    """A trained scene or a file of splats with its cameras, in a frame moved by ``-origin`` from the world."""

    surface: SurfaceSource
    scene: Scene
    frames: Sequence[Frame]
    images: ImageCache
    origin: np.ndarray


def export_geometry(source: Path, formats: Sequence[str], folder: Path | None, data: Path | None,
                    options: MeshOptions) -> list[Path]:  # fmt: skip
    """Write everything in ``formats`` (of `FORMATS`) and say what it is; returns the files that others open."""
    from scene_distill.export.metadata import SplatMetadata

    folder = geometry_folder(source, folder)
    opened = open_source(source, data)
    metadata = SplatMetadata.of_scene(opened.scene)
    written: list[Path] = []
    for kind in formats:
        if kind.startswith("mesh-"):
            written += _write_mesh(opened, kind.removeprefix("mesh-"), folder, metadata, options)
        elif kind == "points":
            written += _write_points(opened, folder, metadata, options)
        else:
            written.append(_write_cameras(opened.scene, kind, folder))
    return written


def geometry_folder(source: Path, folder: Path | None) -> Path:
    """Where the files of a source go when ``folder`` is not given: exports/ in a folder, else beside the file."""
    return folder or (source / "exports" if source.is_dir() else source.parent)


def check_mesh_options(formats: Sequence[str], options: MeshOptions) -> None:
    """Raise `UserError` for options that the ``formats`` (of `FORMATS`) cannot have."""
    for kind in formats:
        if kind.startswith("mesh-"):
            surface_settings(kind.removeprefix("mesh-"), options)
            if not options.files:
                raise UserError("--mesh.files names no file; choose of glb, obj, ply")
    if "points" in formats:
        if not 0 <= options.point_opacity <= 1:
            raise UserError(f"--mesh.point-opacity {options.point_opacity:g} is no opacity; it lies in [0, 1]")
        if not options.points:
            raise UserError("--mesh.points names no file; choose of ply, pcd, las")


def open_source(source: Path, data: Path | None) -> GeometrySource:
    """A run folder with the data it was trained on, or a splat file with the posed photos in ``data``."""
    import numpy as np
    import torch

    from scene_distill.data.images import ImageCache
    from scene_distill.data.load import load_scene
    from scene_distill.export.formats import read_splats
    from scene_distill.export.surface import SurfaceSource

    if source.is_dir() and not (source / "meta.json").is_file():
        return _open_run(source, data)
    if data is None:
        raise UserError(f"{source} has no cameras; name the folder with the posed photos it was made from with --data")
    splats, _ = read_splats(source / "meta.json" if source.is_dir() else source)
    scene = load_scene(data)
    width = min(LARGEST_WIDTH_PX, max(frame.camera.width for frame in scene.frames))
    images = ImageCache(scene.frames, width, 64_000_000)
    origin = np.round(splats.means.double().median(dim=0).values.numpy())
    local = replace(splats, means=(splats.means.double() - torch.from_numpy(origin)).float())
    frames = scene.train_frames
    cameras = [images.camera(frame).moved(origin) for frame in frames]
    return GeometrySource(SurfaceSource(lambda camera: local, cameras, lambda: local), scene, frames, images, origin)


def _open_run(path: Path, data: Path | None) -> GeometrySource:
    from scene_distill.cli.export import bake
    from scene_distill.cli.runs import open_run
    from scene_distill.export.depth_views import gaussians_of
    from scene_distill.export.surface import SurfaceSource

    run = open_run(path, data)
    origin = run.trained.origin
    frames = run.scene.train_frames
    cameras = [run.images.camera(frame).moved(origin) for frame in frames]
    surface = SurfaceSource(gaussians_of(run.trained), cameras, lambda: bake(run, 0))
    return GeometrySource(surface, run.scene, frames, run.images, origin)


class Photos:
    """The photos of a source as `mesh_texture.Pictures`."""

    def __init__(self, source: GeometrySource) -> None:
        self._source = source

    def __len__(self) -> int:
        return len(self._source.frames)

    def __getitem__(self, index: int) -> tuple[Camera, np.ndarray]:
        """A camera and its photo."""
        photo = self._source.images.get(self._source.frames[index])
        return self._source.surface.cameras[index], photo.numpy().astype("float32") / 255


def surface_settings(method: str, options: MeshOptions) -> SurfaceSettings:
    """The options as the settings of one method; raises `UserError` for impossible ones."""
    from scene_distill.export.depth_views import DepthSettings
    from scene_distill.export.mesh_cleaning import CleaningSettings
    from scene_distill.export.mesh_texture import TextureSettings
    from scene_distill.export.surface import METHODS, SurfaceSettings

    if method not in METHODS:
        raise UserError(f"there is no mesh method '{method}'; choose one of {', '.join(METHODS)}")
    if options.faces < 0 or options.texture < 0 or not 0 <= options.min_opacity < 1:
        raise UserError("--mesh.faces and --mesh.texture cannot be negative, and --mesh.min-opacity lies in [0, 1)")
    for flag, length in (("voxel", options.voxel), ("max-depth", options.max_depth)):
        if length is not None and not 0 < length < math.inf:
            raise UserError(f"--mesh.{flag} {length:g} cannot be used; give a positive size in the scene's unit")
    if not 0 < options.level < math.inf:
        raise UserError(f"--mesh.level {options.level:g} cannot be used; give a positive density")
    if not 0 <= options.min_component <= 1:
        raise UserError(f"--mesh.min-component {options.min_component:g} is no share; it lies in [0, 1]")
    if not 0 <= options.trim < math.inf:
        raise UserError(f"--mesh.trim {options.trim:g} cannot be used; give voxels, or 0 to keep the closed surface")
    if 0 < options.faces < LEAST_FACES:
        raise UserError(f"a mesh of {options.faces} faces cannot be made; allow at least {LEAST_FACES}")
    if options.texture and not TEXELS[0] <= options.texture <= TEXELS[1]:
        raise UserError(f"a texture of {options.texture} texels cannot be made; choose {TEXELS[0]} to {TEXELS[1]}")
    return SurfaceSettings(
        method=next(known for known in METHODS if known == method),
        voxel_m=options.voxel,
        depth_max_m=options.max_depth,
        depth=DepthSettings(options.depth, min_opacity=options.min_opacity),
        trim_voxels=options.trim or None,
        level=options.level,
        cleaning=CleaningSettings(options.min_component, options.drop_unseen, options.faces or None),
        texture=TextureSettings(options.texture) if options.texture else None,
    )


def _write_mesh(source: GeometrySource, method: str, folder: Path, metadata: SplatMetadata,
                options: MeshOptions) -> list[Path]:  # fmt: skip
    from scene_distill.export.mesh_files import mesh_files, write_mesh
    from scene_distill.export.mesh_quality import topology
    from scene_distill.export.surface import surface_of

    settings = surface_settings(method, options)
    photos = Photos(source) if options.texture_from == "photos" else None
    with _stages() as tell:
        mesh = surface_of(source.surface, settings, photos, tell).moved(source.origin)
    shape = topology(mesh)
    closed = "watertight" if shape.watertight else f"open ({shape.boundary_edges} boundary edges)"
    paint = "no colour" if mesh.colors is None else "vertex colours"
    paint = paint if mesh.texture is None else f"texture of {mesh.texture.shape[1]} px from {options.texture_from}"
    say(f"mesh ({method}): {shape.faces} faces, {shape.components} pieces, {closed}, {paint}")
    written = []
    for extension in options.files:
        path = folder / f"mesh_{method}.{extension}"
        write_mesh(mesh, path, metadata)
        size = sum(file.stat().st_size for file in mesh_files(mesh, path))
        say(f"{path}: {size / 1e6:.1f} MB")
        written.append(path)
    return written


def _write_points(source: GeometrySource, folder: Path, metadata: SplatMetadata,
                  options: MeshOptions) -> list[Path]:  # fmt: skip
    from scene_distill.export.point_cloud import points_of_splats
    from scene_distill.export.point_cloud_files import write_points

    points = points_of_splats(
        source.surface.splats(), min_opacity=options.point_opacity, cameras=source.surface.cameras
    ).moved(source.origin)
    written = []
    for extension in options.points:
        path = folder / f"points.{extension}"
        write_points(points, path, metadata)
        say(f"{path}: {len(points)} points, {path.stat().st_size / 1e6:.1f} MB")
        written.append(path)
    return written


def _write_cameras(scene: Scene, kind: str, folder: Path) -> Path:
    from scene_distill.export.camera_files import write_colmap, write_nerfstudio

    target = folder / kind.replace("-", "_")
    if kind == "cameras-nerfstudio":
        write_nerfstudio(scene, target)
    else:
        write_colmap(scene, target, "txt" if kind == "cameras-colmap-text" else "bin")
    say(f"{target}: {len(scene.frames)} cameras, {len(scene.points)} points")
    return target


@contextmanager
def _stages() -> Iterator[Tell]:
    """A progress bar for one stage after another."""
    current: list[tuple[str, object, Meter]] = []

    def close() -> None:
        while current:
            current.pop()[1].__exit__(None, None, None)  # type: ignore[attr-defined]

    def tell(stage: str, done: int, total: int) -> None:
        if not current or current[0][0] != stage:
            close()
            bar = progress(stage, total)
            current.append((stage, bar, bar.__enter__()))
        current[0][2].update(done)

    try:
        yield tell
    finally:
        close()
