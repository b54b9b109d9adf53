"""Which host uid a kernel runs as: one that nobody else has, for as long as the kernel lives."""

from __future__ import annotations

import fcntl
import os
import struct

from isolated_python.errors import HostError

# Above every range that Debian, systemd and shadow hand out, below 2^31. systemd.io/UIDS-GIDS
FIRST, COUNT = 1_879_113_728, 65_536
SPARE = 2  # the first belong to the zygotes and the relays
F_OFD_SETLK = 37  # linux 3.15


class Identities:
    """Free uids, found by locks on one byte each of a file: the kernel lets go of a lock when its holder dies."""

    def __init__(self, path: str, first: int = FIRST, count: int = COUNT) -> None:
        self.first, self.count = first, count
        self.file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self._next = SPARE + os.getpid() % max(1, count - SPARE)

    def take(self) -> int:
        """A uid. Raises HostError when all are taken."""
        for turn in range(self.count - SPARE):
            number = SPARE + (self._next - SPARE + turn) % (self.count - SPARE)
            if self._lock(number, fcntl.F_WRLCK):
                self._next = number + 1
                return self.first + number
        raise HostError(
            f"all {self.count - SPARE} host identities for kernels are taken",
            remedy="shut some kernels down or widen the range",
        )

    def give_back(self, uid: int) -> None:
        self._lock(uid - self.first, fcntl.F_UNLCK)

    def _lock(self, number: int, kind: int) -> bool:
        try:
            fcntl.fcntl(self.file, F_OFD_SETLK, struct.pack("hhqqi4x", kind, os.SEEK_SET, number, 1, 0))
        except OSError:
            return False
        return True
