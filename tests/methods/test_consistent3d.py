"""Consistent3D: a field and then a mesh, first from pictures themselves, then from a prior that knows them."""

import dataclasses
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from text_rig import PROMPTS, SIZE, small_prior

from scene_distill.core.configs import load_config
from scene_distill.core.errors import UserError
from scene_distill.data.captioned_shapes import BACKGROUND, Shot, Toy
from scene_distill.export.mesh_files import read_mesh
from scene_distill.export.mesh_glb import write_mesh_glb
from scene_distill.export.metadata import SplatMetadata
from scene_distill.methods.consistent3d.config import Consistent3DConfig
from scene_distill.methods.consistent3d.field import FieldObjects, OpenField, TrainedField
from scene_distill.methods.consistent3d.recipe import load, stages
from scene_distill.methods.consistent3d.surface import OpenSurface, SurfaceObjects, TrainedSurface
from scene_distill.methods.text_to_3d.backgrounds import plain
from scene_distill.methods.text_to_3d.generate import text_to_3d
from scene_distill.methods.text_to_3d.registry import find_text_method
from scene_distill.methods.text_to_3d.representation import TrainedObject
from scene_distill.methods.text_to_3d.views import orbit_views
from scene_distill.objectives.score_cds import CDS
from scene_distill.objectives.score_noise import FixedPerView, FixedShared, Fresh
from scene_distill.objectives.score_sds import SDS
from scene_distill.objectives.score_teacher import Progress, Ramp
from scene_distill.objectives.score_times import ConsistencyTimes

SMALL = Consistent3DConfig(resolutions=(8, 16, 24), cells=14, image_size=24, supersampling=1)
GENERATOR = torch.Generator().manual_seed(0)


def shots(count: int, elevation: float) -> list[Shot]:
    return [
        Shot(Toy("red", "chair"), 137.5 * n % 360, elevation + 7 * (n % 4), 3.2, (0, "chair")) for n in range(count)
    ]


def pictures(each: list[Shot], size: int) -> torch.Tensor:
    """[N, size, size, 4] in [0, 1], straight alpha."""
    return torch.from_numpy(np.stack([shot.picture(size) for shot in each])).float() / 255


def fitted(live: OpenField | OpenSurface, each: list[Shot], steps: int) -> dict[str, torch.Tensor]:
    """The state after plain least squares against pictures over random backgrounds."""
    seen, cameras = pictures(each, 24), [shot.camera(24) for shot in each]
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        chosen = torch.randperm(len(each), generator=generator)[:3]
        behind = torch.rand(3, 3, generator=generator)
        views = live.render([cameras[i] for i in chosen], behind, Progress(step, steps), generator)
        alpha = seen[chosen][..., 3:]
        wanted = seen[chosen][..., :3] * alpha + behind[:, None, None] * (1 - alpha)
        loss = (views.image - wanted).square().sum() / 3
        loss = loss + sum(live.losses(views, Progress(step, steps)).values())
        loss.backward()
        live.step(Progress(step, steps), generator)
    return live.state()


def quality(trained: TrainedObject, each: list[Shot]) -> tuple[float, float]:
    """PSNR and intersection over union of the outline, from views that were not fitted."""
    seen = pictures(each, 24)
    views = trained.render([shot.camera(24) for shot in each], plain())
    alpha = seen[..., 3:]
    wanted = seen[..., :3] * alpha + torch.tensor(BACKGROUND) * (1 - alpha)
    solid, found = alpha[..., 0] > 0.5, views.alpha > 0.5
    return -10 * math.log10(float((views.image - wanted).square().mean())), float(
        (solid & found).sum() / (solid | found).sum()
    )


