"""Submanifold sparse convolution: outputs stand exactly where inputs do (Graham et al. 2018).

    out[p] = bias + sum over offsets k of W[:, k, :] in[p + k]          only over occupied p + k

Weights [out, kx, ky, kz, in], the layout of spconv 2. Two backends that are tested equal:

gather   for every offset: gather the rows that have a neighbour there, one matrix product, add to the rows that look.
         Plain torch, any device, differentiable; the pairs are found once for all layers on the same voxels.
spconv   the library, where it is installed and gives the right answer on the device. On a CPU it has no gradients
         (its backward pass asks for a CUDA stream).
"""

from __future__ import annotations

import itertools
import math
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from scene_distill.core.errors import UserError
from scene_distill.nets.sparse_tensor import SparseTensor, Voxels

Backend = Literal["auto", "gather", "spconv"]


class KernelWeights(nn.Module):
    """Weights [out, k, k, k, in] and bias [out] of a sparse convolution."""

    def __init__(self, inputs: int, outputs: int, kernel: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, kernel, kernel, kernel, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        bound = math.sqrt(6 / (kernel**3 * (inputs + outputs)))
        nn.init.uniform_(self.weight, -bound, bound)  # Xavier


class SparseConvolution(nn.Module):
    """Submanifold convolution with a ``kernel`` of 1 or 3 voxels a side; computes in and returns its weights' type.

    ``backend``: 'auto' takes spconv on a GPU where it works and gather elsewhere.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, backend: Backend = "auto"):
        super().__init__()
        if kernel not in (1, 3):
            raise ValueError(f"submanifold kernels have size 1 or 3, not {kernel}")
        self.conv = KernelWeights(inputs, outputs, kernel)
        self.backend = backend

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Features [N, out] on the same voxels."""
        weight, bias = self.conv.weight, self.conv.bias
        features = x.features.to(weight.dtype)
        if weight.shape[1] == 1:
            return x.with_features(nn.functional.linear(features, weight.flatten(1), bias))
        chosen = convolve_with_spconv if _takes_spconv(self.backend, features.device) else convolve_by_gathering
        return x.with_features(chosen(features, x.voxels, weight, bias))


def use_backend(module: nn.Module, backend: Backend) -> None:
    """Set the backend of every sparse convolution in a network; `UserError` if spconv is asked for and not there."""
    if backend == "spconv":
        _spconv()
    for part in module.modules():
        if isinstance(part, SparseConvolution):
            part.backend = backend


def convolve_by_gathering(features: Tensor, voxels: Voxels, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolved features [N, out] of features [N, in]: gather, multiply, scatter for every offset."""
    kernel = weight.shape[1]
    half = kernel // 2
    out = torch.addmm(bias, features, weight[:, half, half, half].T)
    for index in itertools.product(range(kernel), repeat=3):
        offset = (index[0] - half, index[1] - half, index[2] - half)
        if offset == (0, 0, 0):
            continue
        here, there = voxels.neighbours(offset)
        if len(here):
            matrix = weight[:, index[0], index[1], index[2]].T
            out.index_add_(0, here, features.index_select(0, there) @ matrix)
    return out


def convolve_with_spconv(features: Tensor, voxels: Voxels, weight: Tensor, bias: Tensor) -> Tensor:
    """The same through spconv; neighbour tables are kept with the voxels. `UserError` for gradients on a CPU."""
    spconv = _spconv()
    learns = torch.is_grad_enabled() and any(part.requires_grad for part in (features, weight))
    if learns and features.device.type == "cpu":
        raise UserError("spconv has no gradients on a CPU; train with the backend gather")
    outputs, kernel, inputs = weight.shape[0], weight.shape[1], weight.shape[4]
    layer = spconv.SubMConv3d(inputs, outputs, kernel, bias=False, indice_key=f"kernel {kernel}")
    layer.train(learns)
    del layer.weight
    layer.weight = weight  # ours, with its gradient
    tensor = spconv.SparseConvTensor(features, voxels.coords, [voxels.extent] * 3, len(voxels.counts))
    tensor.indice_dict = voxels.kept("spconv", dict)
    return layer(tensor).features + bias


def _takes_spconv(backend: Backend, device: torch.device) -> bool:
    if backend == "auto":
        return device.type == "cuda" and spconv_works(device.type)
    return backend == "spconv"


@cache
def spconv_works(device_type: str) -> bool:
    """Whether spconv is installed and convolves a small example on that kind of device as the formula says."""
    try:
        _spconv()
    except UserError:
        return False
    generator = torch.Generator().manual_seed(0)
    cells = torch.randperm(64, generator=generator)[:20]
    coords = torch.stack([torch.zeros_like(cells), cells // 16, cells // 4 % 4, cells % 4], 1).int().to(device_type)
    features = torch.randn(20, 4, generator=generator).to(device_type)
    weight = torch.randn(5, 3, 3, 3, 4, generator=generator).to(device_type)
    bias = torch.zeros(5, device=device_type)
    try:
        with torch.no_grad():
            found = convolve_with_spconv(features, Voxels(coords), weight, bias)
    except Exception:  # built for other hardware: whatever its kernels raise there
        return False
    expected = convolve_by_gathering(features, Voxels(coords), weight, bias)
    return torch.allclose(found, expected, atol=2e-2 if device_type == "cuda" else 1e-4)  # TF32 on GPUs


def _spconv() -> Any:
    try:
        import spconv.pytorch as spconv
    except Exception as error:  # a library built for another torch raises more than ImportError
        raise UserError(
            f"sparse convolution by spconv needs spconv ({error}); pip install 'scene-distill[points]' (on a GPU "
            "spconv-cu120), or use the backend gather"
        ) from error
    return spconv
