"""The pictures a viewer can show of one camera: colour, depth, normals, coverage, features, classes, blocks, ...

Every layer is a function from a scene, a camera and what is selected to an image [H, W, 3] in [0, 1] and a legend for
the colours in it. Colours are alpha-blended on black by our rasterizer; what is not colour (normals, features) is drawn
as feature channels of the same Gaussians, so that all layers agree on what is in front.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from scene_distill.core.cameras import Camera
from scene_distill.core.errors import UserError
from scene_distill.core.gaussians import Gaussians
from scene_distill.data.images import ImageCache
from scene_distill.data.scene import Frame
from scene_distill.renderers.splat import Rendering, render
from scene_distill.viewer.colormaps import block_colors, class_colors, colorised
from scene_distill.viewer.mesh_scene import LAYERS as MESH_LAYERS
from scene_distill.viewer.mesh_scene import ViewedMesh
from scene_distill.viewer.pictures import (
    PLAIN,
    Look,
    Picture,
    classes_legend,
    coverage_picture,
    depth_picture,
    normals_picture,
)
from scene_distill.viewer.scenes import EVERYTHING, Drawn, Selection, ViewedScene, ViewedSplats

LABELS = {
    "rgb": "Colour", "depth": "Depth", "normals": "Normals", "alpha": "Coverage", "wireframe": "Wireframe",
    "features": "Features (PCA)", "semantics": "Semantics", "age": "Age", "blocks": "Blocks", "teacher": "Teacher",
    "difference": "Teacher − student", "error": "Error to photo", "photo": "Photo",
}  # fmt: skip
"""Layers in the order in which a viewer lists them."""

OF_A_PHOTO = frozenset({"error", "photo"})
"""Layers that show a training photo's view instead of the asked camera."""

BLOCK_TINT = 0.5
"""How much of a tinted picture's colour is the block's."""


@dataclass(frozen=True, eq=False)
class Looked:
    """Everything a layer needs: the scene, the scene with its teacher's decoders (None without), the camera, what is
    selected, and the photo [H, W, 3] in [0, 1] of exactly that camera (only for layers `OF_A_PHOTO`)."""

    scene: ViewedScene | ViewedMesh
    teacher: ViewedScene | None
    camera: Camera
    selection: Selection = EVERYTHING
    look: Look = PLAIN
    photo: Tensor | None = None


@torch.no_grad()
def draw(name: str, looked: Looked) -> Picture:
    """The picture of a layer; raises `UserError` when the scene does not have it."""
    if name not in _DRAW:
        raise UserError(f"there is no layer '{name[:40]}'; there are {', '.join(_DRAW)}")
    if isinstance(looked.scene, ViewedMesh):
        return looked.scene.draw(name, looked.camera, looked.selection, looked.look)
    return _DRAW[name](looked)


def layers_of(
    scene: ViewedScene | ViewedMesh, teacher: ViewedScene | None, photos: bool, unsaid: str = ""
) -> list[dict[str, str]]:
    """The layers that a scene has, as (id, label); the others with the reason why not. ``unsaid``: why it does not say
    what its primitives are, where that is known better."""
    if isinstance(scene, ViewedMesh):
        missing = {name: "meshes do not have this" for name in LABELS if name not in MESH_LAYERS}
        return [{"id": name, "label": label, "missing": missing.get(name, "")} for name, label in LABELS.items()]
    missing = {"wireframe": "splats have no edges; meshes do"}
    if scene.semantics is None:
        missing["semantics"] = unsaid or "this run does not say what its primitives are"
    if scene.born is None or (len(scene.born) and int(scene.born.max()) < 0):
        missing["age"] = "when its primitives were made is not known of this scene"
    if isinstance(scene, ViewedSplats):
        missing["features"] = "splats carry no features"
    if scene.blocks is None:
        missing["blocks"] = "this file does not say which block a splat came from"
    if teacher is None:
        missing |= dict.fromkeys(("teacher", "difference"), "there is no teacher in this run's checkpoint")
    if not photos:
        missing |= dict.fromkeys(OF_A_PHOTO, "the photos are not here")
    return [{"id": name, "label": label, "missing": missing.get(name, "")} for name, label in LABELS.items()]


