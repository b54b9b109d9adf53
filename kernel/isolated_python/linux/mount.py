"""Mounts by descriptor: made detached, set up, and only then put in their place. mount_setattr(2), move_mount(2)"""

from __future__ import annotations

import ctypes
import os
import struct

from isolated_python.linux import libc

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT = 1, 2, 4, 8, 32
MS_BIND, MS_REC, MS_PRIVATE, MS_SLAVE = 4096, 16384, 1 << 18, 1 << 19
MNT_DETACH = 2

OPEN_TREE_CLONE = 1  # linux 5.2
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
MOVE_MOUNT_F_EMPTY_PATH = 4
FSOPEN_CLOEXEC = FSMOUNT_CLOEXEC = 1  # linux 5.2
FSCONFIG_SET_FLAG, FSCONFIG_SET_STRING, FSCONFIG_CMD_CREATE = 0, 1, 6

MOUNT_ATTR_RDONLY = 0x1  # linux 5.12
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_NOSYMFOLLOW = 0x200000
MOUNT_ATTR_IDMAP = 0x100000

AT_FDCWD = -100


def mount(source: str, target: str, kind: str, flags: int = 0, options: str = "") -> None:
    """mount(2). Raises OSError with the target in it."""
    try:
        libc.call("mount", source.encode(), target.encode(), kind.encode(), flags, options.encode())
    except OSError as error:
        raise OSError(error.errno, f"mounting {kind or 'bind'} on {target}: {os.strerror(error.errno or 0)}") from None


def make_private() -> None:
    """Let no mount event of this mount namespace reach another, or the other way round."""
    mount("none", "/", "", MS_REC | MS_PRIVATE)


def make_slave() -> None:
    """Hear of what the host mounts later, and let it hear nothing of ours. mount_namespaces(7)"""
    mount("none", "/", "", MS_REC | MS_SLAVE)


def clone_tree(descriptor: int, *, recursive: bool = False) -> int:
    """A detached copy of the mount beneath an open folder or file; closed with its descriptor if put nowhere.

    Without `recursive` what is mounted further below is left out. In a user namespace of one's own that is EINVAL where
    there is such a mount: who is not root may not see what lies under it. mount_namespaces(7)
    """
    flags = OPEN_TREE_CLONE | os.O_CLOEXEC | AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    return libc.syscall("open_tree", descriptor, b"", flags)


def new(kind: str, source: str, options: tuple[str, ...], attributes: int) -> int:
    """A file system that is mounted nowhere yet: detached, as from clone_tree. fsopen(2), fsmount(2)"""
    made = libc.syscall("fsopen", kind.encode(), FSOPEN_CLOEXEC)
    try:
        libc.syscall("fsconfig", made, FSCONFIG_SET_STRING, b"source", source.encode(), 0)
        for option in options:
            libc.syscall("fsconfig", made, FSCONFIG_SET_FLAG, option.encode(), None, 0)
        libc.syscall("fsconfig", made, FSCONFIG_CMD_CREATE, None, None, 0)
        return libc.syscall("fsmount", made, FSMOUNT_CLOEXEC, attributes)
    finally:
        os.close(made)


def set_attributes(mount_descriptor: int, attributes: int, *, recursive: bool = False, user_namespace: int = 0) -> None:
    """Add attributes to a mount; with MOUNT_ATTR_IDMAP, `user_namespace` says how ids are translated."""
    value = struct.pack("=QQQQ", attributes, 0, 0, user_namespace)
    buffer = ctypes.create_string_buffer(value, len(value))
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    libc.syscall("mount_setattr", mount_descriptor, b"", flags, buffer, len(value))


def place(mount_descriptor: int, target: str) -> None:
    """Put a detached mount over `target`."""
    try:
        libc.syscall("move_mount", mount_descriptor, b"", AT_FDCWD, target.encode(), MOVE_MOUNT_F_EMPTY_PATH)
    except OSError as error:
        raise OSError(error.errno, f"placing a mount on {target}: {os.strerror(error.errno or 0)}") from None


def pivot(new_root: str) -> None:
    """Make `new_root`, a mount, the root of this mount namespace, and let go of the old one. pivot_root(2)"""
    os.chdir(new_root)
    # Old root stacked on the new one at the same place: then detached. No folder for it is needed.
    libc.syscall("pivot_root", b".", b".")
    libc.call("umount2", b".", MNT_DETACH)
    os.chdir("/")


def detach(path: str) -> None:
    """Unmount `path`, now for paths and later for those who still use it."""
    libc.call("umount2", path.encode(), MNT_DETACH)
