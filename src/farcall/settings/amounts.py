"""Amounts as people write them: "7d", "512MiB", "25%", 50_000."""

import math
import os
import re

_SIZES = {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600}
_AMOUNT = re.compile(r"([0-9][0-9_]*(?:\.[0-9]+)?)\s*([A-Za-z%]*)", re.ASCII)


def count(text: str) -> int:
    """A whole number from 1. Raises ValueError, as the others here do, with what was wanted."""
    number, unit = _split(text)
    if unit or number != int(number) or number < 1:
        raise ValueError("a whole number from 1, as 50000")
    return int(number)


def seconds(text: str) -> float:
    """A time above 0, in seconds."""
    number, unit = _split(text)
    if unit not in _SECONDS or number <= 0:
        raise ValueError("a time, as 90s, 30m, 12h or 7d")
    return number * _SECONDS[unit]


def size(text: str) -> int:
    """Bytes, at least one."""
    number, unit = _split(text)
    if unit not in _SIZES or number * _SIZES[unit] < 1:
        raise ValueError("a size, as 512MiB or 10GiB")
    return int(number * _SIZES[unit])


def memory(text: str) -> int:
    """Bytes, at least one, as a size or as a part of this machine's memory."""
    number, unit = _split(text)
    if unit == "%" and 0 < number <= 100:
        return max(1, int(number / 100 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")))
    try:
        return size(text)
    except ValueError:
        raise ValueError("a size, as 512MiB or 2GiB, or a part of the machine's memory, as 25%") from None


def _split(text: str) -> tuple[float, str]:
    found = _AMOUNT.fullmatch(text.strip())
    if found is None:
        return math.nan, "?"
    return float(found[1].replace("_", "")), found[2]
