"""gsplat's `rasterization` and what it is made of, for CPU tensors: C cameras of splats drawn by our kernels.

Idea: project (`gsplat_projection`), list what each tile draws with the exact, opacity-aware test of `ops.bin`, and
blend with `ops.raster`, camera after camera inside one autograd node, so that ``meta["means2d"]`` is one tensor
[C, N, 2] whose ``grad`` and ``absgrad`` are what densification strategies read. Cost: that of `renderers.splat.render`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from scene_distill.core.conventions import TILE
from scene_distill.core.errors import UserError
from scene_distill.plugins.gsplat_projection import (
    Lens,
    Screen,
    project,
    refuse_sparse_gradients,
    tile_bits,
)
from scene_distill.renderers import ops

RENDER_MODES = ("RGB", "D", "ED", "RGB+D", "RGB+ED")


@dataclass(frozen=True, eq=False)
class Request:
    """The arguments of gsplat's `rasterization` that are honoured, under its names and with its meanings."""

    means: Tensor
    quats: Tensor
    scales: Tensor
    opacities: Tensor
    colors: Tensor
    viewmats: Tensor
    Ks: Tensor
    width: int
    height: int
    near_plane: float
    far_plane: float
    radius_clip: float
    eps2d: float
    sh_degree: int | None
    packed: bool
    tile_size: int
    backgrounds: Tensor | None
    render_mode: str
    sparse_grad: bool
    absgrad: bool
    rasterize_mode: str
    camera_model: str

    def __post_init__(self) -> None:
        if self.render_mode not in RENDER_MODES:
            raise UserError(f"gsplat: render_mode is {self.render_mode!r}, expected one of {', '.join(RENDER_MODES)}")
        if self.rasterize_mode not in ("classic", "antialiased"):
            raise UserError(f"gsplat: rasterize_mode is {self.rasterize_mode!r}, expected 'classic' or 'antialiased'")
        count, cameras = self.means.shape[0], self.viewmats.shape[0]
        tail = 1 if self.sh_degree is None else 2
        shape = tuple(self.colors.shape)
        rows = shape[:-tail]
        if rows not in ((count,), (cameras, count)) or (tail == 2 and shape[-1] != 3):
            expected = "[(C,) N, D]" if tail == 1 else "[(C,) N, K, 3] with sh_degree"
            raise UserError(f"gsplat: colors are {shape} for {cameras} cameras and {count} Gaussians, not {expected}")
        if self.absgrad and self.colors.shape[-1] + self.render_mode.endswith("D") > ops.MAX_ABSOLUTE_CHANNELS:
            raise UserError(f"gsplat on the CPU has absgrad for at most {ops.MAX_ABSOLUTE_CHANNELS} channels")
        refuse_tile_size(self.tile_size)
        refuse_sparse_gradients(self.packed and self.sparse_grad)


@dataclass(frozen=True, eq=False)
class Drawing:
    """What is drawn where: image size (width, height) px; per camera the rows of the flat Gaussians that its tile lists
    count from, tile_offsets [T + 1] and pair_gaussian [M]."""

    size: tuple[int, int]
    rows: tuple[slice, ...]
    lists: tuple[tuple[Tensor, Tensor], ...]


def refuse_tile_size(tile_size: int) -> None:
    """Raises `UserError` for tiles of another side than the kernels'."""
    if tile_size != TILE:
        raise UserError(f"gsplat on the CPU draws tiles of {TILE} px; pass tile_size={TILE} instead of {tile_size}")


