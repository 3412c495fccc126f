"""How far meshes of a procedural city are from its known geometry; writes benchmarks/results/meshes.json.

    python benchmarks/meshes.py [--voxel 0.4] [--every 1] [--faces 100000] [--iterations 3000] [--only CASE ...]

Makes the demo's city and trains plain splats on it (both kept in outputs/meshes), then reconstructs it in several ways.
The truth is the city's own triangles: completeness and recall count the points inside the city's limits that at least
two cameras see (found by casting rays), accuracy and precision all of a mesh inside the limits. The row "exact depth"
fuses the city's ray-cast depth: what the voxels alone cost. The rows "export" are what `scene-distill export` makes of
the run with its defaults (thinned to the face budget, textured): with automatic voxels, and with the finest that these
choose from. Every case is a process of its own; finished ones are kept and not run again.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from scene_distill.cli.export_geometry import GeometrySource, MeshOptions, Photos, open_source, surface_settings
from scene_distill.core.cameras import Camera
from scene_distill.core.files import read_json, write_json
from scene_distill.data.city_layout import City, build_city
from scene_distill.data.city_renderer import CityRenderer
from scene_distill.data.procedural_city import CityConfig, load_recipe, make_city, read_depth
from scene_distill.export.depth_views import DepthSettings, DepthView, RenderedViews
from scene_distill.export.mesh_cleaning import CleaningSettings, clean
from scene_distill.export.mesh_files import write_mesh
from scene_distill.export.mesh_quality import KnownSurface, Region, geometry_error, topology
from scene_distill.export.metadata import SplatMetadata
from scene_distill.export.open3d_library import load_open3d, ray_scene
from scene_distill.export.pictures import Panel, write_sheet
from scene_distill.export.surface import SurfaceSettings, raw_surface, resolution, surface_of
from scene_distill.representations.meshes import TriangleMesh

RECIPE = "city_demo"
FOLDER = Path("outputs/meshes")
RESULTS = Path("benchmarks/results/meshes.json")
THRESHOLDS_M = (0.25, 0.5, 1.0)
SAMPLES = 60_000
_MARGIN_M = 40.0

CASES: dict[str, dict[str, object]] = {
    "exact depth": {"exact": True},
    "tsdf": {},
    "tsdf, mean depth": {"depth": DepthSettings(kind="mean")},
    "tsdf, haze kept": {"depth": DepthSettings(min_opacity=0.0)},
    "tsdf, no carving": {"carve": False},
    "poisson": {"method": "poisson"},
    "poisson, closed": {"method": "poisson", "trim_voxels": None},
    "density": {"method": "density"},
    "export": {"exported": "automatic"},
    "export, finest voxels": {"exported": "finest"},
}


class ExactViews:
    """The city's own depth, with its photos as colours."""

    def __init__(self, source: GeometrySource, root: Path) -> None:
        self._source, self._root = source, root
        self.cameras = source.surface.cameras

    def __getitem__(self, index: int) -> DepthView:
        camera, photo = Photos(self._source)[index]
        return DepthView(camera, read_depth(self._root, Path(self._source.frames[index].name).stem), photo)


def prepared(iterations: int, every: int) -> tuple[GeometrySource, CityConfig, Path]:
    """The trained run on the city, both made when they are not there, with one in ``every`` of its training views."""
    recipe = load_recipe(RECIPE)
    root = make_city(recipe, FOLDER / "city")
    run = FOLDER / "run"
    if not (run / "metrics.json").is_file():
        train = [
            sys.executable,
            "-m",
            "scene_distill",
            "train",
            "splats",
            "--data",
            str(root),
            "--output-dir",
            str(run),
        ]
        settings = ["--iterations", str(iterations), "--image-width", str(recipe.width)]
        subprocess.run(train + settings + (["--resume"] if run.exists() else []), check=True)
    source = open_source(run, None)
    surface = replace(source.surface, cameras=source.surface.cameras[::every])
    return replace(source, frames=source.frames[::every], surface=surface), recipe, root


