"""
The joiner: a helper of the supervisor that moves sandboxes into their cgroups.

Linux lets the first such move wait for an RCU grace period, about 10 ms, in which a supervisor has others to serve, and
a sandbox has mounts to make. So the wait begins with the request for a kernel, and nobody but us waits.
"""

from __future__ import annotations

import itertools
import os
import signal
import socket
from collections.abc import Callable

from isolated_python.engine.loop import Loop
from isolated_python.errors import ProtocolError
from isolated_python.layers.cgroup import files
from isolated_python.linux import packets

NOBODY = b"2147483647"  # above every pid: the move fails, but only after the grace period


class Joiner:
    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._numbers = itertools.count(1)
        self._waiting: dict[int, Callable[[str], None]] = {}
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

    def prepare(self, entrances: list[int]) -> int:
        """Begin the wait for a move into these groups. Returns a number for the move; closes the descriptors."""
        number = next(self._numbers)
        try:
            packets.send(self._socket, {"number": number}, entrances)
        finally:
            for descriptor in entrances:
                os.close(descriptor)
        return number

    def move(self, number: int, pid: int, then: Callable[[str], None]) -> None:
        """Move a process, with its threads and children to come; `then` is told what went wrong, "" for nothing.

        With 0 as `pid`, nobody is moved.
        """
        self._waiting[number] = then
        packets.send(self._socket, {"number": number, "pid": pid})

    def _hear(self) -> None:
        try:
            message, _ = packets.receive(self._socket)
        except (ConnectionError, ProtocolError):
            message = None
        if message is None:
            self._loop.ignore(self._socket)  # its end is dealt with when the process has ended
        else:
            self._waiting.pop(message["number"])(message["error"])

    def _ended(self) -> None:
        """Whoever waits to be moved cannot be; whoever comes next is served by another."""
        self._socket.close()
        waiting, self._waiting = self._waiting, {}
        self._start()
        for then in waiting.values():
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
    prepared: dict[int, list[int]] = {}
    while True:
        message, descriptors = packets.receive(channel)
        if message is None:
            return
        number, pid, error = message["number"], message.get("pid"), ""
        try:
            if pid is None:
                prepared[number] = descriptors
                os.write(descriptors[0], NOBODY)
            else:
                _enter_or_close(prepared.pop(number, []), pid)
        except OSError as failed:
            error = os.strerror(failed.errno or 0)
        if pid is not None:
            packets.send(channel, {"number": number, "error": error})


def _enter_or_close(entrances: list[int], pid: int) -> None:
    if pid:
        files.enter(entrances, pid)
    else:
        for descriptor in entrances:
            os.close(descriptor)
