"""
How much a workspace holds, looked at now and then: Linux limits no folder, so a profile's limit on it is a sentence.

The tree may be changed by its kernel while it is walked. So a helper walks it, by descriptors and past no link, for a
bounded time; what it says is a number.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from isolated_python.engine.loop import Loop

EVERY = 5.0  # seconds between two looks, and at least LAZY times as long as a look takes
LAZY = 20
MOST_SECONDS = 10  # for one look; a tree that takes longer is as large as was seen by then
KINDNESS = 10  # nice(2): everybody else comes first


class Quota:
    def __init__(self, loop: Loop, folder: int, most: int, over: Callable[[int], None]) -> None:
        """`folder`: open, a copy is kept. `over` is called with the bytes found, when they begin to exceed `most`."""
        self._loop, self._folder, self._most, self._over = loop, os.dup(folder), most, over
        self._was_over = False

    def look(self) -> None:
        """Now, and from here on again and again, until it is closed."""
        if self._folder < 0:
            return
        read, write = os.pipe2(os.O_CLOEXEC)
        began = time.monotonic()
        pid = os.fork()
        if pid == 0:
            _measure(self._folder, write)
        os.close(write)

        def told(_: bool) -> None:
            with os.fdopen(read, "rb") as answer:
                found = int(answer.read(20) or 0)
            if self._folder >= 0:
                if found > self._most and not self._was_over:
                    self._over(found)
                self._was_over = found > self._most
                self._loop.later(max(EVERY, LAZY * (time.monotonic() - began)), self.look)

        self._loop.when_done(pid, told)

    def close(self) -> None:
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1


def _measure(folder: int, answer: int) -> None:
    """In the helper. Never returns."""
    total = 0

    def enough(*_: object) -> None:
        os.write(answer, str(total).encode())
        os._exit(0)

    try:
        os.nice(KINDNESS)
        signal.signal(signal.SIGALRM, enough)
        signal.alarm(MOST_SECONDS)
        for _, folders, files, here in os.fwalk(".", dir_fd=folder):
            for name in (*folders, *files):
                try:
                    total += os.stat(name, dir_fd=here, follow_symlinks=False).st_blocks * 512
                except OSError:  # it is gone
                    continue
    finally:  # a tree can be deeper than anybody can walk: what was seen of it counts
        enough()
