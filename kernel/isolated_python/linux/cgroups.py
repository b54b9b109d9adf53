"""
Where a process stands in the cgroup hierarchies, and which of them it may use.

Source: cgroups(7), Documentation/admin-guide/cgroup-v2.rst, /proc/self/mountinfo in proc(5).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from isolated_python.linux import container
from isolated_python.record import Record, replace

V1_CONTROLLERS = ("memory", "pids", "cpu", "cpuacct", "freezer")
V2_CONTROLLERS = frozenset(("memory", "pids", "cpu"))

# Into this child the processes of a v2 group move: only a group without processes hands controllers down.
LEAF = "isolated-python-leaf"

# What systemd hands down to people's own managers. systemd.resource-control(5)
DROP_IN = "/etc/systemd/system/user@.service.d/delegate.conf"

OPT_OUT = 'write cgroup = "prefer" under [layers] in the profile'


class Own(Record):
    """The folder of a process's own group, in each hierarchy that is mounted here."""

    v1: tuple[tuple[str, str], ...] = ()  # controller, folder
    v2: str = ""  # folder; empty where v2 is not mounted
    v2_top: str = ""  # the mount point above it


class Found(Record):
    """Which version can be used, and in which folders; where none can, why not and what a person can do."""

    version: str  # "v1", "v2" or "none"
    folders: tuple[tuple[str, str], ...] = ()  # v1: (controller, folder) each; v2: ("", folder)
    cause: str = ""
    remedy: str = ""


def own(pid: int | str = "self") -> Own:
    """Where `pid` stands. Raises OSError where there is no /proc or no such process."""
    return parse(_text(f"/proc/{pid}/cgroup"), _text("/proc/self/mountinfo"))


def parse(groups: str, mountinfo: str) -> Own:
    """The folders behind /proc/PID/cgroup, by the mounts of mountinfo. A group outside of a mount has none."""
    mounts = list(_mounts(mountinfo))
    v1: list[tuple[str, str]] = []
    v2, v2_top = "", ""
    for line in groups.splitlines():
        number, names, path = line.split(":", 2)
        if number == "0":
            for kind, root, point, _options in mounts:
                if kind == "cgroup2" and not v2:
                    v2, v2_top = _below(path, root, point), point
            continue
        for name in names.split(","):
            found = (
                _below(path, root, point) for kind, root, point, opts in mounts if kind == "cgroup" and name in opts
            )
            folder = next(filter(None, found), "")
            if name in V1_CONTROLLERS and folder:
                v1.append((name, folder))
    return Own(tuple(v1), v2, v2_top if v2 else "")


def find(own: Own, *, root: bool) -> Found:
    """v2 where memory, pids and cpu can be handed down by our group or one above it; else v1 for root; else none."""
    found = _find(own, root)
    if found.version == "none":
        return replace(found, remedy=container.repair(container.CGROUP, found.remedy))
    return found


def _find(own: Own, root: bool) -> Found:
    causes = []
    for place, folder in enumerate(_above(own)):
        cause = _refuses_v2(folder, ours=place == 0)
        if not cause:
            return Found("v2", (("", folder),))
        causes.append(cause)
        if not root and not os.access(folder, os.W_OK):
            break
    v1 = dict(own.v1)
    missing = [name for name in V1_CONTROLLERS if name not in v1]
    if not missing and root:
        if all(os.access(folder, os.W_OK) for folder in v1.values()):
            return Found("v1", own.v1)
        return Found(
            "none", cause="the cgroup v1 folders are mounted read-only", remedy=f"mount them writable, or {OPT_OUT}"
        )
    if not missing:
        return Found(
            "none",
            cause="the controllers are on cgroup v1, which only the machine's root may divide",
            remedy="let root start `jupyter isolated service`, or boot with systemd.unified_cgroup_hierarchy=1, "
            f"or {OPT_OUT}",
        )
    if not causes:
        return Found(
            "none",
            cause=f"no cgroup v2 is mounted, and no v1 with {', '.join(missing)}",
            remedy=f"mount -t cgroup2 none /sys/fs/cgroup, or {OPT_OUT}",
        )
    if root:
        remedy = "run the server as a systemd service with Delegate=yes"
    elif os.access(own.v2, os.W_OK):  # delegated, but without them: systemd before 244, or an administrator's choice
        remedy = f"let root write Delegate=cpu memory pids below [Service] in {DROP_IN} and restart the machine"
    else:
        remedy = "run the server under systemd-run --user --scope -p Delegate=yes"
    return Found("none", cause=causes[0], remedy=f"{remedy}, or {OPT_OUT}")


def _above(own: Own) -> Iterator[str]:
    """Our own v2 group and those above it, ours first. A leaf that a colleague of ours made is passed over."""
    folder = own.v2
    if os.path.basename(folder) == LEAF:
        folder = os.path.dirname(folder)
    while folder:
        yield folder
        if folder == own.v2_top or len(folder) <= len(own.v2_top):
            return
        folder = os.path.dirname(folder)


def _refuses_v2(folder: str, *, ours: bool) -> str:
    """Why this v2 group cannot hold our groups; empty when it can."""
    lacking = V2_CONTROLLERS - set(_words(f"{folder}/cgroup.controllers"))
    if lacking:
        return f"the cgroup {folder} is not handed {', '.join(sorted(lacking))}"
    for name in ("", "/cgroup.procs", "/cgroup.subtree_control"):
        if not os.access(folder + name, os.W_OK):
            return f"the cgroup {folder} is not delegated to uid {os.geteuid()}"
    # Only the top of the host has no cgroup.type, and only there may processes and child groups with controllers meet.
    # The processes of our own group can move into a leaf; those of a group above are not ours to move.
    top = not os.path.exists(f"{folder}/cgroup.type")
    if not ours and not top and _words(f"{folder}/cgroup.procs"):
        return f"the cgroup {folder} has processes of its own"
    return ""


def _mounts(mountinfo: str) -> Iterator[tuple[str, str, str, list[str]]]:
    """Type, root, mount point and superblock options of each mount."""
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        words, kinds = left.split(), right.split()
        yield kinds[0], _plain(words[3]), _plain(words[4]), kinds[-1].split(",")


def _plain(path: str) -> str:
    """mountinfo writes space, tab, newline and backslash as three octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path)


def _below(path: str, root: str, point: str) -> str:
    """The folder of group `path` under a mount at `point` that shows `root`; empty when it lies outside of it."""
    if root == "/":
        rest = path
    elif path == root or path.startswith(root + "/"):
        rest = path[len(root) :]
    else:
        return ""
    if rest.startswith("/.."):  # our group lies above the root of our cgroup namespace
        return ""
    return (point + rest).rstrip("/") or "/"


def _words(path: str) -> list[str]:
    try:
        return _text(path).split()
    except OSError:
        return []


def _text(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()
