"""What TRELLIS's flows are conditioned on: DINOv2 tokens of a picture, or CLIP tokens of a text, from local folders.

picture   the object alone on black, square, 1.2 times its own extent, 518 pixels; DINOv2 ViT-L/14 with registers; its
          tokens before the last norm (1 class + 4 registers + 37 x 37 patches), each normalised without parameters.
          Its opposite, for guidance, is zeros.
text      CLIP ViT-L/14's text model, 77 tokens, last layer. Its opposite is the empty text.

Both come through transformers (extra 'diffusion') from folders that save_pretrained has written.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from scene_distill.core.errors import UserError
from scene_distill.priors.stable_diffusion import TextEncoder

PICTURE_SIDE = 518
"""Pixels of a side: 37 patches of 14."""

MARGIN = 1.2
"""Side of the crop over the larger side of the object."""

OPAQUE = 0.8
"""Alpha above which a pixel belongs to the object."""

IMAGE_MEAN, IMAGE_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet, as DINOv2 was trained."""


class Conditioner(Protocol):
    """Turns descriptions into tokens."""

    def __call__(self, descriptions: Sequence[Any]) -> Tensor:
        """Tokens float32 [B, S, D], one row a description."""
        ...

    def opposite(self) -> Tensor:
        """Tokens [1, S, D] that guidance leads away from."""
        ...


def read_picture(path: Path) -> Image.Image:
    """A picture in memory; `UserError` for a file that is none."""
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture.copy()
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as a picture ({error})") from error


def object_picture(picture: Image.Image, name: str = "the picture") -> Tensor:
    """[3, 518, 518] in [0, 1]: the opaque part of a picture with alpha, centred and cut out on black.

    Raises `UserError` when there is no transparency, or nothing opaque.
    """
    if "A" not in picture.getbands() and "transparency" not in picture.info:
        raise UserError(
            f"{name} has no transparency, so it is not known what the object is; cut it out first (RGBA PNG)"
        )
    rgba = picture.convert("RGBA")
    alpha = np.asarray(rgba)[..., 3]
    if alpha.min() == 255:
        raise UserError(f"{name} is opaque everywhere, so it is not known what the object is; cut it out first")
    rows, columns = np.nonzero(alpha > OPAQUE * 255)
    if len(rows) == 0:
        raise UserError(f"{name} is transparent everywhere; there is no object in it")
    left, right, top, bottom = columns.min(), columns.max(), rows.min(), rows.max()
    half = max(int(max(right - left, bottom - top) * MARGIN) // 2, 1)
    x, y = (left + right) / 2, (top + bottom) / 2
    box = (int(x - half), int(y - half), int(x + half), int(y + half))
    square = rgba.crop(box).resize((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.LANCZOS)
    values = torch.from_numpy(np.asarray(square, np.float32) / 255)
    return (values[..., :3] * values[..., 3:]).permute(2, 0, 1)


@dataclass(frozen=True)
class ImageConditioner:
    """A DINOv2 model with registers as a `Conditioner` of pictures with alpha."""

    model: Any

    def __call__(self, descriptions: Sequence[Image.Image]) -> Tensor:
        """Tokens float32 [B, 1 + registers + patches, D]."""
        pixels = torch.stack([object_picture(picture, f"picture {i + 1}") for i, picture in enumerate(descriptions)])
        mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGE_MEAN, IMAGE_STD))
        kept: list[Tensor] = []
        hook = self.model.layernorm.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
        try:
            with torch.no_grad():
                self.model(((pixels - mean) / std).to(self.model.device))
        finally:
            hook.remove()
        return functional.layer_norm(kept[0].float(), kept[0].shape[-1:])

    def opposite(self) -> Tensor:
        """Zeros [1, S, D]."""
        config = self.model.config
        tokens = 1 + config.num_register_tokens + (PICTURE_SIDE // config.patch_size) ** 2
        return torch.zeros(1, tokens, config.hidden_size, device=self.model.device)


@dataclass(frozen=True)
class TextConditioner:
    """A CLIP text model as a `Conditioner` of texts; `UserError` for a text that is too long."""

    encoder: TextEncoder

    def __call__(self, descriptions: Sequence[str]) -> Tensor:
        """Tokens float32 [B, S, D]."""
        with torch.no_grad():
            return self.encoder.last(list(descriptions)).float()

    def opposite(self) -> Tensor:
        """Tokens of the empty text."""
        return self([""])


def conditioner_folder(name: str, folder: Path, models_root: Path | None, given: Path | None) -> Path:
    """Where a conditioner's model lies: ``given``, or its name or the name's last part in the folder or models_root.

    Raises `UserError` that lists the places that were looked at.
    """
    root = models_root or folder.resolve().parent
    names = dict.fromkeys([name, Path(name).name, *_OTHER_NAMES.get(name, ())])
    places = [given] if given is not None else [place / one for place in (folder, root) for one in names]
    for place in places:
        if (place / "config.json").is_file():
            return place
    raise UserError(
        f"the model that reads the condition ({name}) is not there: no config.json in "
        f"{', '.join(str(place) for place in places)}; save it there by save_pretrained or name its folder"
    )


_OTHER_NAMES = {"dinov2_vitl14_reg": ("facebook/dinov2-with-registers-large", "dinov2-with-registers-large")}
"""The same weights under the names of transformers' hub."""


def load_image_conditioner(folder: Path, device: torch.device | str = "cpu") -> ImageConditioner:
    """DINOv2 with registers from a folder; `UserError` for another model, a damaged one, or without transformers."""
    transformers = _transformers()
    _require_kind(folder, "dinov2_with_registers", "DINOv2 with registers")
    return ImageConditioner(_loaded(transformers.Dinov2WithRegistersModel, folder).to(device))


def load_text_conditioner(folder: Path, device: torch.device | str = "cpu") -> TextConditioner:
    """CLIP's text model and tokenizer from a folder; errors as above."""
    transformers = _transformers()
    _require_kind(folder, "clip", "CLIP")
    if not any((folder / name).is_file() for name in ("vocab.json", "tokenizer.json")):
        raise UserError(f"{folder} has no vocab.json; save the tokenizer there too")
    tokenizer = _loaded(transformers.CLIPTokenizer, folder)
    return TextConditioner(TextEncoder(tokenizer, _loaded(transformers.CLIPTextModel, folder).to(device), False))


def _loaded(kind: Any, folder: Path) -> Any:
    try:
        part = kind.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{folder} cannot be loaded as a {kind.__name__} ({reason}); download it again") from error
    return part.float().eval().requires_grad_(False) if isinstance(part, torch.nn.Module) else part


def _require_kind(folder: Path, kind: str, name: str) -> None:
    try:
        found = json.loads((folder / "config.json").read_text()).get("model_type", "")
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / 'config.json'} is missing or damaged; download the model again") from error
    if not str(found).startswith(kind):
        raise UserError(f"{folder} holds a {found or 'model without a type'}, not {name}; name another folder")


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            "conditions need transformers; install it with pip install 'scene-distill[diffusion]'"
        ) from error
    return transformers
