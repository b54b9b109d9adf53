"""
What a kernel has changed in a copy-on-write workspace, written to an archive when it has ended.

Where the changes lie in an image of ours, they are read there: whoever holds other mounts of it still, a helper whose
root is the image can be led to nothing else. What lies in the kernel's own tmpfs nobody outside can see; so its mount
namespace is held until a helper has joined it: by then every process that could play tricks is dead.

The archive is a layer as container images know them: what is new or changed, and `.wh.NAME` for what is gone.
"""

from __future__ import annotations

import itertools
import os
import signal
import stat
from typing import TYPE_CHECKING

from isolated_python.errors import LaunchError
from isolated_python.layers.files import CHANGED, CHANGES
from isolated_python.linux import mount, namespaces
from isolated_python.linux.process import Person

if TYPE_CHECKING:
    import tarfile

MOST_SECONDS = 30  # for the archive of one kernel, and one more for each
A_SECOND = 32 << 20  # bytes that there may be
MOST_ENTRIES = 100_000
GONE, OPAQUE = ".wh.", ".wh..wh..opq"  # github.com/opencontainers/image-spec, layer.md
MARK = "user.overlay.opaque"  # of a folder that was removed and made anew: nothing below shines through


class Changes:
    def __init__(self, archive: int, most: int, person: Person | None = None) -> None:
        """`archive`: an open file; a copy of it is kept. `most`: bytes of all files together.

        `person`: who gave the archive, and with whose rights it is written; None: ourselves.
        """
        self._archive, self._most, self._person = os.dup(archive), most, person
        self._spaces: list[tuple[int, int]] = []
        self._image = -1

    def lie_in(self, image: int) -> None:
        """They lie in this detached mount, ours from here on: what others put over a mount of theirs is not in it."""
        self._image = image

    def hold(self, pid: int) -> None:
        """Keep what process 1 of the sandbox sees, beyond its end. Raises OSError, LaunchError."""
        if self._image >= 0:
            return
        if self._person is not None:
            # Their own zygote may have made those namespaces, with folders of root's where changes are looked for.
            raise LaunchError("what changes in the workspace of another person's kernel is kept in an image alone")
        for name, kind in (("user", namespaces.CLONE_NEWUSER), ("mnt", namespaces.CLONE_NEWNS)):
            self._spaces.append((os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC), kind))

    def save(self) -> int:
        """Fork the helper, now that the kernel has ended; returns its pid. It exits with 0 when all is written."""
        pid = os.fork()
        if pid:
            return pid
        scribe = 0
        try:
            signal.signal(signal.SIGALRM, _too_long)
            signal.alarm(MOST_SECONDS + self._most // A_SECOND)
            archive = self._archive
            if self._person is not None:
                scribe, archive = _scribe(self._archive, self._person)
            self._write(archive)
            if scribe and os.waitpid(scribe, 0)[1] != 0:
                raise OSError("whoever writes them for their owner could not")
            os._exit(0)
        except BaseException as error:
            if scribe:
                os.kill(scribe, signal.SIGKILL)
                os.waitpid(scribe, 0)
            os.ftruncate(self._archive, 0)  # a part of them is not what was changed
            os.write(2, f"the changes of a workspace could not be kept: {error}\n".encode())
        finally:
            os._exit(1)

    def _write(self, to: int) -> None:
        import tarfile  # before we see what the kernel saw

        self._enter()
        file = os.fdopen(to, "wb")
        if os.listdir():
            with tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT, errors="surrogateescape") as archive:
                self._add(archive)
        file.close()

    def _enter(self) -> None:
        """From here on, no path leads anywhere but to what the kernel has written."""
        if self._image >= 0:
            os.fchdir(self._image)
            os.chroot(".")
            os.chdir(CHANGED)
            return
        for descriptor, kind in self._spaces:
            namespaces.enter(descriptor, kind)
        mount.detach("/tmp")  # the view of a part of it that CloseScratch has put over the whole
        os.chdir(CHANGES)

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
        for descriptor in (self._archive, self._image, *(descriptor for descriptor, _ in self._spaces)):
            if descriptor >= 0:
                os.close(descriptor)
        self._archive = self._image = -1
        self._spaces.clear()


def _too_long(*_: object) -> None:
    raise TimeoutError("it takes too long")


def _scribe(archive: int, person: Person) -> tuple[int, int]:
    """Fork who writes to `archive` with the rights and the disk quota of `person`: its pid, and where to write to."""
    read, write = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid:
        os.close(read)
        return pid, write
    try:
        signal.alarm(0)
        for before, after in itertools.pairwise((-1, *sorted((2, read, archive)), 1 << 20)):
            os.closerange(before + 1, after)  # nothing of ours may be in a process of theirs
        os.setgroups([])
        os.setresgid(person.gid, person.gid, person.gid)
        os.setresuid(person.uid, person.uid, person.uid)
        while data := os.read(read, 1 << 20):
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(archive, rest) :]
        os.fsync(archive)
        os._exit(0)
    finally:
        os._exit(1)


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
