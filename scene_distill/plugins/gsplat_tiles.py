"""gsplat's tile lists for CPU tensors: which Gaussians each tile of 16 x 16 pixels draws, front to back.

gsplat keeps one list for all images, sorted by ids = image | tile | depth bits; our kernels take one list an image
(`ops.bin`: tile_offsets [T + 1], pair_gaussian [M]). This file translates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from scene_distill.core.conventions import TILE
from scene_distill.core.errors import UserError


def tile_bits(tiles: int) -> int:
    """Bits that gsplat's intersection ids give to the tile, between 32 bits of depth and the camera."""
    return math.floor(math.log2(tiles)) + 1


def refuse_tile_size(tile_size: int | None) -> None:
    """Raises `UserError` for tiles of another side than the kernels'; None (gsplat 1.6) leaves it to them."""
    if tile_size not in (None, TILE):
        raise UserError(f"gsplat on the CPU draws tiles of {TILE} px; pass tile_size={TILE} instead of {tile_size}")


@torch.no_grad()
def isect_tiles(given: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """gsplat's function of that name: tiles_per_gauss [..., N] or [M], isect_ids [P] int64, flatten_ids [P] int32.

    Every tile that the box of ``radii`` touches, as gsplat lists them up to 1.5 (`rasterization` lists only what is
    drawn). Where 1.6 leaves tiles out by ``conics`` and ``opacities``, this keeps them: the picture is the same.
    """
    radii, means2d, depths = given["radii"], given["means2d"], given["depths"]
    radii = radii if radii.dim() == means2d.dim() else radii[..., None].expand(means2d.shape)
    columns, rows, side = given["tile_width"], given["tile_height"], given["tile_size"]
    image_ids = given.get("camera_ids", given.get("image_ids"))
    if not given["packed"]:
        images, count = math.prod(means2d.shape[:-2]), means2d.shape[-2]
        image_ids = torch.arange(images).repeat_interleave(count)
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
    images_at = image_ids.long()[flatten_ids] << tile_bits(columns * rows)
    ids = ((images_at | tiles) << 32) | bits[flatten_ids]
    if given["sort"]:
        ids, order = torch.sort(ids, stable=True)
        flatten_ids = flatten_ids[order]
    return counts.view(depths.shape).int(), ids, flatten_ids.int()


@torch.no_grad()
def isect_offset_encode(given: Mapping[str, Any]) -> Tensor:
    """gsplat's function of that name: where each tile's intersections begin, [I, tile_height, tile_width] int32."""
    images = given["n_cameras"] if "n_cameras" in given else given["n_images"]
    columns, rows = given["tile_width"], given["tile_height"]
    bits = tile_bits(columns * rows)
    image, tile = torch.arange(images)[:, None], torch.arange(columns * rows)[None]
    wanted = (image << bits | tile).reshape(-1)
    return torch.searchsorted(given["isect_ids"] >> 32, wanted).int().view(images, rows, columns)


@torch.no_grad()
def split_lists(
    isect_offsets: Tensor, flatten_ids: Tensor, masks: Tensor | None, first: list[int]
) -> tuple[tuple[Tensor, Tensor], ...]:
    """tile_offsets [T + 1] and pair_gaussian [M] of each image, from gsplat's isect_offsets [I, rows, columns] and
    flatten_ids [P], which count image i from first[i]. Tiles where masks [I, rows, columns] is False are left empty."""
    starts = isect_offsets.flatten(1).long()
    edges = [*starts[:, 0].tolist(), flatten_ids.numel()]
    lists = []
    for i in range(len(starts)):
        pairs = flatten_ids[edges[i] : edges[i + 1]].int() - first[i]
        counts = torch.cat([starts[i], torch.tensor([edges[i + 1]])]).diff()
        if masks is not None:
            shown = masks[i].flatten().bool()
            pairs, counts = pairs[shown.repeat_interleave(counts)], counts * shown
        lists.append((torch.nn.functional.pad(torch.cumsum(counts, 0), (1, 0)).int(), pairs))
    return tuple(lists)
