"""Cubes with signed distances, offsets and weights at their corners, and the surface between them.

A dual surface (Nielson 2004) with the weights of FlexiCubes (Shen et al. 2023, equations 3 to 6):

    crossing   of the edge between corners i, j in one cube   u = (a_i s_i x_j - a_j s_j x_i) / (a_i s_i - a_j s_j)
    vertex     one for every patch of a cube's cut edges      v = sum b_e u_e / sum b_e
    face       around every cut edge of the grid, the vertices of its four cubes; the quad is cut in two along the
               diagonal with the larger product of the cubes' weights g, along the shorter one where they are equal

Patches join the cut edges of each face of the cube; on a face with four cut edges those around the same inside corner
are joined, which two neighbouring cubes see alike. Written from the paper: the table of patches is worked out here. It
may differ from the authors' table where a face is ambiguous. Inside is s < 0. Faces are counter-clockwise seen from
outside. A surface that leaves the grid is open there.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from scene_distill.representations.meshes import TriangleMesh

CORNERS = tuple((i & 1, i >> 1 & 1, i >> 2) for i in range(8))
"""(x, y, z) of a cube's corners, x fastest."""

EDGES = ((0, 1), (1, 5), (4, 5), (0, 4), (2, 3), (3, 7), (6, 7), (2, 6), (0, 2), (1, 3), (5, 7), (4, 6))
"""Corners of a cube's edges, the lower one first, in the order in which the published networks give the weights b."""

_HALF_CUBE = 0.5 * (1 - 1e-8)
"""Cubes that a corner moves at most: corners never meet."""

_LOCAL_ORDER = {(1, 1): 0, (0, 1): 1, (0, 0): 2, (1, 0): 3}
"""Place around an edge of the cube that has it at these local coordinates of the next two axes: counter-clockwise."""


@dataclass(frozen=True, eq=False)
class Surface:
    """vertices [V, 3], faces int64 [F, 3], attributes [V, A]; differentiable in the cubes' numbers."""

    vertices: Tensor
    faces: Tensor
    attributes: Tensor

    def mesh(self) -> TriangleMesh:
        """As a mesh; the first three attributes, if there are any, are colours in [0, 1]."""
        colors = self.attributes[:, :3].detach().float().cpu().numpy() if self.attributes.shape[1] >= 3 else None
        vertices, faces = self.vertices.detach().double().cpu().numpy(), self.faces.cpu().numpy()
        return TriangleMesh(vertices, faces, colors)


@dataclass(frozen=True, eq=False)
class FlexibleCubes:
    """M known cubes of a grid with R cubes a side over [-1/2, 1/2]^3.

    places int64 [M, 3]; distances [M, 8] (corners as in `CORNERS`); offset_logits [M, 8, 3]; corner_weights a [M, 8],
    edge_weights b [M, 12] (`EDGES`), split_weights g [M], all positive; attribute_logits [M, 8, A]. What several cubes
    say about one corner is averaged; then a corner moves by tanh(offset) / (2 R), not quite half a cube, and its
    attributes become sigmoids. Corners that no cube knows are outside, at distance 1, with zeros for the rest; unknown
    cubes that touch a known inside corner have weights 1, 1 and 1/2.
    """

    resolution: int
    places: Tensor
    distances: Tensor
    offset_logits: Tensor
    corner_weights: Tensor
    edge_weights: Tensor
    split_weights: Tensor
    attribute_logits: Tensor

    def surface(self) -> Surface:
        """The surface, without vertices when nothing is inside."""
        corners = _merged(self)
        cubes = _crossed(self, corners)
        vertices, vertex_of_edge = _vertices(cubes)
        faces = _faces(cubes, vertex_of_edge, vertices[:, :3].detach(), self.resolution)
        return Surface(vertices[:, :3], faces, vertices[:, 3:])


@dataclass(frozen=True, eq=False)
class _Corners:
    """Sorted codes [K] of the known corners and their averaged values [K, 1 + 3 + A]."""

    codes: Tensor
    values: Tensor


