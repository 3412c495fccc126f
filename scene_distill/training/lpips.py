"""LPIPS: how different two pictures look to a network that learned to see.

LPIPS(x, y) = sum over layers l of mean over pixels of w_l . (f_l(x) / |f_l(x)| - f_l(y) / |f_l(y)|)^2, where f_l are
features of an image network after its l-th stage and w_l >= 0 learned weights of their channels (Zhang et al., "The
Unreasonable Effectiveness of Deep Features as a Perceptual Metric", CVPR 2018, eq. 1; version 0.1 of their weights).
Pictures go in as RGB in [-1, 1], shifted and scaled per channel.

The weights do not ship with this package and nothing here downloads them: they come from files that the user names,
either one with everything (the state of `lpips.LPIPS` or of torchmetrics' module) or two, torchvision's image network
and the channel weights of the LPIPS repository. A figure always travels with its network's name and its files' hashes.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from scene_distill.core.errors import UserError
from scene_distill.core.files import sha256

SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
"""Mean and deviation of ImageNet in a range of [-1, 1], as the reference code rounds them."""

EPSILON = 1e-8
"""Added to the squared length of a feature before its root, as torchmetrics does; the reference adds 1e-10 to the
length itself. They differ only where all features of a pixel are zero."""

LEAST_SIDE_PX = 32
"""A smaller picture has no pixels left in the last stage."""


@dataclass(frozen=True)
class Conv:
    """A convolution of `torchvision.models`: its number in ``features``, stride and padding; a ReLU follows."""

    layer: int
    stride: int = 1
    padding: int = 1


POOL = "pool"
TAP = "tap"
Step = Conv | str

ALEX: tuple[Step, ...] = (Conv(0, 4, 2), TAP, POOL, Conv(3, 1, 2), TAP, POOL, Conv(6), TAP, Conv(8), TAP, Conv(10), TAP)
VGG: tuple[Step, ...] = (
    Conv(0), Conv(2), TAP, POOL, Conv(5), Conv(7), TAP, POOL, Conv(10), Conv(12), Conv(14), TAP, POOL,
    Conv(17), Conv(19), Conv(21), TAP, POOL, Conv(24), Conv(26), Conv(28), TAP,
)  # fmt: skip

NETWORKS: dict[str, tuple[tuple[Step, ...], int, int]] = {"alex": (ALEX, 3, 2), "vgg": (VGG, 2, 2)}
"""Steps of the image networks up to their last tap, and edge and stride of their maximum pooling."""

PUBLISHED = ("7be5be79", "397923af", "df73285e35b22355", "a78928a0af1e5f0f")
"""First digits of the SHA-256 of torchvision's alexnet-owt-7be5be79.pth and vgg16-397923af.pth, which are part of their
names, and of alex.pth and vgg.pth of the LPIPS repository (weights/v0.1)."""


@dataclass(frozen=True, eq=False)
class Lpips:
    """LPIPS with one network: convolutions by their layer (weight, bias) and channel weights per tap.

    ``files`` tells of every weight file its name, SHA-256, and whether it was published as it is (`PUBLISHED`).
    """

    network: str
    convolutions: dict[int, tuple[Tensor, Tensor]]
    taps: tuple[Tensor, ...]
    files: tuple[dict[str, str | bool], ...]

    @torch.no_grad()
    def __call__(self, render: Tensor, photo: Tensor) -> float:
        """The distance of two images [H, W, 3] in [0, 1]; 0 for equal ones. Raises `UserError` below 32 px."""
        if min(photo.shape[:2]) < LEAST_SIDE_PX:
            raise UserError(f"LPIPS needs pictures of at least {LEAST_SIDE_PX} px a side, not {tuple(photo.shape[:2])}")
        pair = torch.stack([render.clamp(0, 1), photo]).permute(0, 3, 1, 2).float().cpu()
        shift, scale = (torch.tensor(values)[None, :, None, None] for values in (SHIFT, SCALE))
        distance = 0.0
        for weights, features in zip(self.taps, self._features((2 * pair - 1 - shift) / scale), strict=True):
            unit = features / (features.square().sum(1, keepdim=True) + EPSILON).sqrt()
            distance += float((weights[:, None, None] * (unit[0] - unit[1]).square()).sum(0).mean())
        return distance

    def provenance(self) -> dict[str, object]:
        """Network, version, input range and weight files, for a report."""
        return {"network": self.network, "version": "0.1", "input_range": [-1, 1], "weights": list(self.files)}

    def _features(self, pictures: Tensor) -> list[Tensor]:
        steps, edge, stride = NETWORKS[self.network]
        found = []
        for step in steps:
            if isinstance(step, Conv):
                weight, bias = self.convolutions[step.layer]
                pictures = functional.relu(functional.conv2d(pictures, weight, bias, step.stride, step.padding))
            elif step == POOL:
                pictures = functional.max_pool2d(pictures, edge, stride)
            else:
                found.append(pictures)
        return found


def load_lpips(paths: Sequence[Path]) -> Lpips:
    """LPIPS from weight files (.pth, .pt or .safetensors) that together hold an image network and channel weights.

    The network is told by its shapes. Raises `UserError` when a file cannot be read or a part is missing.
    """
    tensors: dict[str, Tensor] = {}
    for path in paths:
        tensors |= _read(path)
    names = ", ".join(str(path) for path in paths)
    convolutions = _convolutions(tensors)
    taps = tuple(tensors[name].float().flatten() for name in sorted(filter(_is_tap, tensors), key=_tap_number))
    network = next((name for name in NETWORKS if _fits(name, convolutions)), None)
    if network is None:
        raise UserError(
            f"{names}: no AlexNet or VGG-16 in there; LPIPS needs torchvision's image network "
            "(alexnet-owt-7be5be79.pth or vgg16-397923af.pth) or a saved lpips.LPIPS state"
        )
    steps = NETWORKS[network][0]
    layers = [steps[index - 1] for index, step in enumerate(steps) if step == TAP]
    channels = [len(convolutions[step.layer][1]) for step in layers if isinstance(step, Conv)]
    if [len(tap) for tap in taps] != channels:
        raise UserError(
            f"{names}: the channel weights of LPIPS for {network} are missing; name the file {network}.pth of the "
            "LPIPS repository (weights/v0.1) beside the image network"
        )
    return Lpips(network, convolutions, taps, tuple(_identity(path) for path in paths))


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name; no code in it is run."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"cannot read the LPIPS weights {path}: {error.strerror or error}") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{path} does not hold network weights ({str(error).splitlines()[0][:100]})") from error
    except Exception as error:  # safetensors raises a class of its own that its stubs do not name
        raise UserError(f"{path} does not hold network weights ({str(error).splitlines()[0][:100]})") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} does not hold network weights by name; save a state_dict")
    found = found.get("state_dict", found)
    return {str(name): tensor for name, tensor in found.items() if isinstance(tensor, Tensor)}


def _convolutions(tensors: dict[str, Tensor]) -> dict[int, tuple[Tensor, Tensor]]:
    """Convolutions by their number in torchvision's ``features``: names end in 'features.N.weight', or, in an LPIPS
    module, in 'sliceK.N.weight' with the same N."""
    found = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"(?:.*\.)?(?:features|slice\d)\.(\d+)\.weight", name)
        bias = tensors.get(name.removesuffix("weight") + "bias")
        if match and tensor.ndim == 4 and bias is not None:
            found[int(match[1])] = (tensor.float(), bias.float())
    return found


def _is_tap(name: str) -> bool:
    """Channel weights; 'lins.N' in a saved module are the same tensors as its 'linN' once more."""
    return re.fullmatch(r"(?:.*\.)?lin\d\.model\.\d+\.weight", name) is not None


def _tap_number(name: str) -> int:
    return int(name.rsplit("lin", maxsplit=1)[-1].split(".", maxsplit=1)[0])


def _fits(network: str, convolutions: dict[int, tuple[Tensor, Tensor]]) -> bool:
    layers = [step.layer for step in NETWORKS[network][0] if isinstance(step, Conv)]
    if not set(layers) <= set(convolutions):
        return False
    weights = [convolutions[layer][0] for layer in layers]
    chained = all(after.shape[1] == before.shape[0] for before, after in pairwise(weights))
    return chained and weights[0].shape[1] == 3 and weights[0].shape[2] == (11 if network == "alex" else 3)


def _identity(path: Path) -> dict[str, str | bool]:
    digest = sha256(path)
    return {"file": path.name, "sha256": digest, "published": digest.startswith(PUBLISHED)}
