"""Consistent3D wired up: a field, the shape of a mesh, its colours; each under consistency distillation sampling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from scene_distill.core.errors import UserError
from scene_distill.methods.consistent3d.config import Consistent3DConfig, Pair
from scene_distill.methods.consistent3d.field import FIELD_KIND, FieldObjects, TrainedField
from scene_distill.methods.consistent3d.files import read_tensors
from scene_distill.methods.consistent3d.surface import SURFACE_KIND, SurfaceObjects, TrainedSurface
from scene_distill.methods.text_to_3d.config import TextTo3DConfig
from scene_distill.methods.text_to_3d.objectives import ObjectiveSetting, objective_maker
from scene_distill.methods.text_to_3d.stages import Stage
from scene_distill.methods.text_to_3d.views import view_range
from scene_distill.objectives.score import Objective
from scene_distill.objectives.score_cds import CDS
from scene_distill.objectives.score_clip import Clip
from scene_distill.objectives.score_noise import FixedPerView, FixedShared, Fresh, NoiseSource
from scene_distill.objectives.score_presets import on_equal_terms
from scene_distill.objectives.score_teacher import Ramp
from scene_distill.objectives.score_times import ConsistencyTimes
from scene_distill.objectives.score_weights import Weighting
from scene_distill.priors.prior import NoisePrior


def stages(config: TextTo3DConfig, prior: NoisePrior) -> tuple[Stage, ...]:
    """The stages that have a share."""
    assert isinstance(config, Consistent3DConfig)
    views, made = view_range(config), list[Stage]()
    near = replace(views, size=config.refine_image_size or views.size)
    if config.refine_field_of_view[0] > 0:
        near = replace(near, field_of_view=config.refine_field_of_view)
    coarse = (config.coarse_levels, config.coarse_range, config.coarse_guidance)
    geometry = (config.geometry_levels, config.geometry_range, config.geometry_guidance)
    texture = (config.texture_levels, config.texture_range, config.texture_guidance)
    wanted = (
        ("field", config.coarse_share, FieldObjects(config), coarse),
        ("geometry", config.geometry_share, SurfaceObjects(config, "geometry"), geometry),
        ("texture", config.texture_share, SurfaceObjects(config, "texture"), texture),
    )
    for name, share, objects, levels in wanted:
        if share > 0:
            objective = _objective(config, prior, name == "field", *levels)
            made.append(Stage(name, share, objects, objective, views if name == "field" else near, config.reduction))
    return tuple(made)


def _objective(config: Consistent3DConfig, prior: NoisePrior, coarse: bool, levels: Pair, bounds: Pair,
               guidance: Pair) -> Callable[[], Objective]:  # fmt: skip
    """CDS, or another method, on a stage's schedule, guidance and clip."""
    jitter = config.coarse_jitter if coarse else config.refine_jitter
    times = ConsistencyTimes(*levels, config.anneal, config.gap, jitter, *bounds)
    clip = (Clip("element", Ramp(*config.clip)),)
    if config.objective != "cds":
        make = objective_maker(ObjectiveSetting(config.objective, seed=config.seed), prior)

        def other() -> Objective:
            return replace(on_equal_terms(make(), times, guidance=Ramp(*guidance)), transforms=clip)

        return other
    sources: dict[str, NoiseSource] = {
        "shared": FixedShared(config.seed),
        "per-view": FixedPerView(config.seed),
        "resampled": Fresh(),
    }
    weight: Weighting = "uniform" if coarse else config.refine_weight
    method = CDS(Ramp(*guidance), weight, sources[config.noise], config.solver, config.sign)
    objective = Objective(method, times, clip)
    return lambda: objective


def load(path: Path) -> TrainedField | TrainedSurface:
    """A finished object that was saved; UserError when the file holds none."""
    kind, config, tensors = read_tensors(path)
    try:
        if kind == FIELD_KIND:
            return TrainedField(config, tensors["table"])
        if kind == SURFACE_KIND:
            return TrainedSurface(config, tensors["vertices"], tensors["faces"], tensors["colors"])
    except KeyError as error:
        raise UserError(f"{path} is damaged: it has no {error}; make it again") from error
    raise UserError(f"{path} holds '{kind}', which is no object of consistent3d")
