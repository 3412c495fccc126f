"""The procedural city: same seed same bytes, exact geometry, honest tracks, enough detail, equal blocks."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("embreex", reason="the procedural city needs embreex (pip install 'scene-distill[city]')")

from scene_distill.core.cameras import Camera, look_at
from scene_distill.core.errors import UserError
from scene_distill.data.city_ground import StreetPlan
from scene_distill.data.city_layout import BLOCK_KINDS, build_city
from scene_distill.data.city_mesh import Kind
from scene_distill.data.city_noise import Noise, band, stripes
from scene_distill.data.city_renderer import CityRenderer, develop
from scene_distill.data.city_survey import Flight, fly, unproject
from scene_distill.data.colmap import read_model
from scene_distill.data.load import load_scene
from scene_distill.data.procedural_city import CityConfig, load_recipe, make_city, read_depth, shrunk_psnr


@pytest.fixture(scope="module")
def config():
    return load_recipe("city_test")


@pytest.fixture(scope="module")
def root(config, tmp_path_factory):
    return make_city(config, tmp_path_factory.mktemp("city") / "hamlet")


@pytest.fixture(scope="module")
def scene(root):
    return load_scene(root)


@pytest.fixture(scope="module")
def renderer(config):
    city = build_city(
        config.seed,
        (config.blocks_x, config.blocks_y),
        config.block_size,
        (config.building_height_min, config.building_height_max),
    )
    return CityRenderer(city, config.seed, (config.sun_azimuth, config.sun_elevation))


def bytes_below(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_recipe_makes_the_same_bytes_twice_and_is_made_once(config, root, tmp_path):
    made = []
    small = dataclasses.replace(config, blocks_x=1, blocks_y=1, width=64, height=48, points_per_block=50)
    first = make_city(small, tmp_path / "a", lambda stage, done, total: made.append(stage))
    again = make_city(small, tmp_path / "b")
    assert bytes_below(first) == bytes_below(again)
    count = len(made)
    make_city(small, tmp_path / "a", lambda stage, done, total: made.append(stage))
    assert count > 0 and len(made) == count
    make_city(dataclasses.replace(small, seed=8), tmp_path / "a")
    assert bytes_below(first)["images/b00x00_nadir_00.jpg"] != bytes_below(again)["images/b00x00_nadir_00.jpg"]


def test_the_folder_reads_as_a_scene_with_metric_frame_and_equal_photos_per_block(config, scene):
    assert len(scene.frames) == config.photos_per_block * config.blocks_x * config.blocks_y == 24
    assert not scene.skipped
    assert len(scene.test_frames) == 3
    assert scene.metadata["unit"] == "metre"
    np.testing.assert_allclose(scene.up, [0, 0, 1])
    assert len(scene.points) >= 0.8 * config.points_per_block * config.blocks_x * config.blocks_y
    assert np.bincount([len(frame.seen) > 100 for frame in scene.frames], minlength=2)[1] == 24


def test_depth_of_one_view_reprojects_onto_the_depth_of_another(root, scene):
    """Unproject A, project into B: nothing may lie in front of B's own surface; most of it is that surface."""
    by_name = {frame.name: frame.camera for frame in scene.frames}
    first, second = by_name["b00x00_nadir_00.jpg"], by_name["b00x00_nadir_01.jpg"]
    depth, other = read_depth(root, "b00x00_nadir_00"), read_depth(root, "b00x00_nadir_01")
    rows, columns = (axis.ravel() + 0.5 for axis in np.indices(depth.shape))
    pixels, expected = second.project(unproject(first, columns, rows, depth.ravel()))
    inside = (pixels >= 1).all(axis=1) & (pixels < [second.width - 1, second.height - 1]).all(axis=1)
    assert inside.mean() > 0.3
    column, row = np.floor(pixels[inside]).astype(int).T
    near = np.stack([other[row + a, column + b] for a in (-1, 0, 1) for b in (-1, 0, 1)])
    error = np.abs(other[row, column] - expected[inside])
    assert np.median(error) < 0.05
    assert (expected[inside] >= near.min(axis=0) - 0.1).mean() > 0.99
    assert (error < 0.5).mean() > 0.6


