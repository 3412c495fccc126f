"""Consistent3D step by step: geometry that is known, pictures without a prior, then a prior that knows the object.

Run: python benchmarks/consistent3d.py sphere|fit|prior [--seeds N] [--steps N] [--pictures DIR] [--table]; every row
goes to benchmarks/results/consistent3d.json as soon as it is done, and a stopped campaign continues. ``--table`` prints
the tables of docs/consistent3d.md from that file.

sphere  volume of a marched ball, and area and growth of its outline, against the exact ones
fit     field, then mesh, by least squares on 24 pictures of a toy; PSNR and outline from 6 other views
prior   text to 3D against a mixture around renders of one toy; compared with that toy from 16 views it never showed
"""

import argparse
import math
import statistics
import tempfile
import time
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from scene_distill.core.files import read_json, write_json
from scene_distill.core.seeds import torch_generator
from scene_distill.data.captioned_shapes import BACKGROUND, Shot
from scene_distill.data.captioned_shapes_renderer import orbit_camera
from scene_distill.export.pictures import write_png
from scene_distill.methods.consistent3d.config import Consistent3DConfig
from scene_distill.methods.consistent3d.field import FieldObjects
from scene_distill.methods.consistent3d.surface import SurfaceObjects, TrainedSurface
from scene_distill.methods.text_to_3d.backgrounds import plain
from scene_distill.methods.text_to_3d.generate import text_to_3d
from scene_distill.methods.text_to_3d.registry import find_text_method
from scene_distill.methods.text_to_3d.representation import TrainedObject
from scene_distill.methods.text_to_3d.teachers import toy_mixture, toy_of
from scene_distill.methods.text_to_3d.views import orbit_views
from scene_distill.objectives.score_teacher import Progress
from scene_distill.priors.renders import RenderMixture
from scene_distill.renderers.mesh import antialias, draw_mesh
from scene_distill.representations.marching_tetrahedra import march_tetrahedra
from scene_distill.representations.tetrahedra import TetGrid, TetSurface

RESULTS = Path(__file__).parent / "results" / "consistent3d.json"
PROMPTS = ("a red chair", "a blue car", "a green duck")
SIZE = 32
MEASURED = Consistent3DConfig(image_size=SIZE, prior="mixture", visits=4, threads=1, resolutions=(8, 16, 32), cells=24)

ARMS: dict[str, dict[str, object]] = {
    "defaults": {},
    "published CDS": {"noise": "shared", "coarse_guidance": (101.0, 51.0), "geometry_guidance": (101.0, 31.0),
                      "texture_guidance": (51.0, 51.0), "coarse_levels": (700.0, 100.0), "coarse_range": (100.0, 980.0),
                      "gap": 100.0, "coarse_jitter": 200.0, "refine_jitter": 100.0, "geometry_levels": (300.0, 20.0),
                      "texture_levels": (500.0, 20.0), "geometry_sees": "normals"},
    "guidance 1.5": {"coarse_guidance": (1.5, 1.5), "geometry_guidance": (1.5, 1.5), "texture_guidance": (1.5, 1.5)},
    "guidance 3": {"coarse_guidance": (3.0, 3.0), "geometry_guidance": (3.0, 3.0), "texture_guidance": (3.0, 3.0)},
    "no total variation": {"tv": 0.0},
    "shared noise": {"noise": "shared"},
    "noise per view": {"noise": "per-view"},
    "field's levels down to 100": {"coarse_levels": (700.0, 100.0), "coarse_range": (100.0, 980.0)},
    "levels fall linearly": {"anneal": "linear"},
    "gap 30": {"gap": 30.0, "coarse_jitter": 20.0, "refine_jitter": 20.0},
    "gap 300": {"gap": 300.0},
    "normals in the geometry stage": {"geometry_sees": "normals"},
    "field alone": {"geometry_share": 0.0, "texture_share": 0.0},
    "literal sign": {"sign": "literal"},
    "SDS on the same schedule": {"objective": "sds"},
    "ISM on the same schedule": {"objective": "ism"},
}  # fmt: skip


