import numpy as np
import torch

from scene_distill.core.cameras import Camera, look_at
from scene_distill.core.conventions import NEAR_M
from scene_distill.representations.anchors import anchors_from_points, neighbour_distance, voxelise


def test_neighbour_distance_on_a_line():
    points = np.array([[0.0, 0, 0], [1, 0, 0], [2, 0, 0], [3, 0, 0]])
    expected = np.sqrt([(1 + 4 + 9) / 3, (1 + 1 + 4) / 3, (1 + 1 + 4) / 3, (1 + 4 + 9) / 3])
    np.testing.assert_allclose(neighbour_distance(points), expected)
    assert neighbour_distance(points[:1]).tolist() == [1.0]


def test_voxelise_merges_points_of_a_cell_and_averages_their_colours():
    points = np.array([[0.1, 0, 0], [0.2, 0, 0], [5.1, 0, 0]])
    centres, colors = voxelise(points, np.array([[0.0, 0, 0], [1, 1, 1], [0.3, 0.3, 0.3]]), 1.0)
    np.testing.assert_allclose(centres, [[0, 0, 0], [5, 0, 0]])
    np.testing.assert_allclose(colors, [[0.5] * 3, [0.3] * 3])


def test_visible_keeps_exactly_what_can_touch_the_image():
    generator = np.random.default_rng(0)
    points = torch.from_numpy(generator.uniform(-30, 30, (4000, 3))).float()
    anchors = anchors_from_points(points, torch.rand(4000, 3), spread=0.0, color_init=True, seed_parts=(0,))
    camera = Camera(
        120, 90, 100.0, 100.0, 60.0, 45.0, look_at(np.array([0, 0, 25.0]), np.zeros(3), np.array([0, 1, 0]))
    )
    visible = set(anchors.visible(camera).tolist())
    pixels, depth = camera.project(points.double().numpy())
    radius = 3 * np.exp(anchors.log_scales[:, :3].max(1).values.numpy()) / np.maximum(depth, 1e-6) * 100.0
    inside = (pixels + radius[:, None] > 0).all(1) & (pixels[:, 0] - radius < 120) & (pixels[:, 1] - radius < 90)
    expected = set(np.flatnonzero(inside & (depth > NEAR_M)).tolist())
    assert 0 < len(expected) < 4000
    assert len(visible ^ expected) <= 2  # float32 against float64 at the border
