"""The supervisor's end of the relay: starts it, gives it doors and targets, and starts another when it is killed."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from isolated_python.engine import ROOT
from isolated_python.engine.loop import Loop
from isolated_python.errors import ProtocolError
from isolated_python.launcher.spawn import program, spawn
from isolated_python.linux import packets

MOST_ENDS = 20  # within a minute, before we take it that no relay can live
LAST_WORDS = 1.0  # seconds that it has to tell a cell why its kernel died
PATIENCE = 5.0  # seconds for it to take an order, before another relay has to

# What it may tell, and of which types; it faces hostile bytes, so that it may be in hostile hands.
EVENTS: dict[str, dict[str, type]] = {
    "ready": {},
    "inserted": {"kernel": str},
    "want": {"kernel": str, "count": int},
    "refused": {"kernel": str, "channel": str, "rule": str, "count": int},
    "activity": {"kernel": str, "msg_id": str},
    "idle": {"kernel": str},
    "usage": {"kernel": str},
    "overdue": {"kernel": str, "again": bool},
}
LONGEST = 200  # characters of a text that it tells

Event = dict[str, Any]


class Door:
    """The client side of a kernel: sockets that outlive restarts."""

    def __init__(self, key: str, channels: dict[str, Any], granted: dict[str, Any]) -> None:
        """`channels`, `granted`: see relay.rules."""
        self.key, self.channels, self.granted = key, channels, granted
        self.listeners: list[socket.socket] = []
        self.paths: list[str] = []


class Relay:
    """The one relay of a supervisor, whichever process that is at the moment."""

    def __init__(
        self, loop: Loop, filter: bytes, uid: int | None, folder: str, heard: Callable[[str, Event], None],
        tell: Callable[..., None], replaced: Callable[[], None], client: int | None = None,
    ) -> None:  # fmt: skip
        """`filter`: BPF; `uid`: who it becomes, None for who we are; `folder`: with the kernels' sockets.

        `client`: whose clients may connect, None for our own.
        `heard(kernel, event)`: what it has to say; `tell(name, **values)`: to the log; `replaced()`: needs its targets.
        """
        self._loop, self._filter, self._uid, self._heard, self._tell = loop, filter, uid, heard, tell
        self._replaced, self._client = replaced, client
        self._clients = f"{folder}/clients"
        self._kernels = os.open(f"{folder}/kernels", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._doors: dict[str, Door] = {}
        self._waiting: dict[str, Callable[[], None]] = {}  # kernel → what to do when its cell has been told
        self._ends: list[float] = []
        self._start()

    def _start(self) -> None:
        self._socket, theirs = packets.pair()
        self._socket.settimeout(PATIENCE)
        argv = [sys.executable, "-I", "-S", "-c", program(ROOT, "isolated_python.relay.broker")]
        environment = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"}
        pid = self._pid = spawn(argv, environment, {3: theirs.fileno(), 4: self._kernels})
        theirs.close()
        bpf = os.memfd_create("filter", os.MFD_CLOEXEC)
        os.write(bpf, self._filter)
        os.lseek(bpf, 0, os.SEEK_SET)
        self.ask("hello", descriptors=[bpf], uid=self._uid, filter=True)
        os.close(bpf)
        ours = self._socket
        self._loop.listen(ours, self._hear)
        self._loop.at_end(pid, lambda: self._ended(ours))

    def _ended(self, one: socket.socket) -> None:
        """Start another, and hand it every door: clients connect again by themselves, kernels never notice."""
        if self._socket is not one:
            return
        self._pid = 0
        self._loop.ignore(one)
        one.close()
        self._tell("relay-ended")
        self._ends = [*(then for then in self._ends if then > time.monotonic() - 60), time.monotonic()]
        if len(self._ends) > MOST_ENDS:
            raise SystemExit(f"the relay ended {len(self._ends)} times within a minute; so do we")
        for name in [*self._waiting]:
            self._told(name)
        self._start()
        for name, door in self._doors.items():
            self._open(name, door)
        self._replaced()

    def ask(self, verb: str, kernel: str = "", descriptors: list[int] | tuple[int, ...] = (), **values: Any) -> None:
        try:
            packets.send(self._socket, {"verb": verb, "kernel": kernel, **values}, descriptors)
        except OSError as error:  # its end is noticed, and another one started
            self._tell("relay-deaf", error=str(error))
            if self._pid:
                os.kill(self._pid, signal.SIGKILL)

    def _hear(self) -> None:
        try:
            message, descriptors = packets.receive(self._socket)
        except (ConnectionError, ProtocolError):
            return
        for descriptor in descriptors:
            os.close(descriptor)
        if message is None:
            self._loop.ignore(self._socket)  # its end is dealt with when the process has ended
            return
        event = understood(message)
        if event.get("event") == "inserted":
            self._told(event["kernel"])
        elif event.get("kernel") in self._doors:
            self._heard(event["kernel"], event)

    # ---- the client side of a kernel -------------------------------------------------------------------------------

    def open(self, name: str, key: str, channels: dict[str, Any], granted: dict[str, Any], prefix: str) -> None:
        """Make its door, unless it has one from before a restart. The sockets are `prefix`-1 to `prefix`-5."""
        door = self._doors.get(name)
        if door is not None and all(map(os.path.exists, door.paths)):
            door.key = key
            return
        # jupyter_client unlinks the sockets of a manager at its restart; clients look for them at the same place.
        # The relay takes the new door for the old: what it keeps for the next cell of this kernel is not lost.
        if door is not None:
            _remove(door)
        paths = [f"{self._clients}/{prefix}-{number}" for number in (1, 2, 3, 4, 5)]
        door = self._doors[name] = Door(key, channels, granted)
        for path in paths:
            door.listeners.append(listener(path, self._client))
            door.paths.append(path)  # and not before: a path that is another kernel's is not ours to remove
        self._open(name, door)

    def _open(self, name: str, door: Door) -> None:
        listeners = [one.fileno() for one in door.listeners]
        self.ask("open", name, listeners, channels=door.channels, granted=door.granted, key=door.key, client="ipc")

    def close(self, name: str) -> None:
        door = self._doors.pop(name, None)
        if door is not None:
            self.ask("close", name)
            _remove(door)

    def detach(self, name: str) -> None:
        """Its kernel has gone; the door stays for the next."""
        if name in self._doors:
            self.ask("detach", name)

    def insert(self, name: str, sentence: str, then: Callable[[], None]) -> None:
        """Tell the running cell, if there is one, and then, or after LAST_WORDS, do `then`."""
        self._waiting[name] = then
        self._loop.later(LAST_WORDS, lambda: self._told(name))
        traceback = [f"\x1b[31mKernelDied\x1b[0m: {sentence}"]
        self.ask("insert", name, busy_only=True, ename="KernelDied", evalue=sentence, traceback=traceback)

    def _told(self, name: str) -> None:
        then = self._waiting.pop(name, None)
        if then is not None:
            then()

    def stop(self) -> None:
        for name in [*self._doors]:
            self.close(name)
        self._socket.close()


def _remove(door: Door) -> None:
    for one, path in zip(door.listeners, door.paths, strict=True):
        one.close()
        unlink(path)


def understood(message: Event) -> Event:
    """What of a message is in EVENTS, texts cut to LONGEST; empty where it is none of them."""
    kind = message.get("event")
    wanted = EVENTS.get(kind) if isinstance(kind, str) else None
    if wanted is None or not all(type(message.get(name)) is of for name, of in wanted.items()):
        return {}
    values = {name: message[name] for name in wanted}
    return {
        "event": kind,
        **{key: value[:LONGEST] if isinstance(value, str) else value for key, value in values.items()},
    }


def listener(path: str, owner: int | None = None) -> socket.socket:
    """A listening socket in a folder of ours that `owner` alone may connect to; None for ourselves."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    made.bind(path)
    os.chmod(path, 0o600)
    if owner is not None:
        os.chown(path, owner, -1)
    made.listen(64)
    return made


def unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
