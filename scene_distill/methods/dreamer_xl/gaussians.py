"""Gaussians as a text-to-3D representation: drawn, clipped, stepped, grown.

Teacher:   whatever made the gradient of the pictures.
Student:   means, sizes, rotations, opacities and one colour each (degree 0).
Gradient:  clipped per pixel inside the rasterizer's backward pass, so that spikes of the prior reach neither the
           Gaussians nor the statistics that make them grow.
Cost:      C renders forward and backward; growth counts the screen gradients of all C views.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from scene_distill.blocks.store import State
from scene_distill.core import spherical_harmonics
from scene_distill.core.cameras import Camera
from scene_distill.methods.dreamer_xl.config import DreamerXLConfig
from scene_distill.methods.dreamer_xl.pictures import clamped, disparity
from scene_distill.methods.dreamer_xl.start import grey_colors, shap_e_points, start_points
from scene_distill.methods.dreamer_xl.trained import TrainedGaussians
from scene_distill.methods.text_to_3d.representation import Views
from scene_distill.objectives.score_clip import clip_backward
from scene_distill.objectives.score_teacher import Progress
from scene_distill.objectives.total_variation import total_variation
from scene_distill.renderers.splat import DrawOptions, Rendering, render
from scene_distill.representations import splat_densification as densification
from scene_distill.representations.splat_densification import DensificationRules, ScreenGradients
from scene_distill.representations.splats import Splats, stored_tensors
from scene_distill.training.optimisers import AdamMoments, log_linear

PARAMETERS = ("means", "log_scales", "quats", "opacity_logits", "sh")


class GaussianObjects:
    """Objects made of Gaussians (`text_to_3d.representation.Representation`)."""

    def __init__(self, config: DreamerXLConfig) -> None:
        self.config = config

    def first_state(self, prompt: str, generator: torch.Generator, before: State | None = None) -> State:
        """Points of the config's start as Gaussians, fresh moments and statistics."""
        config = self.config
        if config.start == "shap-e":
            assert config.start_path is not None
            points = shap_e_points(config.start_path, prompt, config.start_count, config.start_radius, generator)
        else:
            points = start_points(config.start, config.start_count, config.start_radius, generator)
        colors = (255 * grey_colors(len(points), generator)).round().byte()
        parameters = stored_tensors(Splats.from_points(points.numpy(), colors.numpy()))
        parameters["log_scales"] = parameters["log_scales"].clamp(max=math.log(config.largest_start))
        parameters["opacity_logits"] = torch.full((len(points),), config.start_opacity).logit()
        moments = {name: AdamMoments.zeros_like(value) for name, value in parameters.items()}
        return _state(parameters, moments, ScreenGradients.zeros(len(points)), 0)

    def open(self, state: State) -> OpenGaussians:
        """Live Gaussians."""
        return OpenGaussians(self.config, state)

    def trained(self, state: State) -> TrainedGaussians:
        """The Gaussians of a state."""
        return TrainedGaussians(Splats(**{name: state[f"splats.{name}"] for name in PARAMETERS}))


