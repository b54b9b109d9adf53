"""How a kernel that stands becomes somebody's: by a channel to it, and a porter who brings in what is theirs."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from isolated_python.engine.loop import Loop
from isolated_python.launcher import porter
from isolated_python.layers.step import Step
from isolated_python.linux import packets


class Handover:
    """Of one kernel. What that says at the wrong time, or says else, ends nothing but its hand-over."""

    def __init__(
        self, loop: Loop, waits: Callable[[], None], brought: Callable[[bool], None], taken: Callable[[], None]
    ) -> None:
        """`waits` is called when the kernel stands, `brought` with whether its porter has done his work, and `taken`
        when the kernel has taken over, and this is closed.
        """
        self._loop, self._waits, self._brought, self._taken = loop, waits, brought, taken
        self._kernel, theirs = packets.pair()
        self._kernel.setblocking(False)
        self.end = theirs.detach()  # the kernel's
        self._porter: socket.socket | None = None  # who waits inside with the right to mount a workspace
        self._awaited = "waiting"
        self.open = True
        loop.listen(self._kernel, self._hear)

    def _hear(self) -> None:
        message = packets.heard(self._kernel)
        event = message.get("event") if message else None
        if event != self._awaited:
            self.close()
        elif event == "waiting":
            self._awaited = ""
            self._waits()
        else:
            self.close()
            self._taken()

    def hire(self, init: int, steps: list[Step]) -> None:
        """Have a porter inside, who will execute these. `init`: a pidfd of process 1. Raises OSError."""
        pid, self._porter = porter.hire(init, steps)
        self._loop.at_end(pid, lambda: None)
        self._loop.listen(self._porter, self._hear_of_porter)

    def _hear_of_porter(self) -> None:
        assert self._porter is not None
        done = packets.heard(self._porter) is not None
        self._dismiss()
        self._brought(done)

    def bring(self, descriptors: dict[str, int]) -> bool:
        """Have the porter do his work on these. False: there is none. Raises OSError."""
        if self._porter is None:
            return False
        packets.send(self._porter, {"descriptors": [*descriptors]}, [*descriptors.values()])
        return True

    def tell(self, program: dict[str, Any]) -> None:
        """To the kernel: whose it is. Raises OSError."""
        packets.send(self._kernel, program)
        self._awaited = "taken"

    def _dismiss(self) -> None:
        if self._porter is not None:
            self._loop.ignore(self._porter)
            self._porter.close()
            self._porter = None

    def close(self) -> None:
        if self.open:
            self.open = False
            self._loop.ignore(self._kernel)
            self._kernel.close()
            self._dismiss()
