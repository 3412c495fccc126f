"""What keeps a mesh a surface while noisy pictures pull at it.

Teacher:   none; priors about surfaces.
Student:   vertices of a mesh, or signed distances on a grid.
Gradient:  into vertices or distances.

    normal consistency   mean over edges of 1 - n_i . n_j of the two triangles            (Consistent3D: weight 100)
    Laplacian            mean over vertices of |v - mean of its neighbours|^2 / h^2       (Consistent3D: weight 100)
    sign agreement       mean over edges that cross the surface of the cross-entropy of sigmoid(s_i / h) against the
                         other end's sign (Munkberg et al. 2022, eq. 2): the fewer crossings, the less

h is a length, the grid's cell, so that weights do not depend on the size of the world.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def normal_consistency(vertices: Tensor, faces: Tensor, across: Tensor) -> Tensor:
    """Scalar for vertices [V, 3], faces [F, 3] and the triangle across each of their edges [F, 3] (-1: none)."""
    a, b, c = vertices[faces].unbind(dim=1)
    normals = functional.normalize(torch.cross(b - a, c - a, dim=1), dim=1, eps=1e-12)
    face, side = torch.nonzero(across > torch.arange(len(faces))[:, None], as_tuple=True)
    other = across[face, side]
    return (1 - (normals[face] * normals[other]).sum(dim=1)).sum() / max(len(face), 1)


def laplacian(vertices: Tensor, faces: Tensor, length: float) -> Tensor:
    """Scalar; neighbours of a vertex are the other corners of its triangles, each counted once per triangle."""
    ends = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    ends = torch.cat([ends, ends.flip(1)])
    ones = torch.ones(len(ends), 1, dtype=vertices.dtype)
    degree = torch.zeros(len(vertices), 1, dtype=vertices.dtype).index_add(0, ends[:, 0], ones)
    sums = torch.zeros_like(vertices).index_add(0, ends[:, 0], vertices[ends[:, 1]])
    return ((vertices - sums / degree.clamp(min=1)) / length).square().sum() / max(len(vertices), 1)


def sign_agreement(sdf: Tensor, edges: Tensor, length: float) -> Tensor:
    """Scalar for distances [V] on the edges [E, 2] whose ends differ in sign."""
    a, b = sdf[edges[:, 0]] / length, sdf[edges[:, 1]] / length
    entropy = functional.binary_cross_entropy_with_logits
    total = entropy(a, (b > 0).to(a), reduction="sum") + entropy(b, (a > 0).to(b), reduction="sum")
    return total / max(len(edges), 1)
