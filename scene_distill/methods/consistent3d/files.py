"""Files of finished objects: tensors, and the settings that say how they are drawn and meshed."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from scene_distill.core.configs import from_plain, to_plain
from scene_distill.core.errors import UserError
from scene_distill.core.files import write_atomically
from scene_distill.methods.consistent3d.config import Consistent3DConfig

DRAWN = (
    "resolutions", "radius", "density_scale", "blob_scale", "blob_std", "step", "negligible", "cells", "iso_density",
    "supersampling",
)  # fmt: skip
"""Settings that a finished object needs; all others say how it was trained, and stand in the run's config.yaml."""


def save_tensors(path: Path, kind: str, config: Consistent3DConfig, tensors: dict[str, Tensor]) -> None:
    """One .safetensors file, atomically."""
    settings = {name: value for name, value in to_plain(config).items() if name in DRAWN}
    # One entry: safetensors writes several in no fixed order, and equal objects should be equal bytes.
    header = {"object": json.dumps({"kind": kind, "settings": settings})}
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, lambda temporary: save_file(plain, temporary, header))


def read_tensors(path: Path) -> tuple[str, Consistent3DConfig, dict[str, Tensor]]:
    """Kind, config (its `DRAWN` settings, else defaults) and tensors of a file of `save_tensors`; UserError when it is
    missing, damaged or something else."""
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["object"])
            config = from_plain(Consistent3DConfig, _tuples(header["settings"]), str(path))
            return header["kind"], config, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"{path} holds no object of consistent3d ({error}); make it again") from error


def _tuples(values: dict[str, object]) -> dict[str, object]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