def test_depth_is_the_nearest_triangle_along_the_ray(renderer):
    """Against Moeller-Trumbore in float64 over every triangle."""
    mesh = renderer.city.mesh
    camera = Camera(8, 4, 6.0, 6.0, 4.0, 2.0, look_at(np.array([20.0, -55, 60]), np.zeros(3), np.array([0, 0, 1.0])))
    rows, columns = (axis.ravel() + 0.5 for axis in np.indices((4, 8)))
    a, b, c = np.moveaxis(mesh.vertices[mesh.faces].astype(float), 1, 0)
    edge1, edge2 = b - a, c - a
    expected = []
    for ray in unproject(camera, columns, rows, np.ones(32)) - camera.center:
        across = np.cross(ray, edge2)
        with np.errstate(divide="ignore", invalid="ignore"):
            scale = 1 / np.einsum("fi,fi->f", edge1, across)
            from_a = camera.center - a
            u = np.einsum("fi,fi->f", from_a, across) * scale
            side = np.cross(from_a, edge1)
            v, depth = side @ ray * scale, np.einsum("fi,fi->f", edge2, side) * scale
            hit = (u >= 0) & (v >= 0) & (u + v <= 1) & (depth > 0)
        expected.append(depth[hit].min(initial=np.inf))
    np.testing.assert_allclose(renderer.depth(camera).ravel(), expected, rtol=1e-5)


def test_tracks_are_exactly_the_visible_and_land_on_their_colour(root, scene, renderer):
    model = read_model(root / "sparse" / "0")
    points = model.points
    assert (np.diff(points.offsets) >= 2).all()
    errors, far = [], 0
    for image, frame in zip(model.images, scene.frames, strict=True):
        row = image.point_ids - 1
        pixels, depth = frame.camera.project(points.xyz[row])
        errors.append(np.linalg.norm(pixels - image.points2d, axis=1))
        column, line = np.clip(np.floor(pixels).astype(int), 0, [frame.camera.width - 1, frame.camera.height - 1]).T
        surface = read_depth(root, frame.name[:-4])
        window = [
            surface[np.clip(line + a, 0, 119), np.clip(column + b, 0, 159)] for a in (-1, 0, 1) for b in (-1, 0, 1)
        ]
        far += int((depth > np.max(window, axis=0) + 0.6).sum())
    assert np.concatenate(errors).max() < 2.0 and np.concatenate(errors).mean() < 0.8
    assert far <= 0.01 * len(points.track_images)
    hidden = points.xyz - [0, 0, 3.0]
    ground = points.xyz[:, 2] < 1.0
    assert not renderer.visible(scene.frames[0].camera, hidden[ground]).any()


def test_points_have_the_colour_of_the_photos_that_see_them(root, scene):
    differences = []
    for frame in scene.frames[::5]:
        photo = np.asarray(Image.open(frame.path)).astype(float)
        column, line = np.floor(frame.camera.project(scene.points[frame.seen])[0]).astype(int).T
        inside = (column >= 0) & (column < frame.camera.width) & (line >= 0) & (line < frame.camera.height)
        differences.append(np.abs(photo[line[inside], column[inside]] - scene.colors[frame.seen][inside]).mean(axis=1))
    matched = np.median(np.concatenate(differences))
    shuffled = np.median(np.abs(np.diff(scene.colors[::7].astype(float), axis=0)).mean(axis=1))
    assert matched < 22 and matched < 0.5 * shuffled


def test_surfaces_look_the_same_from_everywhere(renderer):
    """Lambertian and free of per-view noise: the same patch of street from two sides differs only by sampling."""
    target = np.array([0.0, 9.0, 0.0])
    colors = []
    for offset in ([0, -6, 40], [5, 8, 40]):
        camera = Camera(5, 5, 200.0, 200.0, 2.5, 2.5, look_at(target + offset, target, np.array([0, 0, 1.0])))
        colors.append(renderer.photo(camera).reshape(-1, 3).mean(axis=0))
    np.testing.assert_allclose(colors[0], colors[1], atol=4)


def test_photos_are_sharp_and_well_exposed(root):
    photos = [np.asarray(Image.open(path)) for path in sorted((root / "images").iterdir())]
    assert np.mean([shrunk_psnr(photo) for photo in photos]) <= 26
    assert 80 < np.mean(photos) < 160
    assert np.mean(np.array(photos) >= 252) < 0.01
    assert shrunk_psnr(np.full((64, 64, 3), 90, np.uint8)) > 60


