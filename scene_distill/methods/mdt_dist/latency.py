"""How long the flows take for one object: walks timed in turn, on one thread, so that a busy machine slows all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from scene_distill.methods.mdt_dist.model import ShapeModel, Walk


@torch.no_grad()
def latencies(model: ShapeModel, words: Tensor, walks: Sequence[Walk], times: int = 30) -> list[dict[str, float]]:
    """Median seconds of each walk for ``words`` [1, 3]: 'flows', both flows alone; 'decoding', the structure's decoder.

    Every walk is taken once before the clock starts. PyTorch's number of threads is 1 meanwhile.
    """
    threads, spent = torch.get_num_threads(), [(list[float](), list[float]()) for _ in walks]
    torch.set_num_threads(1)
    try:
        for turn in range(times + 1):
            for walk, (flows, decoding) in zip(walks, spent, strict=True):
                both, decoder = _once(model, words, walk, turn)
                if turn > 0:
                    flows.append(both)
                    decoding.append(decoder)
    finally:
        torch.set_num_threads(threads)
    return [{"flows": statistics.median(flows), "decoding": statistics.median(decoding)} for flows, decoding in spent]


def _once(model: ShapeModel, words: Tensor, walk: Walk, seed: int) -> tuple[float, float]:
    """Seconds of both flows, and of decoding the structure."""
    states: list[Tensor] = []
    flows = _seconds(lambda: states.append(model.walk("structure", words[:, :1], None, walk, seed, range(1))))
    flows += _seconds(lambda: model.walk("latent", words, states[0], walk, seed, range(1)))
    return flows, _seconds(lambda: model.structure_decoder(model.whitening["structure"].undo(states[0])) > 0)


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
