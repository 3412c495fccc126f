"""What levels of detail give and cost: near and far views, on the aerial scene and the procedural city.

    python benchmarks/level_of_detail.py       # 200 px, 800 steps in all, one seed: four runs
    python benchmarks/level_of_detail.py --only aerial_sheffield

A far view with a true picture is a held-out photo at 1/4 or 1/8 of its size: what a camera 4 or 8 times as far away
sees. The last column draws the largest city there is to see: the first held-out camera, moved back to 8 times its
distance. A JSON is written after every run (benchmarks/results/level_of_detail.json).
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from ablation import procedural_city
from campaign import ROOT, Campaign, shared_data

from scene_distill.core.cameras import Camera
from scene_distill.data.images import ImageCache
from scene_distill.data.load import load_scene
from scene_distill.methods.momentum_gs.far_views import seen_from_afar
from scene_distill.methods.momentum_gs.merged import MergedCity
from scene_distill.training.metrics import psnr
from scene_distill.training.scene_blocks import View

ARMS = {"without": [], "0.25 px": ["--level-of-detail", "0.25"]}
OCTAVES = {"near": 0, "4 x as far": 2, "8 x as far": 3}
REPEATS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", help="names of the scenes: aerial_sheffield, city_demo")
    options = parser.parse_args()
    runs = Campaign(ROOT / "benchmarks" / "results" / "level_of_detail_runs.json")
    measured = Campaign(ROOT / "benchmarks" / "results" / "level_of_detail.json")
    scenes = {"aerial_sheffield": lambda: shared_data() / "aerial_sheffield", "city_demo": procedural_city}
    for scene, find in scenes.items():
        if options.only and scene not in options.only:
            continue
        for arm, flags in ARMS.items():
            folder = ROOT / "outputs" / "level_of_detail" / f"{scene}-{arm.replace(' ', '')}"
            arguments = ["momentum-gs", "--data", str(find()), "--image-width", "200", "--iterations", "100"]
            runs.run(f"{scene}/{arm}", [*arguments, "--max-memory", "6GB", *flags], folder)
            measured.keep(f"{scene}/{arm}", measure(find(), folder / "model.safetensors"))
            print_table(measured.results)


@torch.no_grad()
def measure(data: Path, model: Path) -> dict[str, Any]:
    """Of every distance the mean PSNR in dB against the shrunk photos, ms and anchors a view."""
    scene, city = load_scene(data), MergedCity.load(model)
    images = ImageCache(scene.frames, 200, 10**9)
    held_out = scene.test_frames
    figures: dict[str, Any] = {"anchors": len(city)}
    for name, octaves in OCTAVES.items():
        rows = []
        for frame in held_out:
            photo = images.get(frame).to(torch.float32) / 255.0
            view = seen_from_afar(View(0, images.camera(frame), lambda photo=photo: photo), octaves)
            image = city.render(view.camera).image.clamp(0, 1)
            rows.append((psnr(image, view.photo()), *cost(city, view.camera)))
        figures[name] = [statistics.fmean(column) for column in zip(*rows, strict=True)]
    if city.detail is not None:
        figures["voxel_pixels"] = statistics.median(voxel_pixels(city, images.camera(frame)) for frame in held_out)
    camera = images.camera(held_out[0])
    local = camera.moved(city.origin)
    depth = float((city.anchors.positions @ local.pose()[2, :3] + local.pose()[2, 3]).median())
    pose = camera.cam_from_world.copy()
    pose[2, 3] += 7 * depth
    figures["whole city"] = [None, *cost(city, replace(camera, cam_from_world=pose))]
    return figures


def voxel_pixels(city: MergedCity, camera: Camera) -> float:
    """Median pixels that a voxel of the finest level takes in a view."""
    assert city.detail is not None
    local = camera.moved(city.origin)
    rows = city.anchors.visible(local)
    depth = city.anchors.positions[rows] @ local.pose()[2, :3] + local.pose()[2, 3]
    return city.detail.edge * camera.fx / float(depth.median())


def cost(city: MergedCity, camera: Camera) -> tuple[float, int]:
    """Median milliseconds of a frame, and the anchors it draws."""
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        city.render(camera)
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times), len(city.drawn(camera.moved(city.origin))[0])


def print_table(results: dict[str, Any]) -> None:
    """One row a run: PSNR, ms and anchors at every distance."""
    names = [*OCTAVES, "whole city"]
    print("| scene, levels of detail | anchors | " + " | ".join(names) + " |\n" + "|---" * (len(names) + 2) + "|")
    for key, figures in results.items():
        cells = []
        for name in names:
            quality, milliseconds, anchors = figures[name]
            cells.append((f"{quality:.2f} dB, " if quality else "") + f"{milliseconds:.1f} ms, {anchors:,.0f}")
        print(f"| {key} | {figures['anchors']:,} | " + " | ".join(cells) + " |")
    for key, figures in results.items():
        if "voxel_pixels" in figures:
            print(f"{key}: a voxel of the finest level takes {figures['voxel_pixels']:.2f} px in a held-out photo")


if __name__ == "__main__":
    main()
