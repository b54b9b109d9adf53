"""
A disk of one kernel's own, for what changes in its workspace: a file that has no name, as a file system.

Nothing of it can be left behind, whatever ends whom: Linux frees the loop device with the last mount of it, and the
file with the loop device.
"""

from __future__ import annotations

import os

from isolated_python.errors import LaunchError
from isolated_python.launcher.spawn import spawn
from isolated_python.linux import host, loop, mount

SAFE = mount.MOUNT_ATTR_NOSUID | mount.MOUNT_ATTR_NODEV
REMEDY = 'make room there, write a smaller files.size, or image = "off" under [files]'


class Image:
    def __init__(self, folder: str, size: int, uid: int) -> None:
        """`folder`: on the file system that will hold it; `uid`: whose it will be inside. Raises LaunchError."""
        self.size, self._uid = size, uid
        self._path = ""  # of its loop device
        self._disk = ""  # where Linux says which file the loop device shows
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            self._file = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
            self._name = os.readlink(f"/proc/self/fd/{self._file}")
        except OSError as error:
            raise LaunchError(f"no image can be made in {folder}: {error.strerror}", remedy=REMEDY) from error

    def format(self) -> int:
        """Begin to make a file system of it; returns the pid of who does. It takes a few ms. Raises OSError."""
        os.truncate(self._file, self.size)  # a hole: what is not written to takes no room
        # No journal, since nobody will ever want to know what it held; nothing is set aside for root.
        options = ["-q", "-F", "-b", "4096", "-m", "0", "-O", "^has_journal"]
        extended = f"lazy_itable_init=1,nodiscard,root_owner={self._uid}:{self._uid}"
        command = [host.formatter() or host.FORMATS[0], *options, "-E", extended, "/proc/self/fd/3"]
        return spawn(command, {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}, {3: self._file})

    def mount(self) -> int:
        """Mounted nowhere yet: a detached mount, the caller's to close. Raises LaunchError."""
        try:
            disk, path = loop.attach(self._file)
            self._disk = f"/sys/block/{os.path.basename(path)}/loop/backing_file"
            try:
                self._path = path
                return self.again()
            finally:
                os.close(disk)
        except OSError as error:
            raise LaunchError(f"an image cannot be mounted: {error.strerror}", remedy=REMEDY) from error

    def again(self) -> int:
        """Another mount of it, while there is one: before Linux 6.15 a detached mount has no copies. Raises OSError."""
        # Otherwise a thread of Linux's would write zeros to where there is a hole now.
        return mount.new("ext4", self._path, ("noinit_itable",), SAFE)

    @property
    def there(self) -> bool:
        """Whether anybody has it still."""
        try:
            with open(self._disk, encoding="utf-8", errors="surrogateescape") as file:
                return file.read().rstrip("\n") == self._name
        except OSError:
            return self._file >= 0

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
