"""Time the kernels of the native rasterizer; prints JSON.

The files in benchmarks/results were made by this script, with all four cases, under ``OMP_WAIT_POLICY=passive``.
"""

import argparse
import json

from scene_distill.renderers.benchmark import CASES, benchmark_rasterizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=["A"], help=f"of {', '.join(case.name for case in CASES)}")
    parser.add_argument("--repetitions", type=int, default=12)
    arguments = parser.parse_args()
    print(json.dumps(benchmark_rasterizer(arguments.repetitions, tuple(arguments.cases)), indent=2))


if __name__ == "__main__":
    main()