def truth_of(recipe: CityConfig, source: GeometrySource) -> tuple[KnownSurface, Region]:
    """The city's triangles with points that two cameras see, and the test for lying inside the city's limits."""
    heights = (recipe.building_height_min, recipe.building_height_max)
    city = build_city(recipe.seed, (recipe.blocks_x, recipe.blocks_y), recipe.block_size, heights)
    half = np.array(city.plan.half_size)

    def inside(points: np.ndarray) -> np.ndarray:
        return (np.abs(points[:, :2]) < half).all(axis=1)

    views = len(source.frames)
    mesh, kept = _near(city, half), FOLDER / f"known_points_{recipe.fingerprint}_{views}_{SAMPLES}.npy"
    if not kept.is_file():
        renderer = CityRenderer(city, recipe.seed, (recipe.sun_azimuth, recipe.sun_elevation))
        cameras = [frame.camera for frame in source.frames]

        def seen_twice(points: np.ndarray) -> np.ndarray:
            index = np.flatnonzero(inside(points))
            counts = np.zeros(len(points), int)
            for camera in cameras:
                counts[index] += renderer.visible(camera, points[index], 0.05)
                index = index[counts[index] < 2]
            return counts >= 2

        np.save(kept, KnownSurface.sampled(mesh, SAMPLES, compared=seen_twice).points)
    return KnownSurface(mesh, np.load(kept)), inside


def _near(city: City, half: np.ndarray) -> TriangleMesh:
    """The city's mesh with its endless ground cut a little outside the limits, so that samples do not fall there."""
    vertices = city.mesh.vertices.astype(np.float64)
    far = np.abs(vertices[:, :2]) > half + 500
    vertices[:, :2] = np.where(far, np.sign(vertices[:, :2]) * (half + _MARGIN_M), vertices[:, :2])
    return TriangleMesh(vertices, city.mesh.faces.astype(np.int64))


def figures(mesh: TriangleMesh, known: KnownSurface, inside: Region) -> dict[str, object]:
    """Errors at every threshold, and topology."""
    errors = [geometry_error(mesh, known, t, samples=SAMPLES, judged=inside) for t in THRESHOLDS_M]
    row: dict[str, object] = {
        name: round(getattr(errors[0], name), 4)
        for name in ("accuracy", "accuracy_median", "completeness", "completeness_median")
    }
    for error in errors:
        for name in ("precision", "recall", "f_score"):
            row[f"{name}_{error.threshold:g}m"] = round(getattr(error, name), 4)
    shape = topology(mesh)
    return row | {"faces": shape.faces, "pieces": shape.components, "boundary_edges": shape.boundary_edges,
                  "nonmanifold_edges": shape.nonmanifold_edges, "watertight": shape.watertight}  # fmt: skip


def raw_mesh(name: str, source: GeometrySource, root: Path, voxel_m: float) -> TriangleMesh:
    """The raw surface of a case with its crumbs removed, in the frame of the source."""
    asked = dict(CASES[name])
    exact = bool(asked.pop("exact", False))
    settings = replace(SurfaceSettings(voxel_m=voxel_m, depth_max_m=150.0), **asked)  # type: ignore[arg-type]
    surface = source.surface
    views = ExactViews(source, root) if exact else RenderedViews(surface.gaussians, surface.cameras, settings.depth)
    return clean(raw_surface(surface, views, settings), surface.cameras, CleaningSettings())


def exported(kind: str, source: GeometrySource) -> TriangleMesh:
    """What the export makes with its defaults, the seconds of its stages printed."""
    settings, surface = surface_settings("tsdf", MeshOptions()), source.surface
    if kind == "finest":
        views = RenderedViews(surface.gaussians, surface.cameras, settings.depth)
        finest = replace(settings, cleaning=replace(settings.cleaning, max_faces=None))
        settings = replace(settings, voxel_m=resolution(views, finest)[0])
    began: dict[str, float] = {}
    mesh = surface_of(surface, settings, Photos(source), lambda stage, *_: began.setdefault(stage, time.process_time()))
    ends = [*list(began.values())[1:], time.process_time()]
    print(
        "CPU seconds:", {stage: round(e - b, 1) for (stage, b), e in zip(began.items(), ends, strict=True)}, flush=True
    )
    return mesh


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--voxel", type=float, default=0.4)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--faces", type=int, default=100_000)
    parser.add_argument("--iterations", type=int, default=3000)
    parser.add_argument("--only", nargs="*", default=None)
    parser.add_argument("--case", help="run this one here and print its rows (for internal use)")
    options = parser.parse_args()
    source, recipe, root = prepared(options.iterations, options.every)
    if options.case is not None:
        rows = rows_of(options.case, source, root, *truth_of(recipe, source), options)
        print(json.dumps(rows))
        return
    truth_of(recipe, source)
    results = read_json(RESULTS) if RESULTS.is_file() else {}
    key = {"recipe": RECIPE, "voxel_m": options.voxel, "views": len(source.frames), "iterations": options.iterations,
           "samples": SAMPLES, "faces": options.faces}  # fmt: skip
    if results.get("setting") != key:
        results = {"setting": key, "psnr": read_json(FOLDER / "run" / "metrics.json")["results"]["psnr"], "cases": {}}
    for name in options.only or CASES:
        if name in results["cases"]:
            continue
        command = [sys.executable, __file__, "--case", name]
        for flag in ("voxel", "every", "faces", "iterations"):
            command += [f"--{flag}", str(getattr(options, flag))]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        *told, found = done.stdout.strip().splitlines()
        results["cases"] |= json.loads(found)
        write_json(RESULTS, results)
        print("\n".join(told), name, found, flush=True)


