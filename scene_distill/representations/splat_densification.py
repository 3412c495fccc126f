"""Growing and pruning of splats by their mean screen gradient (3DGS, section 5.2; bounds as in gsplat's default).

A splat whose image moves under a large gradient lacks detail: a small one is cloned, a large one is split in two that
are drawn from it. Splats that are almost transparent or far too large are removed. Sizes are lengths in metres which
the caller derives from the spacing of the scene's points, so the same numbers fit a town and a table. A splat is judged
once it was seen often enough since it was last judged, so events may come as often as the schedule likes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from scene_distill.core import geometry
from scene_distill.core.stages import staged
from scene_distill.representations.splats import Splats

CHILDREN = 2
"""Splats that a split one becomes (3DGS)."""

SHRINK = 1.6
"""A split splat's children are smaller by this factor (3DGS: phi)."""


@dataclass(frozen=True)
class DensificationRules:
    """When a splat becomes two and when it is removed.

    gradient: mean screen gradient, in normalised device units, from which on a splat becomes two. split_size: largest
    standard deviation in metres above which it is split instead of cloned. max_size: the one above which it is
    removed. min_opacity: opacity below which it is removed. min_views: views before it is judged. max_splats: growth
    stops there; the largest gradients come first.
    """

    gradient: float
    split_size: float
    max_size: float
    min_opacity: float
    min_views: int
    max_splats: int


@dataclass(frozen=True, eq=False)
class ScreenGradients:
    """Sums since a splat was last judged: norms of its screen gradient [N] and the views it was drawn in [N]."""

    gradient: Tensor
    views: Tensor

    @staticmethod
    def zeros(count: int) -> ScreenGradients:
        """No observations yet."""
        return ScreenGradients(torch.zeros(count), torch.zeros(count))

    @torch.no_grad()
    @staged("growth")
    def observe(self, drawn: Tensor, norms: Tensor) -> None:
        """Add one view: indices [V] of the splats drawn in it (none twice) and their gradient norms [V] in normalised
        device units."""
        self.gradient.index_add_(0, drawn, norms)
        self.views.index_add_(0, drawn, torch.ones_like(norms))

    def rows(self, keep: Tensor, added: int) -> ScreenGradients:
        """The rows of a mask followed by ``added`` fresh ones."""
        fresh = self.gradient.new_zeros(added)
        return ScreenGradients(torch.cat([self.gradient[keep], fresh]), torch.cat([self.views[keep], fresh]))


@dataclass(frozen=True, eq=False)
class Densification:
    """What an event does: the mask [N] of splats that stay, and new ones that follow them."""

    keep: Tensor
    added: Splats


@staged("growth")
@torch.no_grad()
def densify(
    splats: Splats, statistics: ScreenGradients, rules: DensificationRules, mine: Tensor, seed: torch.Generator
) -> Densification:
    """Decide on clones, splits and removals, and start new sums for the splats that were judged (in place).

    ``mine`` [N] bool says which splats may become two. A clone follows its parent, which stays; a split replaces its
    parent. Everything that is added inherits opacity and colour.
    """
    sizes = splats.log_scales.amax(1)
    removed = (splats.opacity_logits < math.log(rules.min_opacity / (1 - rules.min_opacity))) | (
        sizes > math.log(rules.max_size)
    )
    judged = statistics.views >= rules.min_views
    mean = statistics.gradient / statistics.views.clamp(min=1)
    candidates = (judged & mine & ~removed & (mean >= rules.gradient)).nonzero().squeeze(1)
    room = max(rules.max_splats - int((~removed).sum()), 0)
    if len(candidates) > room:
        order = torch.argsort(mean[candidates], descending=True, stable=True)[:room]
        candidates = candidates[order].sort().values
    large = sizes[candidates] > math.log(rules.split_size)
    splitting = candidates[large]
    statistics.gradient[judged] = 0
    statistics.views[judged] = 0
    keep = ~removed
    keep[splitting] = False
    return Densification(
        keep, Splats.cat([splats.select(candidates[~large]), children_of(splats.select(splitting), seed)])
    )


def children_of(parents: Splats, seed: torch.Generator) -> Splats:
    """`CHILDREN` splats for each parent, parent by parent: means drawn from the parent's own distribution, sizes
    divided by `SHRINK`."""
    device = parents.means.device
    twice = parents.select(torch.arange(len(parents), device=device).repeat_interleave(CHILDREN))
    drawn = torch.randn(len(twice), 3, generator=seed).to(device) * twice.log_scales.exp()
    rotations = geometry.rotmats_from_quats(twice.quats)
    means = twice.means + (rotations @ drawn[..., None]).squeeze(-1)
    return replace(twice, means=means, log_scales=twice.log_scales - math.log(SHRINK))


def reset_opacities(opacity_logits: Tensor, ceiling: float) -> Tensor:
    """Logits [N] of opacities that are at most ``ceiling`` (3DGS: floaters near the cameras must earn theirs anew)."""
    return opacity_logits.clamp(max=math.log(ceiling / (1 - ceiling)))
