import numpy as np
import pytest
import torch
from mesh_scenes import ExactViews, cube, ring_of_cameras, sphere, stripes

from scene_distill.core.errors import UserError
from scene_distill.core.gaussians import Gaussians
from scene_distill.export.depth_views import DepthSettings, DepthView, RenderedViews
from scene_distill.export.mesh_cleaning import CleaningSettings
from scene_distill.export.mesh_quality import KnownSurface, distances, geometry_error, topology
from scene_distill.export.mesh_texture import TextureSettings
from scene_distill.export.surface import (
    RAW_FACES_PER_FACE,
    SurfaceSettings,
    SurfaceSource,
    raw_surface,
    resolution,
    surface_of,
)
from scene_distill.export.tsdf import CELL, TsdfSettings, fuse, split_blocks, surface_cells
from scene_distill.representations.meshes import TriangleMesh

pytest.importorskip("open3d")
FAR = np.array([500_000.0, 4_000_000.0, 80.0])


@pytest.fixture(scope="module")
def ball_views():
    return ExactViews(sphere(), ring_of_cameras())


def test_a_ball_seen_from_all_sides_is_closed_and_within_a_sixth_of_a_voxel(ball_views) -> None:
    mesh = fuse(ball_views, TsdfSettings(0.06))
    error = geometry_error(mesh, KnownSurface.sampled(sphere(subdivisions=4), 20_000), 0.02, samples=20_000)
    assert error.accuracy < 0.01 and error.completeness < 0.01 and error.f_score > 0.98
    shape = topology(mesh)
    assert shape.watertight and shape.components == 1 and shape.euler == 2
    assert ((mesh.face_normals() * mesh.corners.mean(axis=1)).sum(axis=1) > 0).mean() > 0.999
    assert np.abs(mesh.colors - stripes(mesh.vertices)).mean() < 0.06


def test_parts_of_any_size_give_the_mesh_of_the_whole(ball_views) -> None:
    whole = fuse(ball_views, TsdfSettings(0.1))
    parts = fuse(ball_views, TsdfSettings(0.1, max_blocks=12))
    assert len(whole) == len(parts) and topology(parts).watertight
    order = [np.lexsort(mesh.corners.mean(axis=1).T) for mesh in (whole, parts)]
    assert np.allclose(whole.corners[order[0]].mean(1), parts.corners[order[1]].mean(1), atol=1e-6)


def test_the_surface_is_not_biased_along_the_pixels_grid() -> None:
    """Half a pixel of error in the principal point would move a slanted plane by more than this."""
    n = np.array([0.5, 0.2, -1.0])
    camera = ring_of_cameras(1)[0]
    camera = type(camera)(64, 48, 60.0, 60.0, 32.0, 24.0, np.eye(4))
    x, y = np.meshgrid((np.arange(64) + 0.5 - 32) / 60, (np.arange(48) + 0.5 - 24) / 60)
    depth = (-4 / (np.stack([x, y, np.ones_like(x)], -1) @ n)).astype(np.float32)
    view = DepthView(camera, depth, np.full((48, 64, 3), 0.5, np.float32))

    class One:
        cameras = (camera,)

        def __getitem__(self, index):
            return view

    mesh = fuse(One(), TsdfSettings(0.05, min_weight=1))
    signed = (mesh.vertices @ n + 4) / np.linalg.norm(n)
    assert abs(signed.mean()) < 0.004 and np.abs(signed).max() < 0.06


def test_far_from_the_origin_nothing_is_lost(ball_views) -> None:
    cameras = ring_of_cameras()
    near = fuse(ball_views, TsdfSettings(0.1))

    class Moved:
        def __init__(self):
            self.cameras = [camera.moved(-FAR) for camera in cameras]

        def __getitem__(self, index):
            view = ball_views[index]
            return DepthView(self.cameras[index], view.depth_m, view.color)

    far = fuse(Moved(), TsdfSettings(0.1))
    assert np.abs(np.linalg.norm(far.vertices - FAR, axis=1) - 1).mean() < 0.02
    assert abs(len(far) - len(near)) < 0.05 * len(near)


def test_carving_removes_what_other_views_see_through() -> None:
    cameras = ring_of_cameras()
    exact = ExactViews(cube(0.7), cameras)

    class WithFloater:
        def __init__(self):
            self.cameras = cameras

        def __getitem__(self, index):
            view = exact[index]
            depth = view.depth_m.copy()
            if index in (4, 9):
                depth[60:80, 70:90] = 2.0
            return DepthView(view.camera, depth, view.color)

    carved = fuse(WithFloater(), TsdfSettings(0.06, min_weight=1))
    kept = fuse(WithFloater(), TsdfSettings(0.06, min_weight=1, carve=False))
    stray = [int((distances(mesh.vertices, cube(0.7)) > 0.3).sum()) for mesh in (carved, kept)]
    assert stray[1] > 50 and stray[0] < 0.35 * stray[1]


def test_blocks_are_split_without_loss() -> None:
    blocks = np.random.default_rng(0).integers(-40, 40, (1000, 3)).astype(np.int32)
    parts = list(split_blocks(blocks, 37))
    assert max(map(len, parts)) <= 37 and sorted(np.concatenate(parts)) == list(range(1000))


@pytest.mark.parametrize(
    ("settings", "hint"), [(TsdfSettings(0.0), "positive"), (TsdfSettings(0.05, min_weight=999), "seen by 999")]
)
def test_impossible_settings_are_one_sentence(ball_views, settings, hint) -> None:
    with pytest.raises(UserError, match=hint):
        fuse(ball_views, settings)


