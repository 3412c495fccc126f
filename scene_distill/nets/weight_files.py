"""Weights of networks with a description in the header: the same network, the same bytes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scene_distill.core.errors import UserError
from scene_distill.core.files import write_atomically

_ENTRY = "scene-distill"
"""The only header entry: safetensors writes several in an order that changes from run to run."""


def save_weights(path: Path, weights: Mapping[str, Tensor], description: Mapping[str, Any],
                 dtype: torch.dtype = torch.float16) -> None:  # fmt: skip
    """Write tensors, as float16 unless told otherwise, to a .safetensors file with a description of JSON values."""
    from safetensors.torch import save_file

    stored = {name: value.detach().cpu().to(dtype).contiguous() for name, value in weights.items()}
    header = {_ENTRY: json.dumps(dict(description), sort_keys=True)}
    write_atomically(path, lambda temporary: save_file(stored, temporary, header))


def read_weights(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors as float32 and the description, whose 'kind' must be ``kind``; `UserError` for any other file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt") as file:
            description = json.loads((file.metadata() or {}).get(_ENTRY, "{}"))
            weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} is damaged ({reason}); train it again or restore the packaged file") from error
    if description.get("kind") != kind:
        raise UserError(f"{path} is no '{kind}' file but {description.get('kind', 'some other')!r}; name another")
    return weights, description
