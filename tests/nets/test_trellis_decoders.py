"""Layers and decoders against their formulas: pixel shuffle, patches, norms, Gaussians, cubes; and what trains."""

import math

import pytest
import torch

from scene_distill.core.errors import UserError
from scene_distill.nets.sparse_resampling import family, pooled
from scene_distill.nets.sparse_structure_flow import SparseStructureFlowModel, patches, unpatched
from scene_distill.nets.sparse_structure_vae import (
    SparseStructureDecoder,
    SparseStructureEncoder,
    occupied_voxels,
    pixel_shuffle,
)
from scene_distill.nets.sparse_tensor import SparseTensor, Voxels
from scene_distill.nets.structured_latent_flow import SLatFlowModel, TimedResidualBlock
from scene_distill.nets.structured_latent_gaussians import SLatGaussianDecoder, radical_inverse, spread_offsets
from scene_distill.nets.structured_latent_mesh import ItemGroupNorm, SLatMeshDecoder
from scene_distill.nets.structured_latent_vae import SLatEncoder
from scene_distill.nets.transformer_blocks import set_torso_type

TRUNK = dict(model_channels=32, num_blocks=2, num_heads=2, mlp_ratio=2, window_size=4)


def scattered(counts=(14, 6), side=8, seed=0) -> Voxels:
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for item, count in enumerate(counts):
        cells = torch.randperm(side**3, generator=generator)[:count]
        rows.append(
            torch.stack([torch.full_like(cells, item), cells // side**2, cells // side % side, cells % side], 1)
        )
    return Voxels(torch.cat(rows))


def test_pixel_shuffle_puts_channel_c8_d4_d2_d_at_its_voxel():
    x = torch.randn(2, 16, 2, 3, 4)
    y = pixel_shuffle(x)
    assert y.shape == (2, 2, 4, 6, 8)
    for c, i, j, k, dx, dy, dz in ((0, 0, 0, 0, 0, 0, 1), (1, 1, 2, 3, 1, 0, 1), (1, 0, 2, 1, 0, 1, 0)):
        assert torch.equal(y[:, c, 2 * i + dx, 2 * j + dy, 2 * k + dz], x[:, c * 8 + dx * 4 + dy * 2 + dz, i, j, k])


def test_patches_have_their_channels_in_the_published_order_and_come_back():
    x = torch.randn(2, 3, 4, 4, 4)
    tokens = patches(x, 2)
    assert tokens.shape == (2, 8, 24)
    assert torch.equal(tokens[:, (1 * 2 + 0) * 2 + 1, 2 * 8 + (1 * 2 + 0) * 2 + 1], x[:, 2, 2 + 1, 0 + 0, 2 + 1])
    assert torch.equal(unpatched(tokens, 2, 4), x)


def test_the_structure_autoencoder_halves_twice_and_trains():
    torch.manual_seed(0)
    encoder = SparseStructureEncoder(1, 4, 1, [4, 6, 8])
    decoder = SparseStructureDecoder(1, 4, 1, [8, 6, 4])
    occupancy = (torch.rand(2, 1, 8, 8, 8) > 0.7).float()
    mean, log_variance = encoder(occupancy)
    assert mean.shape == log_variance.shape == (2, 4, 2, 2, 2)
    optimiser = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], 1e-2)
    losses = []
    for _ in range(12):
        logits = decoder(encoder(occupancy)[0])
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, occupancy)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.02
    with pytest.raises(UserError, match="norm_type"):
        SparseStructureEncoder(1, 4, 1, [4], norm_type="group")


def test_half_precision_networks_keep_their_stream_in_float32():
    torch.manual_seed(0)
    decoder = SparseStructureDecoder(1, 4, 1, [8, 6, 4])
    latent, seen = torch.randn(1, 4, 2, 2, 2), []
    full = decoder(latent)
    set_torso_type(decoder.torso(), torch.bfloat16)
    for block in decoder.blocks:
        block.register_forward_hook(lambda _, inputs, output: seen.append(output.dtype))
    assert torch.allclose(decoder(latent), full, atol=0.05) and set(seen) == {torch.float32}
    assert {decoder.blocks[0].conv1.weight.dtype, decoder.blocks[0].norm1.weight.dtype} == {
        torch.bfloat16,
        torch.float32,
    }


def test_occupied_voxels_are_positive_logits_and_empty_samples_are_named():
    logits = torch.full((2, 1, 2, 2, 2), -1.0)
    logits[0, 0, 1, 0, 1] = logits[1, 0, 0, 1, 1] = 0.5
    assert occupied_voxels(logits).tolist() == [[0, 1, 0, 1], [1, 0, 1, 1]]
    logits[1] = -1
    with pytest.raises(UserError, match="no occupied voxel in sample 1 of 2"):
        occupied_voxels(logits)


