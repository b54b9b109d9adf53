"""Sizes and times as people write them, turned into bytes and seconds."""

from __future__ import annotations

import re

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
QUANTITY = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*")


def size(key: str, value: object) -> int:
    """Bytes. A bare number is refused: nobody remembers whether it was MB or KiB."""
    return round(_quantity(key, value, SIZES, '"512 MiB"'))


def duration(key: str, value: object) -> float:
    """Seconds."""
    return _quantity(key, value, TIMES, '"10 min"')


def _quantity(key: str, value: object, units: dict[str, float] | dict[str, int], example: str) -> float:
    found = QUANTITY.fullmatch(value) if isinstance(value, str) else None
    if found is None or found[2] not in units:
        raise ProfileError(
            f"{key} = {value!r} has no unit that is known",
            remedy=f"write a number with one of {', '.join(units)}, such as {example}",
        )
    number = float(found[1]) * units[found[2]]
    if number <= 0:
        raise ProfileError(f"{key} = {value!r} leaves nothing", remedy=f"write more than 0, such as {example}")
    return number
