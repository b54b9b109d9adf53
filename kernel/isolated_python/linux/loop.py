"""A file as a disk, for as long as somebody has mounted it. loop(4)"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

CONTROL = "/dev/loop-control"
LOOP_CTL_GET_FREE = 0x4C82  # linux 3.1
LOOP_CONFIGURE = 0x4C0A  # linux 5.8
LO_FLAGS_AUTOCLEAR = 4
LO_FLAGS_DIRECT_IO = 16  # a wish: where the file system below cannot, Linux does without
TRIES = 32  # others look for free ones, too


def attach(file: int) -> tuple[int, str]:
    """The disk that shows an open file: a descriptor, and its path. Raises OSError.

    It lets go of the file with the last who has it open or mounted, however that one ends. The file needs no name.
    """
    control = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(TRIES):
            path = f"/dev/loop{fcntl.ioctl(control, LOOP_CTL_GET_FREE)}"
            disk = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.ioctl(disk, LOOP_CONFIGURE, _configuration(file))
                return disk, path
            except OSError as error:
                os.close(disk)
                if error.errno != errno.EBUSY:
                    raise
        raise OSError(errno.EBUSY, "no loop device is free for long enough")
    finally:
        os.close(control)


def _configuration(file: int) -> bytes:
    """struct loop_config: the file, its block size (0: Linux decides), struct loop_info64, what is reserved.

    What passes by is in the memory of whoever writes to the disk already; it need not be in the machine's once more.
    """
    flags = LO_FLAGS_AUTOCLEAR | LO_FLAGS_DIRECT_IO
    info = struct.pack("=5Q4I160x2Q", 0, 0, 0, 0, 0, 0, 0, 0, flags, 0, 0)
    return struct.pack("=2I", file, 0) + info + bytes(64)
