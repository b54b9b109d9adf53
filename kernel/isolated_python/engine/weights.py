"""Who answers comes before who computes: a kernel's share of the CPU follows what it has used of late.

Nobody starves: the smallest weight is still a share, and all of the CPU is theirs whom nobody else is in the way of.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from isolated_python.engine.loop import Loop
    from isolated_python.engine.sandbox import Sandbox

# cgroups(7), cpu.weight. Eight to one kept a round trip at its quiet value beside four kernels that spun on two cores.
ANSWERS, COMPUTES = 100, 12
WAITS = 1  # of a kernel in the pool, for which nobody waits yet
LOOK = 1.0  # seconds between two looks
AWAKE = 0.01  # of one core; who uses less is no part of the crowd


class Weights:
    def __init__(self, loop: Loop, kernels: Mapping[str, Sandbox]) -> None:
        self._loop, self._kernels = loop, kernels
        self._used: dict[str, float] = {}  # seconds of CPU that a kernel had used at the last look
        self._looked = 0.0  # time.monotonic() of it; 0 where nobody looks

    def begin(self) -> None:
        """There is a kernel. The looking ends when there is none."""
        if not self._looked:
            self._look()

    def _look(self) -> None:
        now = time.monotonic()
        running = [one for one in self._kernels.values() if one.state == "running" and one.group is not None]
        used = {one.name: one.group.cpu_seconds() for one in running if one.group is not None}
        passed = now - self._looked
        rates = {name: (seconds - self._used.get(name, seconds)) / passed for name, seconds in used.items()}
        most = crowded(rates.values(), os.cpu_count() or 1)
        for one in running:
            one.weigh(COMPUTES if rates[one.name] > most else ANSWERS)
        self._used, self._looked = used, now if self._kernels else 0.0
        if self._kernels:
            self._loop.later(LOOK, self._look)


def crowded(rates: Iterable[float], cores: int) -> float:
    """Who uses more than this computes: a quarter of a core, or of an equal share where more are awake than cores."""
    awake = sum(rate > AWAKE for rate in rates)
    return 0.25 * min(1.0, cores / max(1, awake))
