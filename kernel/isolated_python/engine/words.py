"""What a kernel writes to its standard streams: the end of it is kept for the log, and a flood of it has to wait."""

from __future__ import annotations

import os

from isolated_python.engine.loop import Loop

KEPT = 4096  # bytes
HEARD = 1 << 20  # bytes a second; a kernel that writes more waits


class Words:
    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._kept = b""
        self._heard = 0
        self._read, self.write_end = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._read, False)
        loop.listen(self._read, self._hear)

    def __str__(self) -> str:
        return self._kept.decode("utf-8", "replace")

    def given(self) -> None:
        """The kernel has its copies of the write end: ours would keep the pipe from ever ending."""
        if self.write_end >= 0:
            os.close(self.write_end)
            self.write_end = -1

    def _hear(self) -> None:
        try:
            data = os.read(self._read, 1 << 16)
        except BlockingIOError:  # the kernel has ended, and this was all
            data = b""
        if not data:
            self.close()
            return
        self._kept = (self._kept + data)[-KEPT:]
        self._heard += len(data)
        if self._heard > HEARD:
            self._loop.ignore(self._read)  # its pipe fills, and whoever floods it waits
            self._loop.later(1.0, self._hear_again)

    def _hear_again(self) -> None:
        if self._heard > HEARD and self._read >= 0:
            self._heard = 0
            self._loop.listen(self._read, self._hear)

    def finish(self) -> None:
        """The kernel has ended: hear the rest, which is at most what a pipe holds, if it left no heir to the pipe."""
        for _ in range(64):
            if self._read >= 0:
                self._hear()
        self.close()

    def close(self) -> None:
        self.given()
        if self._read >= 0:
            self._loop.ignore(self._read)
            os.close(self._read)
            self._read = -1