def rows_of(
    name: str, source: GeometrySource, root: Path, known: KnownSurface, inside: Region, options: argparse.Namespace
) -> dict[str, object]:
    """The rows of one case, made in this process: errors, topology, time, and the peak of its memory."""
    start, cpu = time.perf_counter(), time.process_time()
    kind = CASES[name].get("exported")
    mesh = raw_mesh(name, source, root, options.voxel) if kind is None else exported(str(kind), source)
    spent = {"seconds": round(time.perf_counter() - start, 1), "cpu_seconds": round(time.process_time() - cpu, 1)}
    spent["peak_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)
    rows: dict[str, object] = {name: figures(mesh.moved(source.origin), known, inside) | spent}
    if name == "tsdf":
        start, cpu = time.perf_counter(), time.process_time()
        small = clean(mesh, source.surface.cameras, CleaningSettings(max_faces=options.faces))
        more = {"seconds": round(time.perf_counter() - start, 1), "cpu_seconds": round(time.process_time() - cpu, 1)}
        rows[f"tsdf, {options.faces:,} faces"] = figures(small.moved(source.origin), known, inside) | more
    if name == "export":
        rows["texture"] = look(mesh, source)
    return rows


def look(mesh: TriangleMesh, source: GeometrySource) -> dict[str, object]:
    """The textured file of a mesh, pictures of it beside photos, and how near they are."""
    write_mesh(mesh.moved(source.origin), FOLDER / "city.glb", SplatMetadata.of_scene(source.scene))
    rows, errors = [], []
    for place in (0.2, 0.5, 0.8):
        camera, photo = Photos(source)[int(place * len(source.frames))]
        shown = picture(mesh, camera)
        covered = shown.any(axis=-1)
        errors.append(float(((shown - photo)[covered] ** 2).mean()))
        panels = (("photo", photo), (f"mesh of {len(mesh):,} faces", shown))
        rows.append([Panel(text, torch.from_numpy(image)) for text, image in panels])
    write_sheet(rows, FOLDER / "city.png", panel_width=camera.width)
    size = (FOLDER / "city.glb").stat().st_size
    return {"texels": mesh.texture.shape[0], "glb_mb": round(size / 1e6, 1),
            "psnr_to_photos": [round(-10 * np.log10(error), 2) for error in errors]}  # fmt: skip


def picture(mesh: TriangleMesh, camera: Camera) -> np.ndarray:
    """What a camera sees of a textured mesh, [H, W, 3] float32, black where nothing is."""
    o3d = load_open3d()
    scene = ray_scene(mesh)
    rows, columns = np.mgrid[0 : camera.height, 0 : camera.width].reshape(2, -1) + 0.5
    in_cam = np.stack([(columns - camera.cx) / camera.fx, (rows - camera.cy) / camera.fy, np.ones(len(rows))], axis=1)
    rays = in_cam @ camera.cam_from_world[:3, :3]
    origins = np.broadcast_to(camera.center, rays.shape)
    found = scene.cast_rays(o3d.core.Tensor(np.concatenate([origins, rays], axis=1).astype(np.float32)))
    hit = np.isfinite(found["t_hit"].numpy())
    face, weights = found["primitive_ids"].numpy()[hit].astype(int), found["primitive_uvs"].numpy()[hit]
    corners = mesh.uvs[mesh.faces[face]]
    uvs = (
        corners[:, 0]
        + weights[:, :1] * (corners[:, 1] - corners[:, 0])
        + weights[:, 1:] * (corners[:, 2] - corners[:, 0])
    )
    place = np.clip((uvs * mesh.texture.shape[0]).astype(int), 0, mesh.texture.shape[0] - 1)
    image = np.zeros((len(rows), 3), np.float32)
    image[hit] = mesh.texture[place[:, 1], place[:, 0]] / 255
    return image.reshape(camera.height, camera.width, 3)


if __name__ == "__main__":
    main()
