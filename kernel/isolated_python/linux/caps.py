"""Capabilities, given up for good."""

from __future__ import annotations

import ctypes
import errno
import struct

from .libc import call, syscall

PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_CAP_AMBIENT = 47  # linux 4.3
PR_CAP_AMBIENT_CLEAR_ALL = 4

VERSION_3 = 0x20080522  # linux 2.6.26: two 32-bit words a set
SELF = 0
NUMBERS = 64  # the words of VERSION_3 have room for no more


def drop_all() -> None:
    """Empty all five sets: bounding, ambient, effective, permitted, inheritable. Nothing gives them back.

    The bounding set goes first, because that takes CAP_SETPCAP. Raises EPERM without it.
    """
    drop_bounding()
    call("prctl", PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    drop_sets()


def drop_bounding() -> None:
    """Make sure that no program executed from here on can be given a capability by its file.

    What is gone already needs no right to be dropped, so a second call always works.
    """
    for number in range(NUMBERS):
        try:
            held = call("prctl", PR_CAPBSET_READ, number, 0, 0, 0)
        except OSError as error:
            if error.errno == errno.EINVAL:
                return  # the kernel knows no capability from this number on
            raise
        if held:
            call("prctl", PR_CAPBSET_DROP, number, 0, 0, 0)


def drop_sets() -> None:
    """Empty the effective, permitted and inheritable sets of the calling thread. Needs no right."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", VERSION_3, SELF))
    syscall("capset", header, struct.pack("=6I", *([0] * 6)))


def held() -> int:
    """The effective, permitted and inheritable sets of the calling thread in one mask; 0 when it has nothing."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", VERSION_3, SELF))
    data = ctypes.create_string_buffer(24)
    syscall("capget", header, data)
    words: tuple[int, ...] = struct.unpack("=6I", data.raw[:24])
    return (words[0] | words[1] | words[2]) | (words[3] | words[4] | words[5]) << 32
