"""Which host uid a kernel runs as: one that nobody else has, for as long as the kernel lives."""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from collections.abc import Callable

from isolated_python.engine.loop import Loop
from isolated_python.errors import HostError, IsolatedPythonError

# Above every range that Debian, systemd and shadow hand out, below 2^31. systemd.io/UIDS-GIDS
FIRST, COUNT = 1_879_113_728, 65_536
SPARE = 2  # the first belong to the zygotes and the relays
F_OFD_SETLK = 37  # linux 3.15
F_OFD_SETLKW = 38
SOON = 0.1  # seconds


def identities_file(path: str) -> int:
    """Open the file in which uids are locked, made with its folder if need be. See leave.

    Whoever has it open shares the lock of its first byte, and so nobody removes it. One that somebody was removing
    as we opened it has lost its name when we get the lock: then another is made.
    """
    while True:
        with contextlib.suppress(FileExistsError):
            os.mkdir(os.path.dirname(path), 0o711)
        try:
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError:  # its folder has just been removed
            continue
        _lock(file, fcntl.F_RDLCK, 0, 1, F_OFD_SETLKW)
        if _is_at(file, path):
            return file
        os.close(file)


def leave(file: int, path: str) -> None:
    """Close it, and remove it where nobody else has opened it. Who has it from us must have ended.

    A supervisor that was killed leaves it to the next one.
    """
    try:
        _lock(file, fcntl.F_WRLCK, 0, 0, F_OFD_SETLK)  # our own lock is no hindrance, and everybody else's is
        if _is_at(file, path):
            os.unlink(path)
            os.rmdir(os.path.dirname(path))
    except OSError:  # somebody is there; or the service's socket lies beside it
        pass
    finally:
        os.close(file)


def _is_at(file: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.lstat(path))
    except FileNotFoundError:
        return False


def _lock(file: int, kind: int, start: int, length: int, how: int) -> None:
    """A lock on some bytes, for as long as this file is open: fcntl(2). Raises OSError where another has one.

    `length`: 0 for all that follow. `how`: whether to wait.
    """
    fcntl.fcntl(file, how, struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0))


class Identities:
    """Free uids, found by locks on one byte each of a file: the kernel lets go of a lock when its holder dies."""

    def __init__(self, file: int, first: int = FIRST, count: int = COUNT) -> None:
        """`file`: see identities_file. The locks last until it is closed by all who share it."""
        self.first, self.count, self.file = first, count, file
        self.zygotes, self.relay = first, first + 1
        self._next = SPARE + os.getpid() % max(1, count - SPARE)
        self._held: set[int] = set()  # by us: to whom a byte is locked, the kernel gives the lock again

    def take(self) -> int:
        """A uid. Raises HostError when all are taken."""
        for turn in range(self.count - SPARE):
            number = SPARE + (self._next - SPARE + turn) % (self.count - SPARE)
            if number not in self._held and self._lock(number, fcntl.F_WRLCK):
                self._next = number + 1
                self._held.add(number)
                return self.first + number
        raise HostError(
            f"all {self.count - SPARE} host identities for kernels are taken",
            remedy="shut some kernels down or widen the range",
        )

    def give_back(self, uid: int) -> None:
        self._held.discard(uid - self.first)
        self._lock(uid - self.first, fcntl.F_UNLCK)

    def _lock(self, number: int, kind: int) -> bool:
        try:
            _lock(self.file, kind, number, 1, F_OFD_SETLK)
        except OSError:
            return False
        return True


class OfOnePerson(Identities):
    """Identities that nobody else gets while a process of this person's may still have one of them.

    What runs before a sandbox closes may be a program of the person's own; a child that it left behind, with the uid
    of a kernel that has ended, must not meet a kernel of another person under that uid.
    """

    def __init__(self, file: int) -> None:
        super().__init__(file)
        self._free: list[int] = []
        self.zygotes, self.relay = self.take(), self.take()

    def take(self) -> int:
        return self._free.pop() if self._free else super().take()

    def give_back(self, uid: int) -> None:
        self._free.append(uid)


class Ahead:
    """The next uid, taken before anybody asks for one, and what takes a while to make for it.

    It is nobody else's meanwhile, by the same lock as those of kernels, and free again when the supervisor has ended.
    """

    def __init__(self, loop: Loop, identities: Identities, make: Callable[[int], None]) -> None:
        """`make(uid)`: may be called again for the same."""
        self._loop, self._identities, self._make = loop, identities, make
        self._next: int | None = None
        self._due = False

    def take(self) -> int:
        """A uid. Raises HostError when all are taken."""
        uid, self._next = self._next, None
        return uid if uid is not None else self._identities.take()

    def prepare(self) -> None:
        """Soon: whoever has just got a kernel is served first."""
        if not self._due:
            self._due = True
            self._loop.later(SOON, self._prepare)

    def _prepare(self) -> None:
        self._due = False
        try:
            self._next = self._next if self._next is not None else self._identities.take()
            self._make(self._next)
        except (OSError, IsolatedPythonError):  # whoever asks next finds the same, and is told
            pass
