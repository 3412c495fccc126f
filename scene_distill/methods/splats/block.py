"""One block of splats in training: a visit of W steps on a lane.

A step touches only what its view draws: the drawn rows of the parameters and of their moments are gathered, stepped,
and put back, so its cost follows the view and not the block.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from scene_distill.blocks.store import State
from scene_distill.core import seeds, spherical_harmonics
from scene_distill.core.cameras import Camera
from scene_distill.methods.splats.config import SplatsConfig
from scene_distill.objectives import photometric
from scene_distill.renderers.splat import DrawOptions, Rendering, render
from scene_distill.renderers.stored_splats import drawn_rows, gaussians_for
from scene_distill.representations import splat_densification as densification
from scene_distill.representations.splat_densification import DensificationRules, ScreenGradients
from scene_distill.representations.splats import Splats
from scene_distill.training.optimisers import AdamMoments, log_linear
from scene_distill.training.scene_blocks import View, view_of_step

SHAPE = ("means", "log_scales", "quats", "opacity_logits")
"""The learned fields of `Splats` but colour."""

PARAMETERS = (*SHAPE, "colors", "harmonics")
"""What is learned: the fields of `Splats`, with the constant colour [N, 1, 3] apart from the other harmonics."""


@dataclass(frozen=True, eq=False)
class BlockSetting:
    """What a block is given and never changes: its number, views, growth rules, point spacing in metres, and a function
    that says which positions [N, 3] lie in its own cell (bool [N])."""

    unit: int
    views: tuple[View, ...]
    rules: DensificationRules
    spacing: float
    owns: Callable[[Tensor], Tensor]


class BlockTraining:
    """A block that is open for a visit. Its parameters, moments and statistics are live tensors."""

    def __init__(self, config: SplatsConfig, setting: BlockSetting, state: State) -> None:
        self.config, self.setting = config, setting
        self.parameters = {name: state[f"splats.{name}"] for name in PARAMETERS}
        self.moments = {name: AdamMoments.from_state(state, f"moments.{name}") for name in PARAMETERS}
        self.statistics = ScreenGradients(state["growth.gradient"], state["growth.views"])

    def __len__(self) -> int:
        return len(self.parameters["means"])

    def step(self, step: int) -> tuple[None, dict[str, float]]:
        """One view: draw, compare, step what was drawn; splats share nothing, so there are no gradients to return."""
        log = {"splats": float(len(self))}
        if not self.setting.views:
            return None, log
        view = view_of_step(self.setting.views, step, self.config.seed, "views", self.setting.unit)
        p = self.parameters
        rows = drawn_rows(p["means"], p["quats"], p["log_scales"], p["opacity_logits"], view.camera)
        log["visible"] = float(len(rows))
        if len(rows):
            leaves = self._gather(rows, step)
            growing = self._grown(step) < 1
            options = DrawOptions(absolute_gradients=growing and self.config.growth_absolute)
            rendering = render(gaussians_for(_splats(leaves), view.camera), view.camera, options=options)
            rendering.means2d.retain_grad()
            loss, l1, ssim = photometric.reconstruction(rendering.image, view.photo(), self.config.dssim)
            loss.backward()
            log |= {"loss": loss.item(), "l1": l1.item(), "ssim": ssim.item()}
            self._apply(leaves, rows, step)
            if growing:
                self._observe(rendering, rows, view.camera)
        self._grow(step)
        return None, log

    def close(self) -> tuple[State, dict[str, float]]:
        """The block's state; there is no scoreboard."""
        return block_state(self.parameters, self.moments, self.statistics), {}

    def _columns(self, step: int) -> int:
        """View-dependent harmonics in use at a step."""
        degree = int(step / max(self.config.sh_rise * self.config.iterations, 1.0))
        return spherical_harmonics.basis_count(min(degree, self.config.sh_degree)) - 1

    def _gather(self, rows: Tensor, step: int) -> dict[str, Tensor]:
        """The drawn rows as leaves that take gradients; of the harmonics those in use, left out when there are none."""
        leaves = {
            name: parameter.index_select(0, rows) for name, parameter in self.parameters.items() if name != "harmonics"
        }
        columns = self._columns(step)
        if columns:
            leaves["harmonics"] = self.parameters["harmonics"][:, :columns].index_select(0, rows)
        return {name: leaf.requires_grad_(True) for name, leaf in leaves.items()}

    @torch.no_grad()
    def _apply(self, leaves: dict[str, Tensor], rows: Tensor, step: int) -> None:
        config, progress = self.config, step / self.config.iterations
        rates = {
            "means": (config.lr_means[0] * self.setting.spacing, config.lr_means[1] * self.setting.spacing),
            "log_scales": config.lr_scales, "quats": config.lr_rotations, "opacity_logits": config.lr_opacities,
            "colors": config.lr_colors, "harmonics": config.lr_harmonics,
        }  # fmt: skip
        for name, leaf in leaves.items():
            whole = [self.parameters[name], self.moments[name].first, self.moments[name].second]
            if name == "harmonics":
                whole = [tensor[:, : leaf.shape[1]] for tensor in whole]
            moments = AdamMoments(whole[1].index_select(0, rows), whole[2].index_select(0, rows))
            assert leaf.grad is not None
            moments.step(leaf, leaf.grad, log_linear(rates[name], progress), step + 1)
            for tensor, part in zip(whole, (leaf, moments.first, moments.second), strict=True):
                tensor.index_copy_(0, rows, part)

    def _observe(self, rendering: Rendering, rows: Tensor, camera: Camera) -> None:
        source = rendering.means2d if rendering.probe is None else rendering.probe
        gradient = source.grad
        assert gradient is not None
        to_device_units = gradient.new_tensor([camera.width / 2, camera.height / 2])
        self.statistics.observe(rows, (gradient * to_device_units).norm(dim=1))

    @torch.no_grad()
    def _grow(self, step: int) -> None:
        config, setting = self.config, self.setting
        if self._is_due(step, config.growth_events):
            splats = _splats(self.parameters)
            seed = seeds.torch_generator(config.seed, "growth", setting.unit, step)
            mine = setting.owns(splats.means)
            rules = replace(setting.rules, max_splats=self._room(step))
            event = densification.densify(splats, self.statistics, rules, mine, seed)
            added, count = _parameters(event.added), len(event.added)
            self.parameters = {n: torch.cat([p[event.keep], added[n]]) for n, p in self.parameters.items()}
            self.moments = {name: moments.select(event.keep, count) for name, moments in self.moments.items()}
            self.statistics = self.statistics.rows(event.keep, count)
        if self._is_due(step, config.opacity_resets):
            logits = self.parameters["opacity_logits"]
            self.parameters["opacity_logits"] = densification.reset_opacities(logits, 2 * config.min_opacity)
            self.moments["opacity_logits"] = AdamMoments.zeros_like(logits)

    def _room(self, step: int) -> int:
        """Splats that the block may have after a step: the limit is approached linearly, so that the worst places of
        every stage get their share."""
        limit, most = self.config.growth_limit, self.setting.rules.max_splats
        return int(most * (1 + (limit - 1) * self._grown(step + 1)) / limit)

    def _grown(self, step: int) -> float:
        """How much of the time for growth is over before a step, in [0, 1]."""
        first, last = (f * self.config.iterations for f in (self.config.grow_from, self.config.grow_until))
        return min(max((step - first) / max(last - first, 1e-9), 0.0), 1.0)

    def _is_due(self, step: int, events: int) -> bool:
        """True for ``events`` steps spread evenly over (grow_from, grow_until] of the iterations."""
        return int(events * self._grown(step + 1)) > int(events * self._grown(step))


