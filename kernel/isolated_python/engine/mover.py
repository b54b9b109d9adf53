"""
The mover: a helper of the supervisor that moves processes into cgroups.

Linux lets a move wait for an RCU grace period, 10 ms and more, in which a supervisor has others to serve.
"""

from __future__ import annotations

import os
import signal
import socket
from collections import deque
from collections.abc import Callable

from isolated_python.engine.loop import Loop
from isolated_python.layers.cgroup import files
from isolated_python.linux import packets

Then = Callable[[str], None]


class Mover:
    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._waiting: deque[Then] = deque()  # it answers in order
        self._start()

    def _start(self) -> None:
        self._socket, theirs = packets.pair()
        pid = os.fork()
        if pid == 0:
            try:
                _serve(theirs)
            finally:
                os._exit(0)
        theirs.close()
        self._loop.listen(self._socket, self._hear)
        self._loop.at_end(pid, self._ended)

    def move(self, pid: int, entrances: list[int], then: Then) -> None:
        """Move a process with its threads, by the entrances of groups, which are closed.

        `then` is told what went wrong, "" for nothing.
        """
        self._waiting.append(then)
        try:
            packets.send(self._socket, {"pid": pid}, entrances)
        finally:
            for descriptor in entrances:
                os.close(descriptor)

    def _hear(self) -> None:
        message = packets.heard(self._socket)
        if message is None:
            self._loop.ignore(self._socket)  # its end is dealt with when the process has ended
        else:
            self._waiting.popleft()(message["error"])

    def _ended(self) -> None:
        """Whoever waits to be moved cannot be; whoever comes next is served by another."""
        self._loop.ignore(self._socket)
        self._socket.close()
        waiting, self._waiting = self._waiting, deque()
        self._start()
        for then in waiting:
            then("the helper that does it has ended")

    def close(self) -> None:
        self._loop.ignore(self._socket)
        self._socket.close()


def _serve(channel: socket.socket) -> None:
    """In the helper, until the supervisor goes."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    own = channel.fileno()
    os.closerange(3, own)
    os.closerange(own + 1, 1 << 20)
    while True:
        message, entrances = packets.receive(channel)
        if message is None:
            return
        error = ""
        try:
            files.enter(entrances, message["pid"])
        except OSError as failed:
            error = os.strerror(failed.errno or 0)
        packets.send(channel, {"error": error})
