"""The small world's weights that come with the package: what a user gets who only types a prompt."""

import numpy as np
import pytest
import torch

from scene_distill.cli import main as cli
from scene_distill.cli.generate import PACKAGED, find_model
from scene_distill.core.cameras import Camera, look_at
from scene_distill.data.captioned_shapes import COLOR_NAMES, SHAPE_NAMES
from scene_distill.data.captioned_shapes_objects import COLORS
from scene_distill.data.captioned_shapes_renderer import encode_srgb
from scene_distill.data.shape_shards import ShapeSet, read_all, write_shards
from scene_distill.data.shape_world import prompt_words
from scene_distill.export.mesh_files import read_mesh
from scene_distill.methods.mdt_dist.model import Walk
from scene_distill.nets.surface_autoencoder import places
from scene_distill.training.shape_evaluation import overlap, recognised
from scene_distill.viewer.layers import Looked, draw
from scene_distill.viewer.sessions import open_session

ONE, MANY = Walk(1, role="student"), Walk(25, role="teacher")
EACH = 8


@pytest.fixture(scope="module")
def model():
    return find_model(None)


@pytest.fixture(scope="module")
def kinds():
    """Every kind by itself, `EACH` times."""
    return torch.tensor([prompt_words(f"a {name}") for name in SHAPE_NAMES for _ in range(EACH)])


def test_one_step_makes_objects_of_the_named_kind(model, kinds, tmp_path):
    held_out = ShapeSet("test", 10 * len(SHAPE_NAMES), 1, 0)
    write_shards(held_out, tmp_path)
    shard = read_all(held_out, tmp_path)
    grids = shard.grids(torch.arange(len(shard)))
    made = model.sample(kinds, ONE, seed=3).grids
    assert recognised(made, kinds[:, 0], grids, shard.words[:, 0].long()) >= 0.98
    assert recognised(made, kinds[:, 0].roll(EACH), grids, shard.words[:, 0].long()) < 0.05, "the figure tells kinds"


def test_one_step_lands_where_the_teacher_arrives_after_many(model, kinds):
    arrived = model.sample(kinds, MANY, seed=4).grids
    student = overlap(model.sample(kinds, ONE, seed=4).grids, arrived).mean()
    undistilled = overlap(model.sample(kinds, Walk(1, role="teacher"), seed=4).grids, arrived).mean()
    other_noise = overlap(model.sample(kinds, ONE, seed=5).grids, arrived).mean()
    assert student > 0.93 and student > undistilled + 0.02 and student > other_noise + 0.1


@pytest.mark.parametrize("color", ["red", "green", "blue", "yellow", "purple"])
def test_words_decide_the_colours_of_body_and_part(model, color):
    other = {"red": "white", "green": "red", "blue": "yellow", "yellow": "green", "purple": "orange"}[color]
    words = torch.tensor([prompt_words(f"a {color} table with {other} legs")] * 4)
    shapes = model.sample(words, ONE, seed=0)
    for row in range(len(words)):
        index, _, colors = model.surface_of(shapes, row)
        height = places(index, shapes.grids.shape[1])[:, 2]
        top, low = height >= height.max() - 1 / 32, height < height.min() + 5 / 32
        assert nearest(colors[top].median(0).values) == color
        assert nearest(colors[low].median(0).values) == other


def nearest(color):
    """The name of the world's colour, black and brown aside, whose hue is nearest to sRGB [3] under any light."""
    names = [name for name in COLOR_NAMES if name not in ("black", "brown")]
    known = torch.from_numpy(encode_srgb(np.array([COLORS[name] for name in names]))).float()
    hues = known / known.amax(1, keepdim=True)
    return names[int((hues - color / color.amax()).square().sum(1).argmin())]


def test_generate_without_a_model_takes_the_embedded_one(tmp_path, capsys):
    cli.main(["generate", "--prompt", "a yellow duck", "--output-dir", str(tmp_path), "--threads", "1"])
    assert "student, 1 step of two flows (2 evaluations)" in capsys.readouterr().out
    mesh, _ = read_mesh(tmp_path / "a-yellow-duck-0-0.glb")
    assert mesh.colors is not None and len(mesh) > 1000
    assert PACKAGED.stat().st_size < 10e6


@pytest.mark.parametrize("ending", ["ply", "glb"])
def test_what_was_generated_opens_in_the_viewer(tmp_path, ending):
    """From the front as from behind the picture shows a red object in the middle, and nothing at its border."""
    if ending == "glb":
        pytest.importorskip("open3d", reason="Open3D is not installed")
    cli.main(["generate", "a red car", "--format", ending, "--output-dir", str(tmp_path), "--threads", "1"])
    session = open_session(tmp_path / f"a-red-car-0-0.{ending}")
    for side in (1, -1):
        pose = look_at(np.array([1.8 * side, 0.6, 0.8]), np.zeros(3), np.array([0.0, 0.0, 1.0]))
        picture = draw("rgb", Looked(session.looking.scene, None, Camera(64, 64, 80.0, 80.0, 32.0, 32.0, pose))).image
        red = (picture[..., 0] > 0.25) & (picture[..., :3].amax(-1) == picture[..., 0]) & (picture[..., 1] < 0.2)
        assert float(red[16:48, 16:48].float().mean()) > 0.1 and not red[:4].any() and not red[-4:].any()
