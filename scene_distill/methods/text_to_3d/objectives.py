"""The objective that a config names: a published setting, with the config's own numbers where it has any."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from scene_distill.core.errors import UserError
from scene_distill.methods.text_to_3d.config import Levels, NoiseName, ObjectiveName
from scene_distill.objectives.score import Objective
from scene_distill.objectives.score_cds import CDS
from scene_distill.objectives.score_clip import Clip, ClipMode
from scene_distill.objectives.score_ism import ISM, Inversion
from scene_distill.objectives.score_noise import FixedPerView, FixedShared, Fresh
from scene_distill.objectives.score_presets import WARM_UP, on_equal_terms, published
from scene_distill.objectives.score_render_memory import RenderMemory
from scene_distill.objectives.score_render_network import RenderNetwork
from scene_distill.objectives.score_teacher import Ramp
from scene_distill.objectives.score_times import AnnealedTimes, IntervalTimes, TimeSampler, UniformTimes
from scene_distill.objectives.score_tsm import TSM, from_code_gamma, from_paper_gamma
from scene_distill.objectives.score_vsd import RenderScore
from scene_distill.priors.network import NetworkPrior
from scene_distill.priors.parts import InParts
from scene_distill.priors.prior import NoisePrior


@dataclass(frozen=True)
class ObjectiveSetting:
    """Choices around a published objective.

    ``guidance`` and ``strength`` None: as published; ``strength`` is of ISM and TSM alone. ``levels`` 'annealed' falls
    from ``level_range``[1] to [0] with training, 'uniform' draws between them (thousandths); both keep the method's
    interval. ``interval``: first and last distance of s from t (ISM, TSM; the last for CDS). ``gamma_rule``: how TSM
    reads ``gamma``. ``clip`` on x0.
    """

    name: ObjectiveName
    guidance: float | None = None
    strength: float | None = None
    levels: Levels = "published"
    level_range: tuple[float, float] = (20.0, 980.0)
    interval: tuple[float, float] = (100.0, 80.0)
    stride: int = 200
    gamma: float = 0.3
    gamma_rule: Literal["paper", "code"] = "paper"
    noise: NoiseName = "published"
    clip: ClipMode = "none"
    clip_limit: float = 1.0
    seed: int = 0


def objective_maker(setting: ObjectiveSetting, prior: NoisePrior) -> Callable[[], Objective]:
    """A function that makes the objective anew; a VSD's own model begins as a copy of the prior, or without a network
    as a memory of renders. Raises UserError for choices that do not fit the method."""
    make_objective(setting, prior)
    return lambda: make_objective(setting, prior)


def make_objective(setting: ObjectiveSetting, prior: NoisePrior) -> Objective:
    """The objective of a setting."""
    objective = published(setting.name, _render_score(prior) if setting.name == "vsd" else None)
    objective = _timed(_switched(objective, setting), setting)
    changes: dict[str, float] = {}
    if setting.guidance is not None:
        changes["guidance"] = setting.guidance
    if setting.strength is not None and isinstance(objective.method, (ISM, TSM)):
        changes["strength"] = setting.strength
    objective = on_equal_terms(objective, objective.times, **changes) if changes else objective
    if setting.clip != "none":
        objective = replace(objective, transforms=(Clip(setting.clip, setting.clip_limit),))
    return objective


def _render_score(prior: NoisePrior) -> RenderScore:
    inner = prior.prior if isinstance(prior, InParts) else prior
    return RenderNetwork(inner) if isinstance(inner, NetworkPrior) else RenderMemory()


def _switched(objective: Objective, setting: ObjectiveSetting) -> Objective:
    """TSM's middle, the inversion's stride, and the source of noise."""
    method = objective.method
    if isinstance(method, TSM):
        fraction = from_paper_gamma if setting.gamma_rule == "paper" else from_code_gamma
        method = replace(method, mu_fraction=fraction(setting.gamma), inversion=Inversion(setting.stride))
    elif isinstance(method, ISM):
        method = replace(method, inversion=Inversion(setting.stride))
    if setting.noise == "published" and isinstance(getattr(method, "noise", None), FixedShared):
        method = replace(method, noise=FixedShared(setting.seed))  # type: ignore[type-var]
    if setting.noise != "published":
        if not isinstance(getattr(method, "noise", None), (Fresh, FixedShared, FixedPerView)):
            raise UserError(f"{setting.name} finds its noise by inversion; leave the noise as published")
        sources = {"fresh": Fresh(), "shared": FixedShared(setting.seed), "per-view": FixedPerView(setting.seed)}
        method = replace(method, noise=sources[setting.noise])  # type: ignore[type-var]
    return replace(objective, method=method)


def _timed(objective: Objective, setting: ObjectiveSetting) -> Objective:
    """The levels of a setting; objectives with two levels keep their interval."""
    low, high = setting.level_range
    inverting = isinstance(objective.method, (ISM, TSM))
    width = Ramp(setting.interval[0], setting.interval[1], over=WARM_UP)
    if setting.levels == "published":
        times = objective.times
        if inverting and isinstance(times, IntervalTimes):
            times = replace(times, interval=width)
        return replace(objective, times=times)
    base: TimeSampler = AnnealedTimes(high, low) if setting.levels == "annealed" else UniformTimes(low, high)
    if inverting:
        base = IntervalTimes(base, width)
    elif isinstance(objective.method, CDS):
        base = IntervalTimes(base, setting.interval[1])
    return replace(objective, times=base)
