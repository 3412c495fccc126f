"""The tiny method with units that are split when their state outgrows a limit, and the same as a worker's script.

    python divisible_method.py FOLDER UNITS LANES LIMIT [--workers N]

A unit's rows lie on a line (their second number at the time of the split): the part below the cut takes what is below.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from tiny_method import TinyMethod, digest

from scene_distill.blocks.launch import joined
from scene_distill.blocks.runtime import Runtime
from scene_distill.blocks.schedule import make_schedule
from scene_distill.core.errors import UserError


class DivisibleTinyMethod(TinyMethod):
    def __init__(self, state_limit):
        super().__init__()
        self.state_limit, self.splits = state_limit, []

    def cut(self, unit, state):
        places = state["rows"][:, 1].sort()[0]
        if len(places) < 4:
            return None
        return 1, float(places[len(places) // 2])

    def split(self, split):
        self.splits.append(split)

    def part(self, unit, state):
        split = next(s for s in reversed(self.splits) if unit in (s.unit, s.added))
        below = state["rows"][:, split.axis] < split.at
        keep = below if unit == split.unit else ~below
        return {name: tensor[keep] for name, tensor in state.items()}


def divisible_runtime(folder, units, lanes, limit, **options) -> Runtime:
    return Runtime(DivisibleTinyMethod(limit), make_schedule(units, lanes, 40, 5), folder, **options)


def main() -> None:
    folder, units, lanes, limit, *rest = sys.argv[1:]
    count = int(rest[rest.index("--workers") + 1]) if "--workers" in rest else 1
    torch.set_num_threads(1)
    command = [sys.executable, *sys.argv]
    with joined(count, lambda: command, timeout_s=60.0) as workers:
        runtime = divisible_runtime(Path(folder), int(units), int(lanes), int(limit), workers=workers)
        runtime.resume()
        runtime.run()
        if workers.rank == 0:
            print(json.dumps({"digest": digest(runtime), "splits": len(runtime.method.splits)}))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
