"""Folders of TRELLIS models: pipeline.json, and for every role a description (.json) and weights (.safetensors).

    pipeline.json   {"name": ..., "args": {"models": {role: path without extension}, "sparse_structure_sampler": {...},
                    "slat_sampler": {...}, "slat_normalization": {"mean", "std"}, "image_cond_model" or
                    "text_cond_model": name}}

A model's path is looked for under the folder; paths of another published folder ("owner/MODEL/ckpts/...", as the text
models name the image model's decoders) under ``models_root``, with and without the owner. Nothing is downloaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from scene_distill.core.errors import UserError
from scene_distill.nets.sparse_structure_flow import SparseStructureFlowModel
from scene_distill.nets.strict_loading import load_strictly, misfits, stored_shapes
from scene_distill.nets.trellis_networks import build_network
from scene_distill.priors.flow import FlowSteps, Guidance

ConditionedBy = Literal["image", "text"]

STAGES = ("sparse_structure_flow_model", "sparse_structure_decoder", "slat_flow_model")
"""Roles that every folder has; decoders of the latents beside them are those of `DECODERS` that are named."""

DECODERS = {"gaussians": "slat_decoder_gs", "mesh": "slat_decoder_mesh", "radiance": "slat_decoder_rf"}
"""What latents can become, and the role that does it."""


@dataclass(frozen=True)
class FlowSettings:
    """How a stage is sampled: guidance weight w (0: none; `priors.flow`), the guided times, steps and their spacing.

    ``phases``: 0 for a flow; for a distilled student the steps it takes or a multiple of which. ``guided``: whether it
    can be guided, as flows can.
    """

    weight: float
    interval: tuple[float, float]
    steps: FlowSteps
    phases: int = 0
    guided: bool = True


@dataclass(frozen=True)
class TrellisFiles:
    """A folder that has been read: where each role's files are, the settings, and what it is conditioned on."""

    folder: Path
    models: Mapping[str, Path]
    structure: FlowSettings
    latent: FlowSettings
    mean: tuple[float, ...]
    std: tuple[float, ...]
    conditioned_by: ConditionedBy
    conditioner: str

    def network(self, role: str, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> nn.Module:
        """The role's network with its weights, without gradients. ``dtype`` of matrices and kernels, default float32 on
        a CPU (half precision is slow there) and the file's own elsewhere.

        Raises `UserError` when the folder has no such role, or its file does not fit or is damaged.
        """
        if role not in self.models:
            raise UserError(f"{self.folder / 'pipeline.json'} names no {role}; it has {', '.join(sorted(self.models))}")
        if dtype is None and torch.device(device).type == "cpu":
            dtype = torch.float32
        stem = self.models[role]
        network = build_network(_json(_file(stem, ".json")), str(_file(stem, ".json")), "meta", dtype)
        load_strictly(network, _file(stem, ".safetensors"), device)
        _require_same_places(network, _file(stem, ".safetensors"))
        return network.eval().requires_grad_(False)


def read_trellis_folder(folder: Path, models_root: Path | None = None) -> TrellisFiles:
    """The folder, with every role's description built and compared with the names and shapes in its file.

    ``models_root``: where other published folders lie, default the folder that this one is in. Only headers are read.
    Raises one `UserError` that lists everything that is missing or does not fit.
    """
    path = folder / "pipeline.json"
    if not path.is_file():
        raise UserError(f"{folder} has no pipeline.json; name a folder that is laid out like TRELLIS-image-large")
    try:
        args = dict(_json(path)["args"])
        named = {str(role): str(where) for role, where in dict(args["models"]).items()}
        settings = [_settings(args[name]) for name in ("sparse_structure_sampler", "slat_sampler")]
        mean, std = (tuple(map(float, args["slat_normalization"][key])) for key in ("mean", "std"))
        by: ConditionedBy = "image" if args.get("image_cond_model") else "text"
        conditioner = str(args[f"{by}_cond_model"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} lacks or garbles {error}; download it again") from error
    problems = [f"pipeline.json names no {role}" for role in STAGES if role not in named]
    if not set(DECODERS.values()) & set(named):
        problems.append(f"pipeline.json names none of {', '.join(DECODERS.values())}")
    models, said = _found(folder, models_root or folder.resolve().parent, named)
    problems += said
    for role, stem in models.items():
        problems += _problems(role, stem)
    if problems:
        raise UserError(f"{folder} cannot be used:\n  " + "\n  ".join(problems))
    return TrellisFiles(folder, models, settings[0], settings[1], mean, std, by, conditioner)


def _settings(sampler: Mapping[str, Any]) -> FlowSettings:
    params = dict(sampler["params"])
    low, high = params.get("cfg_interval", (0.0, 1.0))
    steps = FlowSteps(int(params["steps"]), float(params.get("rescale_t", 1.0)), params.get("sampler", "euler"))
    student = dict(params.get("student", {"phases": 0, "guided": True}))
    weight, phases, guided = float(params.get("cfg_strength", 0.0)), int(student["phases"]), bool(student["guided"])
    return FlowSettings(weight, (float(low), float(high)), steps, phases, guided)


def _found(folder: Path, root: Path, named: Mapping[str, str]) -> tuple[dict[str, Path], list[str]]:
    """Path without extension of every role, and what was not found."""
    models, problems = {}, []
    for role, where in named.items():
        parts = Path(where).parts
        if Path(where).is_absolute() or ".." in parts:
            problems.append(f"{role}: {where} leads out of the folder")
            continue
        places = [folder / where, root / where]
        places += [root.joinpath(*parts[1:])] if len(parts) > 2 else []
        stems = [
            place for place in places if all(_file(place, ending).is_file() for ending in (".json", ".safetensors"))
        ]
        if stems:
            models[role] = stems[0]
        else:
            looked = " nor ".join(str(place) for place in dict.fromkeys(places))
            problems.append(f"{role}: there is no {looked} with both .json and .safetensors")
    return models, problems


def _problems(role: str, stem: Path) -> list[str]:
    """What does not fit between a description and its weights."""
    try:
        network = build_network(_json(_file(stem, ".json")), str(_file(stem, ".json")))
        said = misfits(network, stored_shapes(_file(stem, ".safetensors")))
    except UserError as error:
        return [f"{role}: {error}"]
    return [f"{role} ({_file(stem, '.safetensors').name}): {'; '.join(said)}"] if said else []


def _require_same_places(network: nn.Module, path: Path) -> None:
    """Structure flows store their place embedding: another one means other conventions or a damaged file."""
    if isinstance(network, SparseStructureFlowModel) and network.pe_mode == "ape":
        difference = (network.pos_emb.float().cpu() - network.place_embedding()).abs().max().item()
        if difference > 1e-3:
            raise UserError(f"{path}: pos_emb is off by {difference:.2g} from its formula; the file is damaged")


def _file(stem: Path, ending: str) -> Path:
    return stem.parent / (stem.name + ending)


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); download it again") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object; download it again")
    return value


def guidance_of(
    settings: FlowSettings,
    conditions: tuple[torch.Tensor, ...],
    negative: torch.Tensor,
    combine: Literal["mean", "cycle"],
) -> Guidance[torch.Tensor]:
    """The settings' guidance by these conditions."""
    return Guidance(conditions, negative, settings.weight, settings.interval, combine)
