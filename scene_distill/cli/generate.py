"""`scene-distill generate --prompt "a table" ...`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from scene_distill.core.console import say, say_next
from scene_distill.core.errors import UserError

if TYPE_CHECKING:
    from scene_distill.methods.mdt_dist.model import ShapeModel, Shapes

PACKAGED = Path(__file__).parents[1] / "priors" / "weights" / "tiny_shapes.safetensors"
"""The embedded model, where the installation has one."""

STARTED = time.perf_counter()


@dataclass(frozen=True)
class Generate:
    """A 3D object from words, in one step or many: as Gaussians (.ply) or as a coloured mesh (.glb)."""

    prompt: str
    """What to make: 'a table', 'a red chair with green legs'."""
    model: Path | None = None
    """Folder of a run of scene-distill distill mdt, or its model.safetensors; default: the embedded model."""
    steps: int = 1
    """Steps of each of the two flows."""
    sampler: Literal["euler", "renoise"] = "renoise"
    """euler follows the flow; renoise draws new noise between steps, as students of transport want it. With one step
    both are the same; teachers take euler."""
    network: Literal["auto", "student", "teacher"] = "auto"
    """Whose steps: the student's up to 4, the teacher's above."""
    guidance: float = 0.0
    """w of (1 + w) v_words - w v_nothing; for teachers, and students that kept it."""
    format: tuple[Literal["glb", "ply"], ...] = ("glb", "ply")
    """glb: a mesh; ply: Gaussians."""
    count: int = 1
    """Objects; number i takes the seed's i-th noise."""
    seed: int = 0
    """Seed of the noise."""
    output_dir: Path = Path("outputs/generated")
    """Folder for the files and previews."""
    threads: int = 0
    """CPU threads; 0 takes all."""


def main(arguments: list[str]) -> None:
    """Sample, decode, write."""
    generate(tyro.cli(Generate, args=arguments, prog="scene-distill generate"))


def generate(options: Generate) -> list[Path]:
    """The files that were written, previews last."""
    import torch

    from scene_distill.data.shape_world import prompt_words
    from scene_distill.methods.mdt_dist.model import Walk
    from scene_distill.renderers import native

    if options.count < 1:
        raise UserError(f"--count is {options.count}; it must be at least 1")
    if options.threads:
        torch.set_num_threads(options.threads)
        native.set_threads(options.threads)
    words = prompt_words(options.prompt)
    model = find_model(options.model)
    role = None if options.network == "auto" else options.network
    sampler = options.sampler
    if sampler == "renoise" and options.steps > 1 and Walk(options.steps, role=role).network == "teacher":
        sampler = "euler"
        say("the teacher's velocity holds at a point, so its steps are Euler's")
    walk = Walk(options.steps, sampler, options.guidance, role=role)
    imported = time.perf_counter()
    shapes = model.sample(torch.tensor([words] * options.count), walk, options.seed)
    flown = time.perf_counter()
    paths = [path for row in range(options.count) for path in write_object(model, shapes, row, options)]
    done = time.perf_counter()
    evaluations = 2 * options.steps * (2 if options.guidance else 1)
    spent = f"{1000 * (flown - imported):.0f} ms"
    say(f"{walk.network}, {options.steps} {sampler} steps of two flows ({evaluations} evaluations): {spent}")
    say(f"decoding and files: {done - flown:.2f} s; with imports and the model {done - STARTED:.1f} s")
    for path in paths:
        say(str(path))
    shown = next((path for path in paths if path.suffix == ".ply"), paths[0])
    if shown.suffix == ".ply":
        say_next(f"scene-distill view {shown}", "look at it in a browser")
    else:
        say_next(f'scene-distill generate --prompt "{options.prompt}" --format ply', "the same as Gaussians")
    return paths


def find_model(path: Path | None) -> ShapeModel:
    """The model of a path, or the embedded one."""
    from scene_distill.methods.mdt_dist.model import ShapeModel

    if path is None:
        if not PACKAGED.exists():
            raise UserError("this installation has no embedded model; name one with --model, made by distill mdt")
        return ShapeModel.load(PACKAGED)
    if (path / "pipeline.json").exists():
        raise UserError(f"{path} holds TRELLIS checkpoints, which this command does not run yet; name a run's folder")
    return ShapeModel.load(path)


def write_object(model: ShapeModel, shapes: Shapes, row: int, options: Generate) -> list[Path]:
    """An object's files and its preview from four sides."""
    from scene_distill.export.mesh_files import write_mesh
    from scene_distill.export.metadata import SplatMetadata
    from scene_distill.export.ply import write_ply
    from scene_distill.export.voxel_surface import mesh_of_voxels
    from scene_distill.training.prior_pictures import picture_grid, write_png
    from scene_distill.training.shape_pictures import splat_views

    stem = options.output_dir / f"{'-'.join(options.prompt.split())[:60]}-{options.seed}-{row}"
    metadata = SplatMetadata(up=(0.0, 0.0, 1.0), source=f"scene-distill generate, prompt {options.prompt!r}")
    splats = model.splats_of(shapes, row)
    paths = []
    if "glb" in options.format:
        index, distance, color = model.surface_of(shapes, row)
        mesh = mesh_of_voxels(shapes.grids[row].numpy(), index.numpy(), distance.numpy(), color.numpy())
        paths.append(stem.with_name(stem.name + ".glb"))
        write_mesh(mesh, paths[-1], metadata)
    if "ply" in options.format:
        paths.append(stem.with_name(stem.name + ".ply"))
        write_ply(splats, paths[-1], metadata)
    paths.append(stem.with_name(stem.name + ".png"))
    write_png(paths[-1], picture_grid(splat_views(splats, 192), 4))
    return paths
