"""A small trained run and a splat file for the viewer's tests, made once."""

from pathlib import Path

import pytest
from running_viewer import train

from scene_distill.data.load import load_scene
from scene_distill.data.procedural_city import load_recipe, make_city
from scene_distill.export.metadata import SplatMetadata
from scene_distill.export.ply import write_ply
from scene_distill.methods.momentum_gs.config import MomentumGSConfig
from scene_distill.representations.splats import Splats


@pytest.fixture(scope="session")
def town(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("viewer-data") / "town"
    make_city(load_recipe("city_test"), folder, lambda stage, done, total: None)
    return folder


@pytest.fixture(scope="session")
def town_config(town) -> MomentumGSConfig:
    """Two blocks, six rounds."""
    return MomentumGSConfig(
        data=town, blocks=2, lanes=2, iterations=24, visits=6, image_width=96, seed=3, points_per_voxel=1.0
    )


@pytest.fixture(scope="session")
def town_run(town_config, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("viewer-runs") / "town-run"
    train(town_config, folder)
    return folder


@pytest.fixture(scope="session")
def splat_file(town, tmp_path_factory) -> Path:
    scene = load_scene(town)
    path = tmp_path_factory.mktemp("viewer-files") / "town.ply"
    write_ply(Splats.from_points(scene.points, scene.colors), path, SplatMetadata.of_scene(scene))
    return path
