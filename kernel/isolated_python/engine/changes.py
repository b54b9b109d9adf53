"""
What a kernel has changed in a copy-on-write workspace, written to an archive when it has ended.

The changes lie in the kernel's own tmpfs, which nobody outside can see. So its mount namespace is held until a helper
has joined it: by then every process that could play tricks is dead, and a path inside leads to nothing outside.

The archive is a layer as container images know them: what is new or changed, and `.wh.NAME` for what is gone.
"""

from __future__ import annotations

import os
import signal
import stat
from typing import TYPE_CHECKING

from isolated_python.layers.files import CHANGES
from isolated_python.linux import mount, namespaces

if TYPE_CHECKING:
    import tarfile

MOST_SECONDS = 30  # for the archive of one kernel
MOST_ENTRIES = 100_000
GONE, OPAQUE = ".wh.", ".wh..wh..opq"  # github.com/opencontainers/image-spec, layer.md
MARK = "user.overlay.opaque"  # of a folder that was removed and made anew: nothing below shines through


class Changes:
    def __init__(self, archive: int, most: int) -> None:
        """`archive`: an open file; a copy of it is kept. `most`: bytes of all files together."""
        self._archive, self._most = os.dup(archive), most
        self._spaces: list[tuple[int, int]] = []

    def hold(self, pid: int) -> None:
        """Keep what process 1 of the sandbox sees, beyond its end. Raises OSError."""
        for name, kind in (("user", namespaces.CLONE_NEWUSER), ("mnt", namespaces.CLONE_NEWNS)):
            self._spaces.append((os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC), kind))

    def save(self) -> int:
        """Fork the helper, now that the kernel has ended; returns its pid. It exits with 0 when all is written."""
        pid = os.fork()
        if pid:
            return pid
        try:
            signal.signal(signal.SIGALRM, _too_long)
            signal.alarm(MOST_SECONDS)
            self._write()
            os._exit(0)
        except BaseException as error:
            os.ftruncate(self._archive, 0)  # a part of them is not what was changed
            os.write(2, f"the changes of a workspace could not be kept: {error}\n".encode())
        finally:
            os._exit(1)

    def _write(self) -> None:
        import tarfile  # before we see what the kernel saw

        for descriptor, kind in self._spaces:
            namespaces.enter(descriptor, kind)
        mount.detach("/tmp")  # the view of a part of it that CloseScratch has put over the whole
        os.chdir(CHANGES)
        if not os.listdir():
            return
        file = os.fdopen(self._archive, "wb")
        with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT, errors="surrogateescape") as archive:
            self._add(archive)
        file.flush()
        os.fsync(file.fileno())

    def _add(self, archive: tarfile.TarFile) -> None:
        """Every name in the changes, folders before what is in them."""
        left, entries, folders = self._most, 0, ["."]
        while folders:
            folder = folders.pop()
            for name in sorted(os.listdir(folder)):
                path = os.path.normpath(f"{folder}/{name}")
                about = os.lstat(path)
                if stat.S_ISDIR(about.st_mode):
                    folders.append(path)
                if stat.S_ISREG(about.st_mode):
                    left -= about.st_size
                entries += 1
                if left < 0 or entries > MOST_ENTRIES:  # a file with holes can be larger than what holds it
                    raise ValueError(f"they are more than {self._most >> 20} MiB or {MOST_ENTRIES} files")
                _add(archive, path, about)

    def close(self) -> None:
        for descriptor in (self._archive, *(descriptor for descriptor, _ in self._spaces)):
            os.close(descriptor)
        self._spaces.clear()


def _too_long(*_: object) -> None:
    raise TimeoutError(f"it takes longer than {MOST_SECONDS} s")


def _add(archive: tarfile.TarFile, path: str, about: os.stat_result) -> None:
    import tarfile

    entry = tarfile.TarInfo(path)
    entry.mode, entry.mtime = stat.S_IMODE(about.st_mode) & 0o777, int(about.st_mtime)
    if stat.S_ISREG(about.st_mode):
        entry.size = about.st_size
        with open(path, "rb") as file:
            archive.addfile(entry, file)
        return
    if stat.S_ISDIR(about.st_mode):
        entry.type = tarfile.DIRTYPE
        archive.addfile(entry)
        if MARK in os.listxattr(path):
            archive.addfile(tarfile.TarInfo(f"{path}/{OPAQUE}"))
    elif stat.S_ISLNK(about.st_mode):
        entry.type, entry.linkname = tarfile.SYMTYPE, os.readlink(path)
        archive.addfile(entry)
    elif stat.S_ISCHR(about.st_mode):  # an overlay's mark for what is not there any more
        folder, _, name = path.rpartition("/")
        archive.addfile(tarfile.TarInfo(f"{folder}/{GONE}{name}" if folder else f"{GONE}{name}"))
