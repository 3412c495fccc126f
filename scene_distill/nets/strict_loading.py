"""Loading a .safetensors file into a network of exactly its names and shapes, or saying all that does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from scene_distill.core.errors import UserError

_SHOWN = 3


def stored_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes in a .safetensors file, from its header; `UserError` when it is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path} cannot be read ({reason}); download it again") from error


def misfits(network: nn.Module, found: Mapping[str, tuple[int, ...]]) -> list[str]:
    """What is missing, unexpected or misshapen among the found names and shapes; empty when all fits."""
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    missing = sorted(set(wanted) - set(found))
    unexpected = sorted(set(found) - set(wanted))
    wrong = [
        f"{name} is {list(found[name])} instead of {list(wanted[name])}"
        for name in sorted(set(wanted) & set(found))
        if tuple(found[name]) != wanted[name]
    ]
    said = []
    for label, names in (("missing", missing), ("unexpected", unexpected), ("misshapen", wrong)):
        if names:
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            said.append(f"{len(names)} {label}: {', '.join(names[:_SHOWN])}{more}")
    return said


def load_strictly(network: nn.Module, path: Path, device: torch.device | str = "cpu") -> nn.Module:
    """The network with the file's weights, each in the type the network has for it, on a device; also from 'meta'.

    Raises `UserError` for a file that is damaged, does not fit, or holds numbers that are not finite.
    """
    from safetensors import safe_open

    said = misfits(network, stored_shapes(path))
    if said:
        raise UserError(f"{path} does not fit a {type(network).__name__} ({'; '.join(said)}); is it another model's?")
    types = {name: value.dtype for name, value in network.state_dict().items()}
    weights: dict[str, Tensor] = {}
    with safe_open(str(path), "pt") as file:
        for name, dtype in types.items():
            value = file.get_tensor(name).to(device=device, dtype=dtype)
            if not bool(torch.isfinite(value).all()):
                raise UserError(f"{path}: {name} holds numbers that are not finite; download it again")
            weights[name] = value
    network.load_state_dict(weights, strict=True, assign=True)
    return network
