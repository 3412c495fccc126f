"""`scene-distill export RUN|FILE --format ply|compressed.ply|splat|spz|sog|glb|html|mesh-tsdf|points|...`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import tyro

from scene_distill.cli.export_geometry import FORMATS as GEOMETRY_FORMATS
from scene_distill.cli.export_geometry import MeshOptions, export_geometry
from scene_distill.core.console import progress, say, say_next
from scene_distill.core.errors import UserError

if TYPE_CHECKING:
    from scene_distill.cli.runs import OpenRun
    from scene_distill.export.formats import SplatFormat
    from scene_distill.export.metadata import SplatMetadata
    from scene_distill.export.round_trip import Pictures, Views
    from scene_distill.representations.splats import Splats
    from scene_distill.training.evaluation import BakeableScene


@dataclass(frozen=True)
class Export:
    """Write a run, or a splat file of any kind, as another kind of splat file, in world frame and scale: neural colours
    are baked to spherical harmonics, scenes that are splats go out as they are. Prints the file's size and what it has
    lost, as the PSNR of three views drawn from the file against the same views of the source."""

    source: tyro.conf.Positional[Path]
    """Run folder; or a .ply, .compressed.ply, .splat, .spz, .sog, .glb, .gltf or .html file, or a SOG folder."""
    format: tuple[str, ...] = ("ply",)
    """One or several of ply (the standard 3DGS file), compressed.ply (PlayCanvas), splat (32 bytes a splat, no
    view-dependent colour), spz (Niantic), sog and sog-folder (PlayCanvas, the smallest), glb and gltf
    (KHR_gaussian_splatting), html (a page with a viewer that needs no network); mesh-tsdf, mesh-poisson and
    mesh-density (meshes); points (a point cloud); cameras-colmap, cameras-colmap-text and cameras-nerfstudio."""
    output_dir: Path | None = None
    """Folder for the files; default: exports/ in the run folder, or the source file's folder."""
    spz_version: int = 3
    """Version of .spz files: 2, 3 or 4."""
    refine: int = 200
    """Steps that fit baked splats to the neural scene's renders; 0 leaves the plain bake."""
    data: Path | None = None
    """Data folder, when it has moved since training; for meshes and cameras of a file the posed photos it was made
    from."""
    mesh: MeshOptions = field(default_factory=MeshOptions)
    """Meshes and point clouds."""


def main(arguments: list[str]) -> None:
    """Bake or read, write the files, and measure what each costs."""
    options = tyro.cli(Export, args=arguments, prog="scene-distill export")
    from scene_distill.export.formats import named_format

    geometry = [name for name in dict.fromkeys(options.format) if name in GEOMETRY_FORMATS]
    formats = [named_format(name) for name in dict.fromkeys(options.format) if name not in geometry]
    if not formats + geometry:
        raise UserError("--format names no format; name one or several, such as ply spz html mesh-tsdf.")
    if geometry:
        files = export_geometry(options.source, geometry, options.output_dir, options.data, options.mesh)
        if not formats:
            say_next(f"ls -lh {files[0].parent}", "what was written")
            return
    if options.source.is_file() or (options.source / "meta.json").is_file():
        convert(options, formats)
    else:
        export_run(options, formats)


def export_run(options: Export, formats: list[SplatFormat]) -> None:
    """Write a run's splats, and measure the files against the run on its held-out views."""
    import torch

    from scene_distill.cli.runs import open_run
    from scene_distill.export.metadata import SplatMetadata
    from scene_distill.export.round_trip import chosen_views, pictures

    run = open_run(options.source, options.data)
    splats = bake(run, options.refine)
    world = replace(splats, means=splats.means + torch.as_tensor(run.trained.origin, dtype=torch.float32))
    frames = run.scene.test_frames or run.scene.frames
    views = chosen_views([run.images.camera(frame) for frame in frames], run.trained.origin)
    before = pictures(world, views)
    folder = options.output_dir or run.folder.path / "exports"
    for kind in formats:
        path = kind.path_in(folder, "scene")
        write(kind, world, path, SplatMetadata.of_scene(run.scene), options)
        say(measured(run, path))
        say(lost(path, before, views))
    say_next(f"scene-distill render {options.source} --views all", "pictures of every view")


