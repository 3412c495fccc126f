"""The main job on real photographs: the aerial set at 395 px with 4 and 8 blocks, through ns-train.

    python benchmarks/aerial.py [--blocks 8 4] [--steps 8000]

Figures go to benchmarks/results/aerial.json after every run.
"""

from __future__ import annotations

import argparse

from campaign import ROOT, Campaign, shared_data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--blocks", type=int, nargs="+", default=[8, 4])
    parser.add_argument("--steps", type=int, default=8000, help="total steps of every run")
    options = parser.parse_args()
    data = shared_data() / "aerial_sheffield"
    campaign = Campaign(ROOT / "benchmarks" / "results" / "aerial.json")
    for blocks in options.blocks:
        name = f"aerial-{blocks}-blocks-{options.steps}-steps"
        arguments = ["momentum-gs", "--data", str(data), "--blocks", str(blocks)]
        arguments += ["--iterations", str(options.steps // blocks), "--image-width", "395"]
        report = campaign.run_nerfstudio(name, arguments, ROOT / "outputs" / "aerial")
        results = report["results"]
        print(
            f"{name}: PSNR {results['psnr']:.2f} raw {results['psnr_corrected']:.2f} corrected, "
            f"SSIM {results['ssim']:.3f} raw {results['ssim_corrected']:.3f} corrected, "
            f"{report['wall_seconds']:.0f} s, peak {report['peak_memory_bytes'] / 1e9:.2f} GB, "
            f"{report['primitives']:,} anchors"
        )


if __name__ == "__main__":
    main()