@pytest.mark.parametrize("mode", ["ape", "rope"])
def test_fresh_flows_are_zero_and_learn(mode):
    torch.manual_seed(0)
    common = dict(in_channels=3, model_channels=24, cond_channels=5, out_channels=3, num_blocks=1, num_heads=2)
    dense = SparseStructureFlowModel(resolution=2, patch_size=1, pe_mode=mode, share_mod=True, **common)
    sparse = SLatFlowModel(resolution=8, patch_size=2, io_block_channels=[8], pe_mode=mode, qk_rms_norm=True, **common)
    voxels, context, t = scattered(), torch.randn(2, 3, 5), torch.tensor([0.2, 0.9])
    x = SparseTensor(torch.randn(len(voxels), 3), voxels)
    grid = torch.randn(2, 3, 2, 2, 2)
    assert not dense(grid, t, context).any() and not sparse(x, t, context).features.any()
    assert ("pos_emb" in dense.state_dict()) == (mode == "ape")
    for network, run in ((dense, lambda: dense(grid, t, context)), (sparse, lambda: sparse(x, t, context).features)):
        optimiser = torch.optim.Adam(network.parameters(), 2e-2)
        losses = []
        for _ in range(8):
            loss = (run() - 1).square().mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        assert losses[-1] < 0.8 * losses[0]
        silent = [name for name, part in network.named_parameters() if part.grad is None]
        assert not silent


def test_a_sparse_flow_treats_items_alone_as_together():
    torch.manual_seed(1)
    flow = SLatFlowModel(8, 3, 24, 5, 3, 1, num_heads=2, io_block_channels=[8], use_skip_connection=True)
    for part in flow.parameters():
        torch.nn.init.normal_(part, std=0.2)
    voxels, context, t = scattered(), torch.randn(2, 3, 5), torch.tensor([0.2, 0.9])
    features = torch.randn(len(voxels), 3)
    together = flow(SparseTensor(features, voxels), t, context).features[14:]
    own = voxels.coords[14:].clone()
    own[:, 0] = 0
    alone = flow(SparseTensor(features[14:], Voxels(own)), t[1:], context[1:]).features
    assert torch.allclose(together, alone, atol=1e-4) and alone.abs().max() > 0.1


def test_a_timed_residual_block_is_the_published_formula():
    torch.manual_seed(2)
    block = TimedResidualBlock(6, 5, 4, downsample=True)
    for part in block.parameters():
        torch.nn.init.normal_(part, std=0.3)
    voxels = scattered((14,))
    tree, time, features = family(voxels, 2), torch.randn(1, 5), torch.randn(14, 6)
    x = pooled(SparseTensor(features, voxels), tree)
    scale, shift = block.emb_layers(time)[0].chunk(2)  # scale first

    def norm(h):
        return torch.nn.functional.layer_norm(h, h.shape[1:], eps=1e-6)

    h = block.conv1(x.with_features(torch.nn.functional.silu(norm(x.features) * block.norm1.weight + block.norm1.bias)))
    h = block.conv2(x.with_features(torch.nn.functional.silu(norm(h.features) * (1 + scale) + shift)))
    expected = h.features + x.features @ block.skip_connection.weight.T + block.skip_connection.bias
    found = block(SparseTensor(features, voxels), time, tree)
    assert torch.allclose(found.features, expected, atol=1e-5) and found.voxels is tree.parents


def test_outputs_mirror_inputs_in_a_sparse_flow():
    """The first output block sees the coarse transformer beside the last input block, the second the first."""
    torch.manual_seed(3)
    flow = SLatFlowModel(8, 3, 24, 5, 3, 1, num_heads=2, io_block_channels=[8])
    seen: dict[str, torch.Tensor] = {}
    for name in ("input_blocks.0", "input_blocks.1"):
        flow.get_submodule(name).register_forward_hook(lambda _, i, out, n=name: seen.update({n: out.features}))
    for name in ("out_blocks.0", "out_blocks.1"):
        flow.get_submodule(name).register_forward_hook(lambda _, i, out, n=name: seen.update({n: i[0].features}))
    voxels = scattered()
    flow(SparseTensor(torch.randn(20, 3), voxels), torch.tensor(0.5), torch.randn(1, 3, 5))
    assert torch.equal(seen["out_blocks.0"][:, 24:], seen["input_blocks.1"])
    assert torch.equal(seen["out_blocks.1"][:, 8:], seen["input_blocks.0"])
    assert len(seen["out_blocks.0"]) == len(family(voxels, 2).parents) and len(seen["out_blocks.1"]) == 20


def test_group_norm_is_over_all_voxels_of_an_item():
    norm = ItemGroupNorm(2, 6)
    x = SparseTensor(3 + 2 * torch.randn(20, 6), scattered())
    out = norm(x).features
    for rows in (out[:14], out[14:]):
        for group in (rows[:, :3], rows[:, 3:]):
            assert abs(group.mean().item()) < 1e-5 and group.std(unbiased=False).item() == pytest.approx(1, abs=1e-3)


def test_spread_offsets_are_hammersley_points_of_the_own_voxel():
    assert [radical_inverse(n, 2) for n in range(5)] == [0, 0.5, 0.25, 0.75, 0.125]
    assert radical_inverse(5, 3) == pytest.approx(2 / 3 + 1 / 9)
    points = (torch.tanh(spread_offsets(32, 1.5)) * 1.5 + 1) / 2
    assert torch.allclose(points[3], torch.tensor([3 / 32, 0.75, 1 / 9]), atol=1e-5)
    assert points.min() > -1e-5 and points.max() < 1