@pytest.fixture(scope="module")
def chair() -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """States of a fitted field, the mesh that begins from it, and that mesh fitted."""
    fields, meshes = FieldObjects(SMALL), SurfaceObjects(replace(SMALL, geometry_sees="colours"), "geometry")
    field = fitted(fields.open(fields.first_state("", GENERATOR)), shots(16, 0.0), 70)
    start = meshes.first_state("", GENERATOR, field)
    return field, start, fitted(meshes.open({n: t.clone() for n, t in start.items()}), shots(16, 0.0), 40)


def test_a_field_and_then_a_mesh_come_to_look_like_the_pictures(chair) -> None:
    unseen = shots(5, 10.0)
    fields, meshes = FieldObjects(SMALL), SurfaceObjects(SMALL, "geometry")
    begun = quality(fields.trained(fields.first_state("", GENERATOR)), unseen)
    field, start, mesh = (
        quality(kind.trained(state), unseen) for kind, state in zip((fields, meshes, meshes), chair, strict=True)
    )
    assert begun[1] < 0.65
    assert field[0] > 21.5 and field[1] > 0.8
    assert start[1] > field[1] - 0.05
    assert mesh[0] > 24 and mesh[1] > 0.87
    assert mesh[0] > start[0] + 1.5


def test_the_mesh_is_closed_coloured_and_of_one_piece_with_what_renders_it(chair, tmp_path: Path) -> None:
    trained = SurfaceObjects(SMALL, "geometry").trained(chair[2])
    mesh = trained.geometry()
    directed = np.concatenate([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]])
    assert {tuple(edge) for edge in directed} == {tuple(edge) for edge in directed[:, ::-1]}
    assert len(mesh) == 4 * len(trained.faces)
    assert mesh.colors is not None and mesh.colors.min() >= 0 and mesh.colors.max() <= 1
    a, b, c = mesh.corners.transpose(1, 0, 2)
    assert np.einsum("ij,ij->", np.cross(a, b), c) > 0
    field = FieldObjects(SMALL).trained(chair[0])
    assert len(field.geometry()) > 100

    trained.save(tmp_path / "mesh.safetensors")
    field.save(tmp_path / "field.safetensors")
    cameras = orbit_views(2, 24).cameras
    for each, name in ((trained, "mesh"), (field, "field")):
        again = load(tmp_path / f"{name}.safetensors")
        assert type(again) is type(each) and again.config == replace(SMALL, image_size=64)
        assert torch.equal(again.render(cameras, plain()).image, each.render(cameras, plain()).image)


def test_the_mesh_of_a_field_goes_out_as_glb_and_comes_back(tmp_path: Path) -> None:
    pytest.importorskip("trimesh")
    fields = FieldObjects(SMALL)
    mesh = fields.trained(fields.first_state("", GENERATOR)).geometry()
    write_mesh_glb(mesh, tmp_path / "ball.glb", SplatMetadata(up=(0.0, 0.0, 1.0)))
    again, metadata = read_mesh(tmp_path / "ball.glb")
    assert metadata.up == (0.0, 0.0, 1.0)
    assert np.array_equal(again.faces, mesh.faces)
    np.testing.assert_allclose(again.vertices, mesh.vertices, atol=1e-6)
    assert again.colors is not None and mesh.colors is not None
    np.testing.assert_allclose(again.colors, mesh.colors, atol=0.01)


def test_files_that_hold_no_object_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="holds no object of consistent3d"):
        load(tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="holds no object of consistent3d"):
        load(tmp_path / "absent.safetensors")


def test_depth_of_mesh_and_field_is_along_z_and_normals_face_the_camera(chair) -> None:
    camera = orbit_views(1, 24, elevation=0.0).cameras
    for trained in (FieldObjects(SMALL).trained(chair[0]), SurfaceObjects(SMALL, "geometry").trained(chair[2])):
        views = trained.render(camera, plain())
        assert views.depth_m is not None
        solid = views.alpha[0] > 0.95
        assert bool((views.depth_m[0][solid] > 1.9).all() and (views.depth_m[0][solid] < 4.4).all())
        assert bool((views.depth_m[0][views.alpha[0] < 1e-4] == 0).all())
    assert isinstance(trained, TrainedSurface)
    seen = trained.normals(camera, plain())[0][solid]
    assert float((seen[:, 0] > 0.45).float().mean()) > 0.95


