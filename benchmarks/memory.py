"""Peak memory against the number of blocks: cities of 2 to 32 equal blocks, two lanes.

    python benchmarks/memory.py [--halo shared]

The city grows with K, the budget does not. Figures go to benchmarks/results/memory.json
(memory_shared_halo.json) after every run.
"""

from __future__ import annotations

import argparse
import dataclasses

from campaign import ROOT, Campaign

from scene_distill.data.procedural_city import load_recipe, make_city

GRIDS = {2: (2, 1), 4: (2, 2), 8: (4, 2), 16: (4, 4), 32: (8, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--halo", choices=("private", "shared"), default="private")
    halo = parser.parse_args().halo
    file = "memory.json" if halo == "private" else "memory_shared_halo.json"
    campaign = Campaign(ROOT / "benchmarks" / "results" / file)
    for blocks, (nx, ny) in GRIDS.items():
        city = ROOT / "outputs" / "memory" / f"city-{blocks}"
        make_city(dataclasses.replace(load_recipe("city_growing"), blocks_x=nx, blocks_y=ny), city)
        arguments = ["momentum-gs", "--data", str(city), "--blocks", str(blocks), "--lanes", "2"]
        arguments += ["--iterations", "50", "--image-width", "400", "--max-memory", "1200MB", "--halo", halo]
        report = campaign.run(f"{blocks} blocks", arguments, ROOT / "outputs" / "memory" / f"run-{blocks}-{halo}")
        print(f"{blocks} blocks: peak {report['peak_memory_bytes'] / 1e6:.0f} MB, {report['primitives']} anchors")
    peaks = {k: campaign.results[f"{k} blocks"]["peak_memory_bytes"] for k in GRIDS}
    print(f"peak at 32 blocks is {peaks[32] / peaks[8]:.3f} times the peak at 8")


if __name__ == "__main__":
    main()
