"""Sizes and times as people write them, turned into bytes and seconds."""

from __future__ import annotations

import re
from collections.abc import Mapping

from isolated_python.errors import ProfileError

SIZES = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 1 << 10,
    "MiB": 1 << 20,
    "GiB": 1 << 30,
    "TiB": 1 << 40,
}
TIMES = {"ms": 0.001, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
MOST_BYTES = 1 << 62
MOST_SECONDS = 100 * 366 * 86400.0  # a clock that counts down cannot hold every number
QUANTITY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*")


def shown(value: object) -> str:
    """What a person wrote, as a part of a sentence: short, in one line, whatever it is."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # thousands of digits, or lists in lists without end
        return "this value"
    return text if len(text) <= 80 else text[:79] + "…"


def size(key: str, value: object) -> int:
    """Bytes. A bare number is refused: nobody remembers whether it was MB or KiB."""
    return round(_quantity(key, value, SIZES, '"512 MiB"', 0.5, MOST_BYTES))


def duration(key: str, value: object) -> float:
    """Seconds."""
    return _quantity(key, value, TIMES, '"10 min"', 1e-6, MOST_SECONDS)


def _quantity(key: str, value: object, units: Mapping[str, float], example: str, least: float, most: float) -> float:
    found = QUANTITY.fullmatch(value) if isinstance(value, str) else None
    if found is None or found[2] not in units:
        raise ProfileError(
            f"{key} = {shown(value)} has no unit that is known",
            remedy=f"write a number with one of {', '.join(units)}, such as {example}",
        )
    number = float(found[1]) * units[found[2]]
    if number <= least:
        raise ProfileError(f"{key} = {shown(value)} leaves nothing", remedy=f"write more than 0, such as {example}")
    if number > most:
        raise ProfileError(f"{key} = {shown(value)} is more than there can be", remedy=f"write less, such as {example}")
    return number
