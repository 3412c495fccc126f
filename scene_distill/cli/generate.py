"""`scene-distill generate "a table" ...`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from scene_distill.cli.main import STARTED
from scene_distill.core.console import say, say_next
from scene_distill.core.errors import UserError

if TYPE_CHECKING:
    from scene_distill.methods.mdt_dist.model import ShapeModel, Shapes
    from scene_distill.representations.meshes import TriangleMesh
    from scene_distill.representations.splats import Splats

PACKAGED = Path(__file__).parents[1] / "priors" / "weights" / "tiny_shapes.safetensors"
"""The embedded model, where the installation has one."""


@dataclass(frozen=True)
class Generate:
    """A 3D object from words or a picture, in one step or many: as Gaussians (.ply) or as a coloured mesh (.glb)."""

    prompt: str = ""
    """What to make: 'a table', 'a red chair with green legs'; also without the flag, as the first argument."""
    image: tuple[Path, ...] = ()
    """Pictures of one object with transparency around it, for TRELLIS models that are conditioned on pictures."""
    model: Path | None = None
    """Folder of a run of scene-distill distill mdt, its model.safetensors, or a folder of TRELLIS models (with a
    pipeline.json); default: the embedded model."""
    steps: int | None = None
    """Steps of each of the two flows; default 1, a student's phases if it was distilled in such, or what the TRELLIS
    folder says."""
    sampler: Literal["auto", "euler", "renoise"] = "auto"
    """euler follows the flow, as teachers and students of phases want it; renoise draws new noise between steps, as
    students of transport want it. With one step both are the same."""
    network: Literal["auto", "student", "teacher"] = "auto"
    """Whose steps, in a run: the student's up to 4, the teacher's above."""
    guidance: float | None = None
    """w of (1 + w) v_words - w v_nothing, for teachers and students that kept it; default 0, or what the TRELLIS folder
    says."""
    format: tuple[Literal["glb", "ply"], ...] = ("glb", "ply")
    """glb: a mesh; ply: Gaussians."""
    count: int = 1
    """Objects; number i takes the seed's i-th noise."""
    seed: int = 0
    """Seed of the noise."""
    output_dir: Path = Path("outputs/generated")
    """Folder for the files and previews."""
    models_root: Path | None = None
    """Where other published folders lie that a TRELLIS folder names; default: beside it."""
    conditioner: Path | None = None
    """Folder of the DINOv2 or CLIP model that a TRELLIS folder wants; default: looked for beside it."""
    threads: int = 0
    """CPU threads; 0 takes all."""


def main(arguments: list[str]) -> None:
    """Sample, decode, write. A first argument that is no flag is the prompt."""
    if arguments and not arguments[0].startswith("-"):
        arguments = ["--prompt", *arguments]
    generate(tyro.cli(Generate, args=arguments, prog="scene-distill generate"))


def generate(options: Generate) -> list[Path]:
    """The files that were written."""
    import torch

    from scene_distill.renderers import native

    if options.count < 1:
        raise UserError(f"--count is {options.count}; it must be at least 1")
    if options.steps is not None and options.steps < 1:
        raise UserError(f"--steps is {options.steps}; a flow needs at least 1 step")
    if options.threads:
        torch.set_num_threads(options.threads)
        native.set_threads(options.threads)
    if options.model is not None and (options.model / "pipeline.json").exists():
        from scene_distill.cli.generate_trellis import generate_from_trellis

        paths = generate_from_trellis(options)
    else:
        paths = generate_shapes(options)
    say(f"the whole command {time.perf_counter() - STARTED:.1f} s")
    for path in paths:
        say(str(path))
    shown = next((path for path in paths if path.suffix == ".ply"), paths[0])
    say_next(f"scene-distill view {shown}", "look at it in a browser")
    return paths