def test_a_scene_without_depth_is_refused() -> None:
    empty = ExactViews(sphere(0.01, (50.0, 0.0, 0.0)), ring_of_cameras(2))
    with pytest.raises(UserError, match="no view shows any depth"):
        fuse(empty, TsdfSettings(0.1))


def wall_of_gaussians(haze):
    """A wall at z = 4 of opaque flat Gaussians, with faint ones at z = 2 in front of it."""
    x, y = (t.flatten() for t in torch.meshgrid(torch.linspace(-4, 4, 40), torch.linspace(-4, 4, 40), indexing="ij"))
    wall = torch.stack([x, y, torch.full_like(x, 4.0)], 1)
    means = torch.cat([wall, wall * 0.5] if haze else [wall])
    quats = torch.tensor([[1.0, 0, 0, 0]]).repeat(len(means), 1)
    scales = torch.tensor([[0.2, 0.2, 0.01]]).repeat(len(means), 1)
    opacities = torch.full((len(means),), 0.95)
    opacities[len(wall) :] = 0.15
    return Gaussians(means, quats, scales, opacities, torch.full((len(means), 3), 0.4))


def test_median_depth_without_haze_finds_the_wall_where_the_mean_does_not() -> None:
    camera = type(ring_of_cameras(1)[0])(40, 30, 30.0, 30.0, 20.0, 15.0, np.eye(4))
    scene = wall_of_gaussians(haze=True)
    median = RenderedViews(lambda _: scene, [camera], DepthSettings())[0]
    mean = RenderedViews(lambda _: scene, [camera], DepthSettings(kind="mean", min_opacity=0.0))[0]
    assert np.abs(median.depth_m[5:-5, 5:-5] - 4).max() < 0.05
    assert np.abs(mean.depth_m[5:-5, 5:-5] - 4).mean() > 0.2
    assert np.abs(median.color[5:-5, 5:-5] - 0.4).max() < 0.02


@pytest.mark.parametrize(("disk_bytes", "draws"), [(10**6, 3), (0, 5), (40 * 30 * 7, 4)])
def test_views_beyond_the_memory_wait_on_disk_or_are_drawn_again_and_look_the_same(disk_bytes, draws) -> None:
    drawn = []
    scene = wall_of_gaussians(haze=False)
    camera = type(ring_of_cameras(1)[0])(40, 30, 30.0, 30.0, 20.0, 15.0, np.eye(4))

    def gaussians(_):
        drawn.append(1)
        return scene

    views = RenderedViews(gaussians, [camera] * 3, DepthSettings(memory_bytes=40 * 30 * 7, disk_bytes=disk_bytes))
    first = [views[index] for index in (0, 1, 2, 0, 1, 2)]
    assert len(drawn) == draws
    assert all(np.array_equal(view.depth_m, first[0].depth_m) for view in first)
    assert all(np.array_equal(view.color, first[0].color) for view in first)


def test_cells_found_at_a_finer_voxel_give_the_same_surface(ball_views) -> None:
    fine = surface_cells(ball_views, CELL * 0.04)
    mine, other = fuse(ball_views, TsdfSettings(0.1)), fuse(ball_views, TsdfSettings(0.1), cells=fine)
    assert len(mine) == len(other) and topology(other).watertight


def test_automatic_voxels_follow_the_face_budget(ball_views) -> None:
    source = SurfaceSource(lambda camera: None, ball_views.cameras, lambda: None)
    raw = []
    for budget in (None, 4000, 1000):
        settings = SurfaceSettings(cleaning=CleaningSettings(max_faces=budget))
        raw.append(len(raw_surface(source, ball_views, settings)))
    assert raw[0] > 4000 * RAW_FACES_PER_FACE * 1.3
    for count, budget in ((raw[1], 4000), (raw[2], 1000)):
        assert 0.5 < count / (budget * RAW_FACES_PER_FACE) < 1.5
    exact = SurfaceSettings(voxel_m=0.05, cleaning=CleaningSettings(max_faces=1000))
    assert resolution(ball_views, exact)[0] == 0.05


@pytest.mark.parametrize("method", ["tsdf", "poisson"])
def test_every_stage_is_told_with_one_total_and_to_its_end(method) -> None:
    cameras = ring_of_cameras(8, size=(60, 50), focal=60.0)
    scene = ball_of_gaussians()
    told: dict[str, list[tuple[int, int]]] = {}
    settings = SurfaceSettings(method, voxel_m=0.15, texture=TextureSettings(64), min_weight=1.0)
    surface_of(SurfaceSource(lambda camera: scene, cameras, lambda: None), settings,
               tell=lambda stage, done, total: told.setdefault(stage, []).append((done, total)))  # fmt: skip
    assert list(told)[-3:] == ["cleaning", "unwrapping", "texturing"] and len(told) == 5
    for stage, lines in told.items():
        done, totals = [line[0] for line in lines], {line[1] for line in lines}
        assert len(totals) == 1 and done == sorted(done) and done[-1] == totals.pop(), stage


def ball_of_gaussians():
    points = sphere(subdivisions=3).vertices
    means = torch.from_numpy(points).float()
    quats, scales = torch.tensor([[1.0, 0, 0, 0]]).repeat(len(means), 1), torch.full((len(means), 3), 0.06)
    return Gaussians(means, quats, scales, torch.full((len(means),), 0.95), torch.full((len(means), 3), 0.4))


def test_empty_meshes_are_allowed_and_bad_ones_are_not() -> None:
    assert len(TriangleMesh(np.zeros((0, 3)), np.zeros((0, 3), np.int64))) == 0
    with pytest.raises(ValueError, match="faces name vertices"):
        TriangleMesh(np.zeros((2, 3)), np.array([[0, 1, 2]]))
