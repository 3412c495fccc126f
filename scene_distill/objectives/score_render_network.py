"""psi of VSD as a network: a copy of the prior's own, trained on renders by denoising while the object is optimised.

Teacher:   the current renders, noised.
Student:   the copy's weights (all of them: the shipped prior is small; ProlificDreamer trains low-rank additions to a
           large one).
Gradient:  mean |eps_psi(x0 + sigma n, t) - n|^2 into the copy, none into the renders or the prior.
Cost:      one forward and backward of the network per update.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from scene_distill.core.errors import UserError
from scene_distill.objectives.score_teacher import Teacher
from scene_distill.priors.network import NetworkPrior


class RenderNetwork:
    """A `score_vsd.RenderScore` that starts as the prior and drifts to the renders.

    ``role``: the prompt it is conditioned on; for ProlificDreamer's view-independent one give the prompts a role for
    it. ``learning_rate``: 1e-4 as published. psi's own guidance is 1: one evaluation.
    """

    def __init__(self, prior: NetworkPrior, role: str = "wanted", learning_rate: float = 1e-4) -> None:
        if not isinstance(prior.network, torch.nn.Module):
            raise UserError("VSD copies the prior's network and needs it to be a torch module")
        network = copy.deepcopy(prior.network).requires_grad_(True)
        self.model = NetworkPrior(
            network, prior.schedule, prior.codec, prior.describe_prompts, prior.predicts, prior.network_dtype
        )
        self.role = role
        self.optimiser = torch.optim.AdamW(network.parameters(), learning_rate, weight_decay=0.0)

    def eps(self, z: Tensor, level: Tensor, teacher: Teacher) -> Tensor:
        """The noise that psi sees in z."""
        return self.model.eps(z, level, teacher.prompts[self.role].repeated(len(z)))

    def learn(self, x0: Tensor, teacher: Teacher) -> float:
        """One denoising update at uniform levels; its loss."""
        schedule = teacher.schedule
        level = torch.randint(0, schedule.n_levels, (len(x0),), generator=teacher.generator)
        noise = teacher.normal(x0)
        z = x0 + schedule.sigma(level, x0) * noise
        with torch.enable_grad():
            seen = self.model.predicted(z, level, teacher.prompts[self.role].repeated(len(z)))
            loss = (seen - noise).square().mean()
            self.optimiser.zero_grad(set_to_none=True)
            loss.backward()
        self.optimiser.step()
        return float(loss.detach())
