"""Where figures come from: the code, the data, the seed and settings, the machine and the time."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

import scene_distill
from scene_distill.core.configs import RunConfig, to_plain
from scene_distill.core.errors import UserError
from scene_distill.data.scene import Scene
from scene_distill.renderers import native

ENDS_BYTES = 65_536
"""Of every photo file the first and last so many bytes are hashed, with its size: a terabyte of photos must not be read
twice for the sake of a report."""


def made_by() -> dict[str, Any]:
    """code, machine and time (now, UTC) of what this process makes."""
    return {"code": code_version(), "machine": machine(), "time": datetime.now(UTC).isoformat(timespec="seconds")}


def provenance(method: str, config: RunConfig, scene: Scene) -> dict[str, Any]:
    """code, data, method, seed, config, machine and time as JSON values."""
    return made_by() | {
        "data": {
            "root": str(scene.root), "source": str(scene.metadata.get("source", "unknown")),
            "photos": len(scene.frames), "points": len(scene.points), "sha256": data_sha256(scene),
            "hashed": f"names, cameras, split, points, and size and both {ENDS_BYTES} byte ends of every photo file",
        },
        "method": method,
        "seed": config.seed,
        "config": to_plain(config),
    }  # fmt: skip


def code_version() -> dict[str, Any]:
    """version, source_sha256 (of all Python files of the package, names and bytes), and of a git checkout commit and
    whether files of the package were changed since."""
    package = Path(scene_distill.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    found: dict[str, Any] = {"version": scene_distill.__version__, "source_sha256": digest.hexdigest()}
    commit = _git(package, "rev-parse", "HEAD")
    if commit and _git(package, "ls-files", "__init__.py"):
        found |= {"commit": commit, "changed_since": bool(_git(package, "status", "--porcelain", "--", "."))}
    return found


def _git(folder: Path, *arguments: str) -> str:
    """What git says, empty where there is no git or no repository."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def data_sha256(scene: Scene) -> str:
    """A hash of what the scene trains on and is measured on; the folder's place does not matter, nor does anything that
    loading does not use. Raises `UserError` when a photo cannot be read."""
    digest = hashlib.sha256()
    for frame in scene.frames:
        camera = frame.camera
        numbers = [camera.width, camera.height, camera.fx, camera.fy, camera.cx, camera.cy]
        digest.update(f"{frame.name}\0{frame.name in scene.test}\0".encode())
        digest.update(np.array(numbers, "<f8").tobytes() + camera.cam_from_world.astype("<f8").tobytes())
        digest.update(_ends(frame.path))
    digest.update(scene.points.astype("<f8").tobytes() + scene.colors.tobytes())
    return digest.hexdigest()


def _ends(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            first = file.read(ENDS_BYTES)
            file.seek(max(size - ENDS_BYTES, 0))
            return size.to_bytes(8, "little") + first + file.read(ENDS_BYTES)
    except OSError as error:
        raise UserError(f"cannot read the photo {path}: {error.strerror}") from error


def machine() -> dict[str, Any]:
    """Processor, cores that may be used, memory, GPU, system, and the versions that figures depend on."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {
        "processor": _processor(), "cores": cores, "memory_bytes": memory_bytes, "gpu": gpu,
        "kernels": native.load().isa, "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(), "torch": torch.__version__, "numpy": version("numpy"),
    }  # fmt: skip


def _processor() -> str:
    """The processor's name as Linux tells it, else its architecture."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
