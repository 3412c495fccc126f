"""Toy pictures: exact hits, cameras that agree with the pictures, captions, held-out pairs, sets on disk."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scene_distill.core.errors import UserError
from scene_distill.data.captioned_shapes import (
    BACKGROUND,
    COLOR_NAMES,
    HELD_OUT,
    SHAPE_NAMES,
    WORDS,
    Shot,
    Toy,
    draw_shot,
    pairs,
    view_word,
)
from scene_distill.data.captioned_shapes_objects import build
from scene_distill.data.captioned_shapes_pictures import PictureSet, load_pictures, render_pictures
from scene_distill.data.captioned_shapes_primitives import (
    BALL,
    BOW_PLANES,
    BOX_PLANES,
    FRUSTUM,
    ROOF_PLANES,
    SAIL_PLANES,
    Primitive,
    Solids,
    ball,
    block,
    tube,
)
from scene_distill.data.captioned_shapes_renderer import orbit_camera, over, render

WHITE = np.ones(3)


def depth_inside(primitive: Primitive, points: np.ndarray) -> np.ndarray:
    """Positive inside the solid, 0 on its surface, negative outside; in local units."""
    local = (points - primitive.center) @ np.linalg.inv(primitive.frame).T
    if primitive.kind == BALL:
        return 1 - np.linalg.norm(local, axis=1)
    if primitive.kind == FRUSTUM:
        low, high = primitive.shape
        radius = (low + high) / 2 + (high - low) / 2 * local[:, 2]
        return np.minimum(radius - np.hypot(local[:, 0], local[:, 1]), 1 - np.abs(local[:, 2]))
    return (primitive.shape[:, 3] - local @ primitive.shape[:, :3].T).min(axis=1)


@st.composite
def solids(draw: st.DrawFn) -> Primitive:
    number = st.floats(0.15, 0.7)
    middle = [draw(st.floats(-0.3, 0.3)) for _ in range(3)]
    yaw, pitch = draw(st.floats(-180, 180)), draw(st.floats(-80, 80))
    kind = draw(st.sampled_from(["ball", "tube", "cone", "box", "roof", "sail", "bow"]))
    if kind == "ball":
        return ball(middle, [draw(number) for _ in range(3)], WHITE, yaw, pitch)
    if kind in ("tube", "cone"):
        end = np.add(middle, [draw(number), -draw(number), draw(number)])
        return tube(middle, end, draw(number), WHITE, 0.0 if kind == "cone" else draw(number))
    planes = {"box": BOX_PLANES, "roof": ROOF_PLANES, "sail": SAIL_PLANES, "bow": BOW_PLANES}[kind]
    return block(middle, [draw(number) for _ in range(3)], WHITE, yaw, pitch, planes=planes)


@settings(max_examples=40, deadline=None)
@given(solids(), st.floats(-180, 180), st.floats(-89, 89))
def test_hits_lie_on_the_surface_and_nothing_lies_before_them(solid: Primitive, azimuth: float, elevation: float):
    camera = orbit_camera(12, azimuth, elevation, 3.5)
    y, x = np.meshgrid(np.arange(12) + 0.5, np.arange(12) + 0.5, indexing="ij")
    rays = np.stack([(x.ravel() - 6) / camera.fx, (y.ravel() - 6) / camera.fy, np.ones(144)])
    rays = (camera.cam_from_world[:3, :3].T @ rays).astype(np.float32)
    which, distance, normals = Solids([solid]).first_hits(camera.center, rays)
    hit = which >= 0
    points = camera.center + distance[hit, None] * rays.T[hit]
    assert np.abs(depth_inside(solid, points)).max(initial=0) < 2e-3
    assert (np.einsum("ni,in->n", normals[hit], rays[:, hit]) < 5e-3).all()
    assert np.allclose(np.linalg.norm(normals[hit], axis=1), 1, atol=1e-4)
    ends = np.where(hit, distance * 0.998, 8.0)
    for share in np.linspace(0.4, 1, 40):
        before = camera.center + (share * ends)[:, None] * rays.T
        assert depth_inside(solid, before).max() < 5e-3


def test_normals_point_where_the_surface_bends():
    solid = tube((0, 0, -0.5), (0, 0, 0.5), 0.6, WHITE, 0.2)
    _, _, normals = Solids([solid]).first_hits(np.array([4.0, 0, 0]), np.array([[-1.0], [0.0], [0.0]]))
    assert np.allclose(normals[0], np.array([1.0, 0, 0.4]) / np.hypot(1, 0.4), atol=1e-4)


def test_a_picture_agrees_with_its_camera():
    place = np.array([0.5, 0.3, -0.2])
    camera = orbit_camera(48, 30, 20)
    alpha = render([ball(place, 0.12, WHITE)], camera)[..., 3].astype(float)
    rows, columns = np.mgrid[:48, :48] + 0.5
    centroid = [(columns * alpha).sum() / alpha.sum(), (rows * alpha).sum() / alpha.sum()]
    assert np.allclose(centroid, camera.project(place[None])[0][0], atol=0.3)


@pytest.mark.parametrize("shape", SHAPE_NAMES)
def test_every_toy_fits_its_picture_and_has_its_colour(shape: str):
    for azimuth, elevation in ((0, 10), (130, 45), (40, 35)):
        picture = Shot(Toy("purple", shape), azimuth, elevation, 3.0, (shape, azimuth)).picture(24)
        alpha = picture[..., 3]
        border = np.concatenate([alpha[0], alpha[-1], alpha[:, 0], alpha[:, -1]])
        assert border.max() < 255 and (border > 0).mean() < 0.1
        assert 0.03 < (alpha > 127).mean() < 0.75
        red, green, blue = picture[..., :3][alpha > 250].astype(int).T
        assert ((blue > green + 20) & (red > green + 20)).mean() > 0.1


def test_a_part_takes_the_colour_that_the_caption_names():
    shots = [Shot(Toy("white", "table", part), 20, 15, 3.1, ("legs",)) for part in ("green", None)]
    green, natural = (shot.picture(32)[..., :3].astype(int) for shot in shots)
    assert (green[..., 1] > green[..., 0] + 40).sum() > 15
    assert not (natural[..., 1] > natural[..., 0] + 40).any()
    assert shots[0].caption == "a white table with green legs, front view"
    assert Toy("orange", "duck").caption("back") == "an orange duck, back view"


def test_front_and_back_differ_where_they_should():
    for shape in ("car", "robot", "snowman", "dog", "duck", "house"):
        views = [Shot(Toy("blue", shape), azimuth, 10, 3.1, ("same",)).picture(32) for azimuth in (0, 180)]
        assert np.abs(views[0].astype(int) - views[1].astype(int)).mean() > 1.5, shape


def test_view_words():
    angles = {(0, 0): "front", (-44, 30): "front", (46, 0): "side", (-90, 10): "side", (270, 10): "side",
              (136, 0): "back", (-180, 0): "back", (540, 0): "back", (10, 61): "overhead"}  # fmt: skip
    assert {angle: view_word(*angle) for angle in angles} == angles


def test_held_out_pairs_are_never_drawn_but_all_their_words_are():
    assert len(HELD_OUT) == 32 and len(pairs("known")) == 128
    known = [draw_shot(3, "test", number, "known").toy for number in range(256)]
    assert not any(toy.held_out for toy in known)
    assert all(draw_shot(3, "test", number, "held_out").toy.held_out for number in range(40))
    assert {toy.color for toy in known} == set(COLOR_NAMES) and {toy.shape for toy in known} == set(SHAPE_NAMES)
    assert ("red", "chair") not in HELD_OUT
    assert {color for color, _ in HELD_OUT} == set(COLOR_NAMES)
    words = {word.strip(",") for toy in known for word in toy.caption("side").split()} - {"a", "an", "with", "view"}
    assert words <= set(WORDS)


def test_sets_come_back_from_disk_as_they_were_rendered(tmp_path: Path):
    wanted = PictureSet("test", "known", 6, 16, seed=4)
    first, again = load_pictures(wanted, tmp_path), load_pictures(wanted, tmp_path)
    assert np.array_equal(first.images, again.images) and np.array_equal(first.views, again.views)
    assert np.array_equal(first.images[4:], render_pictures(wanted, 4).images)
    with pytest.raises(UserError, match="holds other pictures"):
        load_pictures(PictureSet("test", "known", 6, 16, seed=5), tmp_path)
    path = next(tmp_path.iterdir())
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="cannot be read"):
        load_pictures(wanted, tmp_path)


def test_pictures_lie_over_their_background():
    picture = Shot(Toy("red", "car"), 30, 20, 3.1, ("over",)).picture(16)
    made = over(picture, np.array(BACKGROUND))
    assert np.allclose(made[0, 0], BACKGROUND)
    inside = picture[..., 3] == 255
    assert np.allclose(made[inside], picture[inside][:, :3] / 255, atol=1e-6)


def test_unknown_toys_are_refused():
    with pytest.raises(UserError, match="no toy object 'dragon'"):
        build("dragon", "red", None, np.random.default_rng(0))
    with pytest.raises(UserError, match="no toy colour 'mauve'"):
        build("chair", "red", "mauve", np.random.default_rng(0))