def generate_shapes(options: Generate) -> list[Path]:
    """Objects of the small world."""
    import torch

    from scene_distill.data.shape_world import prompt_words
    from scene_distill.methods.mdt_dist.model import Walk

    if options.image:
        raise UserError("this model knows words, not pictures; name a folder of TRELLIS models, or give --prompt")
    words = prompt_words(options.prompt)
    model = find_model(options.model)
    role = None if options.network == "auto" else options.network
    student = model.student
    steps, guidance = options.steps or (1 if role == "teacher" else student.phases), options.guidance or 0.0
    walker = Walk(steps, role=role).network
    if walker == "student":
        check_student(student.phases, student.guided, steps, guidance)
    sampler = options.sampler
    if sampler == "auto":
        sampler = "renoise" if walker == "student" and student.phases == 1 else "euler"
    walk = Walk(steps, sampler, guidance, role=role)
    started = time.perf_counter()
    shapes = model.sample(torch.tensor([words] * options.count), walk, options.seed)
    flown = time.perf_counter()
    paths = [path for row in range(options.count) for path in write_shape(model, shapes, row, options)]
    evaluations = 2 * steps * (2 if guidance else 1)
    spent = f"{1000 * (flown - started):.0f} ms"
    walked = "1 step" if steps == 1 else f"{steps} {sampler} steps"
    say(f"{walker}, {walked} of two flows ({evaluations} evaluations): {spent}")
    say(f"decoding and files: {time.perf_counter() - flown:.2f} s")
    return paths


def check_student(phases: int, guided: bool, steps: int, guidance: float) -> None:
    """Refuse a walk that a student was not taught."""
    if steps % phases:
        raise UserError(f"--steps is {steps}; this student was distilled in {phases} phases and takes a multiple of it")
    if guidance and not guided:
        raise UserError("--guidance: this student did not keep it; take the teacher, or distil with --keep-guidance")


def find_model(path: Path | None) -> ShapeModel:
    """The model of a path, or the embedded one."""
    from scene_distill.methods.mdt_dist.model import ShapeModel

    if path is None:
        if not PACKAGED.exists():
            raise UserError("this installation has no embedded model; name one with --model, made by distill mdt")
        return ShapeModel.load(PACKAGED)
    return ShapeModel.load(path)


def write_shape(model: ShapeModel, shapes: Shapes, row: int, options: Generate) -> list[Path]:
    """An object's files and its preview from four sides."""
    from scene_distill.export.voxel_surface import mesh_of_voxels

    mesh = None
    if "glb" in options.format:
        index, distance, color = model.surface_of(shapes, row)
        mesh = mesh_of_voxels(shapes.grids[row].numpy(), index.numpy(), distance.numpy(), color.numpy())
    return write_object(mesh, model.splats_of(shapes, row), row, options)


def write_object(mesh: TriangleMesh | None, splats: Splats | None, row: int, options: Generate) -> list[Path]:
    """The files of object number ``row`` in the formats asked for; with Gaussians also a preview from four sides."""
    from scene_distill.export.mesh_files import write_mesh
    from scene_distill.export.metadata import SplatMetadata
    from scene_distill.export.ply import write_ply
    from scene_distill.training.prior_pictures import picture_grid, write_png
    from scene_distill.training.shape_pictures import splat_views

    said = options.prompt or options.image[0].stem
    name = "".join(c if c.isalnum() else "-" for c in said.lower())[:60]
    stem = f"{name}-{options.seed}-{row}"
    metadata = SplatMetadata(up=(0.0, 0.0, 1.0), source=f"scene-distill generate, {said!r}")
    paths = []
    if mesh is not None:
        paths.append(options.output_dir / f"{stem}.glb")
        write_mesh(mesh, paths[-1], metadata)
    if splats is not None:
        if "ply" in options.format:
            paths.append(options.output_dir / f"{stem}.ply")
            write_ply(splats, paths[-1], metadata)
        paths.append(options.output_dir / f"{stem}.png")
        write_png(paths[-1], picture_grid(splat_views(splats, 192), 4))
    return paths
