"""Groups of tokens against brute force, norms, turns, and blocks that treat dense and sparse tokens alike."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scene_distill.nets.sparse_tensor import Voxels
from scene_distill.nets.token_attention import (
    Attention,
    HeadNorm,
    dense_groups,
    item_groups,
    rotated,
    window_groups,
)
from scene_distill.nets.transformer_blocks import ModulatedBlock, PlainBlock, place_waves, time_waves


def scattered(seed: int, counts: tuple[int, ...], side: int = 12) -> Voxels:
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for item, count in enumerate(counts):
        cells = torch.randperm(side**3, generator=generator)[:count]
        rows.append(
            torch.stack([torch.full_like(cells, item), cells // side**2, cells // side % side, cells % side], 1)
        )
    return Voxels(torch.cat(rows))


def brute_force(attention: Attention, x: torch.Tensor, sees: torch.Tensor) -> torch.Tensor:
    """Softmax attention with a full matrix of who sees whom, bool [N, N]."""
    heads, width = attention.heads, x.shape[1] // attention.heads
    q, k, v = (part.reshape(len(x), heads, width) for part in attention.to_qkv(x).chunk(3, 1))
    if attention.qk_norm:
        q, k = (
            norm.gamma * math.sqrt(width) * part / part.norm(dim=-1, keepdim=True)
            for norm, part in ((attention.q_rms_norm, q), (attention.k_rms_norm, k))
        )
    scores = torch.einsum("nhd,mhd->hnm", q, k) / math.sqrt(width)
    weights = scores.masked_fill(~sees, -torch.inf).softmax(2)
    return attention.to_out(torch.einsum("hnm,mhd->nhd", weights, v).flatten(1))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 999), st.integers(1, 80), st.integers(1, 80), st.sampled_from((0, 2)), st.booleans())
def test_windows_see_what_brute_force_says(seed, first, second, shift, qk_norm):
    voxels = scattered(seed, (first, second))
    torch.manual_seed(seed)
    attention = Attention(12, 3, qk_norm=qk_norm)
    if qk_norm:
        torch.nn.init.uniform_(attention.q_rms_norm.gamma, 0.5, 1.5)
    window = (voxels.places + shift) // 4
    same = (window[:, None] == window[None]).all(2) & (voxels.item[:, None] == voxels.item[None])
    x = torch.randn(len(voxels), 12)
    assert torch.allclose(attention(x, window_groups(voxels, 4, shift)), brute_force(attention, x, same), atol=1e-5)
    whole = voxels.item[:, None] == voxels.item[None]
    assert torch.allclose(attention(x, item_groups(voxels)), brute_force(attention, x, whole), atol=1e-5)


def test_groups_are_made_once_per_set_of_voxels():
    voxels = scattered(0, (30, 20))
    assert window_groups(voxels, 4, 2) is window_groups(voxels, 4, 2)
    assert window_groups(voxels, 4, 2) is not window_groups(voxels, 4, 0)


def test_cross_attention_reads_the_own_items_context():
    voxels, attention = scattered(1, (7, 4)), Attention(8, 2, context=5, qk_norm=True)
    x, context = torch.randn(11, 8), torch.randn(2, 6, 5)
    together = attention(x, item_groups(voxels), context)
    alone = attention(x[7:], dense_groups(1, 4, x.device), context[1:])
    assert torch.allclose(together[7:], alone, atol=1e-6)


def test_head_norm_has_length_gamma_root_d():
    norm = HeadNorm(2, 16)
    torch.nn.init.constant_(norm.gamma, 2.0)
    assert torch.allclose(norm(torch.randn(5, 2, 16)).norm(dim=-1), torch.tensor(8.0))


def test_turned_queries_and_keys_see_only_how_far_they_are_apart():
    q, k = torch.randn(1, 1, 16), torch.randn(1, 1, 16)
    places = torch.tensor([[3, 1, 4]]), torch.tensor([[5, 9, 2]])
    move = torch.tensor([[2, 6, 5]])
    here = (rotated(q, places[0]) * rotated(k, places[1])).sum()
    there = (rotated(q, places[0] + move) * rotated(k, places[1] + move)).sum()
    assert torch.allclose(here, there, atol=1e-4) and not torch.allclose(here, (q * k).sum(), atol=1e-3)
    assert torch.equal(rotated(q, places[0])[..., 12:], q[..., 12:])  # 8 pairs, 2 an axis, 2 left over


def test_waves_are_the_published_formulas():
    t = torch.tensor([0.3])
    waves = time_waves(t, 256)[0]
    assert torch.allclose(waves[5], torch.cos(300 * torch.exp(torch.tensor(-math.log(1e4) * 5 / 128))), atol=1e-4)
    assert torch.allclose(waves[128], torch.sin(torch.tensor(300.0)), atol=1e-4)
    place = place_waves(torch.tensor([[7, 0, 2]]), 1024)[0]
    assert place.shape == (1024,) and torch.equal(place[1020:], torch.zeros(4))
    assert torch.isclose(place[3], torch.sin(torch.tensor(7 / 10000 ** (3 / 170))), atol=1e-5)
    assert torch.isclose(place[2 * 340 + 170], torch.cos(torch.tensor(2.0)), atol=1e-5)


def test_a_modulated_block_treats_items_alone_as_together():
    torch.manual_seed(0)
    block = ModulatedBlock(24, 2, 5, 4.0, qk_norm=True, rotary=True)
    voxels = scattered(2, (9, 5))
    x, time, context = torch.randn(14, 24), torch.randn(2, 24), torch.randn(2, 3, 5)
    together = block(x, time, context, item_groups(voxels), voxels.places)
    alone = block(x[9:], time[1:], context[1:], dense_groups(1, 5, x.device), voxels.places[9:])
    assert torch.allclose(together[9:], alone, atol=1e-5)


def test_the_stream_stays_float32_when_matrices_are_half_precision():
    torch.manual_seed(0)
    block = PlainBlock(16, 2, 2.0)
    x, groups = torch.randn(6, 16), dense_groups(2, 3, torch.device("cpu"))
    full = block(x, groups)
    half = block.bfloat16()(x, groups)
    assert half.dtype == torch.float32 and torch.allclose(half, full, atol=0.05)


def test_cross_attention_has_keys_before_values_and_heads_side_by_side():
    torch.manual_seed(0)
    attention = Attention(8, 2, context=5)
    x, context = torch.randn(3, 8), torch.randn(1, 6, 5)
    keys, values = attention.to_kv(context[0]).chunk(2, 1)
    q = attention.to_q(x)
    parts = []
    for head in (slice(0, 4), slice(4, 8)):
        parts.append((q[:, head] @ keys[:, head].T / 2).softmax(1) @ values[:, head])
    expected = attention.to_out(torch.cat(parts, 1))
    assert torch.allclose(attention(x, dense_groups(1, 3, x.device), context), expected, atol=1e-6)


def test_a_modulated_block_is_the_published_formula():
    torch.manual_seed(0)
    block = ModulatedBlock(12, 2, 5, 2.0)
    torch.nn.init.normal_(block.norm2.weight)
    x, time, context, groups = (
        torch.randn(4, 12),
        torch.randn(1, 12),
        torch.randn(1, 3, 5),
        dense_groups(1, 4, torch.device("cpu")),
    )
    linear = block.adaLN_modulation[1]
    made = (torch.nn.functional.silu(time) @ linear.weight.T + linear.bias)[0]
    shift1, scale1, gate1, shift2, scale2, gate2 = made.reshape(6, 12)

    def norm(h):
        return (h - h.mean(1, keepdim=True)) / (h.var(1, unbiased=False, keepdim=True) + 1e-6).sqrt()

    h = x + gate1 * block.self_attn(norm(x) * (1 + scale1) + shift1, groups)
    h = h + block.cross_attn(norm(h) * block.norm2.weight + block.norm2.bias, groups, context)
    first, _, last = block.mlp.mlp
    inner = first(norm(h) * (1 + scale2) + shift2)
    tanh = 0.5 * inner * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
    expected = h + gate2 * last(tanh)
    assert torch.allclose(block(x, time, context, groups), expected, atol=1e-5)
