"""Folders laid out like the published TRELLIS models, with narrow random networks."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from scene_distill.nets.trellis_networks import build_network

CONTEXT = 16
_FLOW = dict(
    in_channels=8, out_channels=8, model_channels=32, cond_channels=CONTEXT, num_blocks=2, num_heads=2, mlp_ratio=2,
    pe_mode="ape", qk_rms_norm=True, use_fp16=True,
)  # fmt: skip
_DECODER = dict(resolution=16, latent_channels=8, num_blocks=2, num_heads=2, mlp_ratio=2, attn_mode="swin",
                window_size=8, use_fp16=True)  # fmt: skip
DESCRIPTIONS: dict[str, dict[str, Any]] = {
    "sparse_structure_flow_model": {
        "name": "SparseStructureFlowModel",
        "args": {**_FLOW, "resolution": 4, "patch_size": 1},
    },
    "sparse_structure_decoder": {
        "name": "SparseStructureDecoder",
        "args": dict(out_channels=1, latent_channels=8, num_res_blocks=1, channels=[16, 8, 8], use_fp16=True),
    },
    "slat_flow_model": {
        "name": "ElasticSLatFlowModel",
        "args": {**_FLOW, "resolution": 16, "patch_size": 2, "num_io_res_blocks": 2, "io_block_channels": [16]},
    },
    "slat_decoder_gs": {
        "name": "ElasticSLatGaussianDecoder",
        "args": {**_DECODER, "model_channels": 32, "representation_config": {"num_gaussians": 4}},
    },
    "slat_decoder_rf": {
        "name": "ElasticSLatRadianceFieldDecoder",
        "args": {**_DECODER, "model_channels": 32, "representation_config": {"rank": 4, "dim": 3}},
    },
    "slat_decoder_mesh": {
        "name": "ElasticSLatMeshDecoder",
        "args": {**_DECODER, "model_channels": 256, "representation_config": {"use_color": True}},
    },
}
FILES = {
    "sparse_structure_flow_model": "ss_flow", "sparse_structure_decoder": "ss_dec", "slat_flow_model": "slat_flow",
    "slat_decoder_gs": "slat_dec_gs", "slat_decoder_rf": "slat_dec_rf", "slat_decoder_mesh": "slat_dec_mesh",
}  # fmt: skip


def random_network(description: dict[str, Any], seed: int) -> torch.nn.Module:
    """A network on the CPU whose layers that start at zero are small and random instead."""
    torch.manual_seed(seed)
    network = build_network(description, "test", "cpu")
    for value in network.parameters():
        if not value.any():
            torch.nn.init.normal_(value.data, std=0.1 if value.ndim == 1 else 1 / np.sqrt(value[0].numel()))
    return network


def _with_few_voxels(decoder: torch.nn.Module) -> None:
    """Sets the last bias so that about one voxel in sixty is occupied."""
    with torch.no_grad():
        logits = decoder.float()(torch.randn(2, 8, 4, 4, 4))
        decoder.out_layer[2].bias -= logits.quantile(0.984)


def write_trellis(folder: Path, conditioned_by: str = "image") -> Path:
    """pipeline.json, descriptions and half-precision weights of a whole model, without its conditioner."""
    from safetensors.torch import save_file

    (folder / "ckpts").mkdir(parents=True)
    for seed, (role, description) in enumerate(DESCRIPTIONS.items()):
        network = random_network(description, seed)
        stored = {name: value.dtype for name, value in network.state_dict().items()}
        if role == "sparse_structure_decoder":
            _with_few_voxels(network)
        weights = {name: value.to(stored[name]).contiguous() for name, value in network.state_dict().items()}
        save_file(weights, folder / "ckpts" / f"{FILES[role]}.safetensors")
        (folder / "ckpts" / f"{FILES[role]}.json").write_text(json.dumps(description))
    sampler = {"name": "FlowEulerGuidanceIntervalSampler", "args": {"sigma_min": 1e-5}}
    params = {"steps": 3, "cfg_strength": 2.0, "cfg_interval": [0.5, 1.0], "rescale_t": 3.0}
    condition = {"image_cond_model": "dinov2_vitl14_reg"} if conditioned_by == "image" else {
        "text_cond_model": "openai/clip-vit-large-patch14"}  # fmt: skip
    args = {
        "models": {role: f"ckpts/{stem}" for role, stem in FILES.items()},
        "sparse_structure_sampler": {**sampler, "params": params},
        "slat_sampler": {**sampler, "params": params},
        "slat_normalization": {"mean": [0.1] * 8, "std": [1.5] * 8},
        **condition,
    }
    name = f"Trellis{conditioned_by.capitalize()}To3DPipeline"
    (folder / "pipeline.json").write_text(json.dumps({"name": name, "args": args}))
    return folder


def write_dino(folder: Path) -> Path:
    """A narrow DINOv2 with registers, saved as transformers does."""
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    torch.manual_seed(0)
    config = Dinov2WithRegistersConfig(
        hidden_size=CONTEXT, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=518, patch_size=14,
        num_register_tokens=4, initializer_range=0.3,
    )  # fmt: skip
    Dinov2WithRegistersModel(config).save_pretrained(folder)
    return folder


def red_ball(side: int = 90) -> Image.Image:
    """An RGBA picture of a shaded ball, off the middle."""
    y, x = np.mgrid[:side, :side]
    inside = (x - 50) ** 2 + (y - 40) ** 2 < 25**2
    pixels = np.zeros((side, side, 4), np.uint8)
    pixels[..., 0] = np.clip(250 - 2 * np.hypot(x - 42, y - 32), 0, 255)
    pixels[..., 3] = 255 * inside
    return Image.fromarray(pixels)
