"""Small random Stable Diffusion pipelines, saved as the real ones are."""

import json
from pathlib import Path
from typing import Any

import torch

WORDS = ("a", "red", "blue", "chair", "car", "side", "view")
LENGTH = 16


def write_tokenizer(folder: Path) -> Path:
    """Vocabulary and merges of a CLIP tokenizer whose words are letters and a few pairs of them."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = [*letters, *(letter + "</w>" for letter in letters), ",</w>", ","]
    merges = [("e", "d</w>"), ("c", "a")]
    pieces += [a + b for a, b in merges]
    vocabulary = {piece: number for number, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges)]) + "\n")
    return folder


def make_tokenizer(folder: Path) -> Any:
    from transformers import CLIPTokenizer

    write_tokenizer(folder)
    return CLIPTokenizer.from_pretrained(str(folder), model_max_length=LENGTH)


def make_text_model(tokenizer: Any, width: int, projected: bool) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, projection_dim=width,
        num_hidden_layers=3, num_attention_heads=2, max_position_embeddings=LENGTH, hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config)


def make_autoencoder() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(16, 32), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, latent_channels=4, layers_per_block=1, norm_num_groups=8,
        sample_size=16, scaling_factor=0.2,
    )  # fmt: skip


def make_unet(text_width: int, **extra: Any) -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(16, 32),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=text_width, attention_head_dim=8, norm_num_groups=8, **extra,
    )  # fmt: skip


def make_scheduler(prediction: str) -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=True, steps_offset=1, prediction_type=prediction,
    )  # fmt: skip


def save_sd(folder: Path, prediction: str = "epsilon") -> Any:
    """A Stable Diffusion 1/2 pipeline of a few ten thousand weights; returned and saved in ``folder``."""
    from diffusers import StableDiffusionPipeline

    torch.manual_seed(0)
    tokenizer = make_tokenizer(folder / "words")
    pipeline = StableDiffusionPipeline(
        make_autoencoder(), make_text_model(tokenizer, 16, False), tokenizer, make_unet(16), make_scheduler(prediction),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.save_pretrained(str(folder / "model"))
    return pipeline


def save_sdxl(folder: Path) -> Any:
    """A Stable Diffusion XL pipeline of a few ten thousand weights; returned and saved in ``folder``."""
    from diffusers import StableDiffusionXLPipeline

    torch.manual_seed(1)
    tokenizer = make_tokenizer(folder / "words")
    unet = make_unet(
        16 + 24, addition_embed_type="text_time", addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 24,
    )  # fmt: skip
    pipeline = StableDiffusionXLPipeline(
        make_autoencoder(), make_text_model(tokenizer, 16, False), make_text_model(tokenizer, 24, True),
        tokenizer, tokenizer, unet, make_scheduler("epsilon"), add_watermarker=False,
    )  # fmt: skip
    pipeline.save_pretrained(str(folder / "model"))
    return pipeline