def test_a_silent_gaussian_decoder_gives_the_published_start():
    decoder = SLatGaussianDecoder(8, latent_channels=4, **TRUNK)
    voxels = scattered()
    first, second = decoder.decode(SparseTensor(torch.randn(20, 4), voxels))
    assert (len(first), len(second)) == (14 * 32, 6 * 32)
    centers = ((voxels.places[:14] + 0.5) / 8 - 0.5).repeat_interleave(32, 0)
    assert (first.means - centers).abs().max() <= 0.5 / 8 + 1e-6
    assert torch.allclose(first.opacity_logits, torch.tensor(math.log(1 / 9)))
    assert torch.allclose(first.log_scales.exp(), torch.tensor(math.hypot(0.004, 9e-4)), atol=1e-6)
    assert torch.equal(first.quats, torch.tensor([1.0, 0, 0, 0]).expand(448, 4)) and not first.sh.any()


def test_raw_gaussians_are_read_in_the_published_order():
    two = {"num_gaussians": 2, "perturb_offset": False}
    decoder = SLatGaussianDecoder(8, latent_channels=4, representation_config=two, **TRUNK)
    raw = torch.arange(28.0)[None] / 10
    splats = decoder._splats(raw, torch.tensor([[1, 2, 3]]))
    assert torch.allclose(splats.sh[:, 0], torch.tensor([[0.6, 0.7, 0.8], [0.9, 1.0, 1.1]]))
    assert torch.allclose(splats.means[1], torch.tensor([1.5, 2.5, 3.5]) / 8 + raw[0, 3:6].tanh() * 0.75 / 8 - 0.5)
    quat = torch.tensor([1 + 0.22, 0.23, 0.24, 0.25])
    assert torch.allclose(splats.quats[1], quat / quat.norm(), atol=1e-6)
    assert torch.allclose(splats.opacity_logits, torch.tensor([2.6, 2.7]) + math.log(1 / 9))
    bias = math.log(math.expm1(0.004))
    scale = torch.hypot(torch.nn.functional.softplus(torch.tensor([1.2, 1.3, 1.4]) + bias), torch.tensor(9e-4))
    assert torch.allclose(splats.log_scales[0], scale.log(), atol=1e-6)
    for wrong in ({"scaling_activation": "exp"}, {"colour": 1}):
        with pytest.raises(UserError, match=r"softplus|colour"):
            SLatGaussianDecoder(8, latent_channels=4, representation_config=wrong, **TRUNK)


def test_a_silent_mesh_decoder_wraps_its_voxels():
    trunk = {**TRUNK, "model_channels": 256, "num_blocks": 1}
    decoder = SLatMeshDecoder(4, latent_channels=4, representation_config={"use_color": True}, **trunk)
    voxels = Voxels(torch.tensor([[0, 1, 1, 1], [0, 2, 1, 1]]))
    cubes = decoder.cubes(torch.arange(101.0)[None] / 101, torch.zeros(1, 3, dtype=torch.long))
    assert torch.allclose(cubes.distances[0, 1], torch.tensor(1 / 101 - 1 / 16))
    assert torch.allclose(cubes.offset_logits[0, 1], torch.tensor([11, 12, 13]) / 101)
    assert torch.allclose(cubes.edge_weights[0, 0], 1 + 0.99 * torch.tensor(32 / 101).tanh())
    assert torch.allclose(cubes.corner_weights[0, 0], 1 + 0.99 * torch.tensor(44 / 101).tanh())
    assert torch.allclose(cubes.split_weights[0], 0.005 + 0.99 * torch.tensor(52 / 101).sigmoid())
    assert torch.allclose(cubes.attribute_logits[0, 1, 0], torch.tensor(59 / 101))
    with torch.no_grad():
        surface = decoder.decode(SparseTensor(torch.randn(2, 4), voxels))[0]
    assert decoder.resolution == 16 and surface.attributes.shape[1] == 6
    low, high = surface.vertices.amin(0), surface.vertices.amax(0)
    assert torch.allclose(low, torch.tensor([4, 4, 4]) / 16 - 0.5, atol=1 / 16)
    assert torch.allclose(high, torch.tensor([12, 8, 8]) / 16 - 0.5, atol=1 / 16)


def test_the_latent_encoder_gives_mean_and_variance_and_draws_with_a_seed():
    encoder = SLatEncoder(8, 12, latent_channels=4, **TRUNK)
    torch.nn.init.normal_(encoder.out_layer.weight, std=0.1)
    x = SparseTensor(torch.randn(20, 12), scattered())
    latent, mean, log_variance = encoder.encode(x)
    assert torch.equal(latent.features, mean) and log_variance.shape == (20, 4)
    drawn = encoder.encode(x, seed=1)[0].features
    assert torch.equal(drawn, encoder.encode(x, seed=1)[0].features) and not torch.equal(drawn, mean)
    with pytest.raises(UserError, match="attn_mode"):
        SLatEncoder(8, 12, latent_channels=4, attn_mode="shift_order", **TRUNK)
