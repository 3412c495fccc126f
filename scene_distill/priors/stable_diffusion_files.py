"""Finding and loading Stable Diffusion models: folders as `diffusers` saves them, or models in its local cache."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from scene_distill.core.errors import UserError
from scene_distill.priors.network import Predicts
from scene_distill.priors.schedules import NoiseSchedule, cosine, from_betas, linear, scaled_linear
from scene_distill.priors.stable_diffusion import LatentPrior, MicroConditions, TextEncoder

Family = Literal["sd", "sdxl"]

PIPELINES = {"StableDiffusionPipeline": "sd", "StableDiffusionXLPipeline": "sdxl"}
"""Kinds of model folders that can teach, by the name in their model_index.json."""

TOKENIZER_FILES = ("vocab.json", "tokenizer.json")
"""One of these holds a tokenizer's words; without either transformers would make an empty tokenizer and say nothing."""

PREDICTS: dict[str, Predicts] = {"epsilon": "epsilon", "v_prediction": "v", "sample": "x0"}


@dataclass(frozen=True)
class LatentOptions:
    """Where and how a latent prior runs.

    ``size``: (height, width) in pixels, default the one it was trained at. ``dtype`` of the U-Net and text encoders,
    default float16 on a GPU and float32 on a CPU; the autoencoder is always float32. ``at_once``: pictures that pass
    the U-Net together. ``tiled``: the autoencoder works in tiles. ``zero_empty`` None: as the model's own pipeline.
    """

    device: str = "cpu"
    dtype: torch.dtype | None = None
    size: tuple[int, int] | None = None
    at_once: int = 8
    tiled: bool = False
    micro: MicroConditions | None = None
    zero_empty: bool | None = None


def load_stable_diffusion(model: str | Path, family: Family, options: LatentOptions = LatentOptions()) -> LatentPrior:
    """The model in a folder, or of a name in the local cache, as a prior.

    Raises `UserError` when diffusers is missing, the model is not there, is of another family, or cannot be read.
    """
    folder = model_folder(model)
    index = model_index(folder, family)
    parts = _parts(folder, family, options)
    vae = parts["vae"]
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    default = int(parts["unet"].config.sample_size) * factor
    size = options.size or (default, default)
    if size[0] % factor or size[1] % factor:
        raise UserError(f"the prior's pictures must be multiples of {factor} pixels, not {size[0]}x{size[1]}")
    schedule, predicts = noise_settings(folder)
    micro = (options.micro or MicroConditions(size, (0, 0), size)) if family == "sdxl" else None
    zeros = bool(index.get("force_zeros_for_empty_prompt", family == "sdxl")) and family == "sdxl"
    if options.tiled:
        vae.enable_tiling()
    return LatentPrior(
        parts["unet"], vae, parts["encoders"], schedule, predicts, size, micro,
        zeros if options.zero_empty is None else options.zero_empty, options.at_once,
    )  # fmt: skip


def model_folder(model: str | Path) -> Path:
    """The folder of a model: the path itself, or the snapshot of a name such as 'owner/model' in the local cache."""
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder
    looks_like_name = not folder.is_absolute() and str(model).count("/") == 1 and not str(model).startswith(".")
    if looks_like_name:
        _import("huggingface_hub")
        from huggingface_hub import snapshot_download

        try:
            return Path(snapshot_download(str(model), local_files_only=True))
        except Exception as error:
            raise UserError(
                f"there is no folder {model}, nor is that model in the local cache ({type(error).__name__}); download "
                "it with diffusers and name its folder in --prior-path"
            ) from error
    raise UserError(f"there is no folder {model}; name a folder that diffusers' save_pretrained has written")


def model_index(folder: Path, family: Family) -> Mapping[str, Any]:
    """The model_index.json of a folder, checked to be of the family."""
    path = folder / "model_index.json"
    try:
        index = json.loads(path.read_text())
        kind = index["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder} is no diffusers model: its model_index.json is missing or damaged; convert the "
            "checkpoint with diffusers first"
        ) from error
    found = PIPELINES.get(kind)
    if found is None:
        raise UserError(f"{folder} holds a {kind}, which cannot teach here; it should be one of {', '.join(PIPELINES)}")
    if found != family:
        raise UserError(f"{folder} holds a {kind}: use it with --prior {found}, not --prior {family}")
    return index


