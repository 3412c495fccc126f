"""`scene-distill export RUN|FILE --format ply|compressed.ply|splat|spz|sog|glb|html|mesh-tsdf|points|...`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import tyro

from scene_distill.cli.export_geometry import FORMATS as GEOMETRY_FORMATS
from scene_distill.cli.export_geometry import MeshOptions, check_mesh_options, export_geometry, geometry_folder
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
    lost: of a run on its held-out views, of a file as the PSNR of three views drawn from both."""

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
    """Bake or read, write the files, and measure what each costs. What can be refused is refused before the work."""
    options = tyro.cli(Export, args=arguments, prog="scene-distill export")
    from scene_distill.export.formats import named_format

    geometry = [name for name in dict.fromkeys(options.format) if name in GEOMETRY_FORMATS]
    splat_names = [name for name in dict.fromkeys(options.format) if name not in geometry]
    formats = [named_format(name, GEOMETRY_FORMATS) for name in splat_names]
    if not formats + geometry:
        raise UserError("--format names no format; name one or several, such as ply spz html mesh-tsdf.")
    targets = check(options, formats, geometry)
    if geometry:
        files = export_geometry(options.source, geometry, options.output_dir, options.data, options.mesh)
        if not formats:
            say_next(f"ls -lh {files[0].parent}", "what was written")
            return
    if splat_file(options.source) is None:
        export_run(options, targets)
    else:
        convert(options, targets)


def check(options: Export, formats: Sequence[SplatFormat], geometry: Sequence[str]) -> dict[Path, SplatFormat]:
    """The splat files to write and their formats; raises `UserError` for whatever cannot be done."""
    from scene_distill.core.files import check_folder_writable, check_writable
    from scene_distill.export.sog import META_NAME
    from scene_distill.export.spz import check_version
    from scene_distill.training.run_folder import RunFolder

    if not options.source.exists():
        raise UserError(f"{options.source} does not exist; give a run folder or a splat file")
    check_version(options.spz_version)
    if options.refine < 0:
        raise UserError(f"--refine {options.refine} is negative; 0 leaves the plain bake")
    check_mesh_options(geometry, options.mesh)
    source = splat_file(options.source)
    if source is None:
        RunFolder(options.source).method()
        folder, stem = options.output_dir or options.source / "exports", "scene"
    else:
        folder = options.output_dir or source.parent
        stem = source.parent.name if source.name == META_NAME else source.name.split(".")[0]
    targets = {kind.path_in(folder, stem): kind for kind in formats}
    for path in targets:
        check_writable(path)
        if source is not None and path.exists() and path.samefile(source):
            raise UserError(f"{path} is the source itself; name another --output-dir or --format.")
    if geometry:
        check_folder_writable(geometry_folder(options.source, options.output_dir))
    return targets


def splat_file(source: Path) -> Path | None:
    """The file that stands for a source of splats: itself, or the meta.json of a SOG folder; None for a run folder."""
    from scene_distill.export.sog import META_NAME

    if source.is_file():
        return source
    return source / META_NAME if (source / META_NAME).is_file() else None


def export_run(options: Export, targets: Mapping[Path, SplatFormat]) -> None:
    """Write a run's splats, and measure the files against the run on its held-out views."""
    import torch

    from scene_distill.cli.runs import data_flag, open_run
    from scene_distill.export.metadata import SplatMetadata

    run = open_run(options.source, options.data)
    splats = bake(run, options.refine)
    world = replace(splats, means=splats.means + torch.as_tensor(run.trained.origin, dtype=torch.float32))
    for path, kind in targets.items():
        write(kind, world, path, SplatMetadata.of_scene(run.scene), options)
        say(measured(run, path))
    say_next(f"scene-distill render {options.source} --views all{data_flag(options.data)}", "pictures of every view")


def convert(options: Export, targets: Mapping[Path, SplatFormat]) -> None:
    """Write a splat file in other formats; the source is given up before the files are read back, so that two scenes
    are never in memory at once."""
    from scene_distill.export.formats import read_splats
    from scene_distill.export.round_trip import orbit_views, pictures

    source = splat_file(options.source)
    assert source is not None
    splats, metadata = read_splats(source)
    if not metadata.source:
        metadata = replace(metadata, source=source.name)
    views = orbit_views(splats, metadata.up, metadata.antialiased)
    before = pictures(splats, views)
    for path, kind in targets.items():
        write(kind, splats, path, metadata, options)
    count = len(splats)
    del splats
    for path in targets:
        say(f"{path}: {count} splats, {size_mb(path):.2f} MB")
        say(lost(path, before, views))
    say_next(f"scene-distill view {path}", "look at it in a browser")


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
    mean = sum(values) / len(values)
    return f"round trip: PSNR {mean:.2f} dB of the file against its source, drawn from {len(values)} views ({each})"


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
    """What a splat file holds; what it has lost against the run on the held-out views, each against its photo; and how
    near its pictures of these views are to the run's."""
    import torch

    from scene_distill.export import read_splats
    from scene_distill.export.bake import bake_report
    from scene_distill.renderers.splat import render
    from scene_distill.training.evaluation import SplatScene

    origin = run.trained.origin
    splats = read_splats(path)[0]
    splats = replace(splats, means=splats.means - torch.as_tensor(origin, dtype=torch.float32))
    frames = run.scene.test_frames or run.scene.frames
    report = bake_report(
        lambda camera: run.trained.render(camera.moved(-origin)).image,
        lambda camera: render(splats, camera).image,
        [(run.images.camera(f).moved(origin), run.images.get(f).to(torch.float32) / 255.0) for f in frames],
    )
    views = f"{report.views} {'held-out' if run.scene.test_frames else 'training'} views"
    loss = round(report.psnr_loss, 2) + 0.0  # + 0.0: no -0.00
    changed = "the format" if isinstance(run.trained, SplatScene) else "baking and the format"
    return (
        f"{path}: {len(splats)} splats, {size_mb(path):.1f} MB\n"
        f"against the photos of {views}: PSNR {report.neural_psnr:.2f} dB from the run, "
        f"{report.baked_psnr:.2f} dB from the file (loss {loss:.2f} dB)\n"
        f"against the run's pictures of these views: PSNR {report.baked_to_neural_psnr:.2f} dB from the file, "
        f"which is what {changed} changed"
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
