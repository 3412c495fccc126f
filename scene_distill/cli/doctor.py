"""`scene-distill doctor [--data DIR]`."""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import tyro

from scene_distill.core.console import progress, say, say_next
from scene_distill.core.memory import format_bytes


@dataclass(frozen=True)
class Doctor:
    """Check this machine and, with --data, a data folder, before anything is trained."""

    data: Path | None = None
    """COLMAP folder, transforms.json (or its folder), or a folder of photos."""
    json: Path | None = None
    """Also write what was found about the data to this file."""


def main(arguments: list[str]) -> None:
    """Print facts about the machine and the data, and what deserves a look."""
    options = tyro.cli(Doctor, args=arguments, prog="scene-distill doctor")
    for line in machine():
        say(line)
    if options.data is None:
        say_next("scene-distill doctor --data DIR", "check a data folder too")
        return
    from scene_distill.core.files import write_json
    from scene_distill.data.doctor import diagnose
    from scene_distill.data.load import load_scene

    with progress("reading", 100) as meter:
        scene = load_scene(
            options.data, progress=lambda stage, done, total: meter.update(100 * done // max(total, 1), stage)
        )
    diagnosis = diagnose(scene)
    for line in diagnosis.lines():
        say(line)
    if options.json:
        write_json(options.json, diagnosis.to_dict())
    say_next(f"scene-distill train momentum-gs --data {options.data} --dry-run", "blocks, memory and time of a run")


def machine() -> list[str]:
    """Facts about this machine, one line each; a problem starts with '!'."""
    import torch

    from scene_distill.core.errors import UserError
    from scene_distill.renderers import native

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    lines = [
        f"machine    {platform.machine()}, {cores} cores, {format_bytes(pages)} of memory",
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
