"""Coarser and finer sparse grids: average pooling, unpooling to remembered children, subdivision."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from scene_distill.nets.sparse_tensor import SparseTensor, Voxels


@dataclass(frozen=True, eq=False)
class Family:
    """Which coarse voxel (``parent`` int64 [N], a row of ``parents``) holds each of N fine ones."""

    children: Voxels
    parents: Voxels
    parent: Tensor


def family(voxels: Voxels, factor: int) -> Family:
    """The voxels and those of a grid ``factor`` times coarser that hold them, sorted by (item, x, y, z)."""

    def make() -> Family:
        side = voxels.extent // factor + 1
        x, y, z = (voxels.places // factor).unbind(1)
        codes = ((voxels.item * side + x) * side + y) * side + z
        unique, parent = torch.unique(codes, return_inverse=True)
        coords = [unique // side**3, unique // side**2 % side, unique // side % side, unique % side]
        return Family(voxels, Voxels(torch.stack(coords, 1)), parent)

    return voxels.kept(("family", factor), make)


def pooled(x: SparseTensor, tree: Family) -> SparseTensor:
    """Coarse features: the sum of a voxel's n children divided by n + 1.

    TRELLIS's networks were trained with this divisor (their mean counts the zeros it starts from), so loaded weights
    need it.
    """
    coarse = x.features.new_zeros(len(tree.parents), x.features.shape[1])
    coarse = coarse.index_add(0, tree.parent, x.features)
    counts = torch.bincount(tree.parent, minlength=len(tree.parents)).to(coarse.dtype)
    return SparseTensor(coarse / (counts + 1)[:, None], tree.parents)


def unpooled(x: SparseTensor, tree: Family) -> SparseTensor:
    """Fine features: every child gets its parent's."""
    return SparseTensor(x.features[tree.parent], tree.children)


def subdivided(x: SparseTensor) -> SparseTensor:
    """Every voxel cut into its 8 children, each with the parent's features; children of a voxel stand together."""

    def make() -> Voxels:
        corners = torch.tensor(list(itertools.product((0, 1), repeat=3)), device=x.voxels.device)
        places = (x.voxels.places[:, None] * 2 + corners).reshape(-1, 3)
        return Voxels(torch.cat([x.voxels.item.repeat_interleave(8)[:, None], places], 1))

    return SparseTensor(x.features.repeat_interleave(8, 0), x.voxels.kept("subdivided", make))
