"""
The mover: a helper of the supervisor that moves processes into cgroups, and outlives it to clear them.

Linux lets a move wait for an RCU grace period, 10 ms and more, in which a supervisor has others to serve. For as long
after that nobody waits (kernel/rcu/sync.c, GP_EXIT): so when somebody will be moved soon, the mover waits ahead of
them, by moves of itself to where it is, again and again until they come. And what a supervisor that is killed leaves in
its groups nobody else would end before the next one starts.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from isolated_python.engine.loop import Loop
from isolated_python.layers import cgroup
from isolated_python.layers.cgroup import files
from isolated_python.linux import packets

Then = Callable[[str], None]
SOON = 0.08  # seconds in which somebody that will be moved soon is moved
AGAIN = 4  # milliseconds after which the next wait would begin to be one again


class Mover:
    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._waiting: deque[Then] = deque()  # it answers in order
        self._start()

    def _start(self) -> None:
        self._socket, theirs = packets.pair()
        supervisor = os.pidfd_open(os.getpid())
        pid = os.fork()
        if pid == 0:
            try:
                _serve(theirs, supervisor)
            finally:
                os._exit(0)
        theirs.close()
        os.close(supervisor)
        self._loop.listen(self._socket, self._hear)
        self._loop.at_end(pid, self._ended)

    def move(self, pid: int, entrances: list[int], then: Then) -> None:
        """Move a process with its threads, by the entrances of groups, which are closed.

        `then` is told what went wrong, "" for nothing.
        """
        self._waiting.append(then)
        with contextlib.suppress(OSError):  # it has ended, and who waits is told so in a moment
            packets.send(self._socket, {"pid": pid}, entrances)
        for descriptor in entrances:
            os.close(descriptor)

    def soon(self) -> None:
        """Somebody will be moved in a moment: do the waiting now."""
        with contextlib.suppress(OSError):  # it has ended, and its successor does so as it begins
            packets.send(self._socket, {"soon": True})

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
        """The supervisor ends in order: there will be nothing to clear."""
        self._loop.ignore(self._socket)
        with contextlib.suppress(OSError):  # it has ended already
            packets.send(self._socket, {"done": True})
        self._socket.close()


def _serve(channel: socket.socket, supervisor: int) -> None:
    """In the helper, until the supervisor goes. `supervisor`: its pidfd."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    last = 2
    for kept in sorted((channel.fileno(), supervisor)):
        os.closerange(last + 1, kept)
        last = kept
    os.closerange(last + 1, 1 << 20)
    _wait_ahead(channel)  # the first zygote enters its group in a moment
    with contextlib.suppress(ConnectionError):  # it went before it heard our answer
        while message := _next(channel):
            if "done" in message:
                return
            if "soon" in message:
                _wait_ahead(channel)
    ended = select.poll()
    ended.register(supervisor, select.POLLIN)
    ended.poll()
    cgroup.sweep()


def ahead() -> None:
    """As a supervisor begins: somebody waits ahead of the first zygote while the rest of the supervisor is imported."""
    pid = os.fork()
    if pid == 0:
        try:
            os.closerange(3, 1 << 20)
            _wait_ahead()
        finally:
            os._exit(0)


def _wait_ahead(channel: socket.socket | None = None) -> None:
    """Until there is an order, and not for long: whoever comes then need not wait."""
    here = cgroup.here()
    if here is None:  # somebody waits later
        return
    asked = select.poll()
    if channel is not None:
        asked.register(channel, select.POLLIN)
    end, pause = time.monotonic() + SOON, 0
    with open(here, "wb", buffering=0) as entrance, contextlib.suppress(OSError):
        while time.monotonic() < end and not asked.poll(pause):
            entrance.write(b"0")  # whoever writes: cgroups(7)
            pause = AGAIN


def _next(channel: socket.socket) -> dict[str, Any] | None:
    """Serve one order; None where there is none any more."""
    message, entrances = packets.receive(channel)
    if message is not None and "pid" in message:
        error = ""
        try:
            files.enter(entrances, message["pid"])
        except OSError as failed:
            error = os.strerror(failed.errno or 0)
        packets.send(channel, {"error": error})
    return message
