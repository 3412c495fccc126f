"""Sparse convolution against a dense one, and its backends against each other, values and gradients."""

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scene_distill.core.errors import UserError
from scene_distill.nets import sparse_convolution
from scene_distill.nets.sparse_convolution import SparseConvolution, convolve_by_gathering, use_backend
from scene_distill.nets.sparse_resampling import family, pooled, subdivided, unpooled
from scene_distill.nets.sparse_tensor import SparseTensor, Voxels


def scattered(seed: int, counts: tuple[int, ...] = (20, 9), side: int = 5) -> Voxels:
    """Random voxels of several items, in random order within each."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for item, count in enumerate(counts):
        cells = torch.randperm(side**3, generator=generator)[:count]
        rows.append(
            torch.stack([torch.full_like(cells, item), cells // side**2, cells // side % side, cells % side], 1)
        )
    return Voxels(torch.cat(rows))


def dense_answer(features, voxels, weight, bias):
    """Convolution of the grid with zeros where no voxel is, read at the voxels."""
    side = voxels.extent
    grid = features.new_zeros(len(voxels.counts), side, side, side, features.shape[1])
    index = (voxels.item, *voxels.places.unbind(1))
    grid = grid.index_put(index, features).movedim(-1, 1)
    out = torch.nn.functional.conv3d(grid, weight.permute(0, 4, 1, 2, 3), bias, padding=weight.shape[1] // 2)
    return out.movedim(1, -1)[index]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 999), first=st.integers(1, 60), second=st.integers(1, 60))
def test_gathering_is_a_dense_convolution_at_the_voxels(seed, first, second):
    voxels = scattered(seed, (first, second))
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(len(voxels), 3, generator=generator, dtype=torch.float64)
    weight = torch.randn(4, 3, 3, 3, 3, generator=generator, dtype=torch.float64)
    bias = torch.randn(4, generator=generator, dtype=torch.float64)
    found = convolve_by_gathering(features, voxels, weight, bias)
    assert torch.allclose(found, dense_answer(features, voxels, weight, bias), atol=1e-10)


def test_gradients_are_those_of_the_dense_convolution():
    voxels, generator = scattered(3), torch.Generator().manual_seed(3)
    tensors = [
        torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((len(voxels), 3), (4, 3, 3, 3, 3), (4,))
    ]
    weights = torch.randn(len(voxels), 4, generator=generator, dtype=torch.float64)
    features, weight, bias = tensors
    mine = torch.autograd.grad((convolve_by_gathering(features, voxels, weight, bias) * weights).sum(), tensors)
    dense = torch.autograd.grad((dense_answer(features, voxels, weight, bias) * weights).sum(), tensors)
    assert all(torch.allclose(a, b, atol=1e-10) for a, b in zip(mine, dense, strict=True))


def test_spconv_and_gathering_agree(device):
    pytest.importorskip("spconv", reason="spconv is not installed (extra 'points')")
    assert sparse_convolution.spconv_works(device.type)
    voxels = Voxels(scattered(5, (60, 31)).coords.to(device))
    layer, follower = SparseConvolution(6, 5).to(device), SparseConvolution(5, 6).to(device)
    torch.nn.init.normal_(layer.conv.bias)
    learns = device.type == "cuda"
    features = torch.randn(len(voxels), 6, device=device, requires_grad=learns)
    results = {}
    for backend in ("gather", "spconv"):
        for part in (layer, follower):
            use_backend(part, backend)
        with torch.set_grad_enabled(learns):
            out = follower(layer(SparseTensor(features, voxels))).features
        wanted = [features, *layer.parameters(), *follower.parameters()] if learns else []
        results[backend] = [out, *(torch.autograd.grad(out.square().sum(), wanted) if learns else [])]
    for a, b in zip(results["gather"], results["spconv"], strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=(1e-2 if learns else 1e-5) * a.abs().max().item())
    if not learns:
        with pytest.raises(UserError, match="no gradients on a CPU"):
            layer(SparseTensor(features, voxels))


def test_asking_for_spconv_without_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "spconv.pytorch", None)
    with pytest.raises(UserError, match=r"scene-distill\[points\]"):
        use_backend(SparseConvolution(1, 1), "spconv")


def test_kernels_of_one_voxel_are_linear_and_other_sizes_are_refused():
    voxels, layer = scattered(1), SparseConvolution(3, 2, 1)
    features = torch.randn(len(voxels), 3)
    expected = features @ layer.conv.weight[:, 0, 0, 0].T + layer.conv.bias
    assert torch.allclose(layer(SparseTensor(features, voxels)).features, expected, atol=1e-6)
    with pytest.raises(ValueError, match="size 1 or 3"):
        SparseConvolution(3, 2, 2)


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [[0, 0, 0]],
        [[0, 0, 0, -1]],
        [[1, 0, 0, 0]],
        [[0, 0, 0, 0], [2, 0, 0, 0]],
        [[0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0]],
    ],
)
def test_voxels_out_of_order_are_refused(rows):
    with pytest.raises(ValueError, match="voxels"):
        Voxels(torch.tensor(rows, dtype=torch.int32))


def test_a_voxel_that_stands_twice_is_found():
    with pytest.raises(ValueError, match="twice"):
        Voxels(torch.tensor([[0, 1, 1, 1], [0, 1, 1, 1]])).neighbours((0, 0, 1))


def test_pooling_divides_by_one_more_than_the_children():
    voxels = Voxels(torch.tensor([[0, 0, 0, 0], [0, 1, 1, 1], [0, 2, 0, 0], [1, 0, 0, 1]]))
    tree = family(voxels, 2)
    coarse = pooled(SparseTensor(torch.tensor([[2.0], [4.0], [6.0], [8.0]]), voxels), tree)
    assert coarse.voxels.coords.tolist() == [[0, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0]]
    assert coarse.features.squeeze(1).tolist() == [2.0, 3.0, 4.0]
    fine = unpooled(coarse, tree)
    assert fine.voxels is voxels and fine.features.squeeze(1).tolist() == [2.0, 2.0, 3.0, 4.0]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999), st.integers(1, 40))
def test_children_fill_their_parents_once(seed, count):
    x = SparseTensor(torch.arange(count + 3.0)[:, None], scattered(seed, (count, 3)))
    fine = subdivided(x)
    assert len(fine) == 8 * len(x) and len(torch.unique(fine.voxels.coords, dim=0)) == len(fine)
    tree = family(fine.voxels, 2)
    assert {tuple(row) for row in tree.parents.coords.tolist()} == {tuple(row) for row in x.voxels.coords.tolist()}
    assert torch.allclose(pooled(fine, tree).features.sum(), x.features.sum() * 8 / 9)
