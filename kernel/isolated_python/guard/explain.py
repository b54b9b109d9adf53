"""Adds one sentence to an error that a limit of the sandbox is behind: which limit, how much, which key."""

from __future__ import annotations

import errno
from typing import Any

# What an errno means in here. {…} are values of the profile's resources.
OF_ERRNO = {
    errno.ENOSPC: "/tmp and the home folder hold {tmp} MiB together, /dev/shm {shm} MiB (resources.tmp, resources.shm)",
    errno.EAGAIN: "this kernel may have {processes} processes and threads together (resources.processes)",
    errno.ENOMEM: "this kernel may use {memory} MiB of memory (resources.memory)",
    errno.EMFILE: "a process of this kernel may have {open_files} files open (resources.open_files)",
    errno.EFBIG: "a file of this kernel may have {file_size} MiB (resources.file_size)",
    errno.ENETUNREACH: "this kernel has no network (network.reach)",
    errno.EROFS: "this part of the file system is read-only in here",
    errno.EPERM: "the sandbox refuses this",
}
SCALED = ("tmp", "shm", "memory", "file_size")  # bytes; told in MiB


def sentence(error: BaseException, granted: dict[str, Any]) -> str:
    """Why the sandbox is behind `error`; empty where it is not. `granted`: the profile's resources, as on the wire."""
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, MemoryError):
        number = errno.ENOMEM
    elif isinstance(error, RuntimeError) and "start new thread" in str(error):
        number = errno.EAGAIN
    elif type(error).__name__ == "gaierror":
        number = errno.ENETUNREACH
    elif number == errno.EAGAIN and "fork" not in str(error) and "Resource temporarily unavailable" not in str(error):
        number = None
    words = OF_ERRNO.get(number or 0, "")
    values = {key: value >> 20 if key in SCALED and value is not None else value for key, value in granted.items()}
    return words.format(**values)


def install(shell: Any, granted: dict[str, Any]) -> None:
    """Put the sentence below the traceback that a cell shows."""
    show = shell._showtraceback

    def showtraceback(kind: type[BaseException], error: BaseException, lines: list[str]) -> None:
        try:
            words = sentence(error, granted)
            if words:
                lines = [*lines, f"\x1b[33mIsolated Python: {words}\x1b[0m"]
        except Exception:  # an explanation must never stand in the way of what it explains
            pass
        show(kind, error, lines)

    shell._showtraceback = showtraceback
