"""psi of VSD as a network: a copy of the prior's own, trained on renders by denoising while the object is optimised.

Teacher:   the current renders, noised.
Student:   the copy's weights (all of them: the shipped prior is small; ProlificDreamer trains low-rank additions to a
           large one).
Gradient:  mean |eps_psi(x0 + sigma n, t) - n|^2 into the copy, none into the renders or the prior.
Cost:      one forward and backward of the network per update.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor

from scene_distill.core.errors import UserError
from scene_distill.objectives.score_teacher import Teacher
from scene_distill.priors.network import NetworkPrior


class RenderNetwork:
    """A `score_vsd.RenderScore` that starts as the prior and drifts to the renders.

    ``role``: the prompt it is conditioned on; for ProlificDreamer's view-independent one give the prompts a role for
    it. ``learning_rate``: 1e-4 as published. psi's own guidance is 1: one evaluation. The copy learns in float32. A
    network that is no module itself names the one it holds as ``module``.
    """

    def __init__(self, prior: NetworkPrior, role: str = "wanted", learning_rate: float = 1e-4) -> None:
        network = copy.deepcopy(prior.network)
        module = getattr(network, "module", network)
        if not isinstance(module, torch.nn.Module):
            raise UserError("VSD copies the prior's network and needs it to be a torch module")
        self.module = module.float().requires_grad_(True)
        self.model = NetworkPrior(
            network, prior.schedule, prior.codec, prior.describe_prompts, prior.predicts, prior.network_dtype
        )
        self.role = role
        self.optimiser = torch.optim.AdamW(self.module.parameters(), learning_rate, weight_decay=0.0)

    def eps(self, z: Tensor, level: Tensor, teacher: Teacher) -> Tensor:
        """The noise that psi sees in z."""
        return self.model.eps(z, level, teacher.prompts[self.role].repeated(len(z)))

    def state(self) -> dict[str, torch.Tensor]:
        """Weights, and Adam's moments and counts, copied."""
        kept = {f"weights.{name}": value.detach().clone() for name, value in self.module.state_dict().items()}
        for number, moments in self.optimiser.state_dict()["state"].items():
            kept |= {f"adam.{number}.{name}": value.clone() for name, value in moments.items()}
        return kept

    def restore(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take over what `state` returned."""
        place = next(self.module.parameters()).device
        self.module.load_state_dict(
            {n.removeprefix("weights."): v for n, v in state.items() if n.startswith("weights")}
        )
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in state.items():
            if name.startswith("adam."):
                _, number, key = name.split(".")
                moments.setdefault(int(number), {})[key] = value.clone() if key == "step" else value.clone().to(place)
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": moments, "param_groups": groups})

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
