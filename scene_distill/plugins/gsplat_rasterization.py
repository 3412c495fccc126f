"""gsplat's `rasterization` and what it is made of, for CPU tensors: C cameras of splats drawn by our kernels.

Idea: project (`gsplat_projection`), list what each tile draws with the exact, opacity-aware test of `ops.bin`, and
blend with `ops.raster`, image after image inside one autograd node, so that ``meta["means2d"]`` is one tensor
[..., C, N, 2] whose ``grad`` and ``absgrad`` are what densification strategies read. I = batch · C images. Cost:
that of `renderers.splat.render`.
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
from scene_distill.plugins.gsplat_covariances import matrices
from scene_distill.plugins.gsplat_harmonics import seen_colors
from scene_distill.plugins.gsplat_projection import (
    Layout,
    Lens,
    Screen,
    World,
    project,
    refuse_sparse_gradients,
    scenes,
)
from scene_distill.plugins.gsplat_steps import UPPER
from scene_distill.plugins.gsplat_tiles import refuse_tile_size, split_lists, tile_bits
from scene_distill.renderers import ops

RENDER_MODES = ("RGB", "D", "ED", "RGB+D", "RGB+ED")


@dataclass(frozen=True, eq=False)
class Request:
    """The arguments of gsplat's `rasterization` that are honoured, under its names and with its meanings."""

    means: Tensor
    quats: Tensor | None
    scales: Tensor | None
    opacities: Tensor
    colors: Tensor | None
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
    tile_size: int | None
    backgrounds: Tensor | None
    render_mode: str
    sparse_grad: bool
    absgrad: bool
    rasterize_mode: str
    camera_model: str
    covars: Tensor | None

    def __post_init__(self) -> None:
        if self.means.dim() < 2 or self.viewmats.dim() < 3:
            raise UserError(
                f"gsplat: means are {tuple(self.means.shape)} and viewmats {tuple(self.viewmats.shape)}, expected "
                "[..., N, 3] and [..., C, 4, 4]"
            )
        if self.render_mode not in RENDER_MODES:
            raise UserError(f"gsplat: render_mode is {self.render_mode!r}, expected one of {', '.join(RENDER_MODES)}")
        if self.rasterize_mode not in ("classic", "antialiased"):
            raise UserError(f"gsplat: rasterize_mode is {self.rasterize_mode!r}, expected 'classic' or 'antialiased'")
        if self.render_mode.startswith("RGB"):
            self.refuse_colors()
        refuse_tile_size(self.tile_size)
        refuse_sparse_gradients(self.sparse, self.batch, self.covars)

    def refuse_colors(self) -> None:
        """Raise `UserError` for colours of another shape than gsplat takes."""
        batch, count, cameras = self.batch, self.means.shape[-2], self.viewmats.shape[-3]
        tail = 1 if self.sh_degree is None else 2
        shape = () if self.colors is None else tuple(self.colors.shape)
        rows = [(*batch, count), (*batch, cameras, count), *([(count,)] if tail == 2 else [])]
        if len(shape) <= tail or shape[:-tail] not in rows:
            expected = "[..., (C,) N, D]" if tail == 1 else "[..., (C,) N, K, 3] with sh_degree"
            raise UserError(
                f"gsplat: colors are {shape} for {cameras} cameras and means {tuple(self.means.shape)}, not {expected}"
            )

    @property
    def batch(self) -> tuple[int, ...]:
        """The leading batch axes."""
        return tuple(self.means.shape[:-2])

    @property
    def world(self) -> World:
        """The Gaussians; like gsplat, of covars only the upper triangle is read."""
        covars = self.covars
        if covars is not None:
            if covars.shape[-2:] != (3, 3):
                raise UserError(f"gsplat: covars are {tuple(covars.shape)}, expected [..., N, 3, 3]")
            covars = matrices(covars[..., UPPER[0], UPPER[1]])
        return World(self.means, self.opacities, self.quats, self.scales, covars)

    @property
    def sparse(self) -> bool:
        """Whether gradients are wanted in the COO layout, which gsplat has in packed mode only."""
        return self.packed and self.sparse_grad

    @property
    def images(self) -> tuple[int, ...]:
        """The axes of the images, [..., C]."""
        return (*self.batch, self.viewmats.shape[-3])


