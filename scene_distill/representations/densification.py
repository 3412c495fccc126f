"""Growing and pruning of anchors, in units of point spacing (Scaffold-GS 3.3; spec momentum_gs.md, section 3.5).

Statistics are gathered every step. At an event, slots whose mean screen gradient is high put new anchors into empty
cells of three sizes; anchors that are hardly ever opaque are removed. The paper's cell sizes are absolute scene units;
here they are multiples of the block's median point spacing, so the same numbers fit metres and unit cubes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scene_distill.core.conventions import ANCHOR_SLOTS
from scene_distill.core.stages import staged
from scene_distill.representations.anchors import Anchors


@dataclass(frozen=True)
class GrowthRules:
    """When a slot makes a new anchor and when an anchor is removed.

    cells: edge of the new anchors' cells per level, in metres (coarse to fine). gradient: threshold of level 0 on
    the mean
    screen gradient in normalised device units, doubled per level. Slots and anchors are judged once they were seen in
    ``min_views`` steps. keep: fraction of candidates taken per level. min_opacity: mean summed opacity of an anchor
    below which it is removed. max_size: upper bound in metres on the base size exp(s[3:6]). max_anchors: growth
    stops there.
    """

    cells: tuple[float, ...]
    gradient: float
    min_views: int
    min_opacity: float
    max_size: float
    max_anchors: int
    keep: tuple[float, ...] = (0.5, 0.75, 0.875)


@dataclass(frozen=True, eq=False)
class GrowthStatistics:
    """Sums since an anchor or slot was last judged: opacity [A], views [A], gradient [A, 10], slot_views [A, 10]."""

    opacity: Tensor
    views: Tensor
    gradient: Tensor
    slot_views: Tensor

    @staticmethod
    def zeros(anchors: int, device: torch.device | str = "cpu") -> GrowthStatistics:
        """No observations yet."""
        shapes = ((anchors,), (anchors,), (anchors, ANCHOR_SLOTS), (anchors, ANCHOR_SLOTS))
        return GrowthStatistics(*(torch.zeros(shape, device=device) for shape in shapes))

    @torch.no_grad()
    @staged("growth")
    def observe(self, visible: Tensor, opacities: Tensor, screen_gradients: Tensor, drawn: Tensor) -> None:
        """Add one step: visible anchors [V], opacities [V*10], gradient norms [V*10] in normalised device units, and
        which slots were drawn [V*10] (bool)."""
        drawn_rows = drawn.view(-1, ANCHOR_SLOTS).to(torch.float32)
        self.opacity[visible] += opacities.view(-1, ANCHOR_SLOTS).clamp(min=0).sum(1)
        self.views[visible] += 1
        self.gradient[visible] += screen_gradients.view(-1, ANCHOR_SLOTS) * drawn_rows
        self.slot_views[visible] += drawn_rows

    def rows(self, keep: Tensor, added: int) -> GrowthStatistics:
        """The rows of a mask followed by ``added`` fresh ones."""
        fresh = GrowthStatistics.zeros(added, keep.device)
        pairs = zip(self.tensors(), fresh.tensors(), strict=True)
        return GrowthStatistics(*(torch.cat([old[keep], new]) for old, new in pairs))

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The four sums in field order."""
        return self.opacity, self.views, self.gradient, self.slot_views


@staged("growth")
@torch.no_grad()
def new_anchors(anchors: Anchors, statistics: GrowthStatistics, rules: GrowthRules, seed: torch.Generator) -> Anchors:
    """Anchors to add, coarse level first: cell centre, log-scales = log cell edge, feature = element-wise maximum
    over the
    parents in the cell, slot offsets of the first parent rescaled to stay put in metres."""
    mean_gradient = statistics.gradient / statistics.slot_views.clamp(min=1)
    judged = statistics.slot_views >= rules.min_views
    centres = anchors.positions[:, None] + anchors.offsets * anchors.log_scales[:, None, :3].exp()
    result = anchors.select(torch.zeros(len(anchors), dtype=torch.bool, device=anchors.positions.device))
    for level, (cell, keep) in enumerate(zip(rules.cells, rules.keep, strict=True)):
        draw = (torch.rand(mean_gradient.shape, generator=seed) < keep).to(judged.device)
        candidate = judged & draw & (mean_gradient >= rules.gradient * 2**level)
        room = rules.max_anchors - len(anchors) - len(result)
        if not candidate.any() or room <= 0:
            continue
        taken = torch.cat([anchors.positions, result.positions])
        added = _in_empty_cells(anchors, centres[candidate], candidate.nonzero()[:, 0], taken, cell)
        result = result.append(added.select(torch.arange(min(room, len(added)), device=judged.device)))
    return result


def _in_empty_cells(anchors: Anchors, centres: Tensor, parents: Tensor, taken: Tensor, cell: float) -> Anchors:
    occupied = cell_keys(taken, cell)
    keys = cell_keys(centres, cell)
    free = ~torch.isin(keys, occupied)
    unique, group = torch.unique(keys[free], return_inverse=True)
    parents, corners = parents[free], (centres[free] / cell).round() * cell
    features = anchors.features.new_full((len(unique), anchors.features.shape[1]), -torch.inf)
    features.scatter_reduce_(0, group[:, None].expand(-1, features.shape[1]), anchors.features[parents], "amax")
    first = torch.full_like(unique, len(parents))
    first.scatter_reduce_(0, group, torch.arange(len(parents), device=group.device), "amin")
    log_cell = anchors.log_scales.new_tensor(cell).log()
    return Anchors(
        positions=corners[first],
        offsets=anchors.offsets[parents[first]].clamp(-1, 1),
        features=features,
        log_scales=log_cell.expand(len(unique), 6).clone(),
    )


def cell_keys(points: Tensor, cell: float) -> Tensor:
    """One int64 per cell of edge ``cell``: 21 bits an axis around the origin."""
    cells = (points / cell).round().long().clamp(-(2**20), 2**20 - 1) + 2**20
    return (cells[:, 0] << 42) | (cells[:, 1] << 21) | cells[:, 2]


@torch.no_grad()
def to_remove(statistics: GrowthStatistics, rules: GrowthRules) -> Tensor:
    """Mask [A] of anchors judged long enough whose mean summed opacity stays below the bound."""
    judged = statistics.views >= rules.min_views
    return judged & (statistics.opacity < rules.min_opacity * statistics.views)


@torch.no_grad()
def forget_judged(statistics: GrowthStatistics, rules: GrowthRules, rows: Tensor) -> None:
    """Start new sums for the slots and anchors of the rows [A] (bool) that an event has judged, in place."""
    slots = (statistics.slot_views >= rules.min_views) & rows[:, None]
    anchors = (statistics.views >= rules.min_views) & rows
    statistics.gradient[slots] = 0
    statistics.slot_views[slots] = 0
    statistics.opacity[anchors] = 0
    statistics.views[anchors] = 0
