"""Figures of a small-world model: every way of walking its flows against held-out objects and the teacher's fine path.

Distances of sets are of noise that differs from seed to seed, so that their spread over seeds has that of sampling in
it. Agreement compares what walks make of the same noise, so it has noise of its own, the same for all seeds; steps that
draw noise again agree with nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scene_distill.core.seeds import torch_generator
from scene_distill.data.shape_shards import ShapeSet, ShapeShard, read_all, write_shards
from scene_distill.methods.mdt_dist.flows import LatentFiles
from scene_distill.methods.mdt_dist.model import ShapeModel, Walk
from scene_distill.methods.mdt_dist.run import encode, whitened
from scene_distill.nets.surface_autoencoder import distances_and_colors
from scene_distill.training.shape_evaluation import (
    chamfer,
    coverage_and_matching,
    frechet,
    frechet_within_kinds,
    overlap,
    pooled_voxels,
    recognised,
)

FINE = Walk(steps=200, role="teacher")
"""The walk that others agree with or not."""


@dataclass(frozen=True)
class Evaluation:
    """How many objects figures are of. ``compared``: of those that are compared in pairs or each with each; ``seed``:
    of the noise."""

    samples: int = 2000
    compared: int = 400
    seed: int = 1


@dataclass(frozen=True, eq=False)
class Truth:
    """Held-out objects, their latents by flow, as many training latents, and the fine walk's occupancy."""

    shapes: ShapeShard
    grids: Tensor
    latents: dict[str, Tensor]
    training: dict[str, Tensor]
    training_grids: Tensor
    training_kinds: Tensor
    fine: Tensor
    fine_state: Tensor


def gather_truth(model: ShapeModel, files: LatentFiles, world: ShapeSet, folder: Path, how: Evaluation,
                 told: Callable[[int, int], None] = lambda done, total: None) -> Truth:  # fmt: skip
    """Make the test objects where they are not there, encode them, and walk the teacher finely."""
    test = ShapeSet("test", how.samples, 1, world.seed, world.resolution)
    write_shards(test, folder, told)
    shapes = read_all(test, folder)
    latents = whitened(model, *encode(model, shapes, torch_generator(how.seed, "test shells")))
    tensors = [files.read(shard) for shard in range(world.shards)]
    structure, surface = (torch.cat([t[name] for t in tensors])[: how.samples] for name in ("structure", "surface"))
    training = whitened(model, structure, surface)
    trained = read_all(world, folder)
    grids = shapes.grids(torch.arange(len(shapes)))
    words = shapes.words[: how.compared].long()
    fine = model.walk("structure", words[:, :1], None, FINE, how.seed, range(len(words)))
    known = trained.grids(torch.arange(min(how.samples, len(trained))))
    kinds = trained.words[: how.samples, 0].long()
    return Truth(shapes, grids, latents, training, known, kinds, decoded(model, fine), fine)


@torch.no_grad()
def decoded(model: ShapeModel, states: Tensor, at_once: int = 256) -> Tensor:
    """Occupancy [N, R, R, R] bool of states of the structure flow."""
    parts = states.split(at_once)
    return torch.cat([model.structure_decoder(model.whitening["structure"].undo(part)) > 0 for part in parts])


def floors(model: ShapeModel, truth: Truth, how: Evaluation) -> dict[str, float]:
    """Figures of training objects in place of samples: what a perfect sampler would show.

    Occupancy is decoded from their latents, as that of samples is; 'raw' is the distance of the objects themselves.
    """
    states = truth.training["structure"]
    found = _of_sets(truth, states, decoded(model, states), truth.training_kinds, how)
    found["frechet_surface"] = frechet(truth.training["latent"], truth.latents["latent"])
    found["frechet_voxels_raw"] = frechet(pooled_voxels(truth.training_grids), pooled_voxels(truth.grids))
    return finite(found)


