"""TRELLIS's networks by the class names of their description files, and how a description becomes a network."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from scene_distill.core.errors import UserError
from scene_distill.nets.sparse_structure_flow import SparseStructureFlowModel
from scene_distill.nets.sparse_structure_vae import SparseStructureDecoder, SparseStructureEncoder
from scene_distill.nets.structured_latent_flow import SLatFlowModel
from scene_distill.nets.structured_latent_gaussians import SLatGaussianDecoder
from scene_distill.nets.structured_latent_mesh import SLatMeshDecoder
from scene_distill.nets.structured_latent_radiance import SLatRadianceFieldDecoder
from scene_distill.nets.structured_latent_vae import SLatEncoder, WindowedTransformer
from scene_distill.nets.transformer_blocks import set_torso_type

NETWORKS: dict[str, type[nn.Module]] = {
    kind.__name__: kind
    for kind in (
        SparseStructureEncoder, SparseStructureDecoder, SparseStructureFlowModel, SLatFlowModel, SLatEncoder,
        SLatGaussianDecoder, SLatRadianceFieldDecoder, SLatMeshDecoder,
    )
}  # fmt: skip

IGNORED = {"use_checkpoint"}
"""Arguments of training that change neither weights nor results."""


def build_network(
    description: Mapping[str, Any],
    source: str,
    device: torch.device | str = "meta",
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """The network of a description {"name": class, "args": {...}}, with fresh weights (none on the meta device).

    ``dtype`` of matrices and kernels: None takes the description's (float16 with use_fp16). The prefix 'Elastic' of a
    class is dropped. Raises `UserError`, which names ``source``, for an unknown class or argument, or one missing.
    """
    name = str(description.get("name", "")).removeprefix("Elastic")
    arguments = {key: value for key, value in dict(description.get("args") or {}).items() if key not in IGNORED}
    kind = NETWORKS.get(name)
    if kind is None:
        raise UserError(f"{source} describes a {name or 'network without a name'}; known are {', '.join(NETWORKS)}")
    known, needed = _arguments(kind)
    unknown, missing = sorted(set(arguments) - known), sorted(needed - set(arguments))
    if unknown or missing:
        said = [f"unknown: {', '.join(unknown)}"] if unknown else []
        said += [f"missing: {', '.join(missing)}"] if missing else []
        raise UserError(f"{source}: the arguments of {name} do not fit ({'; '.join(said)}); take the file as published")
    try:
        with torch.device(device), _WithoutStart() if torch.device(device).type == "meta" else nullcontext():
            network = kind(**arguments)
    except (TypeError, ValueError) as error:
        raise UserError(f"{source}: no {name} can be built with these arguments ({error})") from error
    if dtype is not None:
        set_torso_type(network.torso(), dtype)  # type: ignore[operator]
    return network


def _arguments(kind: type[nn.Module]) -> tuple[set[str], set[str]]:
    """Names of all and of the required arguments; decoders hand what they do not name to their trunk."""
    chain = [kind, WindowedTransformer] if issubclass(kind, WindowedTransformer) else [kind]
    named = [parameter for part in chain for parameter in list(inspect.signature(part).parameters.values())]
    inner = {"in_channels", "out_width"} if issubclass(kind, WindowedTransformer) else set()
    own = set(inspect.signature(kind).parameters)
    known = {p.name for p in named if p.kind is p.POSITIONAL_OR_KEYWORD} - (inner - own)
    required = {p.name for p in named if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
    return known, required & known


class _WithoutStart(TorchFunctionMode):
    """Skips starting values, which the meta device has no room for and which would load half of torch's compiler."""

    STARTS = (Tensor.uniform_, Tensor.normal_, Tensor.zero_, Tensor.fill_)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """The tensor as it is for functions of torch.nn.init, everything else as ever."""
        if func in self.STARTS or getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))