def _primitives(looked: Looked) -> ViewedScene:
    assert not isinstance(looked.scene, ViewedMesh)
    return looked.scene


def _gaussians(looked: Looked) -> Drawn:
    return _primitives(looked).drawn(looked.camera, looked.selection)


def _rendered(looked: Looked, *, with_depth: bool = False) -> Rendering:
    scene = _primitives(looked)
    if isinstance(scene, ViewedSplats) and looked.selection.is_everything:
        return scene.plain(looked.camera, with_depth)
    drawn = scene.drawn(looked.camera, looked.selection)
    return render(drawn.gaussians, drawn.camera, with_depth=with_depth, antialiased=drawn.antialiased)


def _with(drawn: Drawn, features: Tensor) -> Rendering:
    gaussians = replace(drawn.gaussians, features=features.to(drawn.gaussians.features))
    return render(gaussians, drawn.camera, antialiased=drawn.antialiased)


def _rgb(looked: Looked) -> Picture:
    return Picture(_rendered(looked).image)


def _alpha(looked: Looked) -> Picture:
    return coverage_picture(_rendered(looked).alpha)


def _depth(looked: Looked) -> Picture:
    rendering = _rendered(looked, with_depth=True)
    depth = rendering.depth
    assert depth is not None
    covered = (rendering.alpha > 0.5) & torch.isfinite(depth) & (depth > 0)
    return depth_picture(depth, covered, looked.look.depth_range_m)


def _normals(looked: Looked) -> Picture:
    drawn = _gaussians(looked)
    rendering = _with(drawn, facing_normals(drawn.gaussians, drawn.camera))
    return normals_picture(torch.nn.functional.normalize(rendering.image, dim=-1), rendering.alpha)


def facing_normals(gaussians: Gaussians, camera: Camera) -> Tensor:
    """Unit normals [N, 3]: the shortest axis of every Gaussian, turned towards the camera."""
    w, x, y, z = torch.nn.functional.normalize(gaussians.quats, dim=1).unbind(1)
    columns = torch.stack([
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)], 1),
        torch.stack([2 * (x * y - w * z), 1 - 2 * (x * x + z * z), 2 * (y * z + w * x)], 1),
        torch.stack([2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)], 1),
    ], 1)  # fmt: skip
    axis = columns.gather(1, gaussians.scales.argmin(1)[:, None, None].expand(-1, 1, 3)).squeeze(1)
    towards = torch.as_tensor(camera.center).to(gaussians.means) - gaussians.means
    return axis * torch.where((axis * towards).sum(1, keepdim=True) < 0, -1.0, 1.0)


def _features(looked: Looked) -> Picture:
    drawn = _gaussians(looked)
    colors = _primitives(looked).features(drawn.rows)
    if colors is None:
        raise UserError("this scene's primitives carry no features")
    return Picture(_with(drawn, colors).image)


def _blocks(looked: Looked) -> Picture:
    drawn, owners = _gaussians(looked), _primitives(looked).blocks
    if drawn.blocks is None or owners is None:
        raise UserError("this scene does not know which block its primitives came from")
    count = int(owners.max()) + 1 if len(owners) else 0
    tints = block_colors(count).to(drawn.gaussians.features)[drawn.blocks.long()]
    return Picture(_with(drawn, torch.lerp(drawn.gaussians.features, tints, BLOCK_TINT)).image)


def _semantics(looked: Looked) -> Picture:
    """Classes in colours of their own, or the principal components of semantic features."""
    drawn, semantics = _gaussians(looked), _primitives(looked).semantics
    if semantics is None:
        raise UserError("this scene does not say what its primitives are")
    if semantics.labels is None:
        colors = _primitives(looked).semantic_colors()
        return Picture(_with(drawn, colors[drawn.rows]).image, {"map": "pca", "unit": semantics.source})
    colors = class_colors(len(semantics.names))
    labels = semantics.labels.to(drawn.rows.device)
    counts = torch.bincount(labels[labels >= 0], minlength=len(semantics.names))
    rendering = _with(drawn, colors.to(drawn.gaussians.features)[labels[drawn.rows]])
    return Picture(rendering.image, classes_legend(semantics.names, colors, counts.cpu()))