def test_a_city_grows_by_equal_blocks():
    recipe = load_recipe("city_growing")
    flight = Flight(recipe.nadir_side, recipe.obliques, recipe.altitude, recipe.oblique_pitch, 320, 240, recipe.focal)
    sizes = []
    for columns in (1, 2, 4, 8):
        ground = np.zeros((columns, recipe.blocks_y), np.int8)
        plan = StreetPlan(columns, recipe.blocks_y, recipe.block_size, 5.0, 2.6, ground)
        stems = list(fly(plan, flight, recipe.seed))
        blocks = {}
        for stem in stems:
            blocks.setdefault(stem.split("_")[0], []).append(stem)
        assert len(blocks) == columns * recipe.blocks_y
        assert {len(photos) for photos in blocks.values()} == {recipe.photos_per_block}
        sizes.append(plan.half_size[0])
    np.testing.assert_allclose(np.diff(np.log2(sizes)), 1)


def test_every_kind_of_block_is_built_and_normals_point_outwards():
    city = build_city(3, (3, 2), 60.0, (7.0, 27.0))
    assert {kind for column in city.kinds for kind in column} == set(BLOCK_KINDS)
    corners = city.mesh.vertices[city.mesh.faces].astype(float)
    painted = city.mesh.kinds[city.mesh.face_surface]
    flat = (np.abs(city.mesh.normals[:, 2]) > 0.999) & (painted != Kind.FOLIAGE)
    assert (city.mesh.normals[flat, 2] > 0).all()
    assert np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1).min() > 1e-6
    assert corners[..., 2].min() > -0.3 and corners[..., 2].max() < 36


def test_stripes_average_what_they_cover():
    x = np.linspace(-7, 7, 501, dtype=np.float32)
    for blur in (0.05, 0.6, 3.7):
        fine = np.linspace(-blur / 2, blur / 2, 4001)[None] + x[:, None]
        inside = np.abs(fine - np.rint(fine / 2.0) * 2.0) < 0.35
        np.testing.assert_allclose(stripes(x, 2.0, 0.7, blur), inside.mean(axis=1), atol=0.01)
        np.testing.assert_allclose(band(x, -1.0, 2.0, blur), ((fine > -1) & (fine < 2)).mean(axis=1), atol=0.01)


def test_noise_is_smooth_and_development_is_monotone():
    noise = Noise(np.random.default_rng(0))
    x = np.linspace(-3, 3, 4000, dtype=np.float32)
    assert np.abs(np.diff(noise.smooth(x, x * 0.3))).max() < 0.005
    levels = develop(np.linspace(0, 4, 1000, dtype=np.float32))
    assert (np.diff(levels.astype(int)) >= 0).all() and levels[0] < 45 and levels[-1] >= 250


def test_settings_that_make_no_city_and_foreign_folders_are_refused(config, tmp_path):
    for wrong in ({"blocks_x": 0}, {"block_size": 30.0}, {"building_height_max": 90.0}, {"oblique_pitch": 5.0}):
        with pytest.raises(UserError):
            make_city(dataclasses.replace(CityConfig(), **wrong), tmp_path / "none")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("do not delete")
    with pytest.raises(UserError, match="not a procedural city"):
        make_city(config, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "do not delete"
    with pytest.raises(UserError, match="city_demo"):
        load_recipe("atlantis")


def test_a_stopped_run_leaves_nothing_half_made(config, tmp_path):
    def stop(stage, done, total):
        raise KeyboardInterrupt

    small = dataclasses.replace(config, blocks_x=1, blocks_y=1, width=32, height=24, points_per_block=20)
    with pytest.raises(KeyboardInterrupt):
        make_city(small, tmp_path / "city", stop)
    assert list(tmp_path.iterdir()) == []
    make_city(small, tmp_path / "city")
    info = json.loads((tmp_path / "city" / "scene_info.json").read_text())
    assert info["photos"] == config.photos_per_block and info["depth_unit_m"] == 0.005
    shutil.rmtree(tmp_path / "city")