def noise_settings(folder: Path) -> tuple[NoiseSchedule, Predicts]:
    """Noise table and kind of prediction in the scheduler's settings of a model folder."""
    path = folder / "scheduler" / "scheduler_config.json"
    try:
        settings = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is missing or damaged; download the model again") from error
    prediction = settings.get("prediction_type", "epsilon")
    if prediction not in PREDICTS:
        raise UserError(f"{path}: prediction_type '{prediction}' is unknown; it should be one of {', '.join(PREDICTS)}")
    return noise_table(settings, str(path)), PREDICTS[prediction]


def noise_table(settings: Mapping[str, Any], source: str) -> NoiseSchedule:
    """The schedule that a diffusers scheduler's settings describe; raises `UserError` for kinds it does not know.

    With rescaled betas (zero signal at the end, Lin et al. 2023) the last timestep, at which noise cannot be read from
    the state, is left out.
    """
    steps, offset = int(settings.get("num_train_timesteps", 1000)), int(settings.get("steps_offset", 0))
    first, last = float(settings.get("beta_start", 1e-4)), float(settings.get("beta_end", 0.02))
    kind = settings.get("beta_schedule", "linear")
    if settings.get("trained_betas") is not None:
        table = from_betas(torch.tensor(settings["trained_betas"], dtype=torch.float64), offset)
    elif kind == "scaled_linear":
        table = scaled_linear(steps, first, last, offset)
    elif kind == "linear":
        table = NoiseSchedule(linear(steps, first, last).abars, offset)
    elif kind == "squaredcos_cap_v2":
        table = NoiseSchedule(cosine(steps).abars, offset)
    else:
        raise UserError(f"{source}: beta_schedule '{kind}' is not scaled_linear, linear or squaredcos_cap_v2")
    if not settings.get("rescale_betas_zero_snr", False):
        return table
    root = table.abars.sqrt()
    rescaled = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return NoiseSchedule(rescaled[:-1] ** 2, offset)


def _parts(folder: Path, family: Family, options: LatentOptions) -> dict[str, Any]:
    """U-Net, autoencoder and text encoders, without gradients, on their device."""
    _import("diffusers")
    _import("transformers")
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    device = torch.device(options.device)
    dtype = options.dtype or (torch.float16 if device.type == "cuda" else torch.float32)

    def load(kind: Any, name: str, precision: torch.dtype | None = None) -> Any:
        arguments = {} if precision is None else {"torch_dtype": precision}
        needed = TOKENIZER_FILES if kind is CLIPTokenizer else ("config.json",)
        if not any((folder / name / file).is_file() for file in needed):
            raise UserError(f"{folder / name} is missing or has no {needed[0]}; download the model again")
        try:
            part = kind.from_pretrained(str(folder), subfolder=name, local_files_only=True, **arguments)
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(f"{folder / name} cannot be loaded ({reason}); download the model again") from error
        return part if precision is None else part.to(device).eval().requires_grad_(False)

    texts = [TextEncoder(load(CLIPTokenizer, "tokenizer"), load(CLIPTextModel, "text_encoder", dtype), False)]
    if family == "sdxl":
        second = load(CLIPTextModelWithProjection, "text_encoder_2", dtype)
        texts.append(TextEncoder(load(CLIPTokenizer, "tokenizer_2"), second, True))
    unet, vae = load(UNet2DConditionModel, "unet", dtype), load(AutoencoderKL, "vae", torch.float32)
    return {"unet": unet, "vae": vae, "encoders": tuple(texts)}


def _import(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError as error:
        raise UserError(
            f"pretrained priors need {name}; install it with pip install 'scene-distill[diffusion]'"
        ) from error
