"""Amounts of memory as text: read in many units, written in MiB or, where small, in KiB and B."""

import re

from torch_ext import _sched

MIB = 2**20
UNITS = {"B": 1, "KiB": 2**10, "MiB": MIB, "GiB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def parse_memory(text: str) -> int:
    """Return the bytes in an amount like 512MiB, 1.5GB or 4096. Raises ValueError."""
    match = re.fullmatch(rf"(\d+(?:\.\d+)?)\s*({'|'.join(UNITS)})?", text)
    if match is None:
        raise ValueError(
            f"{text!r} is not an amount of memory like 512MiB; units: {', '.join(UNITS)}"
        )
    size_bytes = float(match[1]) * UNITS[match[2] or "B"]
    if size_bytes >= 2**63:
        raise ValueError(f"{text!r} is more memory than there can be")
    return int(size_bytes)


def unit_for(size_bytes: int) -> str:
    """Return the unit in which two decimals tell something of an amount."""
    return _sched.unit_for(size_bytes)


def in_unit(size_bytes: int, unit: str) -> str:
    """Return the amount without its unit."""
    return _sched.in_unit(size_bytes, unit)


def amount(size_bytes: int | None) -> str:
    """Return the amount for people; MiB are 2^20 bytes."""
    if size_bytes is None:
        return "not measured"
    unit = unit_for(size_bytes)
    return f"{in_unit(size_bytes, unit)} {unit}"