def sphere(cells: int) -> dict:
    """A ball of radius 0.7 in a cube of half side 1.15, in pictures of 64 pixels."""
    radius = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    grid = TetGrid.cubic(cells, 1.15, torch.float64)
    mesh = march_tetrahedra(TetSurface.of_sdf(grid, grid.vertices.norm(dim=1) - radius))
    a, b, c = mesh.vertices[mesh.faces].detach().unbind(1)
    volume = float((torch.cross(a, b, dim=1) * c).sum()) / 6
    picture = draw_mesh(mesh.vertices, mesh.faces, [orbit_camera(64, 40.0 * k, 15.0 + 4 * k) for k in range(8)])
    ones = torch.ones(len(picture.pixel), 1, dtype=torch.float64)
    area = antialias(picture.image(ones, torch.zeros(1)), picture).sum() / 8
    area.backward()

    def disc(r: float) -> float:
        return math.pi * (32 / math.tan(math.radians(20)) * r / math.sqrt(3.1**2 - r * r)) ** 2

    growth = (disc(0.7001) - disc(0.6999)) / 2e-4
    exact = 4 / 3 * math.pi * 0.7**3
    return {"triangles": len(mesh.faces), "volume error": volume / exact - 1,
            "outline error": float(area.detach()) / disc(0.7) - 1,
            "growth error": float(radius.grad) / growth - 1}  # type: ignore[arg-type]  # fmt: skip