def finite(figures: dict[str, float]) -> dict[str, float]:
    """The figures that are numbers: JSON has no others."""
    return {name: value for name, value in figures.items() if math.isfinite(value)}


def _of_sets(truth: Truth, states: Tensor, grids: Tensor, kinds: Tensor, how: Evaluation) -> dict[str, float]:
    """Figures of states [N, D] of the structure flow and their occupancy as a set that was asked for ``kinds`` [N]."""
    test_kinds = truth.shapes.words[:, 0].long()
    few = slice(0, how.compared)
    coverage, matching = coverage_and_matching(grids[few], truth.grids[few])
    return {
        "frechet_structure": frechet(states, truth.latents["structure"]),
        "frechet_within_kind": frechet_within_kinds(states, kinds, truth.latents["structure"], test_kinds),
        "frechet_voxels": frechet(pooled_voxels(grids), pooled_voxels(truth.grids)),
        "coverage": coverage, "matching_distance": matching,
        "recognised": recognised(grids, kinds, truth.grids, test_kinds),
        "empty": float((~grids.flatten(1).any(1)).float().mean()),
    }  # fmt: skip


@torch.no_grad()
def autoencoding(model: ShapeModel, truth: Truth, how: Evaluation) -> dict[str, float]:
    """What the autoencoders lose on held-out objects: overlap of occupancy; errors of distance (voxels) and colour."""
    rows = torch.arange(min(how.compared, len(truth.shapes)))
    structure = model.whitening["structure"].undo(truth.latents["structure"][rows])
    surface = model.whitening["latent"].undo(truth.latents["latent"][rows])
    again = decoded(model, truth.latents["structure"][rows])
    generator = torch_generator(how.seed, "evaluated shells")
    index, distance, color = truth.shapes.sampled(rows, 256, generator)
    off, painted = distances_and_colors(model.mesh_decoder(index, truth.grids[rows], surface, structure))
    return {
        "overlap": float(overlap(again, truth.grids[rows]).mean()),
        "distance_error": float((off - distance).abs().mean()),
        "color_error": float((painted - color).abs().mean()),
    }


@torch.no_grad()
def evaluate_walk(model: ShapeModel, truth: Truth, walk: Walk, how: Evaluation, seed: int = 0,
                  surface: bool = True) -> dict[str, Any]:  # fmt: skip
    """Figures of one walk from noise number ``seed``; ``surface``: also of the second flow.

    ``evaluations``: calls of networks for an object, in all flows that were walked. Agreement is of noise 0 whatever
    the seed, and not there for walks that draw noise again. Figures that are not numbers are left out.
    """
    words = truth.shapes.words[: how.samples].long()
    numbers, noise = range(len(words)), how.seed + seed
    states = model.walk("structure", words[:, :1], None, walk, noise, numbers)
    figures = _of_sets(truth, states, decoded(model, states), words[:, 0], how)
    if walk.steps == 1 or walk.sampler == "euler":
        figures |= _agreement(model, truth, walk, how)
    if surface:
        second = model.walk("latent", words, states, walk, noise, numbers)
        figures["frechet_surface"] = frechet(second, truth.latents["latent"])
    evaluations = (1 + surface) * walk.steps * (2 if walk.guidance else 1)
    return {"evaluations": evaluations, "noise": noise, **finite(figures)}


def _agreement(model: ShapeModel, truth: Truth, walk: Walk, how: Evaluation) -> dict[str, float]:
    """Of the compared objects with the fine walk from the same noise."""
    words = truth.shapes.words[: how.compared].long()
    states = model.walk("structure", words[:, :1], None, walk, how.seed, range(len(words)))
    grids = decoded(model, states)
    distances = chamfer(grids, truth.fine)
    return {
        "overlap_with_fine": float(overlap(grids, truth.fine).mean()),
        "chamfer_with_fine": float(distances[~distances.isnan()].mean()),
        "rmse_with_fine": float((states - truth.fine_state).square().mean().sqrt()),
    }
