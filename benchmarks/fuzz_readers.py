"""Damaged and hostile files against our readers: every one must be read, or refused in one sentence, with bounded
memory and in bounded time.

    python benchmarks/fuzz_readers.py [--minutes 10] [--readers ply spz3 mesh-glb colmap-bin ...] [--cases 0]

Case n of a reader is always the same file (`fuzz_cases.py`): what our writers wrote, cut, flipped, spliced or given
hostile numbers, in the file itself or beneath its compression (gzip, zip, base64, JSON). A worker process, whose
address space is limited, tries cases for half a minute; its figures go to benchmarks/results/fuzz_readers.json, and a
campaign that was stopped goes on with the next case, after those that failed were tried again. Minutes are processor
time of the workers, which make the files and read them, without what it takes to start; other work on the machine does
not count. --minutes is the total for each reader, all campaigns together.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from campaign import ROOT, Campaign
from fuzz_cases import READERS

from scene_distill.core.errors import UserError

SLICE_S = 30.0
SLOW_S = 10.0
SPARE_BYTES = 1 << 30
"""Address space that a worker may take beyond what it starts with."""


def tried(reader: str, number: int, folder: Path) -> str:
    """ "read", "refused", or what went wrong with a case."""
    path = READERS[reader].write(folder, random.Random(f"{reader} {number}"))
    started = time.process_time()
    try:
        usable = READERS[reader].read(path)
    except UserError as error:
        sentence = str(error)
        fair = "case" in sentence and "\n" not in sentence and len(sentence) < 600
        outcome = "refused" if fair else f"said {sentence}"
    except Exception as error:
        outcome = f"raised {type(error).__name__}: {error}"
    else:
        outcome = "read" if usable else "read numbers that cannot be used"
    seconds = time.process_time() - started
    return outcome if seconds < SLOW_S else f"took {seconds:.0f} s"


def worker(reader: str, first: int, seconds: float, cases: int) -> dict[str, Any]:
    """Try cases until the processor time or their number is over; counts, failures, the next case, the time that it
    took, and the peak memory."""
    counts: dict[str, int] = {"read": 0, "refused": 0}
    failures: dict[str, str] = {}
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "work"
        folder.mkdir()
        tried(reader, -1, folder)  # all that is imported late
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        space = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (space + SPARE_BYTES, resource.RLIM_INFINITY))
        number, started = first, time.process_time()
        while time.process_time() - started < seconds if cases == 0 else number < first + cases:
            shutil.rmtree(folder)
            folder.mkdir()
            outcome = tried(reader, number, folder)
            if outcome in counts:
                counts[outcome] += 1
            else:
                failures[str(number)] = outcome[:300].replace(root, "")
            number += 1
        spent = time.process_time() - started
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return {**counts, "failures": failures, "next": number, "peak_bytes": grown, "minutes": spent / 60}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="of processor time, for each reader")
    parser.add_argument("--readers", nargs="+", default=list(READERS), choices=list(READERS))
    parser.add_argument("--cases", type=int, default=0, help="that many cases of each reader, kept nowhere")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--worker", type=int, help="first case (for internal use)")
    parser.add_argument("--seconds", type=float, default=SLICE_S, help="of a worker (for internal use)")
    options = parser.parse_args()
    if options.worker is not None:
        print(json.dumps(worker(options.readers[0], options.worker, options.seconds, 0)))
        return
    if options.cases:
        reports = {reader: worker(reader, 0, 0.0, options.cases) for reader in options.readers}
        print("\n".join(told(reader, report) for reader, report in reports.items()))
        sys.exit(any(report["failures"] for report in reports.values()))
    campaign = Campaign(options.results / "fuzz_readers.json")
    for reader in options.readers:
        if any(number.isdigit() for number in campaign.results.get(reader, {}).get("failures", {})):
            campaign.keep(reader, tried_again(reader, campaign.results[reader]))
        while (report := campaign.results.get(reader, {})).get("minutes", 0.0) < options.minutes:
            left_s = 60 * (options.minutes - report.get("minutes", 0.0))
            report = merged(report, fresh(reader, report.get("next", 0), min(SLICE_S, left_s)))
            campaign.keep(reader, report)
            print(told(reader, report), flush=True)
    sys.exit(any(report["failures"] for report in campaign.results.values()))


def tried_again(reader: str, report: dict[str, Any]) -> dict[str, Any]:
    """The report after the cases that failed were tried again: what was mended since counts as read or refused."""
    report, failures = dict(report), {}
    with tempfile.TemporaryDirectory() as root:
        for number, before in report["failures"].items():
            folder = Path(root) / number
            folder.mkdir()
            outcome = tried(reader, int(number), folder) if number.isdigit() else before
            if outcome in ("read", "refused"):
                report[outcome] += 1
            else:
                failures[number] = outcome[:300].replace(root, "")
    return report | {"failures": failures}


def fresh(reader: str, first: int, seconds: float) -> dict[str, Any]:
    """The report of one worker; a worker that dies is a failure of the reader."""
    command = [sys.executable, __file__, "--readers", reader, "--worker", str(first), "--seconds", f"{seconds:.2f}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        told = f"worker ended with {done.returncode}: {done.stderr[-300:]}"
        counts: dict[str, Any] = {"read": 0, "refused": 0, "next": first + 1, "peak_bytes": 0, "minutes": 0.0}
        return {**counts, "failures": {f"{first}+": told}}
    return json.loads(done.stdout.splitlines()[-1])  # readers tell of textures that are lost


def merged(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    return {
        "read": before.get("read", 0) + after["read"],
        "refused": before.get("refused", 0) + after["refused"],
        "failures": {**before.get("failures", {}), **after["failures"]},
        "next": after["next"],
        "peak_bytes": max(before.get("peak_bytes", 0), after["peak_bytes"]),
        "minutes": round(before.get("minutes", 0.0) + after["minutes"], 3),
    }


def told(reader: str, report: dict[str, Any]) -> str:
    first = next(iter(report["failures"].items()), None)
    return (
        f"{reader}: {report['read'] + report['refused']} files, {report['refused']} refused, {report['read']} read, "
        f"{len(report['failures'])} failures, at most {report['peak_bytes'] / 1e6:.0f} MB, {report['minutes']:.2f} min"
        + (f"; case {first[0]}: {first[1]}" if first else "")
    )


if __name__ == "__main__":
    main()
