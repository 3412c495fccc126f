"""The small world's networks: layouts, neighbourhoods, frames, and what a fresh flow says."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scene_distill.data.shape_world import voxel_centers
from scene_distill.nets.structure_autoencoder import (
    CELL,
    StructureConfig,
    StructureDecoder,
    StructureEncoder,
    from_cells,
    kl_to_unit,
    structure_loss,
    to_cells,
)
from scene_distill.nets.surface_autoencoder import (
    GAUSSIAN_CHANNELS,
    SurfaceConfig,
    SurfaceEncoder,
    VoxelDecoder,
    neighbourhoods,
    places,
    splats_of_channels,
)
from scene_distill.nets.vector_flow import VectorFlow, VectorFlowConfig
from scene_distill.objectives.transport import Derivative, total_derivative

FLOW = VectorFlowConfig(6, (5, 3), 4, width=16, depth=2, condition=8)


def test_cells_hold_their_voxels():
    grid = torch.arange(8**3).reshape(1, 8, 8, 8)
    cells = to_cells(grid)
    assert cells.shape == (1, 8, CELL**3)
    assert torch.equal(cells[0, 5].reshape(4, 4, 4), grid[0, 4:, :4, 4:])  # cell 5 is x = 1, y = 0, z = 1
    assert torch.equal(from_cells(cells), grid)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_neighbourhoods_are_the_27_voxels_around(seed):
    generator = torch.Generator().manual_seed(seed)
    grids = torch.rand(2, 5, 5, 5, generator=generator) < 0.4
    index = torch.randint(125, (2, 9), generator=generator)
    found = neighbourhoods(grids, index)
    for b in range(2):
        padded = np.pad(grids[b].numpy(), 1)
        for p, number in enumerate(index[b].tolist()):
            x, y, z = number // 25, number // 5 % 5, number % 5
            expected = padded[x : x + 3, y : y + 3, z : z + 3].reshape(-1)
            assert (found[b, p].numpy() == expected).all()


def test_places_are_voxel_centres():
    assert np.allclose(places(torch.arange(64), 4).numpy(), voxel_centers(4))


def test_structure_shapes_and_losses():
    config = StructureConfig(16, 8, 4, 24, 16)
    grids = torch.rand(3, 16, 16, 16) < 0.3
    mean, log_variance = StructureEncoder(config)(grids.float())
    logits = StructureDecoder(config)(mean)
    assert mean.shape == log_variance.shape == (3, 8) and logits.shape == grids.shape
    right = 40 * (grids.float() - 0.5)
    dice, entropy = structure_loss(right, grids)
    assert float(dice.max()) < 1e-4 and float(entropy.max()) < 1e-4
    wrong, _ = structure_loss(-right, grids)
    assert float(wrong.min()) > 0.99
    assert float(kl_to_unit(torch.zeros(1, 4), torch.zeros(1, 4))) == 0
    assert float(kl_to_unit(torch.ones(1, 4), torch.zeros(1, 4))) == pytest.approx(0.5)


def test_surface_latent_is_of_a_set():
    config = SurfaceConfig(16, 6, 8, 16, 12, 2)
    encoder = SurfaceEncoder(config)
    index, distance, color = torch.randint(4096, (2, 20)), torch.randn(2, 20), torch.rand(2, 20, 3)
    order = torch.randperm(20)
    plain = encoder(index, distance, color)[0]
    shuffled = encoder(index[:, order], distance[:, order], color[:, order])[0]
    torch.testing.assert_close(plain, shuffled)
    decoder = VoxelDecoder(config, GAUSSIAN_CHANNELS)
    grids = torch.rand(2, 16, 16, 16) < 0.5
    channels = decoder(index, grids, plain, torch.randn(2, 8))
    alone = decoder(index[:1, :5], grids[:1], plain[:1], torch.randn(1, 8))
    assert channels.shape == (2, 20, GAUSSIAN_CHANNELS) and alone.shape == (1, 5, GAUSSIAN_CHANNELS)


def test_gaussians_stay_near_their_voxels():
    index = torch.randint(32**3, (50,), generator=torch.Generator().manual_seed(0))
    splats = splats_of_channels(30 * torch.randn(50, GAUSSIAN_CHANNELS), index, 32)
    assert float((splats.means - places(index, 32)).abs().max()) <= 1 / 32 + 1e-6
    assert float(splats.log_scales.exp().max()) < 2 / 32 and torch.isfinite(splats.quats).all()


def test_a_fresh_flow_is_zero_and_takes_any_time():
    network = VectorFlow(FLOW)
    x, words, given = torch.randn(4, 6), torch.tensor([[1, 2]] * 4), torch.randn(4, 4)
    assert float(network(x, torch.tensor(0.5), words, given).detach().abs().max()) == 0
    with torch.no_grad():
        network.leave.weight.normal_()
        for block in network.blocks:
            block.modulation.weight.normal_(std=0.3)
    one = network(x, torch.tensor(0.5), words, given)
    torch.testing.assert_close(one, network(x, torch.full((4,), 0.5), words, given))
    assert float((one - network(x, torch.tensor(0.9), words, given)).detach().abs().max()) > 1e-3
    assert float((one - network(x, torch.tensor(0.5), 0 * words, given)).detach().abs().max()) > 1e-3


def test_finite_differences_of_a_flow_are_those_of_its_jacobian():
    network = VectorFlow(FLOW).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.3)
    words, given = torch.tensor([[1, 2]] * 4), torch.randn(4, 4, dtype=torch.float64)
    field = lambda x, t: network(x, t, words, given)  # noqa: E731
    x, v = torch.randn(2, 4, 6, dtype=torch.float64)
    t = torch.tensor([0.2, 0.4, 0.6, 0.9], dtype=torch.float64)
    exact = total_derivative(field, x, t, v, Derivative("jvp"))
    near = total_derivative(field, x, t, v, Derivative(delta=1e-6))
    torch.testing.assert_close(near, exact, rtol=1e-3, atol=1e-3)
