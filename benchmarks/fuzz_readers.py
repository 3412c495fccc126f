"""Damaged and hostile splat files against our readers: every one must be read, or refused in one sentence, with bounded
memory and in bounded time.

    python benchmarks/fuzz_readers.py [--minutes 10] [--readers ply spz sog ...] [--cases 0]

Case n of a reader is always the same file: a scene that the writer wrote, cut, flipped, spliced or given hostile
numbers, in the file itself or beneath its compression (gzip, zstd, zip, base64, JSON). A worker process, whose address
space is limited, reads cases for half a minute; its figures go to benchmarks/results/fuzz_readers.json, and a campaign
that was stopped goes on with the next case. --minutes is the total for each reader, all campaigns together.
"""

from __future__ import annotations

import argparse
import base64
import gzip
import io
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from campaign import ROOT, Campaign

from scene_distill.core.errors import UserError
from scene_distill.export.assembly import empty_splats
from scene_distill.export.formats import named_format
from scene_distill.export.metadata import SplatMetadata
from scene_distill.export.spz import write_spz
from scene_distill.representations.splats import Splats

READERS = ("ply", "splat", "compressed.ply", "spz2", "spz3", "spz4", "sog", "sog-folder", "glb", "gltf", "html")
SLICE_S = 30.0
SLOW_S = 10.0
SPARE_BYTES = 1 << 30
"""Address space that a worker may take beyond what it starts with."""

NUMBERS = (0, 1, 2, 3, 255, 256, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)
WORDS = ("NaN", "Infinity", "-1", "1e999", "99999999999999999999", "null", "[]", "{}", '""', "true", '"../../x"', "0.5",
         '"data:,"', "[[[[[[[[]]]]]]]]", "-9223372036854775808")  # fmt: skip


def scene(draw: random.Random) -> Splats:
    """A few splats of some degree."""
    count, bases = draw.choice((1, 5, 300)), draw.choice((1, 4, 9, 16))
    generator = torch.Generator().manual_seed(draw.randrange(1 << 30))
    splats = empty_splats(count, bases)
    for tensor in (splats.means, splats.log_scales, splats.quats, splats.opacity_logits, splats.sh):
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return splats


