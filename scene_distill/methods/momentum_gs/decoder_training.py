"""The decoder in training: student weights, their Adam moments on the decoder's own clock, the teacher, the
scoreboard."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from scene_distill.blocks.store import State
from scene_distill.methods.momentum_gs.config import MomentumGSConfig
from scene_distill.nets.gaussian_decoder import PARAMETERS, decoder_from_state, make_decoder
from scene_distill.objectives.momentum import MomentumTeacher, block_weight
from scene_distill.training.optimisers import AdamMoments, log_linear


class DecoderTraining:
    """One decoder with everything that moves it. Shared by all blocks, or private to a block when sharing is off.

    ``total_steps`` is the length of its clock: the number of updates it will get.
    """

    def __init__(
        self, config: MomentumGSConfig, total_steps: int, device: torch.device, *seed_parts: int | str
    ) -> None:
        self.config = config
        self.device = device
        self.total_steps = max(total_steps, 1)
        self.student = make_decoder(*seed_parts, color_init=config.start == "picture").to(device).trainable()
        self.teacher = MomentumTeacher(self.student, config.momentum)
        self.moments = [AdamMoments.zeros_like(weight) for weight in self.student.weights]
        self.scores: dict[int, tuple[float, float]] = {}
        self.teaching = False

    def parameters(self) -> Sequence[Tensor]:
        """The student's weights, none when every block has a decoder of its own."""
        return self.student.weights if self.config.share_decoder else ()

    def begin_step(self, step: int, frozen: bool) -> None:
        """The teacher follows the student before every step of a decoder that still learns."""
        self.teaching = self.config.consistency > 0 and not frozen
        if self.teaching:
            self.teacher.follow(self.student)

    def apply(self, gradients: Sequence[Tensor], shared_step: int) -> None:
        """One Adam step of the student; ``shared_step`` is the decoder's own clock."""
        config, progress = self.config, shared_step / self.total_steps
        rates = {
            "opacity": config.lr_opacity_head,
            "covariance": config.lr_covariance_head,
            "color": config.lr_color_head,
        }
        for name, weight, gradient, moments in zip(
            PARAMETERS, self.student.weights, gradients, self.moments, strict=True
        ):
            rate = log_linear(rates[name.split(".")[0]], progress / config.lr_until)
            moments.step(weight, gradient, rate, shared_step + 1)

    def publish(self, unit: int, scores: dict[str, float]) -> None:
        """Running means of a block's PSNR and SSIM; the first measurement seeds them."""
        if not scores:
            return
        old = self.scores.get(unit, (scores["psnr"], scores["ssim"]))
        keep = self.config.score_momentum
        self.scores[unit] = (
            keep * old[0] + (1 - keep) * scores["psnr"],
            keep * old[1] + (1 - keep) * scores["ssim"],
        )

    def weight(self, unit: int) -> float:
        """w_b of a block (`objectives.momentum.block_weight`)."""
        return block_weight(self.scores, unit, self.config.weighting_sigma, self.config.weighting)

    def state(self) -> State:
        """Student, teacher, moments and scoreboard as a flat dict of tensors."""
        state = self.student.state("student") | self.teacher.decoder.state("teacher")
        for name, moments in zip(PARAMETERS, self.moments, strict=True):
            state |= moments.state(f"moments.{name}")
        rows = [[float(unit), *scores] for unit, scores in sorted(self.scores.items())]
        return state | {"scores": torch.tensor(rows, dtype=torch.float64).reshape(-1, 3)}

    def restore(self, state: State) -> None:
        """Take over a state made by `state`."""
        state = {name: tensor.to(self.device) for name, tensor in state.items()}
        self.student = decoder_from_state(state, "student").trainable()
        self.teacher.decoder = decoder_from_state(state, "teacher")
        self.moments = [AdamMoments.from_state(state, f"moments.{name}") for name in PARAMETERS]
        self.scores = {int(unit): (psnr, ssim) for unit, psnr, ssim in state["scores"].tolist()}