@dataclass(frozen=True, eq=False)
class _Cubes:
    """K cubes that the surface passes: places, case int64 [K], corner values [K, 8, 1 + 3 + A] (distance, position,
    attributes) and weights."""

    places: Tensor
    case: Tensor
    values: Tensor
    corner_weights: Tensor
    edge_weights: Tensor
    split_weights: Tensor


def _corner_places(places: Tensor) -> Tensor:
    return places[:, None] + torch.tensor(CORNERS, device=places.device)


def _codes(places: Tensor, side: int) -> Tensor:
    return (places[..., 0] * side + places[..., 1]) * side + places[..., 2]


def _merged(cubes: FlexibleCubes) -> _Corners:
    """Averages at the corners of the known cubes."""
    codes = _codes(_corner_places(cubes.places), cubes.resolution + 1).flatten()
    unique, where, counts = torch.unique(codes, return_inverse=True, return_counts=True)
    values = torch.cat([cubes.distances[..., None], cubes.offset_logits, cubes.attribute_logits], 2).flatten(0, 1)
    sums = values.new_zeros(len(unique), values.shape[1]).index_add(0, where, values)
    return _Corners(unique, sums / counts[:, None])


def _crossed(cubes: FlexibleCubes, corners: _Corners) -> _Cubes:
    """Known cubes and unknown ones beside inside corners, those with corners on both sides."""
    side, device = cubes.resolution, cubes.places.device
    inside = corners.codes[corners.values[:, 0] < 0]
    points = torch.stack([inside // (side + 1) ** 2, inside // (side + 1) % (side + 1), inside % (side + 1)], 1)
    around = (points[:, None] - torch.tensor(CORNERS, device=device)).flatten(0, 1)
    around = torch.unique(_codes(around[((around >= 0) & (around < side)).all(1)], side))
    known_codes = _codes(cubes.places, side)
    more = around[~torch.isin(around, known_codes)]
    more_places = torch.stack([more // side**2, more // side % side, more % side], 1)
    places = torch.cat([cubes.places, more_places])
    values = _values_at(cubes, corners, _corner_places(places))
    case = ((values[..., 0] < 0).long() << torch.arange(8, device=device)).sum(1)
    keep = torch.nonzero((case > 0) & (case < 255)).squeeze(1)
    weights = [
        torch.cat([known, known.new_full((len(more), *known.shape[1:]), start)])[keep]
        for known, start in ((cubes.corner_weights, 1.0), (cubes.edge_weights, 1.0), (cubes.split_weights, 0.5))
    ]
    return _Cubes(places[keep], case[keep], values[keep], *weights)


def _values_at(cubes: FlexibleCubes, corners: _Corners, points: Tensor) -> Tensor:
    """Distance, position and attributes [K, 8, 1 + 3 + A] at lattice points [K, 8, 3]."""
    codes = _codes(points, cubes.resolution + 1)
    at = torch.searchsorted(corners.codes, codes.flatten()).clamp(max=len(corners.codes) - 1).reshape(codes.shape)
    blank = torch.zeros_like(corners.values[0])
    blank[0] = 1.0
    values = torch.where((corners.codes[at] == codes)[..., None], corners.values[at], blank)
    offsets = values[..., 1:4].tanh() * (_HALF_CUBE / cubes.resolution)
    return torch.cat([values[..., :1], points / cubes.resolution - 0.5 + offsets, values[..., 4:].sigmoid()], 2)


def _vertices(cubes: _Cubes) -> tuple[Tensor, Tensor]:
    """Dual vertices [V, 3 + A] and, for every cube and edge, the number of the vertex whose patch has it, or -1."""
    device = cubes.places.device
    patch = _patches().to(device)[cubes.case]
    low, high = torch.tensor(EDGES, device=device).T
    weighted = (cubes.values[..., 0] * cubes.corner_weights)[..., None]
    a, b = weighted[:, low], weighted[:, high]
    cut = patch >= 0
    gap = torch.where(cut[..., None], a - b, torch.ones_like(a))
    crossing = (a * cubes.values[:, high, 1:] - b * cubes.values[:, low, 1:]) / gap
    counts = patch.amax(1) + 1
    starts = counts.cumsum(0) - counts
    vertex = torch.where(cut, starts[:, None] + patch, -1)
    beta = cubes.edge_weights[cut][:, None]
    total = int(counts.sum())
    sums = crossing.new_zeros(total, crossing.shape[2]).index_add(0, vertex[cut], crossing[cut] * beta)
    return sums / beta.new_zeros(total, 1).index_add(0, vertex[cut], beta), vertex


def _faces(cubes: _Cubes, vertex: Tensor, positions: Tensor, resolution: int) -> Tensor:
    """Triangles [F, 3] of all cut edges that have their four cubes."""
    device, side = cubes.places.device, resolution + 1
    cube, edge = torch.nonzero(vertex >= 0, as_tuple=True)
    low = torch.tensor([CORNERS[a] for a, _ in EDGES], device=device)
    axis = torch.tensor([_axis(edge) for edge in EDGES], device=device)
    order = torch.tensor([_order(edge) for edge in EDGES], device=device)
    code = _codes(cubes.places[cube] + low[edge], side) * 3 + axis[edge]
    sort = torch.argsort(code * 4 + order[edge])
    _, counts = torch.unique_consecutive(code[sort], return_counts=True)
    starts = (counts.cumsum(0) - counts)[counts == 4]
    rows = sort[starts[:, None] + torch.arange(4, device=device)]
    quads, gamma = vertex[cube[rows], edge[rows]], cubes.split_weights[cube[rows]]
    first = torch.tensor([a for a, _ in EDGES], device=device)[edge[rows[:, 0]]]
    rises = (cubes.case[cube[rows[:, 0]]] >> first & 1).bool()  # inside below, outside above: the face looks up
    quads, gamma = (torch.where(rises[:, None], part, part.flip(1)) for part in (quads, gamma))
    one, other = gamma[:, 0] * gamma[:, 2], gamma[:, 1] * gamma[:, 3]
    corners = positions[quads]
    shorter = (corners[:, 0] - corners[:, 2]).norm(dim=1) < (corners[:, 1] - corners[:, 3]).norm(dim=1)
    along = ((one > other) | ((one == other) & shorter))[:, None, None]
    cuts = torch.tensor([[[0, 1, 2], [0, 2, 3]], [[0, 1, 3], [3, 1, 2]]], device=device)
    return torch.where(along, quads[:, cuts[0]], quads[:, cuts[1]]).flatten(0, 1)


def _axis(edge: tuple[int, int]) -> int:
    return (edge[0] ^ edge[1]).bit_length() - 1


def _order(edge: tuple[int, int]) -> int:
    axis, corner = _axis(edge), CORNERS[edge[0]]
    return _LOCAL_ORDER[(corner[(axis + 1) % 3], corner[(axis + 2) % 3])]


@cache
def _patches() -> Tensor:
    """Patch of every edge in every case (bit i: corner i is inside), int64 [256, 12]; -1 where the edge is not cut."""
    table = torch.full((256, 12), -1)
    for case in range(256):
        root = {number: number for number, (a, b) in enumerate(EDGES) if (case >> a & 1) != (case >> b & 1)}
        for axis, side in itertools.product(range(3), (0, 1)):
            _join_on_face(case, axis, side, root)
        names = {name: number for number, name in enumerate(sorted({_root(root, edge) for edge in root}))}
        for edge in root:
            table[case, edge] = names[_root(root, edge)]
    return table


def _root(root: dict[int, int], edge: int) -> int:
    while root[edge] != edge:
        edge = root[edge]
    return edge


def _join_on_face(case: int, axis: int, side: int, root: dict[int, int]) -> None:
    """Joins the cut edges of one face of the cube."""
    on = {corner for corner in range(8) if CORNERS[corner][axis] == side}
    cut = [edge for edge in root if set(EDGES[edge]) <= on]
    if len(cut) == 2:
        root[_root(root, cut[0])] = _root(root, cut[1])
    if len(cut) == 4:
        for corner in (corner for corner in on if case >> corner & 1):
            pair = [edge for edge in cut if corner in EDGES[edge]]
            root[_root(root, pair[0])] = _root(root, pair[1])
