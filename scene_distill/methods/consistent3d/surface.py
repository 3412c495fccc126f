"""The second stage's object: a mesh marched out of tetrahedra, its colours in a grid around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from scene_distill.blocks.store import State
from scene_distill.core.cameras import Camera
from scene_distill.core.stages import Stage as Timed
from scene_distill.methods.consistent3d.config import Consistent3DConfig
from scene_distill.methods.consistent3d.field import FieldObjects, field_of, field_shape, surface_of
from scene_distill.methods.consistent3d.files import save_tensors
from scene_distill.methods.consistent3d.parameters import Parameters
from scene_distill.methods.text_to_3d.representation import Views
from scene_distill.objectives.mesh_smoothness import laplacian, normal_consistency, sign_agreement
from scene_distill.objectives.score_teacher import Progress
from scene_distill.objectives.total_variation import total_variation
from scene_distill.renderers.mesh import antialias, draw_mesh, shrunk, vertex_normals
from scene_distill.renderers.mesh_visibility import neighbours
from scene_distill.representations.marching_tetrahedra import Extracted, march_tetrahedra
from scene_distill.representations.meshes import TriangleMesh
from scene_distill.representations.radiance_field import COLORS, look_up
from scene_distill.representations.tetrahedra import TetGrid, TetSurface

SURFACE_KIND = "scene-distill coloured mesh 1"

Part = Literal["geometry", "texture"]


class SurfaceObjects:
    """Objects made of a mesh (`text_to_3d.representation.Representation`); ``part`` says what is trained."""

    def __init__(self, config: Consistent3DConfig, part: Part) -> None:
        self.config, self.part = config, part

    @cached_property
    def grid(self) -> TetGrid:
        """The tetrahedra that all objects of the config live in."""
        return TetGrid.cubic(self.config.cells, self.config.radius)

    def first_state(self, prompt: str, generator: torch.Generator, before: State | None = None) -> State:
        """The mesh of the stage before, or the surface of its field; moments begin anew."""
        fields = FieldObjects(self.config)
        state = before if before is not None else fields.first_state(prompt, generator)
        values = {name.removeprefix("value."): tensor for name, tensor in state.items() if name.startswith("value.")}
        if "sdf" not in values:
            surface = surface_of(fields.trained(state).table.cpu(), self.config, self.grid)
            values |= {"sdf": surface.sdf, "offsets": surface.offsets}
        return Parameters.first_state(self.config, values)

    def open(self, state: State) -> OpenSurface:
        """A live mesh."""
        return OpenSurface(self.config, self.part, self.grid, state)

    def trained(self, state: State) -> TrainedSurface:
        """The mesh of a state."""
        values = {name.removeprefix("value."): tensor for name, tensor in state.items()}
        with torch.no_grad():
            found = march_tetrahedra(TetSurface(self.grid, values["sdf"], values["offsets"]))
            colors = field_of(field_shape(self.config), values).fused()[..., COLORS].contiguous()
        return TrainedSurface(self.config, found.vertices, found.faces, colors)


def draw_surface(config: Consistent3DConfig, mesh: tuple[Tensor, Tensor], colors: Tensor, cameras: Sequence[Camera],
                 background: Tensor) -> tuple[Views, Tensor]:  # fmt: skip
    """Views of (vertices, faces) coloured by a raw table [R, R, R, 3] where each pixel meets the surface, and pictures
    of world normals [C, H, W, 3] as colours 0.5 + 0.5 n over the same background."""
    vertices, faces = mesh
    factor, count = config.supersampling, len(cameras)
    picture = draw_mesh(vertices, faces, [camera.resized(camera.width * factor) for camera in cameras])
    places = picture.interpolate(vertices)
    shades = look_up(colors, places, config.radius).sigmoid()
    normals = torch.nn.functional.normalize(picture.interpolate(vertex_normals(vertices, faces)), dim=1, eps=1e-12)
    behind = background.to(shades).expand(count, 3)
    values = torch.cat([shades, torch.ones_like(shades[:, :1]), 0.5 + 0.5 * normals], dim=1)
    base = torch.cat([behind, torch.zeros_like(behind[:, :1]), behind], dim=1)
    image = shrunk(antialias(picture.image(values, base), picture), factor)
    depth = shrunk(picture.image(picture.depth.detach()[:, None], torch.zeros(1)), factor)[..., 0]
    alpha = image[..., 3]
    seen = shrunk((picture.face >= 0).to(depth)[..., None], factor)[..., 0]
    depth = torch.where(seen > 0, depth / seen.clamp(min=1e-6), 0)
    return Views(image[..., :3], alpha, depth), image[..., 4:]


class OpenSurface:
    """A mesh in training (`text_to_3d.representation.OpenObject`)."""

    def __init__(self, config: Consistent3DConfig, part: Part, grid: TetGrid, state: State) -> None:
        self.config, self.part, self.grid, self.shape = config, part, grid, field_shape(config)
        self.parameters = Parameters(config, state)
        self._drawn: Extracted | None = None

    def render(self, cameras: Sequence[Camera], background: Tensor, progress: Progress,
               generator: torch.Generator) -> Views:  # fmt: skip
        """C views; in the stage of the shape the prior may be shown normals."""
        config, values, geometry = self.config, self.parameters.values, self.part == "geometry"
        sees = config.geometry_sees if geometry else "colours"
        with Timed("render"):
            with torch.set_grad_enabled(geometry):
                self._drawn = march_tetrahedra(TetSurface(self.grid, values["sdf"], values["offsets"]))
            with torch.set_grad_enabled(sees != "normals"):
                colors = field_of(self.shape, values).fused()[..., COLORS].contiguous()
            mesh = (self._drawn.vertices, self._drawn.faces)
            views, normals = draw_surface(config, mesh, colors, cameras, background)
        if sees == "colours":
            return views
        taught = normals
        if sees == "both":
            odd = torch.arange(len(cameras)) % 2 == int(torch.randint(2, (1,), generator=generator))
            taught = torch.where(odd[:, None, None, None], views.image, normals)
        return Views(views.image, views.alpha, views.depth_m, taught)

    def losses(self, views: Views, progress: Progress) -> dict[str, Tensor]:
        """What keeps the shape smooth, while it is trained; for an object that is gone, a loss without gradient."""
        mesh, config, found = self._drawn, self.config, dict[str, Tensor]()
        assert mesh is not None
        if config.tv:
            found["tv"] = config.tv * total_variation(views.image)
        if self.part == "texture":
            return found
        sdf = self.parameters.values["sdf"]
        if len(mesh.faces) == 0:
            return {"gone": 0 * sdf.sum()}
        if config.normal_consistency:
            angles = normal_consistency(mesh.vertices, mesh.faces, neighbours(mesh.faces))
            found["normals"] = config.normal_consistency * angles
        if config.laplacian:
            found["laplacian"] = config.laplacian * laplacian(mesh.vertices, mesh.faces, self.grid.cell)
        if config.sign_agreement:
            crossing = self.grid.edges[mesh.edges]
            found["signs"] = config.sign_agreement * sign_agreement(sdf, crossing, self.grid.cell)
        return found

    def step(self, progress: Progress, generator: torch.Generator) -> dict[str, float]:
        """One update of what the stage trains."""
        config, faces = self.config, 0 if self._drawn is None else len(self._drawn.faces)
        first, last = config.lr_surface
        rates = {name: config.lr_colors for name in self.parameters.values}
        rates |= {"sdf": (first * self.grid.cell, last * self.grid.cell), "offsets": config.lr_offsets}
        self._drawn = None
        return self.parameters.step(rates, progress) | {"faces": float(faces)}

    def state(self) -> State:
        """Distances, deformation, colours and moments."""
        return self.parameters.state()


@dataclass(frozen=True, eq=False)
class TrainedSurface:
    """A mesh that is not trained any more (`text_to_3d.representation.TrainedObject`): vertices [V, 3], faces [F, 3],
    and a raw table of colours [R, R, R, 3] around them."""

    config: Consistent3DConfig
    vertices: Tensor
    faces: Tensor
    colors: Tensor

    @torch.no_grad()
    def render(self, cameras: Sequence[Camera], background: Tensor) -> Views:
        """Pictures over a background [3] or [C, 3]."""
        return draw_surface(self.config, (self.vertices, self.faces), self.colors, cameras, background)[0]

    @torch.no_grad()
    def normals(self, cameras: Sequence[Camera], background: Tensor) -> Tensor:
        """Pictures [C, H, W, 3] of the mesh's normals."""
        return draw_surface(self.config, (self.vertices, self.faces), self.colors, cameras, background)[1]

    @torch.no_grad()
    def geometry(self) -> TriangleMesh:
        """The mesh with every triangle cut in four, so that vertex colours keep the table's detail."""
        vertices, faces = _quartered(self.vertices, self.faces)
        colors = look_up(self.colors, vertices, self.config.radius).sigmoid()
        return TriangleMesh(vertices.double().numpy(), faces.numpy(), colors.numpy())

    def save(self, path: Path) -> None:
        """Write mesh and colours."""
        tensors = {"vertices": self.vertices, "faces": self.faces, "colors": self.colors}
        save_tensors(path, SURFACE_KIND, self.config, tensors)


def _quartered(vertices: Tensor, faces: Tensor) -> tuple[Tensor, Tensor]:
    """Every triangle as four, new vertices in the middle of edges."""
    ends = torch.stack([faces, faces.roll(-1, dims=1)], dim=2).reshape(-1, 2).sort(dim=1)[0]
    edges, which = torch.unique(ends, dim=0, return_inverse=True)
    middle = which.reshape(-1, 3) + len(vertices)
    (a, b, c), (ab, bc, ca) = faces.unbind(1), middle.unbind(1)
    parts = [(a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca)]
    more = vertices[edges].mean(dim=1)
    return torch.cat([vertices, more]), torch.cat([torch.stack(part, dim=1) for part in parts])
