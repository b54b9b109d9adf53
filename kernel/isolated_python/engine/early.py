"""
The first moment of a supervisor: what takes a while, and little of us, is begun before the rest of us is imported.

A server that has just started waits for its supervisor, whose own imports are half of that.
"""

from __future__ import annotations

import gc
import os

from isolated_python.engine.loop import Loop
from isolated_python.engine.mover import Mover
from isolated_python.linux import host


class Early:
    """Begun as it is made: the mover's first wait, and the questions to this host. Made with one thread."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.mover = Mover(loop)
        self.host = host.asking()


def main() -> None:
    """Serve the server at descriptor 3 until it goes. What else it lets its programs inherit is not for us."""
    os.closerange(4, 1 << 20)
    early = Early(Loop())
    gc.disable()  # see launcher.spawn.program
    from isolated_python.engine import supervisor

    gc.freeze()
    gc.enable()
    supervisor.main(early)
