"""The mount of a workspace: detached, id-mapped where we have the right to, and handed over as a descriptor."""

from __future__ import annotations

import os
import signal

from isolated_python.errors import LaunchError
from isolated_python.linux import mount, namespaces

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


def detached(folder: int, *, writable: bool, uid: int | None, run: bool = True) -> int:
    """A mount of the open `folder`. With `uid`, what the folder's owner owns on disk belongs to `uid` in the mount.

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
        refused = (0 if writable else mount.MOUNT_ATTR_RDONLY) | (0 if run else mount.MOUNT_ATTR_NOEXEC)
        mount.set_attributes(tree, SAFE | refused, recursive=uid is None)
        if uid is not None:
            owner = os.fstat(folder)
            translation = _translation((owner.st_uid, uid, 1), (owner.st_gid, uid, 1))
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
    pid = os.fork()
    if pid == 0:
        try:
            namespaces.unshare(namespaces.CLONE_NEWUSER)
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
