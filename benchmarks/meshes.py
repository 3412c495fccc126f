"""How far meshes of a procedural city are from its known geometry; writes benchmarks/results/meshes.json.

    python benchmarks/meshes.py [--voxel 0.4] [--iterations 3000] [--only CASE ...]

Makes the demo's city and trains plain splats on it (both kept in outputs/meshes), then reconstructs it in several ways.
The truth is the city's own triangles: completeness and recall count the points inside the city's limits that at least
two cameras see (found by casting rays), accuracy and precision all of a mesh inside the limits. The row "exact depth"
fuses the city's ray-cast depth: what the voxels alone cost. Finished cases are kept and not run again.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from scene_distill.cli.export_geometry import GeometrySource, Photos, open_source
from scene_distill.core.files import read_json, write_json
from scene_distill.data.city_layout import City, build_city
from scene_distill.data.city_renderer import CityRenderer
from scene_distill.data.procedural_city import CityConfig, load_recipe, make_city, read_depth
from scene_distill.export.depth_views import DepthSettings, DepthView, RenderedViews
from scene_distill.export.mesh_cleaning import CleaningSettings, clean
from scene_distill.export.mesh_files import write_mesh
from scene_distill.export.mesh_quality import KnownSurface, Region, geometry_error, topology
from scene_distill.export.mesh_texture import TextureSettings, textured
from scene_distill.export.metadata import SplatMetadata
from scene_distill.export.surface import SurfaceSettings, raw_surface
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
}


class ExactViews:
    """The city's own depth, with its photos as colours."""

    def __init__(self, source: GeometrySource, root: Path) -> None:
        self._source, self._root = source, root
        self.cameras = source.surface.cameras

    def __getitem__(self, index: int) -> DepthView:
        camera, photo = Photos(self._source)[index]
        return DepthView(camera, read_depth(self._root, Path(self._source.frames[index].name).stem), photo)


def prepared(iterations: int) -> tuple[GeometrySource, CityConfig, Path]:
    """The trained run on the city, both made when they are not there."""
    recipe = load_recipe(RECIPE)
    root = make_city(recipe, FOLDER / "city")
    run = FOLDER / "run"
    if not (run / "metrics.json").is_file():
        command = [sys.executable, "-m", "scene_distill", "train", "splats", "--data", str(root), "--output-dir", str(run),
                   "--iterations", str(iterations), "--image-width", str(recipe.width)]  # fmt: skip
        subprocess.run(command + (["--resume"] if run.exists() else []), check=True)
    return open_source(run, None), recipe, root


def truth_of(recipe: CityConfig, source: GeometrySource) -> tuple[KnownSurface, Region]:
    """The city's triangles with points that two cameras see, and the test for lying inside the city's limits."""
    heights = (recipe.building_height_min, recipe.building_height_max)
    city = build_city(recipe.seed, (recipe.blocks_x, recipe.blocks_y), recipe.block_size, heights)
    half = np.array(city.plan.half_size)

    def inside(points: np.ndarray) -> np.ndarray:
        return (np.abs(points[:, :2]) < half).all(axis=1)

    mesh, kept = _near(city, half), FOLDER / f"known_points_{recipe.fingerprint}_{SAMPLES}.npy"
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


def run_case(name: str, source: GeometrySource, root: Path, voxel_m: float, say: Callable[[str], None]) -> TriangleMesh:
    """The raw surface of a case with its crumbs removed, in the world frame."""
    asked = dict(CASES[name])
    exact = bool(asked.pop("exact", False))
    settings = replace(SurfaceSettings(voxel_m=voxel_m, depth_max_m=150.0), **asked)  # type: ignore[arg-type]
    views = ExactViews(source, root) if exact else RenderedViews(source.surface.gaussians, source.surface.cameras, settings.depth)  # fmt: skip  # noqa: E501
    say(name)
    mesh = raw_surface(source.surface, views, settings)
    return clean(mesh, source.surface.cameras, CleaningSettings()).moved(source.origin)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--voxel", type=float, default=0.4)
    parser.add_argument("--iterations", type=int, default=3000)
    parser.add_argument("--only", nargs="*", default=None)
    options = parser.parse_args()
    source, recipe, root = prepared(options.iterations)
    known, inside = truth_of(recipe, source)
    results = read_json(RESULTS) if RESULTS.is_file() else {}
    key = {"recipe": RECIPE, "voxel_m": options.voxel, "iterations": options.iterations, "samples": SAMPLES}
    if results.get("setting") != key:
        results = {"setting": key, "psnr": read_json(FOLDER / "run" / "metrics.json")["results"]["psnr"], "cases": {}}
    for name in options.only or CASES:
        if name in results["cases"]:
            continue
        start, cpu = time.perf_counter(), time.process_time()
        mesh = run_case(name, source, root, options.voxel, print)
        spent = {"seconds": round(time.perf_counter() - start, 1), "cpu_seconds": round(time.process_time() - cpu, 1)}
        row = figures(mesh, known, inside) | spent
        row["peak_gb_so_far"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)
        results["cases"][name] = row
        write_json(RESULTS, results)
        print(name, row)
        if name == "tsdf":
            results["cases"] |= finished(mesh, source, known, inside)
            write_json(RESULTS, results)


def finished(mesh: TriangleMesh, source: GeometrySource, known: KnownSurface, inside: Region) -> dict[str, object]:
    """What decimation costs, and the textured files of the mesh."""
    rows: dict[str, object] = {}
    local = mesh.moved(-source.origin)
    small = clean(local, source.surface.cameras, CleaningSettings(max_faces=100_000))
    rows["tsdf, 100,000 faces"] = figures(small.moved(source.origin), known, inside)
    print("tsdf, 100,000 faces", rows["tsdf, 100,000 faces"])
    start = time.process_time()
    painted = textured(small, Photos(source), TextureSettings(2048)).moved(source.origin)
    write_mesh(painted, FOLDER / "city.glb", SplatMetadata.of_scene(source.scene))
    size = (FOLDER / "city.glb").stat().st_size
    rows["texture"] = {
        "texels": 2048,
        "cpu_seconds": round(time.process_time() - start, 1),
        "glb_mb": round(size / 1e6, 1),
    }
    print("texture", rows["texture"])
    return rows


if __name__ == "__main__":
    main()