@pytest.mark.parametrize("sees", ["normals", "colours", "both"])
def test_what_the_prior_sees_of_the_shape_moves_what_it_should(chair, sees: str) -> None:
    live = SurfaceObjects(replace(SMALL, geometry_sees=sees), "geometry").open(
        {n: t.clone() for n, t in chair[1].items()}
    )
    cameras = orbit_views(4, 24).cameras
    views = live.render(cameras, plain().expand(4, 3), Progress(), torch.Generator().manual_seed(0))
    views.lesson.square().sum().backward()
    moved = {name for name, value in live.parameters.values.items() if value.grad is not None and value.grad.any()}
    assert {"sdf", "offsets"} <= moved
    assert ("level 2" in moved) == (sees != "normals")
    if sees == "both":
        same = [bool(torch.equal(views.lesson[k].permute(1, 2, 0), views.image[k])) for k in range(4)]
        assert same in ([True, False] * 2, [False, True] * 2)


def test_the_stage_of_colours_keeps_the_shape(chair) -> None:
    live = SurfaceObjects(SMALL, "texture").open({n: t.clone() for n, t in chair[2].items()})
    views = live.render(orbit_views(2, 24).cameras, plain().expand(2, 3), Progress(), GENERATOR)
    found = live.losses(views, Progress())
    assert set(found) == {"tv"} and float(found["tv"].detach()) > 0
    (views.lesson.sum() + found["tv"]).backward()
    live.step(Progress(), GENERATOR)
    after = live.state()
    assert torch.equal(after["value.sdf"], chair[2]["value.sdf"])
    assert not torch.equal(after["value.level 2"], chair[2]["value.level 2"])


def test_an_object_that_vanishes_is_drawn_as_background_and_trains_on() -> None:
    meshes = SurfaceObjects(SMALL, "geometry")
    state = meshes.first_state("", GENERATOR)
    state["value.sdf"] = torch.ones_like(state["value.sdf"])
    live = meshes.open(state)
    views = live.render(orbit_views(2, 24).cameras, plain().expand(2, 3), Progress(), GENERATOR)
    torch.testing.assert_close(views.image, plain().expand_as(views.image))
    assert not bool(views.alpha.any())
    (views.lesson.sum() + sum(live.losses(views, Progress()).values())).backward()
    live.step(Progress(), GENERATOR)
    assert len(meshes.trained(live.state()).geometry()) == 0


def test_levels_of_the_field_come_one_after_another() -> None:
    live = FieldObjects(replace(SMALL, first_levels=1, all_levels=0.5)).open(
        FieldObjects(SMALL).first_state("", GENERATOR)
    )
    assert [live.levels_at(Progress(step, 100)) for step in (0, 17, 34, 50, 99)] == [1, 2, 3, 3, 3]


def test_regularisers_appear_with_their_weights() -> None:
    config = replace(SMALL, orientation=(1.0, 3.0), opacity_size=0.5, opacity_entropy=0.5, variation=2.0, tv=3.0)
    live = FieldObjects(config).open(FieldObjects(config).first_state("", GENERATOR))
    views = live.render(orbit_views(2, 12).cameras, plain().expand(2, 3), Progress(), GENERATOR)
    found = live.losses(views, Progress(0, 10))
    assert set(found) == {"orientation", "opacity", "entropy", "variation", "tv"}
    later = live.losses(views, Progress(10, 10))
    torch.testing.assert_close(later["orientation"], 3 * found["orientation"])


