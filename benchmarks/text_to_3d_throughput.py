"""Steps a second of text to 3D, where the time goes, and what share of the machine's matrix peak the prior reaches.

Run: python benchmarks/text_to_3d_throughput.py [--steps N] [--threads N] [--prior-path DIR] [--table]

Without --prior-path priors of random weights are used: the work is that of a trained one of the same size. Of every
setting an object is trained from its first step to its last (``--steps``, default: the method's own), because levels,
evaluations and the number of Gaussians change while training; the first 10 steps are not counted. Results go to
results/text_to_3d_throughput.json after every setting; ``--table`` prints that file.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from scene_distill.core.files import read_json, write_json
from scene_distill.core.stages import StageClock, clocked
from scene_distill.data.captioned_shapes import WORDS
from scene_distill.methods.text_to_3d.method import TextTo3D, bound
from scene_distill.methods.text_to_3d.registry import find_text_method
from scene_distill.methods.text_to_3d.teachers import cores_of, has_matrix_units
from scene_distill.methods.text_to_3d.training import ObjectTraining
from scene_distill.nets.text_unet import TextUNet, TextUNetConfig
from scene_distill.priors.parts import InParts
from scene_distill.priors.prior import NoisePrior, levels_of
from scene_distill.priors.tiny import TinyNetwork, Vocabulary, read_tiny, settled
from scene_distill.training.loop import use_native_threads

RESULTS = Path(__file__).parent / "results" / "text_to_3d_throughput.json"
WARM_UP = 10
NETWORKS = {
    "4.1 M, 32 px, patch 2": TextUNetConfig(words=len(WORDS)),
    "4.1 M, 64 px, patch 4": TextUNetConfig(size=64, patch=4, words=len(WORDS)),
    "1.6 M, 64 px, patch 4": TextUNetConfig(size=64, patch=4, widths=(48, 64, 80), words=len(WORDS)),
    "4.1 M, 64 px, patch 2": TextUNetConfig(size=64, patch=2, words=len(WORDS)),
}


def network_of(config: TextUNetConfig) -> TinyNetwork:
    """An untrained network; its last layer, zero at first, gets numbers too."""
    torch.manual_seed(0)
    unet = TextUNet(config)
    torch.nn.init.normal_(unet.leave.weight, std=0.02)
    return TinyNetwork(settled(unet), Vocabulary(tuple(WORDS), config.length))


def prior_of(network: TinyNetwork, precision: str, parts: int, threads: int) -> NoisePrior:
    if precision == "bfloat16":
        network.unet.halve()
    return InParts(network.prior(), 64, threads, parts)


def matrix_peak(precision: torch.dtype, threads: int, size: int = 2048, seconds: float = 2.0) -> float:
    """Floating-point operations a second of torch's matrix product on ``threads`` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    a, b = (torch.randn(size, size).to(precision) for _ in range(2))
    best, until = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < until:
        started = time.perf_counter()
        a @ b
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    torch.set_num_threads(before)
    return best


def flops_of_evaluation(prior: NoisePrior) -> float:
    """Floating-point operations of one picture through the network."""
    z = torch.randn(1, *prior.x0_shape)
    condition = prior.describe(["a red chair, front view"])
    with FlopCounterMode(display=False) as counter:
        prior.eps(z, levels_of(300, z), condition)
    return float(counter.get_total_flops())


def measured(method: TextTo3D) -> dict[str, float]:
    """Steps a second and milliseconds by stage, over the whole training of an object."""
    steps = method.config.iterations - WARM_UP
    training = ObjectTraining(method.config, method.subject(0), method.first_state(0))
    for step in range(WARM_UP):
        training.step(step)
    evaluations, clock = training.evaluations, StageClock()
    clock.take()
    started, busy = time.perf_counter(), time.process_time()
    with clocked(clock):
        for step in range(WARM_UP, method.config.iterations):
            numbers = training.step(step)[1]
    spent, busy = time.perf_counter() - started, time.process_time() - busy
    stages, _ = clock.take()
    found = {"steps_per_second": steps / spent, "evaluations_per_step": (training.evaluations - evaluations) / steps,
             "cpu_ms_per_step": 1000 * busy / steps, "gaussians": numbers["splats"]}  # fmt: skip
    return found | {f"{name}_ms": 1000 * seconds / steps for name, seconds in sorted(stages.items())}


def setting(name: str, network: TinyNetwork, precision: str, options: argparse.Namespace) -> dict[str, object]:
    threads = cores_of(options.threads)
    prior = prior_of(network, precision, options.parts, threads)
    flops = flops_of_evaluation(prior)
    method_entry = find_text_method("dreamer-xl")
    config = replace(method_entry.default(), threads=options.threads, visits=1)
    config = replace(config, iterations=options.steps or config.iterations)
    method = bound(config, ["a red chair"], prior, method_entry.recipe, torch.device("cpu"))
    figures: dict[str, object] = dict(measured(method))
    prior_s = float(str(figures["prior_ms"])) / 1000
    rate = flops * float(str(figures["evaluations_per_step"])) / prior_s
    peak = matrix_peak(torch.bfloat16 if precision == "bfloat16" else torch.float32, threads)
    figures |= {
        "network": name, "parameters": sum(p.numel() for p in network.unet.parameters()), "precision": precision,
        "gflop_per_evaluation": flops / 1e9, "prior_gflops": rate / 1e9, "matrix_peak_gflops": peak / 1e9,
        "share_of_peak": rate / peak, "threads": threads, "parts": options.parts, "image_size": config.image_size,
        "views": config.views, "steps": config.iterations,
    }  # fmt: skip
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, help="of the object, more than 10; default: the method's own")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--parts", type=int, default=2, help="parts of the prior's batch")
    parser.add_argument("--prior-path", type=Path)
    parser.add_argument("--only", default="", help="settings whose name holds this")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args(arguments)
    results = read_json(RESULTS) if RESULTS.exists() else {}
    if not options.table:
        use_native_threads(options.threads)
        precisions = ["bfloat16", "float32"] if has_matrix_units() else ["float32"]
        for name, shape in NETWORKS.items() if options.prior_path is None else {"prior": None}.items():
            for precision in precisions:
                label = f"{name}, {precision}"
                if options.only not in label:
                    continue
                network = read_tiny(options.prior_path) if shape is None else network_of(shape)
                results[label] = setting(name, network, precision, options)
                write_json(RESULTS, results)
                print(label, {k: round(v, 3) for k, v in results[label].items() if isinstance(v, float)}, flush=True)
    print(
        "| network | precision | steps/s | CPU ms/step | evaluations/step | prior ms | other ms | GFLOP/s | of peak |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for each in results.values():
        whole = 1000 / each["steps_per_second"]
        print(
            f"| {each['network']} | {each['precision']} | {each['steps_per_second']:.1f} | "
            f"{each['cpu_ms_per_step']:.0f} | "
            f"{each['evaluations_per_step']:.1f} | {each['prior_ms']:.0f} | {whole - each['prior_ms']:.0f} | "
            f"{each['prior_gflops']:.0f} | {100 * each['share_of_peak']:.1f} % of {each['matrix_peak_gflops']:.0f} |"
        )


if __name__ == "__main__":
    main()
