"""A new process in new namespaces, in one system call. clone3(2)"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

from isolated_python.linux import libc
from isolated_python.record import Record

CLONE_PARENT = 0x00008000


def fork(flags: int) -> int:
    """Fork into new namespaces (and, with CLONE_PARENT, into our parent's arms). Returns 0 in the child.

    Parent and child must be single-threaded, and the child make plain system calls only: libc is not told, and its note
    of the thread's id is stale until that forks in the ordinary way. Nor is Python told in the child, where all that
    it would look at is as it was. Who wants to know of a fork hears of the child's own, by os.fork; to tell them twice
    costs 65 pages, written to once more.
    """
    # struct clone_args: flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls (linux 5.5)
    exit_signal = 0 if flags & CLONE_PARENT else 17
    arguments = struct.pack("=8Q", flags, 0, 0, 0, exit_signal, 0, 0, 0)
    buffer = ctypes.create_string_buffer(arguments, len(arguments))
    ctypes.pythonapi.PyOS_BeforeFork()
    try:
        return _clone3(buffer, len(arguments))
    finally:
        ctypes.pythonapi.PyOS_AfterFork_Parent()


# The interpreter's lock must stay held from before the fork until after it: so PyDLL, not CDLL.
_held = ctypes.PyDLL(None, use_errno=True)
_held.syscall.restype = ctypes.c_long


def _clone3(buffer: ctypes.Array[ctypes.c_char], size: int) -> int:
    number = libc.NUMBERS[libc.MACHINE]["clone3"]
    pid = int(_held.syscall(ctypes.c_long(number), buffer, ctypes.c_long(size)))
    if pid == -1:
        errno = ctypes.get_errno()
        raise OSError(errno, f"clone3: {os.strerror(errno)}")
    return pid


def start_time(pid: int) -> int:
    """When a process started, in clock ticks since boot: with its pid, an identity that is never used twice. proc(5)

    Raises FileNotFoundError or ProcessLookupError where it has ended, also where nobody has noticed yet.
    """
    with open(f"/proc/{pid}/stat", "rb") as file:
        values = file.read().rpartition(b")")[2].split()
    if values[0] in (b"Z", b"X"):
        raise ProcessLookupError(f"the process {pid} has ended")
    return int(values[19])


class Person(Record):
    """Whom a process of root's works for."""

    uid: int
    gid: int

    @contextmanager
    def acting(self) -> Iterator[None]:
        """Look for files with that one's rights and none of ours, for a moment. credentials(7)

        The saved ids stay root's: nobody may signal or trace us meanwhile who could not before.
        """
        groups = os.getgroups()
        os.setgroups([])
        os.setegid(self.gid)
        os.seteuid(self.uid)
        try:
            yield
        finally:
            os.seteuid(0)
            os.setegid(0)
            os.setgroups(groups)