def fit(prompt: str, steps: int) -> dict:
    """Least squares: ``steps`` of the field, half as many of the mesh, 4 pictures a step over random backgrounds."""
    torch.set_num_threads(1)
    toy, row = toy_of(prompt), {}
    angles = np.random.default_rng(0).uniform((-5, 3.0), (60, 3.4), (30, 2))
    shots = [Shot(toy, 137.5 * n % 360 - 180, *angles[n], (0, "fit")) for n in range(30)]
    config = replace(MEASURED, geometry_sees="colours")
    fields, meshes = FieldObjects(config), SurfaceObjects(config, "geometry")
    state = fields.first_state("", torch_generator(0))
    for name, objects, count in (("field", fields, steps), ("mesh", meshes, steps // 2)):
        if name == "mesh":
            state = meshes.first_state("", torch_generator(0), state)
            row |= {f"first mesh {key}": value for key, value in against(meshes.trained(state), shots[24:]).items()}
        started = time.process_time()
        state = least_squares(objects.open(state), shots[:24], count)
        row[f"{name} CPU ms a step"] = 1000 * (time.process_time() - started) / count
        row |= {f"{name} {key}": value for key, value in against(objects.trained(state), shots[24:]).items()}
    return row


def least_squares(live, shots: list[Shot], steps: int) -> dict[str, torch.Tensor]:
    seen = torch.from_numpy(np.stack([shot.picture(SIZE) for shot in shots])).float() / 255
    cameras, generator = [shot.camera(SIZE) for shot in shots], torch_generator(0, "fit")
    for step in range(steps):
        chosen = torch.randperm(len(shots), generator=generator)[:4]
        behind = torch.rand(4, 3, generator=generator)
        views = live.render([cameras[i] for i in chosen], behind, Progress(step, steps), generator)
        alpha = seen[chosen][..., 3:]
        wanted = seen[chosen][..., :3] * alpha + behind[:, None, None] * (1 - alpha)
        loss = (views.image - wanted).square().sum() / 4
        (loss + sum(live.losses(views, Progress(step, steps)).values())).backward()
        live.step(Progress(step, steps), generator)
    return live.state()


def against(trained: TrainedObject, shots: list[Shot]) -> dict[str, float]:
    """PSNR of the pictures and intersection over union of the outlines, over all shots together."""
    seen = torch.from_numpy(np.stack([shot.picture(SIZE) for shot in shots])).float() / 255
    views = trained.render([shot.camera(SIZE) for shot in shots], plain())
    alpha = seen[..., 3:]
    wanted = seen[..., :3] * alpha + torch.tensor(BACKGROUND) * (1 - alpha)
    solid, found = alpha[..., 0] > 0.5, views.alpha > 0.5
    return {"PSNR": -10 * math.log10(float((views.image - wanted).square().mean())),
            "IoU": float((solid & found).sum() / (solid | found).sum())}  # fmt: skip


@lru_cache(maxsize=1)
def renders_of(prompt: str, seed: int) -> RenderMixture:
    """The prior of one toy."""
    return toy_mixture((prompt,), SIZE, seed)


def prior(arm: str, prompt: str, seed: int, steps: int, pictures: Path | None) -> dict:
    """One object under one arm: against the toy that the prior shows, and what the prior takes its views for."""
    config = replace(MEASURED, iterations=steps, seed=seed, **ARMS[arm])  # type: ignore[arg-type]
    teacher, started = renders_of(prompt, seed), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        (made,) = text_to_3d(find_text_method("consistent3d"), config, (prompt,), teacher, Path(folder))
    seconds = time.process_time() - started
    turn = orbit_views(16, SIZE, 22.0, start=7.0)
    shots = [Shot(toy_of(prompt), float(a), 22.0, 3.2, (seed, "toy", 0, "proportions")) for a in turn.azimuth]
    images = made.trained.render(turn.cameras, plain()).lesson
    captioned = [f"{prompt}, {shot.view} view" for shot in shots]
    known = [bool(teacher.truth(image[None], caption)) for image, caption in zip(images, captioned, strict=True)]
    if pictures is not None:
        pictures.mkdir(parents=True, exist_ok=True)
        sheet(made.trained, pictures / f"{arm}-{prompt}-{seed}.png".replace(" ", "_"))
    return {"object": float(teacher.truth(images, prompt).float().mean()), "view": statistics.mean(known),
            "evaluations": made.evaluations, "CPU s": seconds, "finite": made.finite,
            **against(made.trained, shots)}  # fmt: skip


def sheet(trained: TrainedObject, path: Path, size: int = 128) -> None:
    """A turntable of eight views; below it the normals of a mesh."""
    cameras = orbit_views(8, size, 15.0).cameras
    rows = [torch.cat(list(trained.render(cameras, plain()).image), dim=1)]
    if isinstance(trained, TrainedSurface):
        rows.append(torch.cat(list(trained.normals(cameras, plain())), dim=1))
    write_png(torch.cat(rows).clamp(0, 1), path)


def tables(rows: list[dict]) -> str:
    """Markdown of everything that is there."""
    lines = []
    for what, key in (("sphere", "cells"), ("fit", "prompt")):
        mine = [row for row in rows if row["what"] == what]
        names = [name for name in (mine[0] if mine else {}) if name not in ("what", key)]
        if mine:
            lines += [f"| {key} | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
            lines += [f"| {row[key]} | {' | '.join(f'{row[name]:.4g}' for name in names)} |" for row in mine] + [""]
    mine = [row for row in rows if row["what"] == "prior"]
    names = ["PSNR", "IoU", "object", "view", "CPU s"]
    lines += ["| arm | steps | runs | " + " | ".join(names) + " | diverged |", "|---" * (len(names) + 4) + "|"]
    for steps in sorted({row["steps"] for row in mine}):
        for arm in ARMS:
            runs = [row for row in mine if row["arm"] == arm and row["steps"] == steps]
            if runs:
                cells = [_spread([row[name] for row in runs]) for name in names]
                lost = 100 * statistics.mean(not row["finite"] for row in runs)
                lines.append(f"| {arm} | {steps} | {len(runs)} | {' | '.join(cells)} | {lost:.0f} % |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.3g} ± {statistics.stdev(values) if len(values) > 1 else 0.0:.2g}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", nargs="?", choices=("sphere", "fit", "prior"))
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--arms", nargs="*", default=list(ARMS))
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    rows = read_json(RESULTS) if RESULTS.exists() else []
    wanted: list[dict] = []
    if options.what == "sphere":
        wanted = [{"what": "sphere", "cells": cells} for cells in (8, 16, 32)]
    elif options.what == "fit":
        wanted = [{"what": "fit", "prompt": prompt, "steps": options.steps} for prompt in PROMPTS]
    elif options.what == "prior":
        keys = [(s, p, arm) for s in range(options.seeds) for p in PROMPTS for arm in options.arms]
        wanted = [{"what": "prior", "arm": a, "prompt": p, "seed": s, "steps": options.steps} for s, p, a in keys]
    for row in [] if options.table else wanted:
        if any(row.items() <= other.items() for other in rows):
            continue
        made = {
            "sphere": lambda r: sphere(r["cells"]),
            "fit": lambda r: fit(r["prompt"], r["steps"]),
            "prior": lambda r: prior(r["arm"], r["prompt"], r["seed"], r["steps"], options.pictures),
        }[row["what"]](row)
        rows.append(row | made)
        write_json(RESULTS, rows)
        print(rows[-1], flush=True)
    print(tables(rows))


if __name__ == "__main__":
    main()
