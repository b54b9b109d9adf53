"""The watch over one kernel: ends it when its time is over, and writes down which of its limits it has met."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

from isolated_python.layers.cgroup import Events

if TYPE_CHECKING:
    from isolated_python.audit.ledger import Ledger
    from isolated_python.engine.loop import Loop
    from isolated_python.engine.sandbox import Sandbox

EARLIEST = 1.0  # seconds from the interrupt of a cell to the end of its kernel, whatever the relay says


class Watch:
    def __init__(self, loop: Loop, ledger: Ledger, kernel: Sandbox) -> None:
        self._loop, self._ledger, self._kernel = loop, ledger, kernel
        self.cell = ""  # msg_id of the cell that ran last
        self.used = True  # by somebody; else it cannot be idle
        self.idle = False  # that was its end
        self._talked = 0.0  # when somebody said something last, or a cell ended
        self._busy = False  # a cell runs
        self._interrupted = 0.0  # when a cell had had its time
        self._met = Events(0, 0, 0)  # what it has met of its cgroup's limits, as far as it was told

    def begin(self) -> None:
        """It runs."""
        granted = self._kernel.profile.resources
        if granted.wall_clock is not None:
            used = f"{granted.wall_clock:g} s since its start"
            self._loop.later(granted.wall_clock, lambda: self._over("resources.wall_clock", used))
        if granted.cpu_time is not None:
            self._loop.later(1.0, self._look_at_cpu)
        self._talked = time.monotonic()
        if granted.idle is not None:
            self._loop.later(granted.idle, self._look_whether_idle)

    def heard(self, *, busy: bool, cell: str = "") -> None:
        """A client has said something, or a cell has ended."""
        self._talked, self._busy = time.monotonic(), busy
        self.cell = cell or self.cell
        self.used = self.used or bool(cell)

    def overdue(self, *, again: bool) -> None:
        """The relay says that a cell has had its time. It faces hostile bytes: what it says is held to the clock."""
        most, now = self._kernel.profile.cells.wall_clock, time.monotonic()
        if most is None or now - self._kernel.began < most:
            return
        if not again:
            self._interrupted = now
            self.met("cells.wall_clock", f"a cell ran for {most:g} s, and was interrupted")
            self._kernel.signal(signal.SIGINT)
        elif now - (self._interrupted or now) > EARLIEST:
            self._over("cells.wall_clock", f"{most:g} s for one cell, and an interrupt did not end it")

    def look(self) -> None:
        """Tell which limits of its cgroup it has met since the last look. Asked after each cell, and at the end."""
        if self._kernel.group is None:
            return
        try:
            met, before = self._kernel.group.events(), self._met
        except OSError:  # somebody has removed the group
            return
        self._met = met
        for key, what, times in (
            ("resources.memory", "a process was killed for memory", met.oom_kills - before.oom_kills),
            ("resources.processes", "a process could not be started", met.processes_refused - before.processes_refused),
        ):
            if times > 0:
                self.met(key, what, times)

    def met(self, key: str, what: str, times: int = 1) -> None:
        about = {"owner": self._kernel.owner, "cell": self.cell}
        self._ledger.count("limit-reached", self._kernel.name, key, times, limit=key, what=what, **about)

    def _over(self, key: str, used: str) -> None:
        if self._kernel.state == "running":
            name = self._kernel.profile.name
            self.met(key, f"it used {used}")
            self._kernel.fail(f"the kernel was ended: it used {used}, and the profile {name} grants no more ({key})")

    def _look_at_cpu(self) -> None:
        limit, group = self._kernel.profile.resources.cpu_time, self._kernel.group
        if self._kernel.state != "running" or group is None or limit is None:
            return
        used = group.usage().cpu_seconds
        if used >= limit:
            self._over("resources.cpu_time", f"{used:.0f} s of CPU time")
        else:
            soonest = (limit - used) / (os.cpu_count() or 1)
            self._loop.later(min(max(soonest, 0.2), 5.0), self._look_at_cpu)

    def _look_whether_idle(self) -> None:
        limit = self._kernel.profile.resources.idle
        if self._kernel.state != "running" or limit is None:
            return
        quiet = time.monotonic() - self._talked
        if self._busy or not self.used or quiet < limit:
            self._loop.later(limit if self._busy or not self.used else limit - quiet, self._look_whether_idle)
        else:
            self.idle = True
            self.met("resources.idle", f"nobody asked anything of it for {limit:g} s")
            self._kernel.fail(
                f"the kernel was ended: nobody asked anything of it for {limit:g} s, and the profile "
                f"{self._kernel.profile.name} keeps no kernel longer than that (resources.idle)"
            )
