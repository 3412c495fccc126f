"""`scene-distill doctor [--data DIR] [--output FILE.html]`."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from scene_distill.core.console import progress, say, say_next
from scene_distill.core.errors import UserError
from scene_distill.core.memory import format_bytes

if TYPE_CHECKING:
    from scene_distill.export.report_doctor import Expected


@dataclass(frozen=True)
class Doctor:
    """Check this machine and, with --data, a data folder, before anything is trained."""

    data: Path | None = None
    """COLMAP folder, transforms.json (or its folder), or a folder of photos."""
    output: Path | None = None
    """Also write a page with pictures about the data to this .html file; it opens offline."""
    json: Path | None = None
    """Also write what was found about the data to this file."""
    photos: int = 40
    """Photos whose pixels are looked at, spread over the set; 0 looks at all."""
    method: str = "momentum-gs"
    """Method whose blocks, memory and time are estimated, with its default settings."""
    quick: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Leave that estimate out: it makes a few training steps."""


def main(arguments: list[str]) -> None:
    """Print facts about the machine and the data, and what deserves a look."""
    options = tyro.cli(Doctor, args=arguments, prog="scene-distill doctor")
    for line in machine():
        say(line)
    if options.data is None:
        if options.output or options.json:
            raise UserError("--output and --json are about a data folder; name one with --data")
        say_next("scene-distill doctor --data DIR", "check a data folder too")
        return
    from scene_distill.core.files import check_writable, write_json
    from scene_distill.data.doctor import examine
    from scene_distill.data.load import load_scene
    from scene_distill.methods import find_method

    find_method(options.method)
    if options.photos < 0:
        raise UserError(f"--photos {options.photos} is negative; 0 looks at all photos")
    for path in (options.output, options.json):
        if path:
            check_writable(path)

    with progress("reading", 100) as meter:
        scene = load_scene(
            options.data, progress=lambda stage, done, total: meter.update(100 * done // max(total, 1), stage)
        )
    diagnosis, looks = examine(scene, options.photos)
    for line in diagnosis.lines():
        say(line)
    expected = None if options.quick else expectation(options.data, options.method)
    if expected is not None:
        say(f"a run of {expected.method}:\n{expected.plan}")
    if options.json:
        write_json(options.json, diagnosis.to_dict() | ({"plan": expected.plan} if expected else {}))
    if options.output:
        from scene_distill.export.report_doctor import write_doctor_page

        write_doctor_page(options.output, scene, diagnosis, looks, machine(), expected)
        say(f"{options.output}: {options.output.stat().st_size / 1e6:.1f} MB, one file")
    say_next(f"scene-distill train momentum-gs --data {options.data} --dry-run", "blocks, memory and time of a run")


def expectation(data: Path, method: str) -> Expected:
    """Blocks, memory and time of a run with the method's default settings, from a few steps made now."""
    from scene_distill.export.report_doctor import Expected
    from scene_distill.methods import find_method
    from scene_distill.training.estimates import plan_text
    from scene_distill.training.loop import prepare

    entry = find_method(method)
    training = prepare(entry.name, replace(entry.config(), data=data, dry_run=True), entry.build)
    owners = training.method.blocks.partition.owner(training.scene.points)
    return Expected(method, plan_text(training), owners)


def machine() -> list[str]:
    """Facts about this machine, one line each; a problem starts with '!'."""
    import torch

    from scene_distill.renderers import native

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    lines = [
        f"machine    {platform.machine()}, {cores} core{'s' * (cores != 1)}, {format_bytes(pages)} of memory",
        f"python     {platform.python_version()}, torch {torch.__version__}, numpy {version('numpy')}",
    ]
    try:
        lines.append(f"kernels    native CPU library, {native.load().isa} instructions, {native.get_threads()} threads")
    except UserError as error:
        lines.append(f"! kernels  {error}")
    if torch.cuda.is_available():
        lines.append(f"GPU        {torch.cuda.get_device_name(0)}")
    else:
        compiler = "nvcc is here" if shutil.which("nvcc") else "no nvcc"
        lines.append(f"GPU        none ({compiler}); everything runs on the CPU")
    for package, what in (("nerfstudio", "ns-train, ns-viewer"), ("pycolmap", "photos without poses")):
        try:
            lines.append(f"{package:<10} {version(package)} ({what})")
        except PackageNotFoundError:
            lines.append(f"! {package} is not installed ({what} will not work)")
    return lines