def damaged(data: bytes, draw: random.Random) -> bytes:
    """The bytes after one to four accidents, or a hostile number or two."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        if not changed:
            break
        # Headers are short and matter most.
        place = draw.randrange(min(len(changed), draw.choice((16, 64, 400, 1 << 30))))
        kind = draw.randrange(8)
        if kind == 0:
            del changed[place:]
        elif kind == 1:
            changed[place] ^= 1 << draw.randrange(8)
        elif kind == 2:
            changed[place] = draw.randrange(256)
        elif kind == 3:
            width = draw.choice((1, 2, 4, 8))
            changed[place : place + width] = (draw.choice(NUMBERS) % 256**width).to_bytes(width, "little")
        elif kind == 4:
            changed[place : place + draw.randrange(64)] = b""
        elif kind == 5:
            changed[place:place] = changed[place : place + draw.randrange(1, 200)] * draw.choice((1, 2, 50))
        elif kind == 6:
            changed[place : place + 4] = draw.choice((b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\x00\x00\x80\xff"))
        else:
            changed[place:place] = bytes(draw.randrange(256) for _ in range(draw.randrange(40)))
    return bytes(changed)


def damaged_text(data: bytes, draw: random.Random) -> bytes:
    """Text with a number, a value or a line replaced."""
    text = data.decode("latin-1")
    marks = [i for i, letter in enumerate(text) if letter.isdigit()]
    if not marks or draw.random() < 0.3:
        return damaged(data, draw)
    start = end = draw.choice(marks)
    while end < len(text) and (text[end].isalnum() or text[end] in "+-."):
        end += 1
    return (text[:start] + draw.choice((*WORDS, *map(str, NUMBERS))) + text[end:]).encode("latin-1")


def damaged_json(data: bytes, draw: random.Random) -> bytes:
    """JSON with a random value replaced, or a key gone."""
    if draw.random() < 0.3:
        return damaged_text(data, draw)
    value = json.loads(data)
    place: Any = value
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return damaged_text(data, draw)
        key = draw.choice(keys)
        if isinstance(place[key], dict | list) and draw.random() < 0.8:
            place = place[key]
            continue
        if draw.random() < 0.3:
            del place[key]
        else:
            place[key] = draw.choice((*NUMBERS, -1, 1e308, "x" * 50, None, [], {}, True, "../../etc", 0.5, [[1]] * 9))
        return json.dumps(value).encode()


def damaged_gzip(data: bytes, draw: random.Random) -> bytes:
    if draw.random() < 0.4:
        return damaged(data, draw)
    if draw.random() < 0.1:  # a bomb
        return gzip.compress(gzip.decompress(data)[:16] + bytes(1 << draw.randint(20, 27)), 1)
    return gzip.compress(damaged(gzip.decompress(data), draw), 1)


def damaged_zip(data: bytes, draw: random.Random) -> bytes:
    if draw.random() < 0.3:
        return damaged(data, draw)
    victim = None
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as before, zipfile.ZipFile(result, "w") as after:
        victim = draw.choice([*before.namelist(), "meta.json"])
        for name in before.namelist():
            content = before.read(name)
            if name == victim and draw.random() < 0.15:
                content = bytes(1 << draw.randint(20, 26))  # a bomb
            elif name == victim:
                content = (damaged_json if name.endswith(".json") else damaged)(content, draw)
            if name != victim or draw.random() < 0.95:
                kind = draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA))
                after.writestr(name, content, zipfile.ZIP_STORED if name != victim else kind)
    return result.getvalue()


def damaged_glb(data: bytes, draw: random.Random) -> bytes:
    if draw.random() < 0.4:
        return damaged(data, draw)
    length = int.from_bytes(data[12:16], "little")
    text = damaged_json(data[20 : 20 + length], draw)
    return data[:12] + len(text).to_bytes(4, "little") + data[16:20] + text + data[20 + length :]


def damaged_html(data: bytes, draw: random.Random) -> bytes:
    start = data.index(b'octet-stream">') + 14
    end = data.index(b"<", start)
    if draw.random() < 0.4:
        short = data[:start][-400:] + data[start:end] + data[end:][:200]
        return damaged(short, draw)
    inner = damaged_gzip(base64.b64decode(data[start:end]), draw)
    return data[:start] + base64.b64encode(inner) + data[end:]


DAMAGE: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "ply": lambda data, draw: (damaged_text if draw.random() < 0.4 else damaged)(data, draw),
    "compressed.ply": lambda data, draw: (damaged_text if draw.random() < 0.4 else damaged)(data, draw),
    "splat": damaged, "spz2": damaged_gzip, "spz3": damaged_gzip, "spz4": damaged, "sog": damaged_zip,
    "glb": damaged_glb, "gltf": damaged_json, "html": damaged_html,
}  # fmt: skip


def written_case(reader: str, number: int, folder: Path) -> Path:
    """The file of one case."""
    draw = random.Random(f"{reader} {number}")
    splats, metadata = scene(draw), SplatMetadata(up=(0.0, 0.0, 1.0), antialiased=draw.random() < 0.5)
    if reader.startswith("spz"):
        path = folder / "case.spz"
        write_spz(splats, path, metadata, int(reader[3:]))
    else:
        kind = named_format(reader)
        path = kind.path_in(folder, "case")
        kind.write(splats, path, metadata)
    if reader == "sog-folder":
        victim = draw.choice([path, *sorted(path.parent.iterdir())])
        victim.write_bytes((damaged_json if victim == path else damaged)(victim.read_bytes(), draw))
    elif reader == "gltf" and draw.random() < 0.2:
        path.with_suffix(".bin").write_bytes(damaged(path.with_suffix(".bin").read_bytes(), draw))
    else:
        path.write_bytes(DAMAGE[reader](path.read_bytes(), draw))
    return path


def tried(reader: str, number: int, folder: Path) -> str:
    """ "read", "refused", or what went wrong with a case."""
    path = written_case(reader, number, folder)
    read = named_format("spz" if reader.startswith("spz") else reader).read
    started = time.monotonic()
    try:
        splats, _ = read(path)
    except UserError as error:
        sentence = str(error)
        outcome = (
            "refused" if "case" in sentence and "\n" not in sentence and len(sentence) < 600 else f"said {sentence}"
        )
    except Exception as error:
        outcome = f"raised {type(error).__name__}: {error}"
    else:
        finite = all(bool(torch.isfinite(tensor).all()) for tensor in (splats.means, splats.quats, splats.sh))
        outcome = "read" if finite and len(splats) else "read numbers that are not finite"
    seconds = time.monotonic() - started
    return outcome if seconds < SLOW_S else f"took {seconds:.0f} s"


def worker(reader: str, first: int, seconds: float, cases: int) -> dict[str, Any]:
    """Try cases until the time or their number is over; counts, failures, the next case, and the peak memory."""
    counts: dict[str, int] = {"read": 0, "refused": 0}
    failures: dict[str, str] = {}
    number, end = first, time.monotonic() + seconds
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        tried(reader, -1, Path(folder))  # all that is imported late
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        space = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (space + SPARE_BYTES, resource.RLIM_INFINITY))
        while time.monotonic() < end if cases == 0 else number < first + cases:
            outcome = tried(reader, number, Path(folder))
            if outcome in counts:
                counts[outcome] += 1
            else:
                failures[str(number)] = outcome[:300]
            number += 1
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return {**counts, "failures": failures, "next": number, "peak_bytes": grown}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0, help="for each reader")
    parser.add_argument("--readers", nargs="+", default=READERS, choices=READERS)
    parser.add_argument("--cases", type=int, default=0, help="that many cases of each reader, kept nowhere")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--worker", type=int, help="first case (for internal use)")
    options = parser.parse_args()
    if options.worker is not None:
        print(json.dumps(worker(options.readers[0], options.worker, SLICE_S, 0)))
        return
    if options.cases:
        reports = {reader: worker(reader, 0, 0.0, options.cases) for reader in options.readers}
        print("\n".join(told(reader, report) for reader, report in reports.items()))
        sys.exit(any(report["failures"] for report in reports.values()))
    campaign = Campaign(options.results / "fuzz_readers.json")
    for reader in options.readers:
        while (report := campaign.results.get(reader, {})).get("minutes", 0.0) < options.minutes:
            report = merged(report, fresh(reader, report.get("next", 0)))
            campaign.keep(reader, report)
            print(told(reader, report), flush=True)
    sys.exit(any(report["failures"] for report in campaign.results.values()))


def fresh(reader: str, first: int) -> dict[str, Any]:
    """The report of one worker; a worker that dies is a failure of the reader."""
    command = [sys.executable, __file__, "--readers", reader, "--worker", str(first)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        told = f"worker ended with {done.returncode}: {done.stderr[-300:]}"
        return {"read": 0, "refused": 0, "failures": {f"{first}+": told}, "next": first + 1, "peak_bytes": 0}
    return json.loads(done.stdout)


def merged(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    return {
        "read": before.get("read", 0) + after["read"],
        "refused": before.get("refused", 0) + after["refused"],
        "failures": {**before.get("failures", {}), **after["failures"]},
        "next": after["next"],
        "peak_bytes": max(before.get("peak_bytes", 0), after["peak_bytes"]),
        "minutes": round(before.get("minutes", 0.0) + SLICE_S / 60, 3),
    }


def told(reader: str, report: dict[str, Any]) -> str:
    first = next(iter(report["failures"].items()), None)
    return (
        f"{reader}: {report['read'] + report['refused']} files, {report['refused']} refused, {report['read']} read, "
        f"{len(report['failures'])} failures, at most {report['peak_bytes'] / 1e6:.0f} MB"
        + (f", {report['minutes']:g} min" if "minutes" in report else "")
        + (f"; case {first[0]}: {first[1]}" if first else "")
    )


if __name__ == "__main__":
    main()
