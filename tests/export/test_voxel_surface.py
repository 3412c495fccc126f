"""Coloured surfaces of voxels with distances."""

import numpy as np
import pytest

from scene_distill.core.errors import UserError
from scene_distill.data.captioned_shapes_primitives import ball, block
from scene_distill.data.shape_world import distance_grid, draw_shape, shell, voxel_centers, voxelise
from scene_distill.export.voxel_surface import LEVEL, mesh_of_voxels

pytest.importorskip("skimage")
GREEN = np.array([0.1, 0.6, 0.2])


def surface(solids, resolution=32):
    distance = distance_grid(solids, resolution)
    grid = distance < 0.5
    index = np.flatnonzero(shell(grid))
    color = np.tile(GREEN, (len(index), 1))
    return mesh_of_voxels(grid, index, distance.reshape(-1)[index], color)


def closed(mesh):
    edges = np.sort(np.concatenate([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]]), axis=1)
    return (np.unique(edges, axis=0, return_counts=True)[1] == 2).all()


def test_a_ball_is_round_closed_and_faces_outwards():
    mesh = surface([ball((0.02, -0.03, 0.01), 0.3, GREEN)])
    radius = np.linalg.norm(mesh.vertices - [0.02, -0.03, 0.01], axis=1)
    assert abs(radius.mean() - (0.3 + LEVEL / 32)) < 0.005 and radius.std() < 0.007
    assert closed(mesh)
    volume = np.einsum("fi,fi->f", mesh.corners[:, 0], np.cross(mesh.corners[:, 1], mesh.corners[:, 2])).sum() / 6
    assert volume == pytest.approx(4 / 3 * np.pi * (0.3 + LEVEL / 32) ** 3, rel=0.05)
    np.testing.assert_allclose(mesh.colors, np.tile(GREEN, (len(mesh.vertices), 1)), atol=1e-5)


@pytest.mark.parametrize("height", [0.0, 0.5 / 32, 0.2 / 32])
def test_sheets_thinner_than_a_voxel_stay_whole(height):
    mesh = surface([block((0, 0, height), (0.3, 0.3, 0.1 / 32), GREEN)])
    assert closed(mesh)
    grid, _, _ = np.histogram2d(*mesh.vertices[:, :2].T, bins=8, range=[[-0.3, 0.3]] * 2)
    assert (grid > 0).all()
    assert np.ptp(mesh.vertices[:, 2]) < 2.5 / 32


def test_every_kind_has_a_closed_surface_near_its_voxels():
    for number in range(0, 16, 5):
        voxels = voxelise(draw_shape(0, "surface", number))
        mesh = mesh_of_voxels(voxels.occupancy, voxels.index, voxels.distance, voxels.color / 255)
        assert closed(mesh)
        low, high = (f(voxel_centers(32)[voxels.index], axis=0) for f in (np.min, np.max))
        assert np.abs(np.stack([mesh.vertices.min(0) - low, mesh.vertices.max(0) - high])).max() < 1 / 32


def test_nothing_has_no_surface():
    with pytest.raises(UserError, match="no voxel is occupied"):
        mesh_of_voxels(np.zeros((8, 8, 8), bool), np.zeros(0, int), np.zeros(0), np.zeros((0, 3)))
