"""How long a picture takes from a browser's request to its arrival, through the real server and a real socket.

Scene: 300,000 splats with the statistics of the rasterizer's benchmark (log-normal axes around 1.5 px, opacities in
[0.02, 0.97], all of them in view), as a .ply file. With --run also a trained run, at its training photos' cameras.
Per case 30 requests, each waited for: the minimum is what a shared machine disturbs least; beside it the median, the
mean CPU time of all threads (the client's too), which load disturbs little, and the load while it was measured. Written
to benchmarks/results/viewer_latency.json after every case.

    python benchmarks/viewer_latency.py [--run RUN]
"""

import argparse
import asyncio
import json
import os
import statistics
import struct
import tempfile
import time
from pathlib import Path

import torch
from websockets.asyncio.client import connect

from scene_distill.core.conventions import SH_C0
from scene_distill.core.files import read_json, write_json
from scene_distill.export.metadata import SplatMetadata
from scene_distill.export.ply import write_ply
from scene_distill.renderers import native
from scene_distill.renderers.benchmark import BenchCase, synthetic_gaussians
from scene_distill.representations.splats import Splats
from scene_distill.training.loop import use_native_threads
from scene_distill.viewer.access import Access
from scene_distill.viewer.server import ViewerServer
from scene_distill.viewer.sessions import Session, open_session

RESULTS = Path(__file__).parent / "results" / "viewer_latency.json"
SPLATS = 300_000
REQUESTS = 30
SIDES_PX = {"draft 256 px": (256, 70), "512 px": (512, 90), "1024 px": (1024, 90)}
LAYERS = ("rgb", "depth", "normals")


def splat_file(folder: Path) -> Path:
    case = BenchCase("viewer", 512, 512, SPLATS, 1.5)
    gaussians, _, _ = synthetic_gaussians(case)
    colors = ((gaussians.features - 0.5) / SH_C0)[:, None]
    logits = gaussians.opacities.logit()
    splats = Splats(gaussians.means, gaussians.scales.log(), gaussians.quats, logits, colors)
    path = folder / "benchmark.ply"
    write_ply(splats, path, SplatMetadata(unit="metre"))
    return path


def poses(session: Session) -> list[list[float]]:
    """Ten cameras: the benchmark's, moved by a little each time, or those of photos."""
    if session.frames:
        every = max(1, len(session.frames) // 10)
        return [frame.camera.cam_from_world.ravel().tolist() for frame in session.frames[::every]][:10]
    moved = []
    for index in range(10):
        pose = torch.eye(4)
        pose[0, 3] = 0.02 * index
        moved.append(pose.flatten().tolist())
    return moved


async def measured(session: Session, layer: str, side: int, quality: int) -> dict[str, float]:
    total, drawn, encoded, sizes = [], [], [], []
    server = ViewerServer(session, Access(""), Path("films"))
    async with server.running("127.0.0.1", 0) as listening:
        port = next(iter(listening.sockets)).getsockname()[1]
        async with connect(f"ws://127.0.0.1:{port}/ws", max_size=None, compression=None) as socket:
            cameras = poses(session)
            fov = 0.9273 if not session.frames else 1.0  # the benchmark's: focal length = width
            used = 0.0
            for number in range(REQUESTS + 2):
                pose = cameras[number % len(cameras)]
                camera = {"pose": pose, "fov": fov, "width": side, "height": side}
                request = {"type": "render", "id": number, "camera": camera, "layers": [layer], "quality": quality}
                started, before = time.perf_counter(), time.process_time()
                await socket.send(json.dumps(request))
                while not isinstance(data := await socket.recv(), bytes):
                    assert json.loads(data)["type"] != "refused", data
                if number >= 2:
                    total.append(1000 * (time.perf_counter() - started))
                    used += 1000 * (time.process_time() - before)
                    header = json.loads(data[4 : 4 + struct.unpack("<I", data[:4])[0]])
                    drawn.append(header["draw_ms"])
                    encoded.append(header["encode_ms"])
                    sizes.append(len(data))
    return {
        "best_ms": round(min(total), 1), "median_ms": round(statistics.median(total), 1),
        "cpu_ms": round(used / REQUESTS, 1), "best_draw_ms": round(min(drawn), 1),
        "best_encode_ms": round(min(encoded), 1), "mean_kilobytes": round(statistics.fmean(sizes) / 1000, 1),
        "load": round(os.getloadavg()[0], 1),
    }  # fmt: skip


def benchmark(name: str, session: Session) -> None:
    for layer in LAYERS:
        for label, (side, quality) in SIDES_PX.items():
            report = read_json(RESULTS) if RESULTS.exists() else {}
            report["threads"], report["kernels"] = native.get_threads(), native.load().isa
            scene = report.setdefault(name, {"primitives": len(session.looking.scene)})
            scene[f"{layer}, {label}"] = asyncio.run(measured(session, layer, side, quality))
            write_json(RESULTS, report)
            print(f"{name}: {layer}, {label}: {scene[f'{layer}, {label}']}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="a trained run to be measured too")
    arguments = parser.parse_args()
    use_native_threads(0)
    with tempfile.TemporaryDirectory() as folder:
        benchmark(f"{SPLATS // 1000}k splats", open_session(splat_file(Path(folder))))
    if arguments.run:
        benchmark("trained run", open_session(arguments.run))


if __name__ == "__main__":
    main()
