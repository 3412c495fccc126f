"""One block of splats in training: a visit of W steps on a lane.

A step touches only what its view draws: copies of the drawn rows take the gradients, and Adam steps these rows of the
parameters and of their moments in place, so its cost follows the view and not the block.
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
from scene_distill.renderers.stored_splats import drawn_rows, take
from scene_distill.representations import splat_densification as densification
from scene_distill.representations.births import BORN, births_after, births_of, first_births
from scene_distill.representations.splat_densification import DensificationRules, ScreenGradients
from scene_distill.representations.splats import Splats, stored_tensors
from scene_distill.training.metrics import psnr
from scene_distill.training.optimisers import AdamMoments, log_linear
from scene_distill.training.scene_blocks import View, view_of_step

PARAMETERS = ("means", "log_scales", "quats", "opacity_logits", "sh")
"""What is learned: the fields of `Splats`."""

PSNR_EVERY = 8
"""Steps of a block from one that logs its picture's PSNR, which takes a pass over the pixels, to the next."""

FIRST_OPACITY = 0.3
"""Opacity before the first step (3DGS: 0.1): short schedules end better with splats that cover from the start."""


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
        self.born = births_of(state, "splats.means")

    def __len__(self) -> int:
        return len(self.parameters["means"])

    def step(self, step: int) -> tuple[None, dict[str, float]]:
        """One view: draw, compare, step what was drawn; splats share nothing, so there are no gradients to return."""
        log = {"splats": float(len(self))}
        if not self.setting.views:
            return None, log
        view = view_of_step(self.setting.views, step, self.config.seed, "views", self.setting.unit)
        splats = Splats(**self.parameters)
        rows = drawn_rows(splats, view.camera)
        log["visible"] = float(len(rows))
        if len(rows):
            drawn = take(splats, rows, self._bases(step))
            for tensor in stored_tensors(drawn).values():
                tensor.requires_grad_()
            growing = self._grown(step) < 1
            options = DrawOptions(absolute_gradients=growing and self.config.growth_absolute)
            rendering = render(drawn, view.camera, options=options)
            rendering.means2d.retain_grad()
            photo = view.photo()
            loss, l1, ssim = photometric.reconstruction(rendering.image, photo, self.config.dssim)
            loss.backward()
            log |= {"loss": loss.item(), "l1": l1.item(), "ssim": ssim.item()}
            if step % PSNR_EVERY == 0:
                log["psnr"] = psnr(rendering.image.detach().clamp(0, 1), photo)
            self._apply(drawn, rows, step)
            if growing:
                self._observe(rendering, rows, view.camera)
        self._grow(step)
        return None, log

    def close(self) -> tuple[State, dict[str, float]]:
        """The block's state; there is no scoreboard."""
        return block_state(self.parameters, self.moments, self.statistics, self.born), {}

    def _bases(self, step: int) -> int:
        """Harmonics in use at a step, the constant one included."""
        degree = int(step / max(self.config.sh_rise * self.config.iterations, 1.0))
        return spherical_harmonics.basis_count(min(degree, self.config.sh_degree))

    @torch.no_grad()
    def _apply(self, drawn: Splats, rows: Tensor, step: int) -> None:
        """Adam on the drawn rows; of the harmonics those in use, the constant one with a rate of its own."""
        config, progress = self.config, step / self.config.iterations
        rates = {
            "means": (config.lr_means[0] * self.setting.spacing, config.lr_means[1] * self.setting.spacing),
            "log_scales": config.lr_scales, "quats": config.lr_rotations, "opacity_logits": config.lr_opacities,
            "sh": config.lr_harmonics,
        }  # fmt: skip
        for name, leaf in stored_tensors(drawn).items():
            parameter, moments, leading = self.parameters[name], self.moments[name], (0, 0.0)
            if name == "sh":
                bases = leaf.shape[1]
                parameter, moments = parameter[:, :bases], moments.columns(bases)
                leading = (3, log_linear(config.lr_colors, progress))
            assert leaf.grad is not None
            moments.step_rows(parameter, leaf.grad, log_linear(rates[name], progress), step + 1, rows, leading)

    def _observe(self, rendering: Rendering, rows: Tensor, camera: Camera) -> None:
        source = rendering.means2d if rendering.probe is None else rendering.probe
        gradient = source.grad
        assert gradient is not None
        norms = torch.hypot(gradient[:, 0] * (camera.width / 2), gradient[:, 1] * (camera.height / 2))
        self.statistics.observe(rows, norms)

    @torch.no_grad()
    def _grow(self, step: int) -> None:
        config, setting = self.config, self.setting
        if self._is_due(step, config.growth_events):
            splats = Splats(**self.parameters)
            seed = seeds.torch_generator(config.seed, "growth", setting.unit, step)
            mine = setting.owns(splats.means)
            rules = replace(setting.rules, max_splats=self._room(step))
            event = densification.densify(splats, self.statistics, rules, mine, seed)
            added, count = stored_tensors(event.added), len(event.added)
            self.parameters = {n: torch.cat([p[event.keep], added[n]]) for n, p in self.parameters.items()}
            self.moments = {name: moments.select(event.keep, count) for name, moments in self.moments.items()}
            self.statistics = self.statistics.rows(event.keep, count)
            self.born = births_after(self.born, event.keep, count, step)
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


def splats_of(state: State) -> Splats:
    """The splats in a block's state."""
    return Splats(**{name: state[f"splats.{name}"] for name in PARAMETERS})


def first_block_state(splats: Splats, sh_degree: int, largest: float) -> State:
    """The state of a block before its first visit: colours widened to ``sh_degree``, log-scales at most ``largest``,
    opacities `FIRST_OPACITY`."""
    parameters = stored_tensors(splats)
    parameters["opacity_logits"] = torch.full((len(splats),), FIRST_OPACITY).logit()
    parameters["log_scales"] = parameters["log_scales"].clamp(max=largest)
    parameters["sh"] = torch.zeros(len(splats), spherical_harmonics.basis_count(sh_degree), 3)
    parameters["sh"][:, :1] = splats.sh[:, :1]
    moments = {name: AdamMoments.zeros_like(parameter) for name, parameter in parameters.items()}
    return block_state(parameters, moments, ScreenGradients.zeros(len(splats)), first_births(len(splats)))


def block_state(
    parameters: dict[str, Tensor], moments: dict[str, AdamMoments], statistics: ScreenGradients, born: Tensor
) -> State:
    """Parameters, moments, statistics and births (`representations.births`) as a flat dict of tensors."""
    state: State = {f"splats.{name}": parameter for name, parameter in parameters.items()}
    for name, each in moments.items():
        state |= each.state(f"moments.{name}")
    return state | {"growth.gradient": statistics.gradient, "growth.views": statistics.views, BORN: born}
