"""Figures of a small-world model: every way of walking its flows against held-out objects and the teacher's fine path.

All walks start from the same noise, so that agreement compares what different numbers of steps make of it.
"""

from __future__ import annotations

import time
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
    overlap,
    pooled_voxels,
    recognised,
)

FINE = Walk(steps=200, role="teacher")
"""The walk that others agree with or not."""


@dataclass(frozen=True)
class Evaluation:
    """How many objects figures are of. ``compared``: of those that are compared in pairs or each with each."""

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
    return Truth(shapes, grids, latents, training, known, decoded(model, fine), fine)


@torch.no_grad()
def decoded(model: ShapeModel, states: Tensor, at_once: int = 256) -> Tensor:
    """Occupancy [N, R, R, R] bool of states of the structure flow."""
    parts = states.split(at_once)
    return torch.cat([model.structure_decoder(model.whitening["structure"].undo(part)) > 0 for part in parts])


def floors(truth: Truth) -> dict[str, float]:
    """Frechet distances of training from test objects: what a perfect sampler would show."""
    found = {f"frechet_{name}": frechet(truth.training[flow], truth.latents[flow])
             for flow, name in (("structure", "structure"), ("latent", "surface"))}  # fmt: skip
    voxels = frechet(pooled_voxels(truth.training_grids), pooled_voxels(truth.grids))
    return found | {"frechet_voxels": voxels}


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
def evaluate_walk(model: ShapeModel, truth: Truth, walk: Walk, how: Evaluation, surface: bool = True,
                  noise_seed: int | None = None) -> dict[str, Any]:  # fmt: skip
    """Figures of one walk; ``surface``: also of the second flow. The seconds are those of the flows alone, of one
    object at a time after one to warm up."""
    words = truth.shapes.words[: how.samples].long()
    numbers = range(len(words))
    seed = how.seed if noise_seed is None else noise_seed
    state = model.walk("structure", words[:, :1], None, walk, seed, numbers)
    grids = decoded(model, state)
    few = slice(0, how.compared)
    agreement = overlap(grids[few], truth.fine)
    distances = chamfer(grids[few], truth.fine)
    coverage, matching = coverage_and_matching(grids[few], truth.grids[few])
    figures: dict[str, Any] = {
        "frechet_structure": frechet(state, truth.latents["structure"]),
        "frechet_voxels": frechet(pooled_voxels(grids), pooled_voxels(truth.grids)),
        "overlap_with_fine": float(agreement.mean()),
        "chamfer_with_fine": float(distances[~distances.isnan()].mean()),
        "rmse_with_fine": float((state[few] - truth.fine_state).square().mean().sqrt()),
        "coverage": coverage, "matching_distance": matching,
        "recognised": recognised(grids, words[:, 0], truth.grids, truth.shapes.words[:, 0].long()),
        "empty": float((~grids.flatten(1).any(1)).float().mean()),
        "evaluations": walk.steps * (2 if walk.guidance else 1),
        "seconds_structure": _seconds(lambda: model.walk("structure", words[:1, :1], None, walk, seed, range(1))),
    }  # fmt: skip
    if surface:
        second = model.walk("latent", words, state, walk, seed, numbers)
        figures["frechet_surface"] = frechet(second, truth.latents["latent"])
        figures["seconds_both"] = _seconds(lambda: model.sample(words[:1], walk, seed))
    return figures


def _seconds(work: Callable[[], object], times: int = 5) -> float:
    work()
    spent = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        spent.append(time.perf_counter() - started)
    return sorted(spent)[times // 2]
