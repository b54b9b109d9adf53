"""The mount of a workspace: detached, id-mapped where we have the right to, and handed over as a descriptor."""

from __future__ import annotations

import os
import signal

from isolated_python.errors import LaunchError
from isolated_python.linux import mount, namespaces, prctl
from isolated_python.linux.process import Person

SAFE = mount.MOUNT_ATTR_NOSUID | mount.MOUNT_ATTR_NODEV


def _here(folder: int) -> int:
    """The same folder in our mount namespace: a descriptor of the server's refers to a mount of the server's.

    The path is the kernel's own, without links; should somebody swap a part of it now, the inode tells.
    """
    path = os.readlink(f"/proc/self/fd/{folder}")
    wanted = os.fstat(folder)
    try:
        found = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise LaunchError(f"the folder {path!r} cannot be opened: {error.strerror}") from error
    if (os.fstat(found).st_dev, os.fstat(found).st_ino) != (wanted.st_dev, wanted.st_ino):
        os.close(found)
        raise LaunchError(f"the folder {path!r} was replaced while a kernel was being started in it")
    return found


class Translations:
    """Maps of owners, each held by a user namespace that nobody lives in. To make one takes a fork. mount_setattr(2)

    People's folders mostly belong to one owner: so a map for the next uid can be made before anybody waits for it.
    """

    def __init__(self) -> None:
        self._ready: dict[tuple[int, int, int], int] = {}  # owner, group, uid → descriptor
        self._latest: tuple[int, int] | None = None  # owner and group of the folder that was mounted last

    def take(self, owner: int, group: int, uid: int) -> int:
        """A descriptor, the caller's to close: what owner and group own belongs to `uid`. Raises LaunchError."""
        self._latest = (owner, group)
        ready = self._ready.pop((owner, group, uid), None)
        return ready if ready is not None else _translation((owner, uid, 1), (group, uid, 1))

    def prepare(self, uid: int) -> None:
        """Have one at hand for a kernel that will run as `uid`, for the latest owner."""
        if self._latest is not None and (*self._latest, uid) not in self._ready:
            owner, group = self._latest
            self._ready[owner, group, uid] = _translation((owner, uid, 1), (group, uid, 1))

    def forget(self, uid: int) -> None:
        for key in [key for key in self._ready if key[2] == uid]:
            os.close(self._ready.pop(key))


def detached(
    folder: int, *, writable: bool, uid: int | None, run: bool = True, translations: Translations | None = None,
    person: Person | None = None,
) -> int:  # fmt: skip
    """A mount of the open `folder`. With `uid`, what the folder's owner owns on disk belongs to `uid` in the mount.

    With `person`, what that one owns belongs to it instead, whoever owns the folder.

    `run`: whether what lies there may be executed.
    An ordinary user may not leave out what is mounted below the folder; where owners are translated it is left out,
    since another file system may be unable to translate. Raises LaunchError where this one is.
    """
    here = _here(folder)
    try:
        tree = mount.clone_tree(here, recursive=uid is None)
    finally:
        os.close(here)
    try:
        # What its giver may not do there, because their mount says so, the kernel may not do either.
        flags = os.fstatvfs(folder).f_flag
        writable, run = writable and not flags & os.ST_RDONLY, run and not flags & os.ST_NOEXEC
        refused = (0 if writable else mount.MOUNT_ATTR_RDONLY) | (0 if run else mount.MOUNT_ATTR_NOEXEC)
        mount.set_attributes(tree, SAFE | refused, recursive=uid is None)
        if uid is not None:
            owner = os.fstat(folder)
            whose = (person.uid, person.gid) if person else (owner.st_uid, owner.st_gid)
            translation = (translations or Translations()).take(*whose, uid)
            try:
                mount.set_attributes(tree, mount.MOUNT_ATTR_IDMAP, user_namespace=translation)
            except OSError as error:
                raise LaunchError(
                    f"the workspace's file system cannot translate owners ({error.strerror})",
                    remedy='move it to a local file system or write workspace = "none" in the profile',
                ) from error
            finally:
                os.close(translation)
    except BaseException:
        os.close(tree)
        raise
    return tree


def _translation(uids: tuple[int, int, int], gids: tuple[int, int, int]) -> int:
    """A user namespace that nobody lives in: all that is wanted of it is its map. mount_setattr(2)"""
    wait_here, wait_there = os.pipe2(os.O_CLOEXEC)
    ours = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            namespaces.unshare(namespaces.CLONE_NEWUSER)
            # It holds all that we hold: where we are killed, it must not outlive us.
            prctl.set_parent_death_signal(signal.SIGKILL)
            if os.getppid() == ours:
                os.write(wait_there, b"x")
                signal.pause()
        finally:
            os._exit(1)
    try:
        os.close(wait_there)
        if os.read(wait_here, 1) != b"x":
            raise LaunchError("a user namespace for the workspace could not be made")
        namespaces.map_ids(pid, [uids], [gids])
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(wait_here)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