def convert(options: Export, formats: list[SplatFormat]) -> None:
    """Write a splat file in other formats; the source is given up before the files are read back, so that two scenes
    are never in memory at once."""
    from scene_distill.export.formats import read_splats
    from scene_distill.export.round_trip import orbit_views, pictures
    from scene_distill.export.sog import META_NAME

    source = options.source / META_NAME if options.source.is_dir() else options.source
    splats, metadata = read_splats(source)
    if not metadata.source:
        metadata = replace(metadata, source=source.name)
    views = orbit_views(splats, metadata.up, metadata.antialiased)
    before = pictures(splats, views)
    stem = source.parent.name if source.name == META_NAME else source.name.split(".")[0]
    written = []
    for kind in formats:
        path = kind.path_in(options.output_dir or source.parent, stem)
        if path.exists() and path.samefile(source):
            raise UserError(f"{path} is the source itself; name another --output-dir or --format.")
        write(kind, splats, path, metadata, options)
        written.append(path)
    count = len(splats)
    del splats
    for path in written:
        say(f"{path}: {count} splats, {size_mb(path):.2f} MB")
        say(lost(path, before, views))
    say_next(f"scene-distill view {written[-1]}", "look at it in a browser")


def write(kind: SplatFormat, splats: Splats, path: Path, metadata: SplatMetadata, options: Export) -> None:
    """Write one file, .spz in the version that was asked for."""
    from scene_distill.export.spz import write_spz

    writer = partial(write_spz, version=options.spz_version) if kind.name == "spz" else kind.write
    with progress(f"writing {path.name}", 1) as meter:
        writer(splats, path, metadata)
        meter.update(1)


def lost(path: Path, before: Pictures, views: Views) -> str:
    """One line on what the views of a file have lost against the pictures of its source."""
    from scene_distill.export.formats import read_splats
    from scene_distill.export.round_trip import pictures, round_trip_psnr

    values = round_trip_psnr(before, pictures(read_splats(path)[0], views))
    each = ", ".join(f"{value:.2f}" for value in values)
    return f"round trip: PSNR {sum(values) / len(values):.2f} dB to the source (views: {each})"


def size_mb(path: Path) -> float:
    """Size of a file in MB; of all files beside it where it stands for a folder, of the buffer too where it has one."""
    from scene_distill.export.sog import META_NAME

    files = [path]
    if path.name == META_NAME:
        files = [file for file in path.parent.iterdir() if file.is_file()]
    elif path.suffix == ".gltf":
        files.append(path.with_suffix(".bin"))
    return sum(file.stat().st_size for file in files) / 1e6


def measured(run: OpenRun, path: Path) -> str:
    """What a splat file holds, and the PSNR it has lost against the run on the held-out views."""
    import torch

    from scene_distill.export import read_splats
    from scene_distill.export.bake import bake_report
    from scene_distill.renderers.splat import render

    origin = run.trained.origin
    splats = read_splats(path)[0]
    splats = replace(splats, means=splats.means - torch.as_tensor(origin, dtype=torch.float32))
    frames = run.scene.test_frames or run.scene.frames
    report = bake_report(
        lambda camera: run.trained.render(camera.moved(-origin)).image,
        lambda camera: render(splats, camera).image,
        [(run.images.camera(f).moved(origin), run.images.get(f).to(torch.float32) / 255.0) for f in frames],
    )
    return (
        f"{path}: {len(splats)} splats, {size_mb(path):.1f} MB\n"
        f"file: PSNR {report.neural_psnr:.2f} dB from the run, {report.baked_psnr:.2f} dB from the file "
        f"(loss {report.psnr_loss:.2f} dB) on {report.views} views; "
        f"file against run {report.baked_to_neural_psnr:.2f} dB"
    )


def bake(run: OpenRun, refine: int) -> Splats:
    """Splats of a run in its training frame, fitted to its renders for ``refine`` steps; as they are when the run
    already is splats."""
    from scene_distill.export.bake import bake_sh
    from scene_distill.export.refine import RefineSettings, refine_bake
    from scene_distill.training.evaluation import SplatScene

    if isinstance(run.trained, SplatScene):
        return run.trained.splats()
    trained = cast("BakeableScene", run.trained)
    cameras = [run.images.camera(frame).moved(trained.origin) for frame in run.scene.train_frames]
    with progress("baking", len(trained)) as meter:
        splats = bake_sh(trained.slots, trained.anchor_positions, cameras, report=lambda d, _: meter.update(d))
    if refine == 0:
        return splats
    with progress("refining", refine) as meter:
        return refine_bake(
            splats, cameras, lambda camera: trained.render(camera.moved(-trained.origin)).image,
            RefineSettings(steps=refine), report=lambda step, loss: meter.update(step, f"loss {loss:.4f}"),
        )  # fmt: skip
