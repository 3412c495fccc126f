"""Bytes: parsing '8GB', printing them back, and what this process and machine have."""

from __future__ import annotations

import ctypes
import os
import re
import resource
import sys

from scene_distill.core.errors import UserError

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parse_bytes(text: str) -> int:
    """Bytes of '8GB', '512 MiB' or '1e9'; raises `UserError` on anything else."""
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e[0-9]+)?)\s*([KMGT]?I?B?)\s*", text.upper().replace("E", "e"))
    unit = match.group(2) if match else "?"
    unit = unit + "B" if unit in ("K", "M", "G", "T") else unit
    if match is None or unit not in _UNITS:
        raise UserError(f"'{text}' is not an amount of memory; write it like 8GB or 512MiB")
    return int(float(match.group(1)) * _UNITS[unit])


def format_bytes(count: float) -> str:
    """'1.25 GB' for 1_250_000_000."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"


def peak_rss_bytes() -> int:
    """Largest resident set this process has had, in bytes (the operating system's own accounting)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def rss_bytes() -> int:
    """Resident set of this process now, in bytes."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return peak_rss_bytes()


def return_freed_memory() -> None:
    """Give memory that was freed, and that malloc keeps for later, back to the system (glibc; elsewhere nothing)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
