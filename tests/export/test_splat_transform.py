"""PlayCanvas' own converter reads what we write, and we read what it writes.

It is an npm package; the folder with its node_modules is SCENE_DISTILL_NODE, or the repository:

    npm install --prefix FOLDER @playcanvas/splat-transform
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from splat_scenes import assert_close, likely_splats

from scene_distill.export.assembly import neighbour_order
from scene_distill.export.formats import named_format, read_splats, write_splats
from scene_distill.export.metadata import SplatMetadata
from scene_distill.export.ply import read_ply
from scene_distill.export.spz import write_spz

NODE = shutil.which("node")
PACKAGE = (
    Path(os.environ.get("SCENE_DISTILL_NODE", Path(__file__).parents[2])) / "node_modules/@playcanvas/splat-transform"
)
pytestmark = [
    pytest.mark.skipif(NODE is None, reason="node is not installed"),
    pytest.mark.skipif(not PACKAGE.is_dir(), reason="npm package @playcanvas/splat-transform is not installed"),
]


def transformed(source, target):
    command = [NODE, str(PACKAGE / "bin" / "cli.mjs"), "-w", str(source), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return target


def by_their_place(splats):
    return splats.select(neighbour_order(splats.means))


SAME = {"log_scales": 1e-5, "opacities": 2e-3, "colors": 1e-5, "sh": 2e-3, "turn": 3e-3}


@pytest.mark.parametrize("name", ["ply", "compressed.ply", "splat", "sog", "sog-folder", "spz2", "spz3", "spz4"])
def test_it_reads_the_same_splats_from_our_files_as_we_do(tmp_path, name):
    splats = likely_splats(400, 1 if name == "splat" else 16)
    metadata = SplatMetadata(unit="metre", up=(0.0, 0.0, 1.0), source="town")
    if name.startswith("spz"):
        path = tmp_path / "scene.spz"
        write_spz(splats, path, metadata, int(name[3:]))
    else:
        path = named_format(name).path_in(tmp_path, "scene")
        path.parent.mkdir(exist_ok=True)
        named_format(name).write(splats, path, metadata)
    theirs, _ = read_ply(transformed(path, tmp_path / "theirs.ply"))
    ours, _ = read_splats(path)
    assert_close(
        theirs, ours, means=1e-5, **{**SAME, "turn": 0.02 if name == "splat" else 3e-3}
    )  # it rounds bytes otherwise


@pytest.mark.parametrize("name", ["compressed.ply", "spz", "sog", "glb"])
def test_we_read_what_it_writes(tmp_path, name):
    splats = likely_splats(400, 1 if name == "sog" else 9)  # its palettes need a GPU
    write_splats(splats, tmp_path / "scene.ply", SplatMetadata())
    found, _ = read_splats(transformed(tmp_path / "scene.ply", tmp_path / f"theirs.{name}"))
    if name == "glb":  # it turns half way round z
        assert torch.allclose(found.means, splats.means * torch.tensor([-1.0, -1.0, 1.0]), atol=1e-5)
        assert (found.log_scales - splats.log_scales).abs().max() < 1e-4
        return
    distances = torch.cdist(found.means, splats.means)
    assert len(found) == 400 and distances.amin(1).max() < 0.02
    nearest = distances.argmin(1)
    assert len(set(nearest.tolist())) > 390
    assert (found.sh[:, 0] - splats.sh[nearest, 0]).abs().median() < 0.03
    assert (found.log_scales - splats.log_scales[nearest]).abs().median() < 0.03