@dataclass(frozen=True, eq=False)
class Drawing:
    """What is drawn where: image size (width, height) px; per camera the rows of the flat Gaussians that its tile lists
    count from, tile_offsets [T + 1] and pair_gaussian [M]."""

    size: tuple[int, int]
    rows: tuple[slice, ...]
    lists: tuple[tuple[Tensor, Tensor], ...]


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


def rasterization(request: Request, layout: Layout) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """What gsplat's `rasterization` returns: colours [..., C, H, W, X], alphas [..., C, H, W, 1] and its meta
    dictionary, laid out as in its version.

    X is D, 1 or D + 1 by render_mode; D adds the accumulated, ED the expected depth. Raises `UserError` for what cannot
    be honoured.
    """
    size = (request.width, request.height)
    lens = Lens(
        size, request.near_plane, request.far_plane, request.radius_clip, request.eps2d,
        request.rasterize_mode == "antialiased", layout.radius_per_axis, request.camera_model,
        sparse_grad=request.sparse,
    )  # fmt: skip
    screen = project(request.world, request.viewmats, request.Ks, lens)
    images, count = screen.depths.shape
    drawing = Drawing(size, tuple(slice(i * count, (i + 1) * count) for i in range(images)), _tile_lists(screen, size))
    colors = _colors(request, screen) if request.render_mode.startswith("RGB") else None
    names, at = ("radii", "means2d", "conics", "depths", "opacities"), None
    if request.packed:
        at = torch.where(screen.drawn)
        drawing = _packed(drawing, screen.drawn)
        screen = replace(screen, **{name: getattr(screen, name)[at] for name in names})
        colors = None if colors is None else colors[at]
    else:
        shaped = {name: getattr(screen, name) for name in names}
        screen = replace(screen, **{name: t.reshape(*request.images, *t.shape[1:]) for name, t in shaped.items()})
        colors = None if colors is None else colors.reshape(*request.images, *colors.shape[1:])
    colors, backgrounds = _with_depth(request, screen, colors)
    pictures, alphas = draw(
        (screen.means2d, screen.conics, screen.opacities, colors), backgrounds, drawing, request.absgrad
    )
    if request.render_mode in ("ED", "RGB+ED"):
        pictures = torch.cat([pictures[..., :-1], pictures[..., -1:] / alphas.clamp(min=1e-10)], dim=-1)
    pictures, alphas = (t.reshape(*request.images, *t.shape[1:]) for t in (pictures, alphas))
    return pictures, alphas, _ids(at, request.images[-1], layout) | _meta(screen, drawing, request.images, layout)


