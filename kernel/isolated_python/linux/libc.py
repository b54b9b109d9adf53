"""The one place that talks to libc: every failed call becomes an OSError with its name in it."""

from __future__ import annotations

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long

MACHINE = os.uname().machine

# Calls that libc does not wrap everywhere. Numbers from linux 424 on are the same on every architecture.
_COMMON = {
    "pidfd_send_signal": 424,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "pidfd_open": 434,
    "clone3": 435,
    "close_range": 436,
    "openat2": 437,
    "pidfd_getfd": 438,
    "mount_setattr": 442,
    "landlock_create_ruleset": 444,
    "landlock_add_rule": 445,
    "landlock_restrict_self": 446,
}
NUMBERS: dict[str, dict[str, int]] = {
    "x86_64": {**_COMMON, "pivot_root": 155, "seccomp": 317, "capget": 125, "capset": 126},
    "aarch64": {**_COMMON, "pivot_root": 41, "seccomp": 277, "capget": 90, "capset": 91},
}


def call(name: str, *arguments: int | bytes | ctypes.Array[ctypes.c_char] | None) -> int:
    """Call a libc function by name. Integers travel as C longs.

    Raises OSError, with the function's name in it, where libc answers -1.
    """
    return _checked(name, getattr(_libc, name), arguments)


def syscall(name: str, *arguments: object) -> int:
    """Make the system call itself, for calls that libc does not wrap.

    Raises OSError as `call` does, ENOSYS included.
    """
    number = NUMBERS[MACHINE][name]
    return _checked(name, _syscall, (number, *arguments))


def _checked(name: str, function: object, arguments: tuple[object, ...]) -> int:
    ctypes.set_errno(0)
    result = function(*(ctypes.c_long(a) if isinstance(a, int) else a for a in arguments))  # type: ignore[operator]
    if result == -1:
        errno = ctypes.get_errno()
        raise OSError(errno, f"{name}: {os.strerror(errno)}")
    return int(result)
