"""The decoder in training: student weights, their Adam moments on the decoder's own clock, the teacher, the
scoreboard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from scene_distill.blocks.schedule import Round, shared_steps
from scene_distill.blocks.store import State
from scene_distill.methods.momentum_gs.config import MomentumGSConfig
from scene_distill.nets.gaussian_decoder import DecoderOptions, decoder_from_state, make_decoder
from scene_distill.objectives.momentum import MomentumTeacher, block_weight
from scene_distill.training.optimisers import AdamMoments, log_linear


@dataclass(frozen=True)
class DecoderClock:
    """A decoder's own time: the number of updates it gets, and those before which a visit begins."""

    steps: int
    visits: frozenset[int]

    @staticmethod
    def of_all(rounds: tuple[Round, ...]) -> DecoderClock:
        """The clock of a decoder that all blocks share."""
        begins = frozenset(round_.shared_step for round_ in rounds if not round_.final)
        return DecoderClock(max(shared_steps(rounds), 1), begins)

    @staticmethod
    def of_one(rounds: tuple[Round, ...], unit: int) -> DecoderClock:
        """The clock of a block's own decoder."""
        visits = [visit for round_ in rounds for visit in round_.visits if visit.unit == unit]
        return DecoderClock(sum(v.steps for v in visits), frozenset(v.first_step for v in visits))


class DecoderTraining:
    """One decoder with everything that moves it. Shared by all blocks, or private to a block when sharing is off.

    ``clock`` says how many updates it will get and at which of them visits begin; ``views``: number of train views.
    """

    def __init__(
        self, config: MomentumGSConfig, clock: DecoderClock, views: int, device: torch.device, *seed_parts: int | str
    ) -> None:
        self.config, self.clock, self.device = config, clock, device
        options = DecoderOptions(
            config.add_opacity_dist, config.add_cov_dist, config.add_color_dist, config.use_feat_bank,
            config.appearance_dim, views,
        )  # fmt: skip
        decoder = make_decoder(*seed_parts, color_init=config.start == "picture", options=options)
        self.student = decoder.to(device).trainable()
        self.teacher = MomentumTeacher(self.student, config.momentum)
        self.memory = MomentumTeacher(self.student, config.memory_momentum)
        self.moments = [AdamMoments.zeros_like(weight) for weight in self.student.weights]
        self.scores: dict[int, tuple[float, float]] = {}
        self.teaching = False

    def parameters(self) -> Sequence[Tensor]:
        """The student's weights, none when every block has a decoder of its own."""
        return self.student.weights if self.config.share_decoder else ()

    def begin_step(self, step: int, frozen: bool) -> None:
        """The teachers follow the student, each on its clock, while the decoder still learns."""
        self.teaching = not frozen
        if frozen:
            return
        begins = step in self.clock.visits
        if begins or self.config.teacher_clock == "step":
            self.teacher.follow(self.student)
        if begins:
            self.memory.follow(self.student)

    def apply(self, gradients: Sequence[Tensor], shared_step: int) -> None:
        """One Adam step of the student; ``shared_step`` is the decoder's own clock."""
        config, progress = self.config, shared_step / self.clock.steps
        rates = {
            "opacity": config.lr_opacity_head,
            "covariance": config.lr_covariance_head,
            "color": config.lr_color_head,
            "bank": config.lr_feat_bank,
            "appearance": config.lr_appearance,
        }
        for name, weight, gradient, moments in zip(
            self.student.names, self.student.weights, gradients, self.moments, strict=True
        ):
            rate = log_linear(rates[name.split(".")[0]], progress / config.lr_until)
            drawn = (gradient != 0).any(dim=1).to(torch.uint8) if name == "appearance.table" else None
            moments.step(weight, gradient, rate, shared_step + 1, drawn)

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
        """Student, teachers, moments and scoreboard as a flat dict of tensors."""
        state = self.student.state("student") | self.teacher.decoder.state("teacher")
        state |= self.memory.decoder.state("memory")
        for name, moments in zip(self.student.names, self.moments, strict=True):
            state |= moments.state(f"moments.{name}")
        rows = [[float(unit), *scores] for unit, scores in sorted(self.scores.items())]
        return state | {"scores": torch.tensor(rows, dtype=torch.float64).reshape(-1, 3)}

    def restore(self, state: State) -> None:
        """Take over a state made by `state`."""
        state = {name: tensor.to(self.device) for name, tensor in state.items()}
        self.student = decoder_from_state(state, "student").trainable()
        self.teacher.decoder = decoder_from_state(state, "teacher")
        self.memory.decoder = decoder_from_state(state, "memory")
        self.moments = [AdamMoments.from_state(state, f"moments.{name}") for name in self.student.names]
        self.scores = {int(unit): (psnr, ssim) for unit, psnr, ssim in state["scores"].tolist()}
