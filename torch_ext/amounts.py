"""Amounts of memory as text: read in many units, written in MiB."""

import re

MIB = 2**20
_UNITS = {"B": 1, "KiB": 2**10, "MiB": MIB, "GiB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def parse_memory(text: str) -> int:
    """Return the bytes in an amount like 512MiB, 1.5GB or 4096. Raises ValueError."""
    match = re.fullmatch(rf"(\d+(?:\.\d+)?)\s*({'|'.join(_UNITS)})?", text)
    if match is None:
        raise ValueError(f"'{text}' is not an amount of memory like 512MiB")
    return int(float(match[1]) * _UNITS[match[2] or "B"])


def mib(size_bytes: int | None) -> str:
    """Return the amount for people; MiB are 2^20 bytes."""
    return "not measured" if size_bytes is None else f"{size_bytes / MIB:,.2f} MiB"
