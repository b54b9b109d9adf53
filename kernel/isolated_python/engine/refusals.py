"""The system calls that one kernel was refused: each is answered with EPERM, counted, and told once in a while."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from isolated_python.engine.loop import Loop
from isolated_python.linux import seccomp

AT_ONCE = 200  # a second; a kernel that makes more refused calls waits


class Refusals:
    """The supervisor's end of a seccomp filter's user notifications. seccomp_unotify(2)"""

    def __init__(self, loop: Loop, listener: int, name: Callable[[int], str], tell: Callable[[str, int], None]) -> None:
        """`tell(call, count)` is called at the first, second, fourth, eighth … refusal of a call."""
        self._loop, self._listener, self._name, self._tell = loop, listener, name, tell
        self.counts: dict[str, int] = {}
        self.counting = False  # not before the first cell: the self-check asks for what must be refused
        self._answered = 0
        loop.listen(listener, self._answer)

    def _answer(self) -> None:
        """Answer one call. Its arguments are not looked at: they are the adversary's, and may change while we look."""
        try:
            call = seccomp.receive(self._listener)
            seccomp.respond(self._listener, call.id, errno.EPERM)
        except OSError as error:
            if error.errno != errno.ENOENT:  # only the caller is gone
                self.close()
            return
        if not self.counting:
            return
        name = self._name(call.number)
        count = self.counts[name] = self.counts.get(name, 0) + 1
        if count & (count - 1) == 0:  # a flood makes few records
            self._tell(name, count)
        self._answered += 1
        if self._answered % AT_ONCE == 0:
            self._loop.ignore(self._listener)
            self._loop.later(1.0, self._listen_again)

    def _listen_again(self) -> None:
        if self._listener >= 0:
            self._loop.listen(self._listener, self._answer)

    def close(self) -> None:
        if self._listener >= 0:
            self._loop.ignore(self._listener)
            os.close(self._listener)
            self._listener = -1
