"""What the viewer draws: any trained scene or splats, as Gaussians for one camera with the block and row of each.

Three kinds are told apart by what they hold, never by their class: anchors with decoders, splats, and scenes that only
render. Cameras and boxes are in the world frame; Gaussians come in the scene's own frame (world minus ``origin``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from scene_distill.core.cameras import Camera
from scene_distill.core.conventions import ANCHOR_SLOTS
from scene_distill.core.errors import UserError
from scene_distill.core.gaussians import Gaussians
from scene_distill.nets.gaussian_decoder import GaussianDecoder
from scene_distill.renderers.splat import Rendering, render
from scene_distill.renderers.stored_splats import activated, drawn_rows, take
from scene_distill.representations.anchors import Anchors
from scene_distill.representations.semantics import Semantics
from scene_distill.representations.splats import Splats
from scene_distill.training.evaluation import SplatScene, TrainedScene


@dataclass(frozen=True, eq=False)
class Selection:
    """What of a scene is drawn: the blocks (all when None) and a box (low [3], high [3]) in world metres (all when
    None)."""

    blocks: frozenset[int] | None = None
    crop: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def is_everything(self) -> bool:
        """Whether nothing is left out."""
        return self.blocks is None and self.crop is None


EVERYTHING = Selection()


@dataclass(frozen=True, eq=False)
class Drawn:
    """The Gaussians [N] of one camera in the scene's frame, the camera in that frame, the row of each in the scene
    [N] int64 (an anchor's slots share its row), and its block [N] int32, None where nothing is known of blocks.
    ``antialiased``: draw with the compensation of the 2D filter that the opacities were trained with."""

    gaussians: Gaussians
    camera: Camera
    rows: Tensor
    blocks: Tensor | None
    antialiased: bool = False


class ViewedScene(Protocol):
    """A scene that can be looked at from anywhere."""

    origin: np.ndarray

    def __len__(self) -> int:
        """Number of primitives."""
        ...

    @property
    def primitive(self) -> str:
        """What there are so many of: 'anchors' or 'splats'."""
        ...

    @property
    def positions(self) -> Tensor:
        """Positions [P, 3] of the primitives in the scene's frame."""
        ...

    @property
    def blocks(self) -> Tensor | None:
        """Block of every primitive [P] int32; None for a scene without blocks."""
        ...

    @property
    def born(self) -> Tensor | None:
        """When every primitive was made [P] int32 (`representations.births`); None where that is not known."""
        ...

    @property
    def semantics(self) -> Semantics | None:
        """What every primitive is; None where that is not known."""
        ...

    def drawn(self, camera: Camera, selection: Selection = EVERYTHING) -> Drawn:
        """The Gaussians that a world camera may see."""
        ...

    def features(self, rows: Tensor) -> Tensor | None:
        """The three strongest principal components of the features of rows [N], [N, 3] in [0, 1]; None without
        features."""
        ...

    def semantic_colors(self) -> Tensor:
        """The same of the semantic features of all primitives, [P, 3] in [0, 1]; only where there are some."""
        ...


@runtime_checkable
class AnchoredScene(Protocol):
    """A trained scene of anchors that one decoder, or one per block, turns into Gaussians."""

    anchors: Anchors
    block: Tensor
    decoders: tuple[GaussianDecoder, ...]
    origin: np.ndarray

    def gaussians(self, camera: Camera, blocks: frozenset[int] | None = None) -> Gaussians:
        """The slots of the anchors that a world camera sees, anchor by anchor."""
        ...


class ViewedAnchors:
    """Anchors with their decoder; with another tuple of decoders the same anchors as the teacher sees them."""

    primitive = "anchors"

    def __init__(self, scene: AnchoredScene) -> None:
        self.scene, self.origin = scene, np.asarray(scene.origin, dtype=np.float64)

    def __len__(self) -> int:
        return len(self.scene.anchors)

    @property
    def positions(self) -> Tensor:
        """Positions [A, 3] of the anchors."""
        return self.scene.anchors.positions

    @property
    def blocks(self) -> Tensor:
        """Block of every anchor [A] int32."""
        return self.scene.block

    @property
    def born(self) -> Tensor | None:
        """When every anchor was made."""
        return getattr(self.scene, "born", None)

    @property
    def semantics(self) -> Semantics | None:
        """What every anchor is, where the scene says so."""
        return getattr(self.scene, "semantics", None)

    def taught_by(self, decoders: tuple[GaussianDecoder, ...]) -> ViewedAnchors:
        """The same anchors with other decoders."""
        device = self.scene.anchors.positions.device
        moved = tuple(decoder.to(device) for decoder in decoders)
        return ViewedAnchors(replace(self.scene, decoders=moved))  # type: ignore[type-var]

    def drawn(self, camera: Camera, selection: Selection = EVERYTHING) -> Drawn:
        """The Gaussians that a world camera may see; those outside the crop box are not drawn (opacity 0)."""
        local = camera.moved(self.origin)
        rows = self.scene.anchors.visible(local)
        if selection.blocks is not None:
            rows = rows[_among(self.scene.block[rows], selection.blocks)]
        gaussians = self.scene.gaussians(camera, selection.blocks)
        rows = rows.repeat_interleave(ANCHOR_SLOTS)
        return Drawn(_cropped(gaussians, selection, self.origin), local, rows, self.scene.block[rows])

    def features(self, rows: Tensor) -> Tensor:
        """Principal components of the anchors' features, [N, 3] in [0, 1]."""
        return self._components[rows]

    @cached_property
    def _components(self) -> Tensor:
        return principal_colors(self.scene.anchors.features)

    def semantic_colors(self) -> Tensor:
        """Principal components of the semantic features."""
        return self._semantic_components

    @cached_property
    def _semantic_components(self) -> Tensor:
        return semantic_components(self.semantics)


class ViewedSplats:
    """N splats in a frame whose zero lies at ``origin``, with the block of each where that is known.

    ``antialiased``: their opacities were trained with the compensation of the 2D filter. ``born`` and ``semantics`` as
    of `ViewedScene`.
    """

    primitive = "splats"

    def __init__(
        self, splats: Splats, origin: np.ndarray, blocks: Tensor | None = None, antialiased: bool = False,
        born: Tensor | None = None, semantics: Semantics | None = None,
    ) -> None:  # fmt: skip
        self.splats, self.origin, self.blocks = splats, np.asarray(origin, dtype=np.float64), blocks
        self.antialiased, self.born, self.semantics = antialiased, born, semantics

    def __len__(self) -> int:
        return len(self.splats)

    @property
    def positions(self) -> Tensor:
        """Means [N, 3]."""
        return self.splats.means

    def drawn(self, camera: Camera, selection: Selection = EVERYTHING) -> Drawn:
        """The Gaussians that a world camera may see; those outside the crop box are not drawn (opacity 0)."""
        local = camera.moved(self.origin)
        rows = drawn_rows(self.splats, local)
        if selection.blocks is not None and self.blocks is not None:
            rows = rows[_among(self.blocks[rows], selection.blocks)]
        gaussians = activated(take(self.splats, rows), local.pose(self.splats.means.device))
        blocks = None if self.blocks is None else self.blocks[rows]
        return Drawn(_cropped(gaussians, selection, self.origin), local, rows, blocks, self.antialiased)

    def plain(self, camera: Camera, with_depth: bool) -> Rendering:
        """The picture of all splats, by the kernel that activates and projects in one pass."""
        return render(self.splats, camera.moved(self.origin), with_depth=with_depth, antialiased=self.antialiased)

    def features(self, rows: Tensor) -> None:
        """Splats carry no features."""

    def semantic_colors(self) -> Tensor:
        """Principal components of the semantic features."""
        return self._semantic_components

    @cached_property
    def _semantic_components(self) -> Tensor:
        return semantic_components(self.semantics)


def viewed(scene: TrainedScene | Any) -> ViewedScene:
    """A trained scene as the viewer draws it; on the GPU where there is one.

    Raises `UserError` for a scene that is neither anchors with decoders nor splats.
    """
    if torch.cuda.is_available() and hasattr(scene, "to"):
        scene = scene.to("cuda")
    if isinstance(scene, AnchoredScene):
        return ViewedAnchors(scene)
    if isinstance(scene, SplatScene):
        splats, block = scene.splats(), getattr(scene, "block", None)
        blocks = None if block is None else block.to(splats.means.device)
        born, semantics = getattr(scene, "born", None), getattr(scene, "semantics", None)
        return ViewedSplats(splats, scene.origin, blocks, born=born, semantics=semantics)  # type: ignore[attr-defined]
    raise UserError(
        f"a {type(scene).__name__} holds neither anchors nor splats; export it to a splat file and view that"
    )


def principal_colors(features: Tensor) -> Tensor:
    """The three strongest principal components [N, 3] of features [N, F], each stretched so that its 2nd to 98th
    percentile fills [0, 1]; the sign of a component is chosen so that its largest loading is positive."""
    if len(features) < 4:
        return torch.full((len(features), 3), 0.5, device=features.device)
    centred = features.double() - features.double().mean(0)
    _, vectors = torch.linalg.eigh(centred.T @ centred / len(features))
    axes = vectors[:, -3:].flip(1)
    axes = axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    found = centred @ axes
    ordered = found.sort(dim=0).values
    low, high = ordered[int(0.02 * (len(found) - 1))], ordered[int(0.98 * (len(found) - 1))]
    return ((found - low) / (high - low).clamp_min(1e-12)).clamp(0, 1).float()


def semantic_components(semantics: Semantics | None) -> Tensor:
    """`principal_colors` of semantic features; of one or two of them the missing colours are zero."""
    if semantics is None or semantics.features is None:
        raise UserError("this scene has no semantic features")
    missing = max(3 - semantics.features.shape[1], 0)
    return principal_colors(torch.nn.functional.pad(semantics.features, (0, missing)))


def _among(blocks: Tensor, chosen: frozenset[int]) -> Tensor:
    return torch.isin(blocks, torch.tensor(sorted(chosen), dtype=blocks.dtype, device=blocks.device))


def _cropped(gaussians: Gaussians, selection: Selection, origin: np.ndarray) -> Gaussians:
    if selection.crop is None:
        return gaussians
    low, high = (torch.as_tensor(corner - origin).to(gaussians.means) for corner in selection.crop)
    inside = ((gaussians.means >= low) & (gaussians.means <= high)).all(1)
    return replace(gaussians, opacities=torch.where(inside, gaussians.opacities, torch.zeros_like(gaussians.opacities)))
