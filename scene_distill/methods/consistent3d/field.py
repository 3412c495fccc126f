"""The first stage's object: a radiance field in training, and as it was committed last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from scene_distill.blocks.store import State
from scene_distill.core.cameras import Camera
from scene_distill.core.stages import Stage as Timed
from scene_distill.methods.consistent3d.config import Consistent3DConfig
from scene_distill.methods.consistent3d.files import save_tensors
from scene_distill.methods.consistent3d.parameters import Parameters
from scene_distill.methods.text_to_3d.representation import Views
from scene_distill.methods.text_to_3d.views import orbit_views
from scene_distill.objectives.field_regularity import opacity_entropy, opacity_size, orientation, variation
from scene_distill.objectives.score_teacher import Progress, Ramp
from scene_distill.objectives.total_variation import total_variation
from scene_distill.renderers.mesh import draw_mesh
from scene_distill.renderers.rays import camera_rays
from scene_distill.renderers.volume import March, VolumePicture, render_rays
from scene_distill.representations.marching_tetrahedra import march_tetrahedra
from scene_distill.representations.meshes import TriangleMesh
from scene_distill.representations.radiance_field import (
    COLORS,
    DENSITY,
    FieldShape,
    RadianceField,
    look_up,
    raw_of_density,
    with_normals,
)
from scene_distill.representations.tetrahedra import TetGrid, TetSurface, tidied
from scene_distill.training.optimisers import log_linear

FIELD_KIND = "scene-distill radiance field 1"


def field_shape(config: Consistent3DConfig) -> FieldShape:
    """The field of a config."""
    return FieldShape(config.resolutions, config.radius, config.density_scale, config.blob_scale, config.blob_std)


def march_of(config: Consistent3DConfig) -> March:
    """How its rays are marched."""
    return March(config.step * field_shape(config).voxel, config.negligible)


def field_of(shape: FieldShape, values: dict[str, Tensor]) -> RadianceField:
    """The field whose parameters are named 'level 0' and so on."""
    return RadianceField(shape, tuple(values[f"level {k}"] for k in range(len(shape.resolutions))))


class FieldObjects:
    """Objects made of a radiance field (`text_to_3d.representation.Representation`)."""

    def __init__(self, config: Consistent3DConfig) -> None:
        self.config = config

    def first_state(self, prompt: str, generator: torch.Generator, before: State | None = None) -> State:
        """A soft grey ball."""
        levels = RadianceField.empty(field_shape(self.config)).levels
        return Parameters.first_state(self.config, {f"level {k}": level for k, level in enumerate(levels)})

    def open(self, state: State) -> OpenField:
        """A live field."""
        return OpenField(self.config, state)

    def trained(self, state: State) -> TrainedField:
        """The field of a state, all its levels fused."""
        values = {name.removeprefix("value."): tensor for name, tensor in state.items()}
        with torch.no_grad():
            return TrainedField(self.config, field_of(field_shape(self.config), values).fused())


class OpenField:
    """A field in training (`text_to_3d.representation.OpenObject`)."""

    def __init__(self, config: Consistent3DConfig, state: State) -> None:
        self.config, self.shape, self.march = config, field_shape(config), march_of(config)
        self.parameters = Parameters(config, state)
        self._drawn: tuple[VolumePicture, Tensor, Tensor] | None = None

    def levels_at(self, progress: Progress) -> int:
        """How many levels there are at a step."""
        config, count = self.config, len(self.config.resolutions)
        share = progress.fraction / config.all_levels if config.all_levels > 0 else 1.0
        return min(count, config.first_levels + int(share * (count - config.first_levels + 1)))

    def render(self, cameras: Sequence[Camera], background: Tensor, progress: Progress,
               generator: torch.Generator) -> Views:  # fmt: skip
        """C views; samples are jittered by one number per ray."""
        field = field_of(self.shape, self.parameters.values)
        with Timed("render"):
            table = field.fused(self.levels_at(progress))
            turned = self.config.orientation != (0.0, 0.0)
            rays = camera_rays(cameras, table.dtype, table.device)
            jitter = torch.rand(len(rays), generator=generator).to(table)
            seen = render_rays(
                with_normals(table, self.shape) if turned else table, self.shape, rays, self.march, jitter
            )
            self._drawn = (seen, rays.directions, table)
            return _views(seen, rays.directions, cameras, background)

    def losses(self, views: Views, progress: Progress) -> dict[str, Tensor]:
        """Orientation, opacity, and variation of the table, where their weights are above 0."""
        assert self._drawn is not None
        seen, directions, table = self._drawn
        config, found = self.config, dict[str, Tensor]()
        if seen.channels.shape[1] > 4:
            weight = Ramp(*config.orientation, over=config.orientation_until).at(progress)
            normals = seen.channels[:, 4:]
            found["orientation"] = weight * orientation(normals, directions[seen.ray], seen.weights, len(directions))
        if config.opacity_size:
            found["opacity"] = config.opacity_size * opacity_size(views.alpha)
        if config.opacity_entropy:
            found["entropy"] = config.opacity_entropy * opacity_entropy(views.alpha)
        if config.tv:
            found["tv"] = config.tv * total_variation(views.image)
        if config.variation:
            found["variation"] = config.variation * variation(table)
        return found

    def step(self, progress: Progress, generator: torch.Generator) -> dict[str, float]:
        """One update. Densities and colours share a tensor; the colours' rate is the densities' times a factor."""
        self._drawn = None
        config, values = self.config, self.parameters.values
        rates = {name: config.lr_density for name in values}
        if config.lr_colors == config.lr_density:
            return self.parameters.step(rates, progress)
        before = {name: value.detach()[..., COLORS].clone() for name, value in values.items()}
        numbers = self.parameters.step(rates, progress)
        factor = log_linear(config.lr_colors, progress.fraction) / log_linear(config.lr_density, progress.fraction)
        with torch.no_grad():
            for name, value in values.items():
                value[..., COLORS] = torch.lerp(before[name], value[..., COLORS], factor)
        return numbers

    def state(self) -> State:
        """Levels and moments."""
        return self.parameters.state()


def _views(seen: VolumePicture, directions: Tensor, cameras: Sequence[Camera], background: Tensor) -> Views:
    count, height, width = len(cameras), cameras[0].height, cameras[0].width
    behind = background.to(seen.colors).expand(count, 3).repeat_interleave(height * width, dim=0)
    forward = torch.stack([torch.as_tensor(c.cam_from_world[2, :3]) for c in cameras]).to(directions)
    along = (directions.reshape(count, -1, 3) * forward[:, None]).sum(2).reshape(-1)
    depth = torch.where(seen.opacity > 1e-3, seen.depth * along / seen.opacity.clamp(min=1e-3), 0)
    size = (count, height, width)
    return Views(seen.over(behind).reshape(*size, 3), seen.opacity.reshape(size), depth.reshape(size))


@dataclass(frozen=True, eq=False)
class TrainedField:
    """A field that is not trained any more: its table [R, R, R, 4] (`text_to_3d.representation.TrainedObject`)."""

    config: Consistent3DConfig
    table: Tensor

    @torch.no_grad()
    def render(self, cameras: Sequence[Camera], background: Tensor) -> Views:
        """Pictures over a background [3] or [C, 3]."""
        rays = camera_rays(cameras, self.table.dtype, self.table.device)
        seen = render_rays(self.table, field_shape(self.config), rays, march_of(self.config))
        return _views(seen, rays.directions, cameras, background)

    @torch.no_grad()
    def geometry(self) -> TriangleMesh:
        """The surface where the density is the config's, coloured at its vertices; empty where it is nowhere."""
        grid = TetGrid.cubic(self.config.cells, self.config.radius, self.table.dtype)
        found = march_tetrahedra(surface_of(self.table, self.config, grid))
        colors = look_up(self.table[..., COLORS], found.vertices, self.config.radius).sigmoid()
        return TriangleMesh(found.vertices.double().numpy(), found.faces.numpy(), colors.numpy())

    def save(self, path: Path) -> None:
        """Write the table."""
        save_tensors(path, FIELD_KIND, self.config, {"table": self.table})


