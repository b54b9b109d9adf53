"""Being told that something in a folder has changed. inotify(7)"""

from __future__ import annotations

import os
import select

from .libc import call

MODIFY = 0x00000002
MOVED_TO = 0x00000080
CREATE = 0x00000100


class Watch:
    """The folder is watched from when this is made: whoever looks at it afterwards misses nothing."""

    def __init__(self, folder: str) -> None:
        self._descriptor = call("inotify_init1", os.O_CLOEXEC)
        call("inotify_add_watch", self._descriptor, os.fsencode(folder), MODIFY | MOVED_TO | CREATE)

    def wait(self) -> None:
        """Return when something has changed since the last time, be it once or often.

        A signal that comes just before a system call that waits does not end it, and Python runs no handler while it
        does: so no wait is longer than a second, or a Ctrl-C would be lost now and then.
        """
        while not select.select([self._descriptor], [], [], 1.0)[0]:
            continue
        os.read(self._descriptor, 1 << 16)

    def close(self) -> None:
        os.close(self._descriptor)