class OpenGaussians:
    """Gaussians in training (`text_to_3d.representation.OpenObject`)."""

    def __init__(self, config: DreamerXLConfig, state: State) -> None:
        self.config = config
        self.parameters = {name: state[f"splats.{name}"].requires_grad_() for name in PARAMETERS}
        self.moments = {name: AdamMoments.from_state(state, f"moments.{name}") for name in PARAMETERS}
        self.statistics = ScreenGradients(state["growth.gradient"], state["growth.views"])
        self.steps = int(state["steps"])
        self._drawn: list[tuple[Rendering, Camera]] = []

    def __len__(self) -> int:
        return len(self.parameters["means"])

    def render(self, cameras: Sequence[Camera], background: Tensor, progress: Progress,
               generator: torch.Generator) -> Views:  # fmt: skip
        """C views; with the config's chance their disparity is what the prior is shown."""
        config = self.config
        as_depth = float(torch.rand(1, generator=generator)) < config.depth_share
        with_depth = as_depth or config.tv_depth > 0
        splats = Splats(**self.parameters)
        if config.size_jitter:
            noise = torch.randn(splats.log_scales.shape, generator=generator).to(splats.means.device)
            factor = (1 + config.size_jitter * noise).clamp(min=0.1)
            splats = replace(splats, log_scales=splats.log_scales + factor.log())
        in_kernel = config.clip == "pixel" and not with_depth
        options = DrawOptions(gradient_bound=config.clip_limit if in_kernel else math.inf)
        self._drawn = []
        for camera, behind in zip(cameras, background, strict=True):
            drawn = render(splats, camera, background=behind, with_depth=with_depth, options=options)
            if drawn.means2d.requires_grad:
                drawn.means2d.retain_grad()
            self._drawn.append((drawn, camera))
        image = clamped(torch.stack([drawn.image for drawn, _ in self._drawn]), config.clamp == "inward")
        if config.clip != "none" and not in_kernel:
            image = clip_backward(image, config.clip, config.clip_limit, channel_axis=-1)
        alpha = torch.stack([drawn.alpha for drawn, _ in self._drawn])
        if not with_depth:
            return Views(image, alpha)
        depth = self._depth()
        near = torch.stack([disparity(d, a, c) for d, a, c in zip(depth, alpha, cameras, strict=True)])
        return Views(image, alpha, depth, near[..., None].expand(-1, -1, -1, 3) if as_depth else None)

    def _depth(self) -> Tensor:
        """Depth [C, H, W], its gradient clipped by one factor for the whole map."""
        maps = [drawn.depth for drawn, _ in self._drawn if drawn.depth is not None]
        depth, config = torch.stack(maps), self.config
        if not config.depth_clip or config.clip == "none":
            return depth
        limit = config.depth_clip * self.parameters["log_scales"].detach().exp().mean()
        return clip_backward(depth, "tensor", limit)

    def losses(self, views: Views, progress: Progress) -> dict[str, Tensor]:
        """Total variation, mean size and mean opacity."""
        config, found = self.config, dict[str, Tensor]()
        if config.tv:
            found["tv"] = config.tv * total_variation(views.image)
        if config.tv_depth and views.depth_m is not None:
            cameras = [camera for _, camera in self._drawn]
            maps = zip(views.depth_m, views.alpha, cameras, strict=True)
            near = torch.stack([disparity(d, a, c) for d, a, c in maps])
            found["tv depth"] = config.tv_depth * total_variation(near[..., None])
        if config.size_loss:
            found["size"] = config.size_loss * self.parameters["log_scales"].exp().mean()
        if config.opacity_loss:
            found["opacity"] = config.opacity_loss * self.parameters["opacity_logits"].sigmoid().mean()
        return found

    def step(self, progress: Progress, generator: torch.Generator) -> dict[str, float]:
        """Adam, then growth with the screen gradients of the batch."""
        counted = self._drawn if self.config.growth_views == "all" else self._drawn[-1:]
        if progress.fraction < self.config.grow_until:
            for drawn, camera in counted:
                self._observe(drawn, camera)
        largest = self._screen_radii() if self.config.max_screen else None
        self._drawn = []
        self._adam(progress)
        with torch.no_grad():
            self._grow(progress, generator, largest)
        for tensor in self.parameters.values():
            tensor.requires_grad_()
        self.steps += 1
        return {"splats": float(len(self))}

    def state(self) -> State:
        """Parameters, moments, statistics and the count of steps."""
        parameters = {name: tensor.detach().clone() for name, tensor in self.parameters.items()}
        return _state(parameters, self.moments, self.statistics, self.steps)

    def _observe(self, drawn: Rendering, camera: Camera) -> None:
        gradient = drawn.means2d.grad
        if gradient is None:
            return
        rows = (drawn.extents[:, 0] > 0).nonzero().squeeze(1)
        norms = torch.hypot(gradient[:, 0] * (camera.width / 2), gradient[:, 1] * (camera.height / 2))
        self.statistics.observe(rows, norms[rows])

    def _screen_radii(self) -> Tensor:
        """Largest radius [N] of every Gaussian in the batch, in widths of the picture."""
        return torch.stack([drawn.extents.amax(1) / camera.width for drawn, camera in self._drawn]).amax(0)

    @torch.no_grad()
    def _adam(self, progress: Progress) -> None:
        config = self.config
        rates = {"means": config.lr_means, "log_scales": config.lr_scales, "quats": config.lr_rotations,
                 "opacity_logits": config.lr_opacities, "sh": config.lr_colors}  # fmt: skip
        for name, rate in rates.items():
            parameter = self.parameters[name]
            gradient, parameter.grad = parameter.grad, None
            plain = parameter.detach()
            self.parameters[name] = plain
            if gradient is not None:
                finite = torch.nan_to_num(gradient, 0.0, 0.0, 0.0)
                now = log_linear(rate, progress.fraction)
                if name == "sh":
                    now /= spherical_harmonics.SH_C0
                self.moments[name].step(plain, finite, now, self.steps + 1)

    def _grow(self, progress: Progress, generator: torch.Generator, screen: Tensor | None) -> None:
        """Clones, splits, removals and resets that are due after this step."""
        config = self.config
        if self._is_due(progress, config.growth_events):
            splats = Splats(**self.parameters)
            rules = DensificationRules(
                config.growth_gradient, config.split_size, config.max_size, config.min_opacity,
                config.views, self._room(progress),
            )  # fmt: skip
            unwanted = screen > config.max_screen if screen is not None else None
            if config.bounds:
                far = splats.means.norm(dim=1) > config.bounds
                unwanted = far if unwanted is None else unwanted | far
            if unwanted is not None:
                logits = self.parameters["opacity_logits"]
                splats = replace(splats, opacity_logits=logits.masked_fill(unwanted, -math.inf))
            mine = torch.ones(len(splats), dtype=torch.bool, device=splats.means.device)
            event = densification.densify(splats, self.statistics, rules, mine, generator)
            added, count = stored_tensors(event.added), len(event.added)
            self.parameters = {n: torch.cat([p[event.keep], added[n]]) for n, p in self.parameters.items()}
            self.moments = {name: moments.select(event.keep, count) for name, moments in self.moments.items()}
            self.statistics = self.statistics.rows(event.keep, count)
        if self._is_due(progress, config.opacity_resets):
            logits = densification.reset_opacities(self.parameters["opacity_logits"], 2 * config.min_opacity)
            self.parameters["opacity_logits"] = logits
            self.moments["opacity_logits"] = AdamMoments.zeros_like(logits)

    def _room(self, progress: Progress) -> int:
        """Gaussians there may be after this step: the limit is approached linearly."""
        config = self.config
        more = (config.growth_limit - config.start_count) * self._grown(progress, 1)
        return int(config.start_count + more)

    def _grown(self, progress: Progress, after: int) -> float:
        """How much of the time for growth is over ``after`` steps from here, in [0, 1]."""
        first, last = (share * progress.total for share in (self.config.grow_from, self.config.grow_until))
        return min(max((progress.step + after - first) / max(last - first, 1e-9), 0.0), 1.0)

    def _is_due(self, progress: Progress, events: int) -> bool:
        """True for ``events`` steps spread evenly over the time for growth."""
        return int(events * self._grown(progress, 1)) > int(events * self._grown(progress, 0))


def _state(parameters: dict[str, Tensor], moments: dict[str, AdamMoments], statistics: ScreenGradients,
           steps: int) -> State:  # fmt: skip
    state: State = {f"splats.{name}": parameter for name, parameter in parameters.items()}
    for name, each in moments.items():
        state |= each.state(f"moments.{name}")
    growth = {"growth.gradient": statistics.gradient.clone(), "growth.views": statistics.views.clone()}
    return state | growth | {"steps": torch.tensor(steps)}