ISO_LADDER = tuple(0.5 * 2**k for k in range(8))
"""Densities that are tried for the surface of a mesh: 0.5 to 64 per world unit."""

_OUTLINE_VIEWS, _OUTLINE_PIXELS = 8, 48


@torch.no_grad()
def surface_of(table: Tensor, config: Consistent3DConfig, grid: TetGrid) -> TetSurface:
    """Where a field's density passes the config's, as distances: raw density over its slope, at most a cell; without
    loose bits and bubbles. For a density of 0, of the ladder's the one whose mesh has the outline most like the field's
    own (intersection over union of what covers half a pixel, eight views)."""
    if config.iso_density > 0:
        return _surface_at(table, config, grid, config.iso_density)
    turns = orbit_views(_OUTLINE_VIEWS, _OUTLINE_PIXELS)
    solid = TrainedField(config, table).render(turns.cameras, torch.zeros(3)).alpha > 0.5
    surfaces = [_surface_at(table, config, grid, density) for density in ISO_LADDER]
    agreement = [_outline_agreement(surface, turns.cameras, solid) for surface in surfaces]
    return surfaces[agreement.index(max(agreement))]


def _surface_at(table: Tensor, config: Consistent3DConfig, grid: TetGrid, density: float) -> TetSurface:
    shape = field_shape(config)
    values = look_up(with_normals(table, shape), grid.vertices.to(table), config.radius)
    slope = values[:, 4:].norm(dim=1).clamp(min=1e-3)
    distance = (raw_of_density(density, shape) - values[:, DENSITY]) / slope
    return TetSurface.of_sdf(grid, tidied(grid, distance.clamp(-grid.cell, grid.cell)))


def _outline_agreement(surface: TetSurface, cameras: Sequence[Camera], solid: Tensor) -> float:
    mesh = march_tetrahedra(surface)
    seen = draw_mesh(mesh.vertices, mesh.faces, cameras).face >= 0
    return float((seen & solid).sum() / (seen | solid).sum().clamp(min=1))
