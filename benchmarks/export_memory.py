"""Peak memory of an export against the format: a scene of two million splats of degree 3, above an idle process.

    python benchmarks/export_memory.py [--splats 2000000] [--formats ply spz ...]

Every format is one `scene-distill export` of a .ply: read, draw three views, write, read back, draw again. The idle
process has imported the same modules. Figures go to benchmarks/results/export_memory.json after every run; a campaign
that was stopped continues there.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from campaign import ROOT, Campaign

IDLE = (
    "import scene_distill.cli.export, scene_distill.export.formats, scene_distill.export.round_trip, PIL.Image,"
    " zstandard, torch; from scene_distill.core.cameras import Camera; import numpy as np;"
    " from scene_distill.renderers.splat import render; from scene_distill.representations.splats import Splats;"
    " render(Splats.from_points(np.random.rand(9, 3), np.zeros((9, 3), np.uint8)), Camera(640, 480, 600, 600, 320, 240,"
    " np.eye(4)))"
)
FORMATS = ("ply", "compressed.ply", "splat", "spz2", "spz", "spz4", "sog", "sog-folder", "glb", "gltf", "html")
LIMIT_BYTES = 1_000_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--splats", type=int, default=2_000_000)
    parser.add_argument("--formats", nargs="+", default=FORMATS, choices=FORMATS)
    parser.add_argument("--place", type=Path, default=ROOT / "outputs" / "export_memory")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    campaign = Campaign(options.results / "export_memory.json")
    source = made_scene(options.place, options.splats)
    idle, _ = peak([sys.executable, "-c", IDLE])
    for name in options.formats:
        key = f"{name} of {options.splats} splats"
        if key not in campaign.results:
            campaign.keep(key, measured(source, name, idle, options.place))
        row = campaign.results[key]
        print(f"{name}: peak {row['above_idle_bytes'] / 1e6:.0f} MB above idle, {row['file_bytes'] / 1e6:.0f} MB file, "
              f"{row['seconds']:.0f} s, {row['round_trip']}", flush=True)  # fmt: skip
        if row["above_idle_bytes"] > LIMIT_BYTES:
            sys.exit(f"{name} needs more than {LIMIT_BYTES / 1e6:.0f} MB above an idle process")


def made_scene(place: Path, count: int) -> Path:
    """A .ply of splats in clumps, as in a real scene: near ones look alike."""
    path = place / f"clumps-{count}.ply"
    if path.exists():
        return path
    code = (
        "import sys, torch; from pathlib import Path; from scene_distill.export.assembly import *;"
        " from scene_distill.export import write_splats; from scene_distill.export.metadata import SplatMetadata;"
        " count = int(sys.argv[1]); s = empty_splats(count, 16); torch.manual_seed(0);"
        " clumps = 100 * torch.rand(500, 3);"
        " shades = torch.randn(500, 16, 3) * torch.tensor([1.] + 15 * [.15])[:, None]\n"
        "for rows in row_slices(count):\n"
        "    n = rows.stop - rows.start; own = torch.randint(500, (n,))\n"
        "    s.means[rows] = clumps[own] + 2 * torch.randn(n, 3)\n"
        "    s.log_scales[rows] = torch.randn(n, 3) * .5 - 3\n"
        "    s.quats[rows] = torch.randn(n, 4); s.opacity_logits[rows] = 2 * torch.randn(n)\n"
        "    s.sh[rows] = shades[own] + .05 * torch.randn(n, 16, 3)\n"
        "write_splats(s, Path(sys.argv[2]), SplatMetadata(unit='metre', up=(0., 0., 1.), source='clumps'))\n"
    )
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, "-c", code, str(count), str(path)], check=True)
    return path


def measured(source: Path, name: str, idle: int, place: Path) -> dict:
    kind, version = ("spz", name[3:] or "3") if name.startswith("spz") else (name, "3")
    folder = place / "written"
    command = [sys.executable, "-m", "scene_distill", "export", str(source), "--format", kind]
    command += ["--spz-version", version, "--output-dir", str(folder)]
    started = time.monotonic()
    most, told = peak(command)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    for file in sorted(folder.rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    lines = [line for line in told.splitlines() if line.startswith("round trip")]
    return {
        "above_idle_bytes": most - idle, "idle_bytes": idle, "file_bytes": size,
        "seconds": round(time.monotonic() - started, 1), "round_trip": lines[0] if lines else "",
    }  # fmt: skip


def peak(command: list[str]) -> tuple[int, str]:
    """Largest resident memory of a command that ends well, and what it printed."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment)
    assert process.stdout is not None
    told = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} ended with {process.returncode}\n{told}")
    return usage.ru_maxrss * 1024, told


if __name__ == "__main__":
    main()
