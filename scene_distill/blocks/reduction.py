"""Gradients of shared parameters, averaged over lanes.

Work: P shared parameters, L lanes on N workers. ``ordered``: every worker gets every lane's gradient vector (L P
numbers) and adds them in lane order, so that the mean has the same bits on any number of workers. ``all-reduce``:
workers add their own lanes and the backend adds the workers' sums (2 P numbers), for models too large to gather; the
order of the sum then depends on N, so results agree to rounding: |difference| <= L eps sum |g| per step and element.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from scene_distill.blocks.workers import Workers

Reduction = Literal["ordered", "all-reduce"]


class LaneMean:
    """Means over the lanes of one round. ``owners[lane]`` is the rank of the worker that runs the lane."""

    def __init__(self, workers: Workers, owners: Sequence[int], mode: Reduction = "ordered") -> None:
        self._workers, self._owners, self._mode = workers, tuple(owners), mode

    def mean(self, gradients: Mapping[int, Sequence[Tensor]], parameters: Sequence[Tensor]) -> list[Tensor] | None:
        """Per parameter the mean over the lanes that have a gradient; None when no lane of any worker has one.

        ``gradients[lane]`` are those of this worker's lanes, of the shapes of ``parameters``, all of one dtype.
        """
        if not parameters:
            return None
        rows = {lane: _flat(gradient) for lane, gradient in gradients.items()}
        if self._workers.count > 1 and self._mode == "ordered":
            total = self._sum_in_lane_order(self._all_rows(rows, parameters))
        else:
            total = self._sum_in_lane_order(rows)
            if self._workers.count > 1:
                total = self._workers.sum_tensor(_zero_row(parameters) if total is None else total)
        if total is None or total[-1] == 0:
            return None
        return _like(total[:-1] / total[-1], parameters)

    def _all_rows(self, rows: Mapping[int, Tensor], parameters: Sequence[Tensor]) -> dict[int, Tensor]:
        """The rows of all workers' lanes. Every worker sends as many rows as the busiest has lanes."""
        lanes_of = [[lane for lane, owner in enumerate(self._owners) if owner == rank]
                    for rank in range(self._workers.count)]  # fmt: skip
        lanes, slots, empty = lanes_of[self._workers.rank], max(map(len, lanes_of)), _zero_row(parameters)
        mine = [rows.get(lane, empty) for lane in lanes] + [empty] * (slots - len(lanes))
        everyone = self._workers.gather_tensor(torch.stack(mine))
        present = everyone[:, :, -1].tolist()
        return {
            lane: everyone[rank, slot]
            for rank, lanes in enumerate(lanes_of)
            for slot, lane in enumerate(lanes)
            if present[rank][slot]
        }

    @staticmethod
    def _sum_in_lane_order(rows: Mapping[int, Tensor]) -> Tensor | None:
        total = None
        for lane in sorted(rows):
            total = rows[lane] if total is None else total + rows[lane]
        return total


def _flat(gradient: Sequence[Tensor]) -> Tensor:
    """One vector [P + 1] of all gradients, ending in a one that counts the lane."""
    return torch.cat([g.detach().reshape(-1) for g in gradient] + [gradient[0].new_ones(1)])


def _zero_row(parameters: Sequence[Tensor]) -> Tensor:
    """The row of a lane without a gradient, [P + 1]."""
    return parameters[0].detach().new_zeros(sum(p.numel() for p in parameters) + 1)


def _like(flat: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    parts = flat.split([p.numel() for p in parameters])
    return [part.reshape(p.shape) for part, p in zip(parts, parameters, strict=True)]