def test_stages_carry_the_published_schedules(tmp_path: Path) -> None:
    published = load_config(Consistent3DConfig, Path(__file__).parents[2] / "configs" / "consistent3d_published.yaml")
    field, geometry, texture = stages(published, small_prior())
    assert (field.name, geometry.name, texture.name) == ("field", "geometry", "texture")
    assert (field.views.size, geometry.views.size, geometry.views.field_of_view) == (64, 512, (30.0, 45.0))
    times = [stage.objective().times for stage in (field, geometry, texture)]
    assert times[0] == ConsistencyTimes()
    assert times[1] == ConsistencyTimes(300, 20, "sqrt", 100, 100, 20, 500)
    assert times[2] == ConsistencyTimes(500, 20, "sqrt", 100, 100, 20, 980)
    methods = [stage.objective().method for stage in (field, geometry, texture)]
    assert methods[0] == CDS(noise=FixedShared(0))
    assert [method.weighting for method in methods] == ["uniform", "one_minus_abar", "one_minus_abar"]  # type: ignore[attr-defined]


def test_switches_reach_the_objective() -> None:
    def method_of(**changes: object) -> object:
        return stages(replace(SMALL, **changes), small_prior())[0].objective().method  # type: ignore[arg-type]

    sources = [method_of(noise=name).noise for name in ("shared", "per-view", "resampled")]  # type: ignore[attr-defined]
    assert [type(source) for source in sources] == [FixedShared, FixedPerView, Fresh]
    assert method_of(sign="literal").sign == "literal"  # type: ignore[attr-defined]
    other = stages(replace(SMALL, objective="sds"), small_prior())
    objectives = [stage.objective() for stage in other]
    assert all(isinstance(each.method, SDS) and each.method.guidance == Ramp(7.5, 7.5) for each in objectives)
    assert [each.times for each in objectives] == [stage.objective().times for stage in stages(SMALL, small_prior())], (
        "other objectives take the stages' levels"
    )
    assert [stage.name for stage in stages(replace(SMALL, geometry_share=0.0), small_prior())] == ["field", "texture"]


@pytest.mark.parametrize(
    ("name", "value"),
    [("coarse_share", 0.0), ("texture_share", -1.0), ("clip", (0.0, 1.0)), ("cells", 2), ("first_levels", 9),
     ("iso_density", -1.0), ("refine_image_size", -1), ("radius", 0.0)],
)  # fmt: skip
def test_numbers_that_no_run_can_have_are_refused(name: str, value: object) -> None:
    with pytest.raises(UserError):
        dataclasses.replace(SMALL, **{name: value})  # type: ignore[arg-type]


class Stopped(Exception):
    pass


@pytest.mark.parametrize("optimiser", ["adam", "adan"])
def test_a_run_goes_through_its_stages_and_a_stopped_one_ends_with_the_same_bytes(optimiser, tmp_path: Path) -> None:
    config = replace(SMALL, prior="mixture", image_size=SIZE, iterations=12, visits=4, views=3, threads=1, cells=8,
                     coarse_guidance=(3.0, 3.0), optimiser=optimiser, gradient_norm=50.0)  # fmt: skip
    prior, heard = small_prior(), []

    def made(name: str, stop: int = 0, **changes: object):
        heard.clear()

        def listen(progress: object) -> None:
            heard.append(progress)
            if stop and len(heard) == stop:
                raise Stopped

        settings = replace(config, **changes)  # type: ignore[arg-type]
        return text_to_3d(find_text_method("consistent3d"), settings, PROMPTS[:1], prior, tmp_path / name, listen)

    (whole,) = made("whole")
    assert whole.finite and isinstance(whole.trained, TrainedSurface)
    assert whole.evaluations == 12 * 3 * 4
    with pytest.raises(Stopped):
        made("stopped", stop=10)
    (again,) = made("stopped", resume=True)
    file = "object.safetensors"
    assert (again.folder / file).read_bytes() == (whole.folder / file).read_bytes()
    (early,) = made("early", iterations=12, geometry_share=0.0, texture_share=0.0)
    assert isinstance(early.trained, TrainedField)