def _ids(at: tuple[Tensor, ...] | None, cameras: int, layout: Layout) -> dict[str, Tensor | None]:
    """gsplat's ids of the packed Gaussians at = (images, Gaussians), None where nothing is packed."""
    batch, camera, gaussian = (None, None, None) if at is None else (at[0] // cameras, at[0] % cameras, at[1])
    ids = {"camera_ids": camera, "gaussian_ids": gaussian}
    return ids | ({"batch_ids": batch} if layout.radius_per_axis else {})


def _colors(request: Request, screen: Screen) -> Tensor:
    """Colours [I, N, D] of the Gaussians as each image sees them."""
    colors, (images, count), axes = request.colors, screen.depths.shape, len(request.batch)
    assert colors is not None  # `Request` has refused that
    cameras, tail = request.images[-1], 1 if request.sh_degree is None else 2
    if colors.dim() == axes + 1 + tail:  # one colour a Gaussian, or a set of coefficients
        colors = colors.unsqueeze(axes)
    wanted = (*request.images, count, *colors.shape[-tail:])
    flat = colors.expand(wanted).flatten(0, axes)
    if request.sh_degree is None:
        return flat
    centers = torch.linalg.inv(request.viewmats)[..., :3, 3].reshape(-1, 3)  # also with parallel rays, as gsplat does
    means = [scene for scene in scenes(request.means, axes) for _ in range(cameras)]
    seen = [seen_colors(means[i], flat[i], centers[i], request.sh_degree, screen.extents[i]) for i in range(images)]
    return torch.stack(seen)


def _with_depth(request: Request, screen: Screen, colors: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Colours and backgrounds [I, X] with the channel of depth that render_mode asks for; depth has background 0."""
    backgrounds = request.backgrounds
    if backgrounds is not None:
        if backgrounds.shape[:-1] != request.images:
            raise UserError(f"gsplat: backgrounds are {tuple(backgrounds.shape)}, expected {(*request.images, 'D')}")
        backgrounds = backgrounds.reshape(-1, backgrounds.shape[-1])
    depths = screen.depths[..., None]
    zeros = None if backgrounds is None else backgrounds.new_zeros((backgrounds.shape[0], 1))
    if colors is None:
        return depths, zeros
    if request.render_mode == "RGB":
        return colors, backgrounds
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
def _meta(screen: Screen, drawing: Drawing, images: tuple[int, ...], layout: Layout) -> dict[str, Any]:
    """gsplat's meta dictionary of images [..., C], but for the ids of the packed layout."""
    width, height = drawing.size
    columns, rows = -(-width // TILE), -(-height // TILE)
    flatten_ids = torch.cat([pairs + at.start for at, (_, pairs) in zip(drawing.rows, drawing.lists, strict=True)])
    before, offsets, tiles = 0, [], []
    for i, (starts, pairs) in enumerate(drawing.lists):
        offsets.append((starts[:-1] + before).view(rows, columns))
        tile = torch.repeat_interleave(torch.arange(rows * columns), starts.diff().long())
        tiles.append(tile | (i << tile_bits(rows * columns)))
        before += pairs.numel()
    depths = screen.depths.reshape(-1)
    depth_bits = depths.detach().contiguous().view(torch.int32)[flatten_ids.long()].long()
    per_gaussian = torch.bincount(flatten_ids, minlength=depths.numel()).int()
    return {
        "radii": screen.radii, "means2d": screen.means2d, "depths": screen.depths, "conics": screen.conics,
        "opacities": screen.opacities, "tile_width": columns, "tile_height": rows,
        "tiles_per_gauss": per_gaussian.view(screen.depths.shape), "isect_ids": (torch.cat(tiles) << 32) | depth_bits,
        "flatten_ids": flatten_ids, "isect_offsets": torch.stack(offsets).view(*images, rows, columns),
        "width": width, "height": height, "tile_size": TILE, "n_cameras": images[-1],
    } | ({"n_batches": math.prod(images[:-1])} if layout.radius_per_axis else {})  # fmt: skip


def rasterize_to_pixels(given: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """gsplat's function of that name for the arguments ``given`` by name: images [..., H, W, D], alphas [..., H, W, 1].

    Tiles where masks [..., tile_height, tile_width] is False show the background with alpha 0. Raises `UserError` for
    other tiles than the kernels'.
    """
    refuse_tile_size(given["tile_size"])
    offsets, masks, backgrounds = given["isect_offsets"], given["masks"], given["backgrounds"]
    axes, grid = tuple(offsets.shape[:-2]), tuple(offsets.shape[-2:])
    if masks is not None and masks.shape != offsets.shape:
        raise UserError(f"gsplat: masks are {tuple(masks.shape)}, expected one value a tile, {tuple(offsets.shape)}")
    images, count = math.prod(axes), given["opacities"].shape[-1]
    first = [0 if given["packed"] else i * count for i in range(images)]
    lists = split_lists(
        offsets.reshape(-1, *grid), given["flatten_ids"], None if masks is None else masks.reshape(-1, *grid), first
    )
    drawing = Drawing(
        (given["image_width"], given["image_height"]), tuple(slice(at, at + count) for at in first), lists
    )
    screen = (given["means2d"], given["conics"], given["opacities"], given["colors"])
    flat = None if backgrounds is None else backgrounds.reshape(images, -1)
    pictures, alphas = draw(screen, flat, drawing, given["absgrad"])
    return pictures.reshape(*axes, *pictures.shape[1:]), alphas.reshape(*axes, *alphas.shape[1:])


def raster_gradients(
    drawn: tuple[Tensor, ...], image: tuple[Tensor, Tensor], grads: tuple[Tensor, Tensor | None], absgrad: bool
) -> tuple[Tensor, ...]:
    """Gradients of means2d, conics, opacities, features, background; absolute screen gradients [N, 2] or None."""
    backward = torch.ops.scene_distill
    if absgrad:
        return backward.raster_probed_backward.default(*drawn, *image, *grads, math.inf, True)
    return *backward.raster_backward.default(*drawn, *image, *grads), None
