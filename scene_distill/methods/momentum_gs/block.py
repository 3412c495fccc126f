"""One block in training: a visit of W steps on a lane."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from scene_distill.blocks.schedule import Round, Visit
from scene_distill.blocks.store import State
from scene_distill.core import seeds
from scene_distill.core.cameras import Camera
from scene_distill.core.gaussians import Gaussians
from scene_distill.methods.momentum_gs.config import MomentumGSConfig
from scene_distill.methods.momentum_gs.decoder_training import DecoderClock, DecoderTraining
from scene_distill.methods.momentum_gs.far_views import detail_of, octaves_of_step, seen_from_afar
from scene_distill.methods.momentum_gs.halo import OWNER, STAMP, STEPS, first_halo
from scene_distill.methods.momentum_gs.seam_finish import phase_after
from scene_distill.objectives import momentum, photometric
from scene_distill.renderers.anchors import decode
from scene_distill.renderers.splat import Rendering, render
from scene_distill.representations import densification
from scene_distill.representations.anchors import LEARNED, Anchors
from scene_distill.representations.births import BORN, births_after, births_of, first_births
from scene_distill.representations.densification import GrowthRules, GrowthStatistics
from scene_distill.representations.levels import faded
from scene_distill.training.metrics import psnr
from scene_distill.training.optimisers import AdamMoments, log_linear
from scene_distill.training.scene_blocks import View, view_of_step

USUAL_EXPOSURE = "exposure.usual"
EXPOSURE_RATE = 0.1
"""Weight of a photo in the running mean of exposures."""


@dataclass(frozen=True, eq=False)
class BlockSetting:
    """What a block is given and never changes: its number, views, the number of views of the scene, the clock of its
    own decoder, growth rules, point spacing in metres, and a function that says which positions [A, 3] lie in its own
    cell (bool [A])."""

    unit: int
    views: tuple[View, ...]
    all_views: int
    clock: DecoderClock
    rules: GrowthRules
    spacing: float
    owns: Callable[[Tensor], Tensor]


class BlockTraining:
    """A block that is open for a visit. Its anchors, moments and growth statistics are live tensors."""

    def __init__(self, config: MomentumGSConfig, setting: BlockSetting, state: State, decoder: DecoderTraining | None,
                 visit: Visit, round_: Round, copies: Tensor | None = None) -> None:  # fmt: skip
        self.config, self.setting, self.visit = config, setting, visit
        self.anchors = Anchors.of_state(state)
        self.detail = detail_of(config, setting.spacing)
        self.moments = {name: AdamMoments.from_state(state, f"moments.{name}") for name in LEARNED}
        self.statistics = GrowthStatistics(
            *(state[f"growth.{n}"] for n in ("opacity", "views", "gradient", "slot_views"))
        )
        self.owner, self.stamp, self.steps = state[OWNER], state[STAMP], state[STEPS]
        self.born = births_of(state, "anchors.positions")
        self.usual_exposure = state.get(USUAL_EXPOSURE)
        self.drawn = torch.zeros_like(self.steps)
        self.copies = torch.ones_like(self.owner) if copies is None else copies
        self.round = round_.index
        self.shares = decoder is not None
        if decoder is None:
            device = self.anchors.positions.device
            decoder = DecoderTraining(config, setting.clock, setting.all_views, device, config.seed, setting.unit)
            decoder.restore(state)
        self.decoder = decoder
        self.decoder_frozen = round_.final and self.shares
        self.weight = self.decoder.weight(setting.unit) if self.shares and not round_.final else 1.0

    def step(self, step: int) -> tuple[Sequence[Tensor] | None, dict[str, float]]:
        """One view: decode, render, compare, step the anchors; returns the decoder's gradients when it is shared."""
        if not self.setting.views:
            return None, {"anchors": float(len(self.anchors))}
        if not self.shares:
            self.decoder.begin_step(step, False)
        view = view_of_step(self.setting.views, step, self.config.seed, "views", self.setting.unit)
        octaves = octaves_of_step(step, view.camera) if self.detail is not None else 0
        view = seen_from_afar(view, octaves)
        photo = view.photo()
        anchors, student = self.anchors.trainable(), self.decoder.student
        drawing = student.in_view(view.index)
        visible, weights = self._drawn(anchors, view.camera)
        gradients, log = None, {"anchors": float(len(anchors)), "visible": float(len(visible))}
        if len(visible):
            gaussians = decode(anchors, drawing, visible, view.camera)
            rendering = render(faded(gaussians, weights), view.camera)
            rendering.means2d.retain_grad()
            image = self._as_photographed(rendering.image, photo, step)
            loss, numbers = self._reconstruction(image, photo, gaussians)
            if self.decoder.teaching:
                loss, numbers = self._taught(loss, numbers, anchors, visible, view, gaussians)
            loss = self.weight * loss
            numbers["loss"] = loss.item()
            loss.backward()
            log |= numbers
            self._step_anchors(anchors, visible, step)
            if octaves == 0:
                self._observe(visible, gaussians, rendering, view.camera)
            gradients = _take_gradients(student.weights)
            if not self.shares:
                self.decoder.apply(gradients, step)
        self._grow(step)
        return (gradients if self.shares and not self.decoder_frozen else None), log

    def close(self) -> tuple[State, dict[str, float]]:
        """The block's state, and its PSNR and SSIM on every tenth of its own views (spec momentum_gs.md, section
        3.4)."""
        state: State = self.anchors.state()
        for name, moments in self.moments.items():
            state |= moments.state(f"moments.{name}")
        names = ("opacity", "views", "gradient", "slot_views")
        state |= {f"growth.{name}": getattr(self.statistics, name) for name in names}
        state[BORN] = self.born
        if self.usual_exposure is not None:
            state[USUAL_EXPOSURE] = self.usual_exposure
        drawn = self.drawn > 0
        stamp = torch.where(drawn, torch.full_like(self.stamp, 2 * self.round), self.stamp)
        state |= {OWNER: self.owner, STAMP: stamp, STEPS: torch.where(drawn, self.drawn, self.steps)}
        if not self.shares:
            return state | self.decoder.state(), {}
        return state | phase_after(self.config, self.visit), self._scores()

    def _as_photographed(self, image: Tensor, photo: Tensor, step: int) -> Tensor:
        """A render in its photo's exposure relative to what is usual among the block's photos, where that is on."""
        config = self.config
        if config.exposure <= 0 or step < config.exposure_from * config.iterations:
            return image
        fit = photometric.exposure_fit(image, photo, config.exposure)
        before = fit if self.usual_exposure is None else self.usual_exposure
        self.usual_exposure = torch.lerp(before, fit, EXPOSURE_RATE)
        return photometric.exposed(image, fit, self.usual_exposure)

    def _reconstruction(self, image: Tensor, photo: Tensor, gaussians: Gaussians) -> tuple[Tensor, dict[str, float]]:
        config, drawn = self.config, gaussians.opacities > 0
        loss, l1, ssim = photometric.reconstruction(image, photo, config.dssim)
        if config.volume > 0:
            loss = loss + config.volume * photometric.volume(gaussians.scales, drawn, self.setting.spacing)
        return loss, {"l1": l1.item(), "ssim": ssim.item(), "weight": self.weight}

    def _taught(self, loss: Tensor, numbers: dict[str, float], anchors: Anchors, visible: Tensor, view: View,
                gaussians: Gaussians) -> tuple[Tensor, dict[str, float]]:  # fmt: skip
        """The loss with the consistency to the teacher and, where it is on, to the memory."""
        config = self.config
        weights = {
            "consistency": (config.consistency, self.decoder.teacher),
            "memory": (config.memory, self.decoder.memory),
        }
        for name, (weight, teacher) in weights.items():
            if weight > 0:
                with torch.set_grad_enabled(config.attach_teacher):
                    target = decode(anchors, teacher.decoder.in_view(view.index), visible, view.camera)
                distance = momentum.consistency(gaussians, target, config.quaternion_loss)
                loss = loss + weight * distance
                numbers[name] = distance.item()
        return loss, numbers

    def _step_anchors(self, anchors: Anchors, visible: Tensor, step: int) -> None:
        config, progress = self.config, step / self.config.iterations / self.config.lr_until
        clock = config.blocks * step + 1
        self.drawn[visible] += 1
        rates = {"offsets": config.lr_offsets, "features": config.lr_features, "log_scales": config.lr_scales}
        for count in torch.unique(self.copies[visible]).tolist():
            rows = torch.zeros(len(anchors), dtype=torch.uint8, device=visible.device)
            rows[visible[self.copies[visible] == count]] = 1
            for name, first_last in rates.items():
                parameter, rate = getattr(anchors, name), log_linear(first_last, progress) * count**config.copies_rate
                self.moments[name].step(parameter, parameter.grad, rate, clock, rows)
        self.anchors = anchors.detach()

    def _observe(self, visible: Tensor, gaussians: Gaussians, rendering: Rendering, camera: Camera) -> None:
        gradient = rendering.means2d.grad
        assert gradient is not None
        to_device_units = gradient.new_tensor([camera.width / 2, camera.height / 2]) / self.weight
        self.statistics.observe(
            visible, gaussians.opacities.detach(), (gradient * to_device_units).norm(dim=1), rendering.extents[:, 0] > 0
        )

    def _grow(self, step: int) -> None:
        config = self.config
        if not _is_event(step, config):
            return
        mine = self.owner == self.setting.unit
        rules = replace(self.setting.rules, max_anchors=self.setting.rules.max_anchors + int((~mine).sum()))
        generator = seeds.torch_generator(config.seed, "growth", self.setting.unit, step)
        added = self._new_anchors(rules, generator)
        added = added.select(self.setting.owns(added.positions))
        keep = ~(densification.to_remove(self.statistics, rules) & mine)
        densification.forget_judged(self.statistics, rules, mine)
        self._follow_halo(keep, len(added))
        self.born = births_after(self.born, keep, len(added), step)
        self.anchors = self.anchors.select(keep).append(added)
        sizes = self.anchors.log_scales.clone()
        sizes[:, 3:].clamp_(max=math.log(rules.max_size))
        self.anchors = replace(self.anchors, log_scales=sizes)
        self.moments = {name: moments.select(keep, len(added)) for name, moments in self.moments.items()}
        self.statistics = self.statistics.rows(keep, len(added))

    def _new_anchors(self, rules: GrowthRules, generator: torch.Generator) -> Anchors:
        """What an event grows; anchors that stand in for others at a distance neither grow nor take up room."""
        if self.detail is None:
            return densification.new_anchors(self.anchors, self.statistics, rules, generator)
        assert self.anchors.levels is not None
        near = self.anchors.levels < 0.5
        anchors = replace(self.anchors.select(near), levels=None)
        added = densification.new_anchors(anchors, self.statistics.rows(near, 0), rules, generator)
        return replace(added, levels=self.detail.of_cells(added.log_scales[:, 0].exp()))

    def _drawn(self, anchors: Anchors, camera: Camera) -> tuple[Tensor, Tensor | None]:
        """Rows of the anchors that a camera draws, and the weights of their opacities where far anchors give way."""
        return (anchors.visible(camera), None) if self.detail is None else self.detail.drawn(anchors, camera)

    def _follow_halo(self, keep: Tensor, added: int) -> None:
        """Drop and append rows of the halo's bookkeeping: what grows is the block's own, and trained in this visit."""

        def rows(old: Tensor, new: float) -> Tensor:
            return torch.cat([old[keep], old.new_full((added,), new)])

        self.owner, self.stamp = rows(self.owner, self.setting.unit), rows(self.stamp, -1)
        self.steps, self.drawn = rows(self.steps, 0), rows(self.drawn, 1)
        self.copies = rows(self.copies, 1)

    @torch.no_grad()
    def _scores(self) -> dict[str, float]:
        measured = []
        for view in self.setting.views[::10]:
            visible, weights = self._drawn(self.anchors, view.camera)
            gaussians = decode(self.anchors, self.decoder.student, visible, view.camera)
            image = render(faded(gaussians, weights), view.camera).image
            photo = view.photo()
            ssim = photometric.reconstruction(image, photo, self.config.dssim)[2]
            measured.append((psnr(image.clamp(0, 1), photo), float(ssim)))
        if not measured:
            return {}
        return {
            "psnr": sum(p for p, _ in measured) / len(measured),
            "ssim": sum(s for _, s in measured) / len(measured),
        }


def _take_gradients(weights: Sequence[Tensor]) -> list[Tensor]:
    gradients = []
    for weight in weights:
        gradients.append(torch.zeros_like(weight) if weight.grad is None else weight.grad)
        weight.grad = None
    return gradients


def _is_event(step: int, config: MomentumGSConfig) -> bool:
    """True for ``growth_events`` steps spread evenly over (grow_from, grow_until] of the iterations."""
    first, last = config.grow_from * config.iterations, config.grow_until * config.iterations

    def events_by(at: int) -> int:
        return int(config.growth_events * min(max((at - first) / max(last - first, 1e-9), 0.0), 1.0))

    return events_by(step + 1) > events_by(step)


def first_block_state(anchors: Anchors, owner: Tensor) -> State:
    """The state of a block before its first visit, with the block that owns each anchor [A]."""
    state: State = anchors.state()
    for name in LEARNED:
        state |= AdamMoments.zeros_like(getattr(anchors, name)).state(f"moments.{name}")
    statistics = GrowthStatistics.zeros(len(anchors))
    state |= first_halo(owner) | {BORN: first_births(len(anchors))}
    return state | {f"growth.{n}": getattr(statistics, n) for n in ("opacity", "views", "gradient", "slot_views")}
