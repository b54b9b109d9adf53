"""What attacks have in common: they are sent along with the attack that uses them, so each stands for itself."""

from __future__ import annotations

import ctypes
import os

WORD = (1 << 64) - 1


def call(number: int, *arguments: int | bytes | ctypes.Array | None) -> int:
    """A system call by its number; the result, or the negative errno. Numbers are passed in all 64 bits."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    words = [ctypes.c_ulong(one & WORD) if isinstance(one, int) else one for one in arguments]
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *words)
    return -ctypes.get_errno() if result == -1 and ctypes.get_errno() else result


def must(number: int, *arguments: int | bytes | ctypes.Array | None) -> int:
    """The same, but a failure is an OSError."""
    result = call(number, *arguments)
    if result < 0:
        raise OSError(-result, os.strerror(-result))
    return result


def read(path: str, most: int = 1 << 20) -> str:
    """The beginning of a file, whatever is in it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        return os.read(descriptor, most).decode("utf-8", "replace")
    finally:
        os.close(descriptor)


def first(attempts: object) -> object:
    """What the first of several ways that works has got; if none does, the last refusal."""
    last: Exception = OSError("there was nothing to try")
    for attempt in attempts:  # type: ignore[attr-defined]
        try:
            return attempt()
        except Exception as error:
            last = error
    raise last
