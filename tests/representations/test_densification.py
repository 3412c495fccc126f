import torch

from scene_distill.representations.anchors import anchors_from_points
from scene_distill.representations.densification import (
    GrowthRules,
    GrowthStatistics,
    forget_judged,
    new_anchors,
    to_remove,
)

RULES = GrowthRules(
    cells=(4.0, 2.0, 1.0), gradient=1e-3, min_views=2, min_opacity=0.1, max_size=5.0, max_anchors=10_000,
    keep=(1.0, 1.0, 1.0),
)  # fmt: skip


def grid(count: int = 6):
    axis = torch.arange(count, dtype=torch.float32) * 8
    points = torch.cartesian_prod(axis, axis, torch.zeros(1))
    anchors = anchors_from_points(points, torch.rand(len(points), 3), spread=0.4, color_init=True, seed_parts=(0,))
    return anchors, GrowthStatistics.zeros(len(points))


def seen(statistics, anchors, rows, gradient, times=2, opacity=0.5):
    visible = torch.tensor(rows)
    for _ in range(times):
        n = len(rows) * 10
        statistics.observe(
            visible, torch.full((n,), opacity), torch.full((n,), gradient), torch.ones(n, dtype=torch.bool)
        )


def test_nothing_grows_below_the_threshold_or_before_enough_views():
    anchors, statistics = grid()
    seen(statistics, anchors, [0, 1], 0.9e-3)
    seen(statistics, anchors, [2], 5e-3, times=1)
    assert len(new_anchors(anchors, statistics, RULES, torch.Generator().manual_seed(0))) == 0


def test_new_anchors_sit_in_cells_that_no_anchor_held_and_inherit_the_parents_feature():
    anchors, statistics = grid()
    seen(statistics, anchors, [7, 8], 5e-3)
    added = new_anchors(anchors, statistics, RULES, torch.Generator().manual_seed(0))
    assert len(added) > 0
    for cell in RULES.cells:
        level = added.select((added.log_scales[:, 0] - torch.log(torch.tensor(cell))).abs() < 1e-5)
        old = {tuple(row) for row in (anchors.positions / cell).round().long().tolist()}
        new = [tuple(row) for row in (level.positions / cell).round().long().tolist()]
        assert not old & set(new) and len(set(new)) == len(new)
        torch.testing.assert_close(level.positions, (level.positions / cell).round() * cell)
    parents = anchors.features[[7, 8]]
    assert ((added.features[:, None] - parents).abs().amax(2).amin(1) < 1e-6).all() or torch.isin(
        added.features, parents
    ).all()


def test_growth_stops_at_the_limit():
    anchors, statistics = grid()
    seen(statistics, anchors, list(range(len(anchors))), 5e-3)
    rules = GrowthRules(**{**RULES.__dict__, "max_anchors": len(anchors) + 3})
    assert len(new_anchors(anchors, statistics, rules, torch.Generator().manual_seed(0))) == 3


def test_transparent_anchors_go_once_they_were_seen_often_enough():
    anchors, statistics = grid()
    seen(statistics, anchors, [3], 0.0, opacity=0.001)
    seen(statistics, anchors, [4], 0.0, times=1, opacity=0.001)
    seen(statistics, anchors, [5], 0.0, opacity=0.5)
    assert to_remove(statistics, RULES).nonzero().flatten().tolist() == [3]
    forget_judged(statistics, RULES, torch.arange(len(anchors)) != 3)
    assert statistics.views[[3, 4, 5]].tolist() == [RULES.min_views, 1, 0]
    forget_judged(statistics, RULES, torch.ones(len(anchors), dtype=torch.bool))
    assert statistics.views[[3, 4, 5]].tolist() == [0, 1, 0]