def _splats(parameters: dict[str, Tensor]) -> Splats:
    colors = parameters["colors"]
    sh = torch.cat([colors, parameters["harmonics"]], dim=1) if "harmonics" in parameters else colors
    return Splats(sh=sh, **{name: parameters[name] for name in SHAPE})


def _parameters(splats: Splats) -> dict[str, Tensor]:
    split = {"colors": splats.sh[:, :1].contiguous(), "harmonics": splats.sh[:, 1:].contiguous()}
    return {name: getattr(splats, name) for name in SHAPE} | split


def splats_of(state: State) -> Splats:
    """The splats in a block's state."""
    return _splats({name: state[f"splats.{name}"] for name in PARAMETERS})


def first_block_state(splats: Splats, sh_degree: int, largest: float) -> State:
    """The state of a block before its first visit: colours widened to ``sh_degree``, log-scales at most ``largest``."""
    parameters = _parameters(splats)
    parameters["log_scales"] = parameters["log_scales"].clamp(max=largest)
    parameters["harmonics"] = torch.zeros(len(splats), spherical_harmonics.basis_count(sh_degree) - 1, 3)
    moments = {name: AdamMoments.zeros_like(parameter) for name, parameter in parameters.items()}
    return block_state(parameters, moments, ScreenGradients.zeros(len(splats)))


def block_state(parameters: dict[str, Tensor], moments: dict[str, AdamMoments], statistics: ScreenGradients) -> State:
    """Parameters, moments and statistics as a flat dict of tensors."""
    state: State = {f"splats.{name}": parameter for name, parameter in parameters.items()}
    for name, each in moments.items():
        state |= each.state(f"moments.{name}")
    return state | {"growth.gradient": statistics.gradient, "growth.views": statistics.views}
