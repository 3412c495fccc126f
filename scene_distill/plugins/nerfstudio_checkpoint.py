"""Nerfstudio's checkpoint of a trained scene: tensors and plain numbers only, so that `torch.load` takes it as it is.

A trained scene is what one .safetensors file holds (`TrainedScene.save`); a checkpoint carries the same tensors by the
same names, and the file's text header as bytes in one more tensor. No method is known here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scene_distill.core.files import write_atomically

if TYPE_CHECKING:
    from scene_distill.methods import MethodEntry
    from scene_distill.training.evaluation import TrainedScene

HEADER = "safetensors_header"
"""Name of the tensor [bytes] uint8 with the file's text header as JSON."""


def read_model(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file by name, and its header under `HEADER`."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = json.dumps(file.metadata() or {}).encode()
    return tensors | {HEADER: torch.frombuffer(bytearray(header), dtype=torch.uint8)}


def tensors_of(scene: TrainedScene) -> dict[str, Tensor]:
    """What `read_model` gives for the file that the scene would be saved to."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        scene.save(path)
        return read_model(path)


def scene_from(tensors: Mapping[str, Tensor], entry: MethodEntry) -> TrainedScene:
    """The trained scene of a method from tensors that `read_model` gave, of whatever sizes."""
    from safetensors.torch import save_file

    header = json.loads(bytes(tensors[HEADER].cpu().numpy()).decode())
    content = {name: tensor.cpu().contiguous() for name, tensor in tensors.items() if name != HEADER}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_file(content, path, metadata=header)
        return entry.load(path)


def write_checkpoint(model: Path, folder: Path, step: int) -> Path:
    """Write ``folder``/step-<step>.ckpt from a .safetensors file and remove the steps before; returns the new path.

    It is written beside the folder and moved in when whole: nerfstudio takes every file name in there for a step.
    """
    state = {f"_model.{name}": tensor for name, tensor in read_model(model).items()}
    empty: dict[str, dict] = {"optimizers": {}, "schedulers": {}, "scalers": {}}
    staged, path = folder.parent / "step.ckpt", folder / f"step-{step:09d}.ckpt"
    write_atomically(staged, lambda temporary: torch.save({"step": step, "pipeline": state} | empty, temporary))
    folder.mkdir(parents=True, exist_ok=True)
    os.replace(staged, path)
    for old in folder.glob("step-*.ckpt"):
        if old != path:
            old.unlink()
    return path
