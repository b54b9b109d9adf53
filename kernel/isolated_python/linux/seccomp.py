"""
seccomp(2): load a compiled filter, and answer for the calls that it hands to another process.

A caller without CAP_SYS_ADMIN sets no_new_privs first. The notification calls are raw ioctls,
because libseccomp's own lose the descriptor of a filter that they have not loaded themselves.
Source: seccomp_unotify(2), linux/seccomp.h.
"""

from __future__ import annotations

import ctypes
import errno
import select
import struct
from fcntl import ioctl

from isolated_python.record import Record

from .libc import syscall

SECCOMP_SET_MODE_FILTER = 1
SECCOMP_GET_NOTIF_SIZES = 3

FLAG_TSYNC = 1 << 0
FLAG_NEW_LISTENER = 1 << 3  # linux 5.0
FLAG_TSYNC_ESRCH = 1 << 4  # linux 5.7: TSYNC may be used together with NEW_LISTENER
FLAG_WAIT_KILLABLE_RECV = 1 << 5  # linux 5.19: only a fatal signal ends a wait that the listener has seen

IOCTL_NOTIF_RECV = 0xC0502100
IOCTL_NOTIF_SEND = 0xC0182101
IOCTL_NOTIF_ID_VALID = 0x40082102

INSTRUCTION = 8  # bytes: struct sock_filter
MOST_INSTRUCTIONS = 4096  # BPF_MAXINSNS

_NOTIFICATION = struct.Struct("=QIIiIQ6Q")  # struct seccomp_notif, 80 bytes
_RESPONSE = struct.Struct("=QqiI")  # struct seccomp_notif_resp, 24 bytes


class Notification(Record):
    """A call that waits for our answer. Its arguments are the caller's words: pointers are never followed."""

    id: int
    pid: int  # the thread, as seen from the reader's pid namespace; 0 when it cannot be seen from there
    number: int
    arch: int  # AUDIT_ARCH_*
    ip: int
    args: tuple[int, ...]


def load(program: bytes, *, notify: bool = False) -> int | None:
    """Put every thread of this process, and all its descendants, under `program`, for good.

    With `notify`, returns the descriptor on which refused calls arrive; it closes on exec. Whoever holds it can let
    refused calls through, so it goes to another process and is closed here before any foreign code runs.
    Raises EACCES without no_new_privs, EBUSY where a listener is above us already, ESRCH when a thread cannot follow.
    """
    count, rest = divmod(len(program), INSTRUCTION)
    if rest or not 0 < count <= MOST_INSTRUCTIONS:
        raise OSError(errno.EINVAL, f"seccomp: {len(program)} bytes are no filter")
    instructions = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: a short, six bytes of padding, a pointer. Native alignment does the padding.
    fprog = ctypes.create_string_buffer(struct.pack("@HP", count, ctypes.addressof(instructions)))
    if not notify:
        # TSYNC without ESRCH would answer with a thread id; with it, zero is the only success.
        syscall("seccomp", SECCOMP_SET_MODE_FILTER, FLAG_TSYNC | FLAG_TSYNC_ESRCH, fprog)
        return None
    flags = FLAG_NEW_LISTENER | FLAG_TSYNC | FLAG_TSYNC_ESRCH
    try:
        return syscall("seccomp", SECCOMP_SET_MODE_FILTER, flags | FLAG_WAIT_KILLABLE_RECV, fprog)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    # Before 5.19 a signal restarts a waiting call, which then asks again: more notices, no weaker answer.
    return syscall("seccomp", SECCOMP_SET_MODE_FILTER, flags, fprog)


def sizes() -> tuple[int, int]:
    """How many bytes this kernel reads and writes for a notification and for a response."""
    buffer = ctypes.create_string_buffer(6)
    syscall("seccomp", SECCOMP_GET_NOTIF_SIZES, 0, buffer)
    notification, response, _data = struct.unpack("=HHH", buffer.raw)
    return max(notification, _NOTIFICATION.size), max(response, _RESPONSE.size)


_sizes: list[tuple[int, int]] = []


def _buffer(which: int) -> bytearray:
    if not _sizes:
        _sizes.append(sizes())
    # Zeroed: the kernel answers EINVAL to a buffer in which anything is set.
    return bytearray(_sizes[0][which])


def receive(listener: int) -> Notification:
    """Take the next waiting call. Never blocks.

    Raises ENOENT when nobody waits, for a caller may have died meanwhile: go on. Raises EPIPE when nobody is left under
    the filter: the request itself would then wait for good, and so would whoever made it.
    """
    waiting = select.poll()
    waiting.register(listener, select.POLLIN)
    found = sum(events for _, events in waiting.poll(0))
    if not found & select.POLLIN:
        number = errno.EPIPE if found else errno.ENOENT
        raise OSError(number, "seccomp: nobody waits for an answer")
    buffer = _buffer(0)
    ioctl(listener, IOCTL_NOTIF_RECV, buffer, True)
    id, pid, _flags, number, arch, ip, *args = _NOTIFICATION.unpack_from(buffer)
    return Notification(id, pid, number, arch, ip, tuple(args))


def respond(listener: int, id: int, error: int) -> None:
    """Let the waiting call fail with the errno `error`, a positive number.

    There is no way here to let it succeed or continue: what a filter refuses stays refused.
    Raises ENOENT when the caller has died meanwhile.
    """
    if error <= 0:
        raise ValueError("a refused call is answered with an errno")
    buffer = _buffer(1)
    _RESPONSE.pack_into(buffer, 0, id, 0, -error, 0)
    ioctl(listener, IOCTL_NOTIF_SEND, buffer, True)


def still_valid(listener: int, id: int) -> bool:
    """Whether the caller still waits. What was read about its pid before this says yes was really about it."""
    try:
        ioctl(listener, IOCTL_NOTIF_ID_VALID, struct.pack("=Q", id))
    except FileNotFoundError:
        return False
    return True
