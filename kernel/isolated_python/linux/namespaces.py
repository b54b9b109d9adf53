"""Namespaces: leave the old ones, join others, and say who is who in a new user namespace."""

from __future__ import annotations

import os

from isolated_python.linux import libc

CLONE_NEWTIME = 0x00000080  # linux 5.6
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000  # linux 4.6
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

# The name of each layer that is a namespace, and its flag.
FLAGS = {
    "user": CLONE_NEWUSER,
    "mount": CLONE_NEWNS,
    "pid": CLONE_NEWPID,
    "net": CLONE_NEWNET,
    "ipc": CLONE_NEWIPC,
    "uts": CLONE_NEWUTS,
    "cgroup_namespace": CLONE_NEWCGROUP,
    "time": CLONE_NEWTIME,
}


def unshare(flags: int) -> None:
    """Leave the namespaces named by `flags` for new ones. unshare(2)"""
    libc.call("unshare", flags)


def join(pidfd: int, flags: int) -> None:
    """Move into the namespaces, named by `flags`, of the process that an open pidfd stands for. setns(2), linux 5.8"""
    libc.call("setns", pidfd, flags)


def enter(descriptor: int, flag: int) -> None:
    """Move into the namespace of the kind `flag` that an open file of /proc/PID/ns stands for. setns(2)"""
    libc.call("setns", descriptor, flag)


def set_hostname(name: str) -> None:
    """Name this machine, in its uts namespace. sethostname(2)"""
    encoded = name.encode()
    libc.call("sethostname", encoded, len(encoded))


def map_ids(pid: int | str, uids: list[tuple[int, int, int]], gids: list[tuple[int, int, int]]) -> None:
    """Say whom the ids in the user namespace of `pid` stand for: (inside, outside, count) each.

    setgroups(2) is denied first: without that, an unprivileged writer may not write the gid map,
    and a group that takes rights away could be dropped. user_namespaces(7)
    """
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", _lines(uids)),
        ("gid_map", _lines(gids)),
    ):
        write(f"/proc/{pid}/{name}", text)


def _lines(ids: list[tuple[int, int, int]]) -> str:
    return "".join(f"{inside} {outside} {count}\n" for inside, outside, count in ids)


def write(path: str, text: str) -> None:
    """Write a file of the kernel's in one write(2): it takes all or nothing, and its errno is not lost in a buffer."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    except OSError as error:
        raise OSError(error.errno, f"writing {text.strip()!r} to {path}: {error.strerror}") from None
    finally:
        os.close(descriptor)