class _Raster(torch.autograd.Function):
    """Images [C, H, W, D] and alphas [C, H, W, 1]; sets ``absgrad`` on the means2d tensor it was given, if asked."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        *tensors, drawing, absgrad = inputs
        flat = _flat(tensors)
        drawn = [
            ops.raster(flat[0][rows], flat[1][rows], flat[2][rows], flat[3][rows], tensors[4][c], *lists, *drawing.size)
            for c, (rows, lists) in enumerate(zip(drawing.rows, drawing.lists, strict=True))
        ]
        images, alphas = (torch.stack(parts) for parts in zip(*drawn, strict=True))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, images, alphas)
        ctx.drawing, ctx.absgrad = drawing, absgrad
        return images, alphas[..., None]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        *tensors, images, alphas = ctx.saved_tensors
        v_images, v_alphas = grads
        if v_images is None and v_alphas is None:
            return (None,) * 7
        v_images = torch.zeros_like(images) if v_images is None else v_images
        flat, means2d = _flat(tensors), tensors[0]
        found = [torch.zeros_like(t) for t in flat]
        absolute = torch.zeros_like(flat[0]) if ctx.absgrad else None
        backgrounds = torch.zeros_like(tensors[4])
        for c, (rows, lists) in enumerate(zip(ctx.drawing.rows, ctx.drawing.lists, strict=True)):
            *parts, backgrounds[c], screen = raster_gradients(
                (*(t[rows] for t in flat), tensors[4][c], *lists), (images[c], alphas[c]),
                (v_images[c], None if v_alphas is None else v_alphas[c, ..., 0]), ctx.absgrad,
            )  # fmt: skip
            for total, part in zip(found, parts, strict=True):
                total[rows] += part
            if absolute is not None:
                absolute[rows] += screen
        if absolute is not None:
            means2d.absgrad = absolute.view(means2d.shape)
        shaped = [total.view(t.shape) for total, t in zip(found, tensors, strict=False)]
        return shaped[0], shaped[1], shaped[2], shaped[3], backgrounds, None, None


def _flat(tensors: list[Tensor]) -> list[Tensor]:
    """means2d [R, 2], conics [R, 3], opacities [R], colours [R, D] of tensors with any leading axes."""
    means2d, conics, opacities, colors = tensors[:4]
    return [means2d.reshape(-1, 2), conics.reshape(-1, 3), opacities.reshape(-1), colors.reshape(-1, colors.shape[-1])]


def draw(screen: tuple[Tensor, Tensor, Tensor, Tensor], backgrounds: Tensor | None, drawing: Drawing, absgrad: bool):
    """Images [C, H, W, D] and alphas [C, H, W, 1] of screen = (means2d, conics, opacities, colors); backgrounds [C, D].

    Differentiable in the screen's tensors and the backgrounds.
    """
    colors = screen[3]
    if backgrounds is None:
        backgrounds = colors.new_zeros((len(drawing.rows), colors.shape[-1]))
    if backgrounds.shape != (len(drawing.rows), colors.shape[-1]):
        raise UserError(
            f"gsplat: backgrounds are {tuple(backgrounds.shape)}, expected {(len(drawing.rows), colors.shape[-1])}"
        )
    return _Raster.apply(*screen, backgrounds, drawing, absgrad)


def rasterization(request: Request, radius_per_axis: bool) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """What gsplat's `rasterization` returns: colours [C, H, W, X], alphas [C, H, W, 1] and its meta dictionary.

    X is D, 1 or D + 1 by render_mode; D adds the accumulated, ED the expected depth. ``radius_per_axis`` lays radii out
    as gsplat 1.5 does. Raises `UserError` for what cannot be honoured.
    """
    size = (request.width, request.height)
    lens = Lens(
        size, request.near_plane, request.far_plane, request.radius_clip, request.eps2d,
        request.rasterize_mode == "antialiased", radius_per_axis, request.camera_model,
    )  # fmt: skip
    world = (request.means, request.quats, request.scales, request.opacities)
    screen = project(world, request.viewmats, request.Ks, lens)
    cameras, count = screen.depths.shape
    drawing = Drawing(size, tuple(slice(c * count, (c + 1) * count) for c in range(cameras)), _tile_lists(screen, size))
    camera_ids = gaussian_ids = None
    colors = _colors(request, screen)
    if request.packed:
        camera_ids, gaussian_ids = torch.where(screen.drawn)
        drawing = _packed(drawing, screen.drawn)
        names = ("radii", "means2d", "conics", "depths", "opacities")
        screen = replace(screen, **{name: getattr(screen, name)[camera_ids, gaussian_ids] for name in names})
        colors = colors[camera_ids, gaussian_ids]
    colors, backgrounds = _with_depth(request, screen, colors)
    images, alphas = draw(
        (screen.means2d, screen.conics, screen.opacities, colors), backgrounds, drawing, request.absgrad
    )
    if request.render_mode in ("ED", "RGB+ED"):
        images = torch.cat([images[..., :-1], images[..., -1:] / alphas.clamp(min=1e-10)], dim=-1)
    meta = {"camera_ids": camera_ids, "gaussian_ids": gaussian_ids}
    if radius_per_axis:
        meta["batch_ids"] = None if camera_ids is None else torch.zeros_like(camera_ids)
    return images, alphas, meta | _meta(screen, drawing, radius_per_axis)


def _colors(request: Request, screen: Screen) -> Tensor:
    """Colours [C, N, D] of the Gaussians as each camera sees them."""
    colors, cameras = request.colors, screen.depths.shape[0]
    if request.sh_degree is None:
        return colors if colors.dim() == 3 else colors.expand(cameras, -1, -1)
    centers = torch.linalg.inv(request.viewmats)[:, :3, 3]  # also with parallel rays, as gsplat does
    seen = []
    for c in range(cameras):
        coefficients = colors[c] if colors.dim() == 4 else colors
        seen.append(
            ops.spherical_harmonics(request.means, coefficients, centers[c], request.sh_degree, screen.extents[c])
        )
    return torch.stack(seen)


def _with_depth(request: Request, screen: Screen, colors: Tensor) -> tuple[Tensor, Tensor | None]:
    """Colours and backgrounds with the channel of depth that render_mode asks for; depth has background 0."""
    backgrounds = request.backgrounds
    if request.render_mode == "RGB":
        return colors, backgrounds
    depths = screen.depths[..., None]
    zeros = None if backgrounds is None else backgrounds.new_zeros((backgrounds.shape[0], 1))
    if request.render_mode in ("D", "ED"):
        return depths, zeros
    if backgrounds is not None and zeros is not None:
        backgrounds = torch.cat([backgrounds, zeros], dim=-1)
    return torch.cat([colors, depths], dim=-1), backgrounds


def _tile_lists(screen: Screen, size: tuple[int, int]) -> tuple[tuple[Tensor, Tensor], ...]:
    """tile_offsets and pair_gaussian of each camera."""
    columns = [t.detach() for t in (screen.means2d, screen.conics, screen.opacities, screen.depths, screen.extents)]
    return tuple(ops.bin(a, b, c, d, e, *size) for a, b, c, d, e in zip(*columns, strict=True))


def _packed(drawing: Drawing, drawn: Tensor) -> Drawing:
    """The same drawing for the Gaussians that are drawn, in the order of ``drawn`` [C, N]."""
    row = torch.cumsum(drawn, dim=1, dtype=torch.int32) - 1
    ends = torch.cumsum(drawn.sum(1), dim=0).tolist()
    rows = tuple(slice(start, end) for start, end in zip([0, *ends], ends, strict=False))
    lists = tuple((offsets, row[c][pairs.long()]) for c, (offsets, pairs) in enumerate(drawing.lists))
    return Drawing(drawing.size, rows, lists)


@torch.no_grad()
def _meta(screen: Screen, drawing: Drawing, radius_per_axis: bool) -> dict[str, Any]:
    """gsplat's meta dictionary, but for the ids of the packed layout."""
    width, height = drawing.size
    columns, rows = -(-width // TILE), -(-height // TILE)
    flatten_ids = torch.cat([pairs + at.start for at, (_, pairs) in zip(drawing.rows, drawing.lists, strict=True)])
    before, offsets, tiles = 0, [], []
    for c, (starts, pairs) in enumerate(drawing.lists):
        offsets.append((starts[:-1] + before).view(rows, columns))
        tile = torch.repeat_interleave(torch.arange(rows * columns), starts.diff().long())
        tiles.append(tile | (c << tile_bits(rows * columns)))
        before += pairs.numel()
    depths = screen.depths.reshape(-1)
    depth_bits = depths.detach().contiguous().view(torch.int32)[flatten_ids.long()].long()
    per_gaussian = torch.bincount(flatten_ids, minlength=depths.numel()).int()
    return {
        "radii": screen.radii, "means2d": screen.means2d, "depths": screen.depths, "conics": screen.conics,
        "opacities": screen.opacities, "tile_width": columns, "tile_height": rows,
        "tiles_per_gauss": per_gaussian.view(screen.depths.shape), "isect_ids": (torch.cat(tiles) << 32) | depth_bits,
        "flatten_ids": flatten_ids, "isect_offsets": torch.stack(offsets), "width": width, "height": height,
        "tile_size": TILE, "n_cameras": len(drawing.rows),
    } | ({"n_batches": 1} if radius_per_axis else {})  # fmt: skip


def rasterize_to_pixels(given: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """gsplat's function of that name for the arguments ``given`` by name: images [C, H, W, D], alphas [C, H, W, 1].

    Raises `UserError` for masks and for other tiles than the kernels'.
    """
    refuse_tile_size(given["tile_size"])
    if given["masks"] is not None:
        raise UserError("gsplat on the CPU draws every tile; pass masks=None and mask the image instead")
    colors, starts, pairs = given["colors"], given["isect_offsets"].flatten(1), given["flatten_ids"]
    cameras, count = starts.shape[0], given["opacities"].shape[-1]
    edges = [*starts[:, 0].tolist(), pairs.numel()]
    rows, lists = [], []
    for c in range(cameras):
        at = slice(0, count) if given["packed"] else slice(c * count, (c + 1) * count)
        offsets = torch.cat([starts[c].int(), torch.tensor([edges[c + 1]], dtype=torch.int32)]) - edges[c]
        rows.append(at)
        lists.append((offsets, pairs[edges[c] : edges[c + 1]].int() - at.start))
    drawing = Drawing((given["image_width"], given["image_height"]), tuple(rows), tuple(lists))
    screen = (given["means2d"], given["conics"], given["opacities"], colors)
    return draw(screen, given["backgrounds"], drawing, given["absgrad"])


@torch.no_grad()
def isect_tiles(given: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """gsplat's function of that name: tiles_per_gauss [C, N] or [M] int32, isect_ids [P] int64, flatten_ids [P] int32.

    Every tile that the box of ``radii`` touches, as gsplat lists them (`rasterization` lists only what is drawn).
    """
    radii, means2d, depths = given["radii"], given["means2d"], given["depths"]
    radii = radii if radii.dim() == means2d.dim() else radii[..., None].expand(means2d.shape)
    columns, rows, side = given["tile_width"], given["tile_height"], given["tile_size"]
    camera_ids = given.get("camera_ids", given.get("image_ids"))
    if not given["packed"]:
        camera_ids = torch.arange(means2d.shape[0])[:, None].expand(means2d.shape[:-1]).reshape(-1)
    flat, reach = means2d.reshape(-1, 2), radii.reshape(-1, 2)
    most = torch.tensor([columns, rows])
    low = torch.floor((flat - reach) / side).clamp(min=0).long().minimum(most)
    high = torch.ceil((flat + reach) / side).clamp(min=0).long().minimum(most)
    spans = (high - low) * (reach > 0).all(-1, keepdim=True)
    counts = spans.prod(-1)
    flatten_ids = torch.repeat_interleave(torch.arange(counts.numel()), counts)
    nth = torch.arange(flatten_ids.numel()) - (torch.cumsum(counts, 0) - counts)[flatten_ids]
    across = spans[flatten_ids, 0]
    tiles = (low[flatten_ids, 1] + nth // across) * columns + low[flatten_ids, 0] + nth % across
    bits = depths.reshape(-1).contiguous().view(torch.int32).long()
    cameras = camera_ids.long()[flatten_ids] << tile_bits(columns * rows)
    ids = ((cameras | tiles) << 32) | bits[flatten_ids]
    if given["sort"]:
        ids, order = torch.sort(ids, stable=True)
        flatten_ids = flatten_ids[order]
    return counts.view(depths.shape).int(), ids, flatten_ids.int()


@torch.no_grad()
def isect_offset_encode(given: Mapping[str, Any]) -> Tensor:
    """gsplat's function of that name: where each tile's intersections begin, [C, tile_height, tile_width] int32."""
    cameras = given["n_cameras"] if "n_cameras" in given else given["n_images"]
    columns, rows = given["tile_width"], given["tile_height"]
    bits = tile_bits(columns * rows)
    camera, tile = torch.arange(cameras)[:, None], torch.arange(columns * rows)[None]
    wanted = (camera << bits | tile).reshape(-1)
    return torch.searchsorted(given["isect_ids"] >> 32, wanted).int().view(cameras, rows, columns)


def raster_gradients(
    drawn: tuple[Tensor, ...], image: tuple[Tensor, Tensor], grads: tuple[Tensor, Tensor | None], absgrad: bool
) -> tuple[Tensor, ...]:
    """Gradients of means2d, conics, opacities, features, background; absolute screen gradients [N, 2] or None."""
    backward = torch.ops.scene_distill
    if absgrad:
        return backward.raster_probed_backward.default(*drawn, *image, *grads, math.inf, True)
    return *backward.raster_backward.default(*drawn, *image, *grads), None