def _age(looked: Looked) -> Picture:
    """The step after which each primitive was made; grey where that is not known."""
    drawn, born = _gaussians(looked), _primitives(looked).born
    if born is None:
        raise UserError("this scene does not say when its primitives were made")
    last = max(int(born.max()) if len(born) else 0, 1)
    mine = born.to(drawn.rows.device)[drawn.rows]
    colors = colorised(1 - mine / last, "dusk")
    colors[mine < 0] = 0.3
    return Picture(_with(drawn, colors).image, {
        "map": "dusk", "low": float(last), "high": 0.0, "unit": "made after step",
    })  # fmt: skip


def _wireframe(looked: Looked) -> Picture:
    raise UserError("splats have no edges; meshes do")


def _taught(looked: Looked) -> Looked:
    if looked.teacher is None:
        raise UserError("there is no teacher in this run's checkpoint")
    return replace(looked, scene=looked.teacher)


def _teacher(looked: Looked) -> Picture:
    return Picture(_rendered(_taught(looked)).image)


def _difference(looked: Looked) -> Picture:
    student, teacher = _rendered(looked).image, _rendered(_taught(looked)).image
    return _heat(student, teacher, looked.look.gain)


def _error(looked: Looked) -> Picture:
    return _heat(_rendered(looked).image, _photo_of(looked), looked.look.gain)


def _photo(looked: Looked) -> Picture:
    return Picture(_photo_of(looked))


def _photo_of(looked: Looked) -> Tensor:
    if looked.photo is None:
        raise UserError("the photos of this scene are not here")
    return looked.photo


def _heat(image: Tensor, other: Tensor, gain: float) -> Picture:
    """Mean absolute difference over the channels, ``gain`` times, as heat."""
    distance = (image.clamp(0, 1) - other.to(image).clamp(0, 1)).abs().mean(-1)
    return Picture(colorised(gain * distance, "heat"), {
        "map": "heat", "low": 0.0, "high": 1.0 / gain, "unit": "mean |difference|", "mean": float(distance.mean()),
    })  # fmt: skip


_DRAW: dict[str, Callable[[Looked], Picture]] = {
    "rgb": _rgb, "depth": _depth, "normals": _normals, "alpha": _alpha, "wireframe": _wireframe, "features": _features,
    "semantics": _semantics, "age": _age, "blocks": _blocks, "teacher": _teacher, "difference": _difference,
    "error": _error, "photo": _photo,
}  # fmt: skip


def nearest_frame(frames: tuple[Frame, ...], camera: Camera) -> int:
    """Index of the frame whose view is most like a camera's: near, and looking the same way.

    The distance counts in units of the frames' median distance to their centre; half a turn counts as two of them.
    """
    import numpy as np

    centers = np.stack([frame.camera.center for frame in frames])
    forwards = np.stack([frame.camera.cam_from_world[2, :3] for frame in frames])
    unit = max(float(np.median(np.linalg.norm(centers - centers.mean(0), axis=1))), 1e-9)
    apart = np.linalg.norm(centers - camera.center, axis=1) / unit
    return int(np.argmin(apart + 1 - forwards @ camera.cam_from_world[2, :3]))


def photo_camera(frame: Frame, width: int) -> Camera:
    """A frame's camera on an image ``width`` pixels wide, not wider than the photo."""
    return frame.camera.resized(max(16, min(width, frame.camera.width)))


def photo_for(images: ImageCache, frame: Frame, camera: Camera) -> Tensor:
    """A frame's photo [H, W, 3] in [0, 1] at the size of a camera of the same view; averaged over areas when shrunk."""
    photo = images.get(frame).to(torch.float32).permute(2, 0, 1)[None] / 255.0
    if photo.shape[2:] != (camera.height, camera.width):
        photo = torch.nn.functional.interpolate(
            photo, (camera.height, camera.width), mode="bilinear", antialias=True, align_corners=False
        )
    return photo[0].permute(1, 2, 0)
