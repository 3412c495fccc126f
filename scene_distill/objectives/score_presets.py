"""The published settings of every method as one `Objective` each, guidance in standard form.

`on_equal_terms` puts any of them on one schedule of levels with one guidance scale: what a fair comparison needs first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from scene_distill.core.errors import UserError
from scene_distill.objectives.score import Objective
from scene_distill.objectives.score_cds import CDS
from scene_distill.objectives.score_clip import Clip
from scene_distill.objectives.score_csd import CSD
from scene_distill.objectives.score_ism import ISM
from scene_distill.objectives.score_sdi import SDI
from scene_distill.objectives.score_sds import SDS, SJC
from scene_distill.objectives.score_teacher import Ramp, Scheduled, Switch
from scene_distill.objectives.score_times import (
    AnnealedTimes,
    ConsistencyTimes,
    IntervalTimes,
    TimeSampler,
    UniformTimes,
    on_schedule,
)
from scene_distill.objectives.score_tsm import TSM, from_code_gamma, from_paper_gamma
from scene_distill.objectives.score_vsd import VSD, RenderScore

WARM_UP = 0.3
"""Share of training in which ISM and TSM lower t and the interval: 750 of 2500 steps."""


def _interval() -> IntervalTimes:
    t = UniformTimes(20, Ramp(980, 500, over=WARM_UP), per_image=False)
    return IntervalTimes(t, Ramp(100, 80, over=WARM_UP))


PUBLISHED: dict[str, Callable[[], Objective]] = {
    "sds": lambda: Objective(SDS(101.0), UniformTimes()),
    "sjc": lambda: Objective(SJC(101.0), UniformTimes()),
    "csd": lambda: Objective(CSD(), UniformTimes()),
    "ism": lambda: Objective(ISM(), _interval()),
    "tsm": lambda: Objective(TSM(from_paper_gamma(0.3)), _interval()),
    "tsm-code": lambda: Objective(TSM(from_code_gamma(0.3)), _interval()),
    "cds": lambda: Objective(CDS(), ConsistencyTimes(), (Clip("element", Ramp(2.0, 8.0)),)),
    "sdi": lambda: Objective(SDI(), AnnealedTimes(1000, 200)),
}
"""Methods by name; VSD needs a model of the renders and is made by `published`."""


def published(name: str, renders: RenderScore | None = None) -> Objective:
    """The objective of a method in its published setting. Raises UserError for an unknown name."""
    if name == "vsd":
        if renders is None:
            raise UserError("vsd needs a model of the renders; give it a RenderNetwork around the prior")
        return Objective(VSD(renders), UniformTimes(20, Switch(980, 500, 0.2)))
    if name not in PUBLISHED:
        raise UserError(f"score-distillation methods are {', '.join([*PUBLISHED, 'vsd'])}, got {name!r}")
    return PUBLISHED[name]()


def on_equal_terms(objective: Objective, times: TimeSampler, **changes: Scheduled | str) -> Objective:
    """The objective on the levels ``times`` (intervals kept), with ``changes`` to fields of its method.

    For example on_equal_terms(published('ism'), AnnealedTimes(), guidance=7.5). Raises UserError for a field that the
    method does not have.
    """
    method: Any = objective.method
    unknown = set(changes) - {field.name for field in fields(method)}
    if unknown:
        raise UserError(f"{type(method).__name__} has no {sorted(unknown)}")
    return replace(objective, method=replace(method, **changes), times=on_schedule(objective.times, times))
